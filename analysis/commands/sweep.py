"""The command `audiolens sweep`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    Assigned,
    Batch,
    Engine,
    GpusPerWorker,
    Json,
    Log,
    ModelOptions,
    RayAddress,
    Workers,
    cell,
    given_once,
    logging_to,
    open_lens,
    opens_model,
    own_prompts,
    print_table,
    say,
    stop,
    to_json,
    typed,
    with_stated,
    words_unread,
)
from analysis.commands.sizes import Sizes
from audiolens.checks import MOST_INDICES, bounded, checked_count, shown
from audiolens.errors import InputError
from audiolens.files.atomic import as_path

if TYPE_CHECKING:
    from analysis.sweep.config import Settings
    from analysis.sweep.result import SweepResult
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

_OPTIONS = {
    "strategies": "strategy", "branches": "branch", "n_random": "controls", "n_shuffled": "shuffled",
    "guidance_scale": "guidance", "batch_size": "batch", "n_jobs": "jobs",
}  # fmt: skip
"""The settings whose option has another name."""


@opens_model
def sweep(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the table; the same command resumes an interrupted sweep.")
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Concepts (tempo, timbre, ...), .csv, .json or .toml files of prompts, or .safetensors files that "
            "`audiolens directions` wrote.",
            show_default=False,
        ),
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="FROM:TO:COUNT, or a list such as -1,-0.5,0.5,1; 0 is the unsteered baseline.")
    ] = "-1:1:5",
    strategy: Annotated[
        str,
        typer.Option(help="one-to-one, one-to-all, one-to-band, all-to-all (several with commas), or heads alone."),
    ] = "one-to-one",
    heads: Annotated[
        int | None, typer.Option(help="Number of attention heads for --strategy heads, the best by their probes.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Blocks such as 2,4,6-9, or all; not for all-to-all and heads.")] = "all",
    band: Annotated[str | None, typer.Option(help="Blocks for one-to-band, such as 4-8.")] = None,
    branch: Annotated[
        str, typer.Option(help="Guidance branches to steer: both, cond or null; separate several with commas.")
    ] = "both",
    split: Annotated[
        str,
        typer.Option(help="Neutral prompts: development (to choose settings) or test (to report results)."),
    ] = "development",
    prompts: Annotated[int, typer.Option(help="Number of neutral prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Number of seeds per prompt.")] = 2,
    controls: Annotated[
        int, typer.Option(help="Number of random directions per place, as controls; with 19, p can reach .05.")
    ] = 5,
    shuffled: Annotated[
        int, typer.Option(help="Number of balanced shuffles as controls; not for .safetensors files.")
    ] = 0,
    others: Annotated[
        str | None,
        typer.Option(
            help="Other concepts, or files, whose directions are controls, with commas between them [default: none]."
        ),
    ] = None,
    control_strengths: Annotated[
        str | None, typer.Option(help="Strengths at which controls are run [default: all].")
    ] = None,
    opposed: Annotated[
        bool, typer.Option("--opposed", help="Also steer while the prompt asks for the other pole.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 means no guidance.")] = 3.0,
    batch: Batch = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes that generate and measure clips; results do not depend on it [default: one per core]."
        ),
    ] = None,
    ray: RayAddress = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    engine: Engine = "auto",
    sound: Annotated[str | None, typer.Option(help="Save every clip, as wav or flac.")] = None,
    poles: Annotated[int, typer.Option(help="Number of prompts per pole from which directions are read.")] = 48,
    codes: Annotated[
        str | None,
        typer.Option(
            help="Clips for reading the poles: shared (of neutral prompts) or own (of each prompt) [default: shared; "
            "own for heads]."
        ),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option("--measure", help="Measure of the effects [default: the concept's own measure, else tempo]."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A sweep.toml, as every sweep writes it: its concepts, model and settings are taken again, except "
            "for those that are given."
        ),
    ] = None,
    assigned: Assigned = None,
    log: Log = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be done and how long it would take, then stop.")
    ] = False,
    model: ModelOptions = ETUDE,
    as_json: Json = False,
) -> None:
    """Steer in every combination of the factors and measure every clip, with one table row per clip.

    The sweep crosses concepts x strategies x layers x branches x strengths on the same prompts and seeds. It adds
    unsteered clips, control directions, and prompts that ask for the poles in words. Finished batches are kept. If the
    sweep is interrupted, repeating the command resumes it and gives the same table.

    Examples:

        audiolens sweep tempo --strengths -1:1:9 --layers 4 -o runs/tempo

        audiolens sweep tempo --layers all --strategy one-to-one,one-to-all --strengths=-0.25,0.25 -o runs/layers --plan

        audiolens sweep tempo timbre --layers 4,6-7 --controls 19 --control-strengths=-1,1 -o runs/both

        audiolens sweep my-prompts.csv --measure brightness -o runs/mine

        audiolens sweep tempo --controls 19 --ray auto --workers 8 --gpus-per-worker 1 -o runs/many

        audiolens sweep --config runs/tempo/sweep.toml --set seeds=4 -o runs/more
    """
    from analysis.store.settings_file import NONE
    from analysis.sweep import config as configs
    from analysis.sweep import ledger

    given = typed(context)
    stated = configs.Config() if config is None else configs.read(config)
    concepts = sources or stated.concepts
    if not concepts:
        raise InputError(
            "name what to sweep: a concept (audiolens sweep tempo), a file of prompts or directions, or a file of "
            "settings (--config sweep.toml)."
        )
    rivals = stated.others if others is None else () if others.strip() == NONE else tuple(_listed(others))
    model = with_stated(model, given, stated.model, stated.revision)
    chosen = {**stated.settings, **given_once(configs.assigned(assigned or ()), given, _OPTIONS)}
    options: dict[str, Any] = {
        "strengths": early.strengths("--strengths", strengths),
        "strategies": _listed(strategy),
        "layers": _blocks(layers),
        "band": _band(band),
        "branches": _listed(branch),
        "split": split,
        "prompts": prompts,
        "seeds": seeds,
        "n_random": controls,
        "n_shuffled": shuffled,
        "control_strengths": None
        if control_strengths is None
        else early.strengths("--control-strengths", control_strengths),
        "opposed": opposed,
        "heads": heads,
        "seconds": seconds,
        "guidance_scale": guidance,
        "batch_size": early.check_batch_size(batch) or configs.Settings.batch_size,
        "n_jobs": jobs,
        "engine": engine,
        "sound": sound,
        "poles": poles,
        "codes": codes,
        "measured": measured,
    }
    mine = {name: value for name, value in options.items() if _OPTIONS.get(name, name) in given or name not in chosen}
    _check_options(mine)
    settings = configs.Settings(**{**chosen, **mine})
    _check(settings, concepts)
    ledger.check(as_path(out))
    logs = early.checked_logs(log)
    cluster = early.checked_ray(ray, workers, gpus_per_worker, settings.n_jobs)
    early.check_model(model)
    from analysis.sweep import sources as named

    found, compared = named.sources_of(concepts, own_prompts), named.sources_of(rivals or (), own_prompts)
    wanted: dict[str, Any] = {
        "layers": [*(settings.layers or ()), *(settings.band or ())], "seconds": settings.seconds,
    }  # fmt: skip
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(**wanted)
    import torch

    from analysis import sweep as sweeps
    from analysis.sweep.factorial import Factors
    from analysis.workers import share_cores

    factors = {one.name for one in fields(Factors)}
    Factors(**{one.name: getattr(settings, one.name) for one in fields(settings) if one.name in factors})
    lens = open_lens(model)
    if sizes is None:
        Sizes.of(lens).check(**wanted)
    share_cores(lens)
    # A resumed sweep estimates its directions again, and a different number of threads would change their last bits.
    if (begun := ledger.threads_of(out)) is not None:
        torch.set_num_threads(begun)
    asked = named.arguments(lens, settings, found, compared, progress=not as_json)
    top = replace(stated, concepts=tuple(concepts), model=model.model, revision=model.revision, others=rivals)
    asked |= {"ray": cluster, "config": configs.text_of(top, settings)}
    estimate = sweeps.plan(lens, out=out, **asked)
    _report_missing([one.meta.label for one in asked["directions"]], asked["sets"], settings.measured, lens)
    say(str(estimate), err=True)
    if plan:
        if as_json:
            say(to_json(_plan_facts(estimate)))
        return
    try:
        with logging_to(logs) as on_rows:
            result = sweeps.run(lens, out=out, progress=not as_json, on_rows=on_rows, **asked)
    except KeyboardInterrupt:
        stop(f"{len(ledger.finished(out))} of {len(estimate.plan.batches)} batches are kept in {out}")
    _tell(result, out, settings.measured, as_json)


def _check_options(given: dict[str, Any]) -> None:
    """Check the values of options whose names differ from those of the settings, so that errors name the options."""
    if given.get("sound") not in (None, *early.SOUND_FORMATS):
        raise InputError(f"--sound {shown(given['sound'])}: expected 'wav' or 'flac'.")
    early.check_choice("split", given.get("split"), ("development", "test"))
    early.check_choice("codes", given.get("codes"), early.CODES)
    if "poles" in given:
        checked_count("--poles", given["poles"])


def _check(settings: Settings, concepts: Sequence[str]) -> None:
    """Check what needs no model."""
    early.check_measures("--measure", settings.measured)
    for one in settings.strategies:
        early.check_choice("strategy", one, early.STRATEGIES)
    early.check_heads(settings.strategies, settings.heads)
    early.check_layers(settings.strategies, settings.layers)
    for one in settings.branches:
        early.check_choice("branch", one, early.BRANCHES)
    early.check_length(settings.seconds)
    early.check_guidance(settings.guidance_scale)
    if "null" in settings.branches:
        from audiolens.interventions import checked_branch

        checked_branch("null", settings.guidance_scale > 1)
    early.check_jobs(settings.n_jobs)
    files = [Path(source).suffix == ".safetensors" for source in concepts]
    if settings.n_shuffled and any(files):
        raise InputError("--shuffled needs one vector per prompt (keep_samples=True), which files lack: leave it out.")
    first = next((one for one, is_file in zip(concepts, files, strict=True) if not is_file), None)
    early.check_prompts(settings.prompts, first, settings.split)


def _tell(result: SweepResult, out: Path, measured: str | None, as_json: bool) -> None:
    doses = [result.dose_response(concept, measured) for concept in result.concepts]
    if as_json:
        tables = {dose.concept: dose.to_frame().to_dict("records") for dose in doses}
        say(to_json({"folder": str(out), "clips": len(result.table), "effects": tables}))
        return
    for dose in doses:
        say(f"\n{dose!r}")
        columns = ("strength", "effect", "low", "high", "median", "failed", "p_random", "p_shuffled", "p_controls",
                   "p_corrected", "rivals")  # fmt: skip
        rows = [{name: cell(row[name]) for name in columns} for _, row in dose.widest().iterrows()]
        print_table(rows)
        if len(dose.monotonicity) > 1:
            say(f"{result.limits(dose.concept, measured)!r}\n{result.strategies(dose.concept, measured)!r}")
    say(f"\n{out / 'clips.parquet'} has one row per clip; "
               "`analysis.sweep.load_folder` loads the sweep for figures and comparisons.")  # fmt: skip


def _plan_facts(estimate: Any) -> dict[str, Any]:
    return {
        "clips": len(estimate.plan),
        "conditions": len(estimate.plan.conditions),
        "batches": [len(batch) for batch in estimate.plan.batches],
        "finished": estimate.finished,
        "seconds": estimate.expected_seconds,
        "bytes": estimate.n_bytes,
    }


def _report_missing(labels: Sequence[str], sets: dict[str, PromptSet], measured: str | None, lens: AudioLens) -> None:
    """Print which prompts, words or measures are missing for the user's own concepts."""
    from analysis.sweep.concept_measures import MEASURED

    for label in labels:
        if label not in sets:
            say(f"{label!r}: a file of directions contains no prompts, so the bundled neutral prompts are used "
                       "and no prompt asks for a pole; for both, give the file of prompts.", err=True)  # fmt: skip
        elif warning := words_unread(sets[label], lens):
            say(f"{warning}: clips whose prompts ask for the poles are uninformative.", err=True)
        if measured is None and label not in MEASURED:
            say(f"{label!r} has no known measure, so effects on tempo are reported; --measure sets another.", err=True)


def _blocks(text: str) -> list[int] | None:
    """Parse block numbers such as "4", "2,4" or "2,6-9"; "all" gives `None`."""
    if text == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        ends = re.match(r"^(\d{1,6})(?:-(\d{1,6}))?$", part.strip())
        if ends is None:
            raise InputError(f"--layers {shown(text)}: expected all, or blocks such as 2,4,6-9.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        found += bounded("--layers", range(first, last + 1), MOST_INDICES)
    if not found or len(set(found)) < len(found):
        raise InputError(f"--layers {shown(text)}: expected at least one block, and each once.")
    return found


def _band(text: str | None) -> tuple[int, int] | None:
    from analysis.commands.steering import band_of

    return band_of(text)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
