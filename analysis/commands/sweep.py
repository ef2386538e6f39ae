"""The command `audiolens sweep`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    Batch,
    Engine,
    GpusPerWorker,
    Json,
    ModelOptions,
    RayAddress,
    Workers,
    cell,
    completed,
    is_prompt_file,
    open_lens,
    opens_model,
    own_prompts,
    print_table,
    say,
    stop,
    to_json,
    words_unread,
)
from analysis.commands.sizes import Sizes
from audiolens.checks import MOST_INDICES, bounded, checked_count, shown
from audiolens.errors import InputError
from audiolens.files.atomic import as_path

if TYPE_CHECKING:
    from analysis.sweep.result import SweepResult
    from audiolens import AudioLens, Directions
    from audiolens.prompts import PromptSet


@opens_model
def sweep(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Concepts (tempo, timbre, ...), .csv, .json or .toml files of prompts, or .safetensors files that "
            "`audiolens directions` wrote."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the table; the same command resumes an interrupted sweep.")
    ],
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
        typer.Option(help="Other concepts, or files, whose directions are controls; separate several with commas."),
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
    """
    from analysis.sweep import ledger

    asked: dict[str, Any] = {
        "strengths": early.strengths("--strengths", strengths),
        "strategies": _listed(strategy),
        "band": _band(band),
        "branches": _listed(branch),
        "n_random": controls,
        "n_shuffled": shuffled,
        "control_strengths": control_strengths and early.strengths("--control-strengths", control_strengths),
        "opposed": opposed,
        "heads": heads,
        "seeds": seeds,
        "seconds": seconds,
        "guidance_scale": guidance,
        "sound": sound,
        "n_jobs": jobs,
    }
    if (rows := early.check_batch_size(batch)) is not None:
        asked["batch_size"] = rows
    blocks = _blocks(layers)
    early.check_measures("--measure", measured)
    for one in asked["strategies"]:
        early.check_choice("strategy", one, early.STRATEGIES)
    early.check_heads(asked["strategies"], heads)
    early.check_layers(asked["strategies"], layers)
    for one in asked["branches"]:
        early.check_choice("branch", one, early.BRANCHES)
    codes = codes or ("shared" if heads is None else "own")
    early.check_choice("codes", codes, early.CODES)
    early.check_length(seconds)
    early.check_guidance(guidance)
    for name in ("n_random", "n_shuffled"):
        checked_count(name, asked[name], 0)
    checked_count("seeds", seeds)
    early.check_jobs(jobs)
    if sound not in (None, *early.SOUND_FORMATS):
        raise InputError(f"--sound {shown(sound)}: expected 'wav' or 'flac'.")
    early.check_choice("split", split, ("development", "test"))
    checked_count("--poles", poles)
    files = [Path(source).suffix == ".safetensors" for source in sources]
    if shuffled and any(files):
        raise InputError("--shuffled needs one vector per prompt (keep_samples=True), which files lack: leave it out.")
    first = next((one for one, is_file in zip(sources, files, strict=True) if not is_file), None)
    early.check_prompts(prompts, first, split)
    ledger.check(as_path(out))
    asked["ray"] = early.checked_ray(ray, workers, gpus_per_worker, jobs)
    early.check_model(model)
    given = _given(sources)
    compared = [] if others is None else _given(_listed(others))
    wanted: dict[str, Any] = {"layers": [*(blocks or ()), *(asked["band"] or ())], "seconds": seconds}
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(**wanted)
    import torch

    from analysis import sweep as sweeps
    from analysis.sweep.factorial import Factors
    from analysis.workers import share_cores

    Factors(layers=blocks, **{one.name: asked[one.name] for one in fields(Factors) if one.name in asked})
    lens = open_lens(model)
    if sizes is None:
        Sizes.of(lens).check(**wanted)
    share_cores(lens)
    # A resumed sweep estimates its directions again, and a different number of threads would change their last bits.
    if (begun := ledger.threads_of(out)) is not None:
        torch.set_num_threads(begun)
    sets = _sets(given, lens)
    neutral = _neutral(sets, split, prompts, lens)
    reading: dict[str, Any] = {"progress": not as_json, "site": "resid_post" if heads is None else "attn.z"}
    found = _directions(given, sets, lens, poles, guidance, codes, keep_samples=shuffled > 0, **reading)
    own = _sets(compared, lens)
    asked["others"] = _directions(compared, own, lens, poles, guidance, codes, keep_samples=False, **reading) or None
    asked |= {"layers": blocks, "prompts": neutral, "sets": sets}
    estimate = sweeps.plan(lens, found, out=out, **asked)
    _report_missing([one.meta.label for one in found], sets, measured, lens)
    say(str(estimate), err=True)
    if plan:
        if as_json:
            say(to_json(_plan_facts(estimate)))
        return
    try:
        result = sweeps.run(lens, found, out=out, engine=engine, progress=not as_json, **asked)
    except KeyboardInterrupt:
        stop(f"{len(ledger.finished(out))} of {len(estimate.plan.batches)} batches are kept in {out}")
    _tell(result, out, measured, as_json)


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


def _given(sources: list[str]) -> list[Directions | PromptSet | str]:
    """Load directions and prompts from files, and check concept names, before a model is opened."""
    from audiolens.errors import nearest
    from audiolens.prompts import concepts

    found: list[Directions | PromptSet | str] = []
    known = concepts(None)
    for source in sources:
        if Path(source).suffix == ".safetensors":
            from audiolens import Directions

            found.append(Directions.load(source))
        elif is_prompt_file(source):
            found.append(own_prompts(source))
        elif source in known:
            found.append(source)
        else:
            raise InputError(
                f"unknown concept {shown(source)}.{nearest(source, known)} Known: {', '.join(known)}; or a "
                ".safetensors file of directions, or a .csv, .json or .toml file of prompts."
            )
    return found


def _sets(given: Sequence[Directions | PromptSet | str], lens: AudioLens) -> dict[str, PromptSet]:
    """Return the prompt sets by concept. Concepts without prompts are left out."""
    from audiolens import Directions
    from audiolens import prompts as sets_of
    from audiolens.prompts.files import readable

    sets: dict[str, PromptSet] = {}
    for one in given:
        name = one if isinstance(one, str) else one.meta.label if isinstance(one, Directions) else one.concept
        if name in sets:
            raise InputError(f"{shown(name)} was given twice: give each concept once, with its own label.")
        if not isinstance(one, Directions | str):
            sets[name] = completed(one, lens)
        elif isinstance(one, str) or readable(name, lens):
            sets[name] = sets_of.load(name, lens=lens)
    return sets


def _directions(
    given: Sequence[Directions | PromptSet | str],
    sets: dict[str, PromptSet],
    lens: AudioLens,
    poles: int,
    guidance: float,
    codes: str,
    *,
    keep_samples: bool,
    progress: bool,
    site: str,
) -> list[Directions]:
    """Return the directions from files, and estimate the others. The same command always gives the same directions."""
    from audiolens import Directions, difference_in_means

    found = []
    for one in given:
        if isinstance(one, Directions):
            one.meta.refuse_other(lens)
            found.append(one)
            continue
        own = sets[one if isinstance(one, str) else one.concept]
        found.append(
            difference_in_means(
                lens,
                own.positive[:poles],
                own.negative[:poles],
                site,
                guidance_scale=guidance,
                codes=codes,  # pyright: ignore[reportArgumentType]  # checked there
                neutral=own.development if codes == "shared" else None,
                label=own.concept,
                keep_samples=keep_samples,
                progress=progress,
            )
        )
    return found


def _neutral(sets: dict[str, PromptSet], split: str, count: int, lens: AudioLens) -> list[str]:
    """Return the neutral prompts of the first concept that has prompts, or bundled ones if no concept has any."""
    from audiolens import prompts as sets_of

    own = next((getattr(one, split) for one in sets.values()), None)
    if own is None:
        own = getattr(sets_of.load("tempo", lens=lens), split)
    if not 1 <= count <= len(own):
        raise InputError(f"--prompts {count}: expected at least 1, and there are {len(own)} neutral {split} prompts.")
    return list(own[:count])


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
