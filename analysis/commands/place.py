"""`audiolens place`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands.common import Json, Model, open_lens, shown, write_result

_SHOWN = ("strategy", "layer", "alignment", "low", "high", "gain", "strength", "chosen", "norm", "probe", "patching",
          "attribution")  # fmt: skip


def place(
    concept: Annotated[str, typer.Argument(help="A bundled concept: tempo, timbre, register, density, loudness, ...")],
    model: Model = "etude",
    read: Annotated[
        Path | None, typer.Option("--directions", help="A file of `audiolens directions` [default: read anew].")
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Candidates: one-to-one, one-to-all, all-to-all.")
    ] = "one-to-one,one-to-all",
    prompts: Annotated[int, typer.Option(help="Neutral development prompts.")] = 8,
    seconds: Annotated[float, typer.Option(help="Of each clip that is read.")] = 2.0,
    by: Annotated[
        str, typer.Option(help="What decides: alignment, norm, probe, patching or attribution.")
    ] = "alignment",
    seed: Annotated[int, typer.Option(help="Of the clips and intervals.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the table and the figure (PNG, SVG, HTML).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where is a concept's direction to be applied? Nothing is steered or listened to for the answer.

    Every block and strategy is a candidate. The direction is put there while the model reads clips of its own, and what
    that does to the next codes is compared with what the concept's words do: the best match is the place.

    Examples:

        audiolens place tempo

        audiolens place timbre --directions timbre.safetensors -o timbre-place
    """
    from analysis import folder, placement
    from audiolens import Directions
    from audiolens.errors import InputError
    from audiolens.prompts import load

    if prompts < 1:
        raise InputError(f"--prompts={prompts}: expected at least 1.")
    if out is not None:
        folder.check(out, overwrite=None)
    lens = open_lens(model)
    sets = load(concept, lens=lens)
    options: dict[str, Any] = {"strategies": [name.strip() for name in strategies.split(",")], "by": by, "seed": seed}
    found = placement.place(
        lens,
        sets,
        None if read is None else Directions.load(read, lens=lens),
        prompts=sets.development[:prompts],
        seconds=seconds,
        progress=not as_json,
        **options,
    )
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            write_result(found, work, "placement")
    shown(found, as_json, _SHOWN)
