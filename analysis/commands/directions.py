"""The command `audiolens directions`, which reads directions or shows a directions file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from analysis.commands import early, steering
from analysis.commands.common import (
    ETUDE,
    Force,
    Json,
    ModelOptions,
    cell,
    completed,
    open_lens,
    opens_model,
    own_prompts,
    print_table,
    say,
    to_json,
)
from analysis.commands.sizes import Sizes
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens


class _Read(TyperGroup):
    """Treat `audiolens directions tempo` as short for `audiolens directions read tempo`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["read", *args])


app = typer.Typer(
    cls=_Read,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Read a concept's directions (`audiolens directions tempo -o tempo.safetensors`), or `show` a file of them.",
)


@app.command("read")
@opens_model
def directions_read(
    concept: Annotated[str, typer.Argument(help="A bundled concept, or a .csv, .json or .toml file of prompts.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("directions.safetensors"),
    model: ModelOptions = ETUDE,
    position: Annotated[str, typer.Option(help="mean, first, last, or eos (MusicGen Melody).")] = "mean",
    branch: Annotated[str, typer.Option(help="Guidance branch to read: cond, null or both.")] = "cond",
    site: Annotated[
        str, typer.Option(help="Site to read, such as attn.z for steering attention heads.")
    ] = "resid_post",
    method: Annotated[
        str, typer.Option(help=f"Estimator: {', '.join(early.METHODS)} (docs/directions.md).")
    ] = early.METHODS[0],
    measure: Annotated[
        str | None, typer.Option(help="What by_measure sorts clips by [default: the concept's measure].")
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(
            help="Clips for reading the poles: shared (of neutral prompts) or own (of each prompt) [default: shared; "
            "own for by_measure and gradient, and at the heads of the self-attention, such as attn.z]."
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Length of the clips generated for reading [default: 2; 4 for by_measure]."),
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Vocabulary of a bundled concept: etude or english [default: the model's].")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Read a concept's directions (one per block) and write them to a safetensors file.

    Examples:

        audiolens directions tempo -o tempo.safetensors

        audiolens directions tempo --method rfm -o rfm.safetensors

        audiolens directions tempo --method by_measure --measure tempo -o measured.safetensors

        audiolens directions tempo --site attn.z -o heads.safetensors

        audiolens directions my-prompts.csv -o mine.safetensors
    """
    from analysis.store import folder
    from audiolens import prompts as sets_of

    folder.check_file(out, overwrite=force)
    early.check_choice("position", position, early.POSITIONS)
    early.check_choice("branch", branch, early.BRANCHES)
    early.check_method(method, measure, codes, concept)
    early.check_length(seconds)
    seconds = seconds or (4.0 if method == "by_measure" else 2.0)
    own = bool(Path(concept).suffix)
    sets = own_prompts(concept) if own else sets_of.load(concept, vocabulary)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(seconds=seconds, eos=position == "eos")
    from audiolens import estimate

    lens = open_lens(model)
    sets = completed(sets, lens) if own else sets_of.load(concept, vocabulary, lens=lens)
    found = estimate(
        lens,
        **_asked(sets, method, measure, codes or _codes(lens, method, site)),
        method=method,  # pyright: ignore[reportArgumentType]  # checked there
        site=site,
        position=position,
        branch=branch,
        seconds=seconds,
        label=sets.concept,
        progress=not as_json,
        keep_samples=False,
    )
    found.save(out)
    _show(found, out, as_json)


def _codes(lens: AudioLens, method: str, site: str) -> str:
    """Return the clips on which the poles are read by default.

    On shared clips, both poles have the same music, and directions of self-attention heads steered tempo the wrong way
    (docs/steering.md).
    """
    found = lens.find_sites(site)[0]
    heads = "head" in found.axes and found.short.startswith("attn.")
    return "own" if heads or method == "gradient" else "shared"


def _asked(sets: Any, method: str, measure: str | None, codes: str) -> dict[str, Any]:
    """Return the prompts of a method, and the clips on which it reads them."""
    from analysis.sweep.concept_measures import MEASURED

    if method == "by_measure":
        return {"prompts": sets.development, "measure": measure or MEASURED[sets.concept]}
    neutral = {"neutral": sets.development} if codes == "shared" or method == "mean_centred" else {}
    negative = {} if method == "mean_centred" else {"negative": sets.negative}
    return {"positive": sets.positive, **negative, "codes": codes, **neutral}


@app.command("calibrate")
@opens_model
def directions_calibrate(
    file: Annotated[Path, typer.Argument(help="A directions file.")],
    measure: Annotated[str, typer.Option(help="The measure, such as tempo or brightness.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("calibrated.safetensors"),
    model: ModelOptions = ETUDE,
    layer: Annotated[int | None, typer.Option(help="Block whose direction is used [default: the middle one].")] = None,
    strategy: Annotated[str, typer.Option(help="one-to-one, one-to-all, all-to-all or heads.")] = "one-to-one",
    heads: Annotated[
        int | None, typer.Option(help="Number of attention heads for --strategy heads, the best by their probes.")
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(help="Strengths besides 0, such as -1,-0.5,0.5,1 [default: eight; heads have no default]."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds per neutral prompt.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure which strength gives which value of a measure, and write the directions with this calibration.

    `audiolens generate --steer FILE:"120 BPM"` and `--to tempo=120` then use it.

    Examples:

        audiolens directions calibrate tempo.safetensors --measure tempo --layer 3 -o tempo-calibrated.safetensors

        audiolens directions calibrate heads.safetensors --measure tempo --strategy heads --heads 4 --strengths=-2:2:9
    """
    from analysis.store import folder
    from audiolens.measure.targets import refuse_unordered

    folder.check_file(out, overwrite=force)
    refuse_unordered(measure)
    early.check_choice("strategy", strategy, (*early.PLACED, "heads"))
    early.check_heads([strategy], heads)
    own = strategy in ("all-to-all", "heads")
    if own and layer is not None:
        raise InputError(f"--strategy {strategy} adds every block's own direction: leave --layer out.")
    if heads is not None and strengths is None:
        raise InputError("--strategy heads needs --strengths, such as -2:2:9: how far heads can be pushed differs.")
    early.check_length(seconds)
    steering.existing("FILE", "", str(file))
    given = None if strengths is None else early.strengths("--strengths", strengths)
    early.check_model(model)
    from audiolens import Directions

    place: dict[str, Any] = {"strategy": strategy, "heads": heads}
    directions = Directions.load(file)
    if not own:
        place["layer"] = steering.middle(directions) if layer is None else layer
    lens = open_lens(model)
    directions.meta.refuse_other(lens)
    found = directions.calibrate(
        lens, measure, strengths=given, seeds=seeds, seconds=seconds, progress=not as_json, **place
    )
    found.save(out)
    known = found.calibration
    assert known is not None
    rows = [
        {"strength": one, measure: value, "failed": failed}
        for one, value, failed in zip(known.strengths, known.values, known.failed, strict=True)
    ]
    if as_json:
        say(to_json({"file": str(out), "calibration": known.as_dict()}))
        return
    print_table([{key: cell(value) for key, value in row.items()} for row in rows])
    say(f"{out}: {known!r}")


@app.command("show")
def directions_show(file: Annotated[Path, typer.Argument(help="A directions file.")], as_json: Json = False) -> None:
    """Show a directions file's model, reading position, prompts, and evidence at every block.

    Example:

        audiolens directions show tempo.safetensors --json
    """
    from audiolens import Directions

    _show(Directions.load(file), file, as_json)


def _show(found: Any, file: Path, as_json: bool) -> None:
    facts = {"file": str(file), **found.meta.as_dict(), "layers": found.to_frame().to_dict("records")}
    if found.heads is not None:
        facts["heads"] = found.heads.to_frame().to_dict("records")
    if as_json:
        say(to_json(facts))
        return
    meta = found.meta
    clips = "" if meta.seconds is None else f" of {meta.seconds:g} s"
    versions = ", ".join(f"{name} {number}" for name, number in meta.versions.items())
    say(f"{file}: {found!r}")
    say(f"read at position {meta.position}, branch {meta.branch}, guidance {meta.guidance_scale:g}, "
               f"from {meta.source}{clips}")  # fmt: skip
    if meta.options:
        say("options: " + "; ".join(f"{name} {value}" for name, value in meta.options.items()))
    place = f"; {meta.device}, {meta.dtype}" if meta.device else ""
    say(f"weights {meta.weights}, revision {meta.revision or 'none'}, prompts {meta.prompts}{place}; {versions}")
    print_table([{key: cell(value) for key, value in row.items()} for row in facts["layers"]])
