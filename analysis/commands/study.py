"""The command `audiolens study`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    Assigned,
    Batch,
    Engine,
    Force,
    GpusPerWorker,
    Json,
    Log,
    ModelOptions,
    RayAddress,
    Workers,
    command_line,
    completed,
    given_once,
    is_prompt_file,
    logging_to,
    open_lens,
    opens_model,
    own_prompts,
    say,
    say_json,
    stop,
    typed,
    with_stated,
)
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens.prompts import PromptSet

_OPTIONS = {"n_jobs": "jobs", "batch_size": "batch"}
"""The settings whose option has another name."""


@opens_model
def study(
    context: typer.Context,
    concept: Annotated[
        str | None,
        typer.Argument(
            help="tempo, timbre, density or register (others need --measure), or a .csv, .json or .toml file."
        ),
    ] = None,
    model: ModelOptions = ETUDE,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write [default: study-CONCEPT; studies for several].")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Run more controls on more prompts; takes hours.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run a small study (two to six minutes); the default.")
    ] = False,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="Use the paper's protocol: reading at the text's end, one-to-all, both branches, ±1.25."
        ),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also scan every block, to see what the evidence missed.")
    ] = False,
    concepts: Annotated[
        str | None, typer.Option(help="Study several concepts, such as tempo,timbre, and their cross-effects.")
    ] = None,
    positive: Annotated[Path | None, typer.Option(help="A text file of your own prompts, one per line.")] = None,
    negative: Annotated[Path | None, typer.Option(help="A text file of prompts for the other pole.")] = None,
    words: Annotated[
        str | None, typer.Option(help="Words that ask for the poles, such as fast,slow [default: the poles' names].")
    ] = None,
    measured: Annotated[
        str | None, typer.Option("--measure", help="Measure of the concept, such as brightness.")
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(help="Clips for reading the poles: shared (of neutral prompts) or own (of each prompt)."),
    ] = None,
    others: Annotated[
        str | None,
        typer.Option(
            help="Other concepts or prompt files whose directions are controls, or none [default: bundled concepts "
            "with another measure]."
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of each clip [default: 5].")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed, 0 to 99; each seed gives an independent repetition [default: 0].")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A study.toml, as every study writes it; its concept, model and settings are taken again."),
    ] = None,
    assigned: Assigned = None,
    log: Log = None,
    figures: Annotated[
        str | None, typer.Option(help="Kinds of files in which figures are written besides SVG: pdf, png or pdf,png.")
    ] = None,
    batch: Batch = "auto",
    engine: Engine = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes that generate and measure clips; results do not depend on it [default: one per core]."
        ),
    ] = None,
    ray: RayAddress = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run the whole experiment, from a concept to the effect of steering along its direction, and write a results page.

    Directions are read at every block and compared. The place where a direction is added is chosen from evidence. The
    strength is chosen on development prompts and tested on test prompts. The effect is compared with the effects of
    control directions and of prompts that ask for the concept. Finished stages stay in the folder. If the study is
    interrupted, repeating the command resumes it.

    Examples:

        audiolens study tempo

        audiolens study --concepts tempo,timbre --out runs

        audiolens study --positive plucked.txt --negative bowed.txt --measure onset_rate

        audiolens study tempo --full --verify --model facebook/musicgen-small

        audiolens study tempo --paper --model facebook/musicgen-melody

        audiolens study --config study-tempo/study.toml --set seed=1 -o study-tempo-1
    """
    from analysis.study import config as configs
    from analysis.study import stages

    given = typed(context)
    stated = configs.Config() if config is None else configs.read(config)
    if concept is concepts is positive is negative is None:
        concept = stated.concept
    model = with_stated(model, given, stated.model, stated.revision)
    others = stated.others if others is None else others
    chosen = {**stated.settings, **given_once(configs.assigned(assigned or ()), given, _OPTIONS)}
    if chosen:
        from analysis.study.settings import Settings

        # A wrong value is refused before a model is opened.
        Settings(**chosen)

    sizes = [name for name, wanted in (("--full", full), ("--quick", quick), ("--paper", paper)) if wanted]
    if len(sizes) > 1:
        raise InputError(f"{' and '.join(sizes)} exclude each other: give only one.")
    if sizes and config is not None:
        raise InputError(
            f"{sizes[0]} and --config exclude each other: the file states the sizes. Change them with --set."
        )
    asked = _asked(concept, concepts, positive, negative)
    if concepts is not None and measured is not None:
        raise InputError("--measure and --concepts were both given, but each concept has its own measure: give one.")
    options = {"seconds": seconds, "seed": seed, "measured": measured, "codes": codes, "n_jobs": jobs}
    changes: dict[str, Any] = {**chosen, **{name: value for name, value in options.items() if value is not None}}
    early.check_study(changes.get("seconds", 5.0), changes.get("seed", 0))
    early.check_choice("codes", codes, early.CODES)
    early.check_jobs(changes.get("n_jobs"))
    kinds = () if figures is None else early.checked_figures(figures)
    cluster = early.checked_ray(ray, workers, gpus_per_worker, changes.get("n_jobs"))
    rows = early.check_batch_size(batch)
    if verify:
        changes["verify"] = True
    if "engine" in given:
        changes["engine"] = engine
    if "batch" in given:
        changes.pop("batch_size", None)
    if rows is not None:
        changes["batch_size"] = rows
    measured = changes.get("measured")
    target = out or Path("studies" if len(asked) > 1 else f"study-{_name(asked[0])}")
    own_words, compared = _words(words), _others(others)
    named = [_given(one, words, measured) for one in asked]
    for one in asked:
        stages.check(target / one if len(asked) > 1 else target, overwrite=force)
    logs = early.checked_logs(log)
    early.check_model(model)
    from analysis import study as studies
    from analysis.workers import share_cores

    lens = open_lens(model)
    sets = [one if isinstance(one, str) else completed(one, lens, own_words) for one in named]
    if paper:
        settings = studies.Settings.paper(lens, **changes)
    else:
        settings = studies.Settings.full(**changes) if full else studies.Settings(**changes)
    share_cores(lens)
    options: dict[str, Any] = {
        "settings": settings, "others": compared, "overwrite": force, "progress": not as_json and sys.stderr.isatty(),
        "tell": lambda line: say(line, err=True), "command": command_line(), "ray": cluster,
        "figures": kinds,
    }  # fmt: skip
    try:
        with logging_to(logs) as on_rows:
            if len(sets) > 1:
                from analysis.study import study_set

                found: Any = study_set.run(lens, sets, target, on_rows=on_rows, **options)
            else:
                found = studies.run(lens, sets[0], target, on_rows=on_rows, **options)
    except KeyboardInterrupt:
        stop(f"finished stages are kept in {target}")
    if as_json:
        say_json(target / "summary.json")
        return
    sound = "" if len(sets) > 1 else f"; the clips are in {target / 'audio'}"
    say(f"\n{found.finding}\n{found.qualification}\n\n{target / 'index.html'} shows it{sound}.")


def _asked(concept: str | None, concepts: str | None, positive: Path | None, negative: Path | None) -> list[Any]:
    """Return what to study, as concept names, a prompt file, or a pair of files with one pole each."""
    ways = [given for given in (concept, concepts, positive or negative) if given is not None]
    if len(ways) != 1:
        raise InputError(
            "name what to study: a concept (audiolens study tempo), several (--concepts tempo,timbre), or two files of "
            "prompts (--positive FILE --negative FILE)."
        )
    if concept is not None:
        return [concept]
    if concepts is not None:
        names = [name.strip() for name in concepts.split(",") if name.strip()]
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(f"--concepts {concepts}: expected two or more different concepts, such as tempo,timbre.")
        if any(is_prompt_file(name) for name in names):
            raise InputError(
                f"--concepts {concepts}: expected bundled concepts. A file of prompts needs a measure, so study it "
                "separately: audiolens study FILE --measure NAME."
            )
        return names
    if positive is None or negative is None:
        raise InputError("--positive and --negative go together: a contrast needs both poles.")
    return [(positive, negative)]


def _name(asked: Any) -> str:
    if isinstance(asked, tuple):
        return "-".join(path.stem for path in asked)
    return Path(asked).stem if is_prompt_file(asked) else str(asked)


def _given(asked: Any, words: str | None, measured: str | None) -> PromptSet | str:
    """Return the prompts in the user's files, or the name of a known concept. Raise if neither can be studied."""
    from analysis.sweep.concept_measures import measure_of, refuse_too_few, refuse_unknown

    if isinstance(asked, str) and not is_prompt_file(asked):
        if words is not None:
            raise InputError("--words applies only to your own prompts: leave it out for a bundled concept.")
        refuse_unknown(asked, measured)
        measure_of(asked, measured)
        return asked
    own = own_prompts(*asked, concept=_name(asked)) if isinstance(asked, tuple) else own_prompts(asked)
    try:
        refuse_too_few(own)
        measure_of(own.concept, measured)
    except InputError as error:
        raise InputError(f"{' and '.join(map(str, asked)) if isinstance(asked, tuple) else asked}: {error}") from None
    return own


def _others(given: str | None) -> list[PromptSet | str] | None:
    """Return the other concepts: names of bundled ones, and prompts from files."""
    from audiolens.errors import nearest
    from audiolens.prompts import concepts

    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names == ["none"]:
        return []
    bundled = concepts(None)
    unknown = [name for name in names if not is_prompt_file(name) and name not in bundled]
    if unknown or not names:
        name = unknown[0] if unknown else given
        raise InputError(
            f"--others {given}: no concept {name!r}.{nearest(name, bundled)} Known: {', '.join(bundled)}; or "
            "prompt files; or none."
        )
    return [own_prompts(name) if is_prompt_file(name) else name for name in names]


def _words(words: str | None) -> tuple[str, str] | None:
    if words is None:
        return None
    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0].lower() == parts[1].lower():
        raise InputError(f"--words {words}: expected two different words, the positive pole's first, as in fast,slow.")
    return parts[0], parts[1]
