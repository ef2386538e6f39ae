"""The command `audiolens place`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    Json,
    ModelOptions,
    open_lens,
    opens_model,
    print_result,
    prompt_set,
    say,
    words_unread,
    write_result,
)
from analysis.commands.sizes import Sizes
from audiolens.checks import MOST_SEED, checked_amount, checked_count
from audiolens.errors import InputError

_SHOWN = ("strategy", "layer", "alignment", "low", "high", "gain", "strength", "equal_damage", "chosen", "rules",
          "norm", "probe", "patching", "attribution")  # fmt: skip


@opens_model
def place(
    concept: Annotated[
        str, typer.Argument(help="A bundled concept such as tempo, or a .csv, .json or .toml file of prompts.")
    ],
    model: ModelOptions = ETUDE,
    read: Annotated[
        Path | None,
        typer.Option("--directions", help="A file from `audiolens directions` [default: read the directions again]."),
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Strategies to try: one-to-one, one-to-all, all-to-all.")
    ] = "one-to-one,one-to-all",
    prompts: Annotated[
        int, typer.Option(help="Number of neutral development prompts; if a file has none, bundled ones are used.")
    ] = 8,
    codes: Annotated[
        str, typer.Option(help="Clips for reading the poles: shared (of neutral prompts) or own (of each prompt).")
    ] = "shared",
    seconds: Annotated[float, typer.Option(help="Length of each clip that is read.")] = 2.0,
    screen: Annotated[
        float, typer.Option(help="Length of the steered clips that cap the strength; 0 generates no clips.")
    ] = 5.0,
    by: Annotated[
        str,
        typer.Option(
            help="What decides the place: a rule (alignment, middle, equal_damage, constancy) or other evidence (norm, "
            "probe, patching, attribution)."
        ),
    ] = "alignment",
    confirm: Annotated[
        int,
        typer.Option(
            help="Choose between four fixed places by steered clips: this number per sign and place, and twice as many "
            "at the two better ones; 0 generates none."
        ),
    ] = 0,
    measure: Annotated[str | None, typer.Option(help="The measure of --confirm [default: the concept's own].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the clips and intervals.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the table and the figure (PNG, SVG, HTML).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find where to apply a concept's direction, and how strongly.

    A place is a block and a strategy. At every candidate place, the direction is added while the model reads clips that
    it generated. The resulting shift of the next-code predictions is compared with the shift caused by the concept's
    words, and the place with the most similar shift is chosen. A few short steered clips at the chosen place then cap
    the strength. If the two shifts are not similar enough, the place is rejected.

    Examples:

        audiolens place tempo

        audiolens place timbre --directions timbre.safetensors -o timbre-place

        audiolens place mode --confirm 8 --measure mode
    """
    from analysis.store import folder

    for strategy in (names := [name.strip() for name in strategies.split(",")]):
        early.check_choice("strategy", strategy, early.PLACED)
    early.check_choice("by", by, early.EVIDENCE)
    early.check_choice("codes", codes, early.CODES)
    early.check_confirm(confirm, by, measure, concept)
    early.check_length(seconds)
    checked_amount("--screen", screen)
    checked_count("--seed", seed, 0, MOST_SEED)
    early.check_concept(concept)
    early.check_prompts(prompts, concept)
    if read is not None and not read.is_file():
        raise InputError(f"{read}: no such file.")
    early.check_folder(out)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(seconds=seconds)
    from analysis import placement
    from audiolens import Directions

    directions = None if read is None else Directions.load(read)
    lens = open_lens(model)
    if directions is not None:
        directions.meta.refuse_other(lens)
    sets = prompt_set(concept, lens)
    if warning := words_unread(sets, lens):
        say(f"{warning}; the file's own prompt pairs are compared instead.", err=True)
        sets = replace(sets, positive_words=(), negative_words=())
    options: dict[str, Any] = {
        "strategies": names, "by": by, "seed": seed, "confirm": confirm, "measured": measure,
    }  # fmt: skip
    found = placement.place(
        lens,
        sets,
        directions,
        prompts=_neutral(sets.development, prompts, concept),
        seconds=seconds,
        screen_seconds=screen,
        progress=not as_json,
        read_over=codes,  # pyright: ignore[reportArgumentType]  # checked there
        **options,
    )
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            write_result(found, work, "placement")
    print_result(found, as_json, _SHOWN)


def _neutral(development: Sequence[str], count: int, concept: str) -> Sequence[str]:
    if not development:
        raise InputError(f"{concept}: placing needs neutral development prompts, and the set has none.")
    if not 1 <= count <= len(development):
        raise InputError(f"--prompts={count}: expected 1 to {len(development)}, the set's development prompts.")
    return development[:count]
