"""The command `audiolens generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early, steering
from analysis.commands.common import (
    ETUDE,
    Engine,
    Json,
    ModelOptions,
    cell,
    open_lens,
    opens_model,
    print_table,
    say,
    to_json,
)
from analysis.commands.sizes import Sizes
from audiolens.checks import checked_count, checked_seed
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import Directions


@opens_model
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, each in quotes.")],
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            "-s",
            help="FILE:STRENGTH, e.g. tempo.safetensors:+1. Can be repeated. FILE:STRENGTH@PLACE steers along this "
            "file at a place of its own: a block (@3), a block and a strategy (@3/one-to-all), or @all-to-all.",
        ),
    ] = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(
            help="SECONDS:FACTOR,... such as 0:0,2.5:1: multiply the strength by a factor that changes over time, "
            "linearly between these points. Once for all directions, or once for each --steer."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="MEASURE=VALUE, such as tempo=120: find a strength for each clip. Needs one --steer FILE."),
    ] = None,
    max_clips: Annotated[
        int | None, typer.Option(help="With --to, the largest number of clips per prompt [default: 20].")
    ] = None,
    limits: Annotated[
        str | None,
        typer.Option(
            help="With --to, the lowest and the highest strength, such as -8,8 [default: those of the calibration, or "
            "-2 and 2 divided by the number of steered blocks; heads without a calibration need it]."
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Block whose direction is used [default: the middle one].")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="one-to-one, one-to-all, one-to-band, all-to-all or heads [default: one-to-one]."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Number of attention heads for --strategy heads, the best by their probes.")
    ] = None,
    band: Annotated[
        str | None, typer.Option(help="Blocks for one-to-band, such as 4-8; selects that strategy.")
    ] = None,
    branch: Annotated[
        str | None, typer.Option(help="Guidance branch to steer: cond, null or both [default: both].")
    ] = None,
    orthogonal: Annotated[
        bool, typer.Option("--orthogonal", help="Orthogonalise each direction to those before it.")
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also write unsteered clips with the same seeds.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    window: Annotated[float | None, typer.Option(help="Generate longer clips in windows of this many seconds.")] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Seconds of the previous window that each window continues [default: two fifths of a window]."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; later prompts use the following seeds.")] = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 means no guidance.")] = 3.0,
    engine: Engine = "exact",
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the WAV files.")] = Path("clips"),
    model: ModelOptions = ETUDE,
    as_json: Json = False,
) -> None:
    """Generate clips, with or without steering. The same prompt, seed and settings always give the same clip.

    Examples:

        audiolens generate "a little tune with drums" -o tune

        audiolens generate "a little tune with drums" --steer study-tempo/directions.safetensors:+1 --baseline

        audiolens generate "a little tune" -s heads.safetensors:+1 --strategy heads --heads 4

        audiolens generate "a little tune" --seconds 60 --window 10 --overlap 4

        audiolens generate "a little tune" "a song" --steer tempo.safetensors --layer 3 --to tempo=120

        audiolens generate "a little tune" -s tempo.safetensors:+1 -s timbre.safetensors:-0.25 --orthogonal

        audiolens generate "a song" -s tempo.safetensors:+1@3 -s timbre.safetensors:0.2@4/one-to-all --curve 0:0,5:1
    """
    from analysis.store import folder

    if not all(prompt.strip() for prompt in prompts):
        raise InputError("a prompt is empty: expected a text, such as 'a little tune with drums'.")
    target = None if to is None else steering.target_of(to)
    if target is not None:
        _refuse_beside_target(
            steer, orthogonal=orthogonal, baseline=baseline, window=window, overlap=overlap, engine=engine == "fast",
            curve=curve,
        )  # fmt: skip
        checked_count("max_clips", 1 if max_clips is None else max_clips)
    for option, value in (("--max-clips", max_clips), ("--limits", limits)):
        if value is not None and target is None:
            raise InputError(f"{option} is for --to MEASURE=VALUE, and none was given.")
    ends = steering.limits_of(limits)
    todo = [
        steering.asked(text) if target is None else steering.Asked(steering.existing("--steer", text, text), 1.0)
        for text in steer or []
    ]
    drawn = steering.curves(curve or [], len(todo))
    blocks = steering.band_of(band)
    where = {"--layer": layer, "--strategy": strategy, "--band": band, "--branch": branch, "--heads": heads}
    for option, value in {**where, "--orthogonal": orthogonal or None}.items():
        if value is not None and not todo:
            raise InputError(f"{option} applies to a direction, and none was given: give one with --steer.")
    early.check_choice("strategy", strategy, early.STRATEGIES)
    early.check_heads([strategy], heads)
    early.check_choice("branch", branch, early.BRANCHES)
    early.check_length(seconds)
    early.check_windows(window, overlap)
    early.check_guidance(guidance)
    checked_seed(seed)
    folder.check(out, overwrite=None)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(seconds=seconds, window=window, overlap=overlap)
    steered = steering.placed(
        todo,
        curves=drawn,
        layer=layer,
        strategy=strategy,
        band=blocks,
        branch=branch,
        orthogonal=orthogonal,
        heads=heads,
    )
    place = steering.stated(strategy=strategy, layer=layer, band=blocks, branch=branch, heads=heads)
    if target is not None:
        place = steering.targeted(steered.directions[0], target[0], place, ends)
    lens = open_lens(model)
    for directions in steered.directions:
        directions.meta.refuse_other(lens)
    made: dict[str, Any] = {
        "seconds": seconds,
        "window": window,
        "overlap": overlap,
        "seeds": list(range(seed, seed + len(prompts))),
        "guidance_scale": guidance,
        "engine": engine,
    }
    if target is not None:
        search: dict[str, Any] = {"limits": ends, **place, **({"max_clips": max_clips} if max_clips else {})}
        _to_target(lens, prompts, steered.directions[0], target, search, made, out, as_json)
        return
    with folder.fresh(out, overwrite=None) as work:
        clips = lens.generate(prompts, interventions=steered.steps, **made)
        if baseline and steered.steps:
            lens.generate(prompts, **made).save(work / "baseline")
            clips.save(work / "steered")
        else:
            clips.save(work)
    for caution in steered.cautions:
        say(caution, err=True)
    written = sorted(str(path) for path in out.rglob("*.wav"))
    say(to_json(written) if as_json else "\n".join(written))


def _refuse_beside_target(steer: list[str] | None, **others: Any) -> None:
    """Raise an error for options that --to does not take."""
    if len(steer or []) != 1:
        raise InputError("--to needs one directions file: --steer FILE, without a strength.")
    file, colon, strength = (steer or [""])[0].rpartition(":")
    if colon and file.endswith(".safetensors"):
        raise InputError(f"--to finds the strength: leave :{strength} out of --steer {file}:{strength}.")
    for name, value in others.items():
        if value:
            raise InputError(f"--to takes no --{name}: it steers along one direction, in clips of one window.")


def _to_target(
    lens: Any,
    prompts: list[str],
    directions: Directions,
    target: tuple[str, float | str],
    search: dict[str, Any],
    made: dict[str, Any],
    out: Path,
    as_json: bool,
) -> None:
    """Generate the clips with the strengths that reach the target, and write them with a table of these strengths."""
    from analysis.spreadsheets import write_csv
    from analysis.store import folder
    from audiolens import steer_to

    found = steer_to(
        lens, directions, prompts, *target, seeds=made["seeds"], seconds=made["seconds"],
        guidance_scale=made["guidance_scale"], progress=not as_json, **search,
    )  # fmt: skip
    table = found.to_frame()
    with folder.fresh(out, overwrite=None) as work:
        found.clips.save(work / "clips")
        write_csv(table, work / "strengths.csv")
    rows = table.to_dict("records")
    if as_json:
        say(to_json({"clips": sorted(str(path) for path in out.rglob("*.wav")), "rows": rows}))
        return
    print_table([{key: cell(value) for key, value in row.items()} for row in rows])
    say(f"{found!r}: {out / 'clips'}, {out / 'strengths.csv'}")
