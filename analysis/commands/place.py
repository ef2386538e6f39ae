"""`audiolens place`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands.common import Json, Model, open_lens, prompt_set, say, shown, words_unread, write_result
from audiolens.errors import InputError

_SHOWN = ("strategy", "layer", "alignment", "low", "high", "gain", "strength", "chosen", "norm", "probe", "patching",
          "attribution")  # fmt: skip


def place(
    concept: Annotated[
        str, typer.Argument(help="A bundled concept such as tempo, or a .csv, .json or .toml file of prompts.")
    ],
    model: Model = "etude",
    read: Annotated[
        Path | None, typer.Option("--directions", help="A file of `audiolens directions` [default: read anew].")
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Candidates: one-to-one, one-to-all, all-to-all.")
    ] = "one-to-one,one-to-all",
    prompts: Annotated[
        int, typer.Option(help="Neutral development prompts, the bundled ones for a file without any.")
    ] = 8,
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
    from analysis import placement
    from analysis.store import folder
    from audiolens import Directions

    if out is not None:
        folder.check(out, overwrite=None)
    lens = open_lens(model)
    sets = prompt_set(concept, lens)
    if told := words_unread(sets, lens):
        say(f"{told}; pairs of the file's own prompts are compared instead.", err=True)
        sets = replace(sets, positive_words=(), negative_words=())
    options: dict[str, Any] = {"strategies": [name.strip() for name in strategies.split(",")], "by": by, "seed": seed}
    found = placement.place(
        lens,
        sets,
        None if read is None else Directions.load(read, lens=lens),
        prompts=_neutral(sets.development, prompts, concept),
        seconds=seconds,
        progress=not as_json,
        **options,
    )
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            write_result(found, work, "placement")
    shown(found, as_json, _SHOWN)


def _neutral(development: Sequence[str], count: int, concept: str) -> Sequence[str]:
    if not development:
        raise InputError(f"{concept}: the set has no neutral development prompts, and placing needs some.")
    if not 1 <= count <= len(development):
        raise InputError(f"--prompts={count}: the set has {len(development)} development prompts.")
    return development[:count]
