"""`audiolens patch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands.common import Json, Model, open_lens, prompt_set, shown, write_result

_SHOWN = ("layer", "seconds", "head", "component", "token", "effect", "low", "high", "normalised", "p_adjusted")


def patch(
    concept: Annotated[
        str, typer.Argument(help="A bundled concept, or a file of prompts: its matched prompts are the pairs.")
    ],
    model: Model = "etude",
    by: Annotated[str, typer.Option(help="Columns of the grid: seconds, head, component or token.")] = "seconds",
    site: Annotated[
        str | None, typer.Option(help="What is patched, such as resid_post [default: as --by says].")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Of a clean and a corrupted prompt.")] = 64,
    mode: Annotated[str, typer.Option(help="denoising (what suffices) or noising (what is needed).")] = "denoising",
    seconds: Annotated[float, typer.Option(help="The clean continuation that is scored, from its start.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the clips, intervals and p-values.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the table and the figure (PNG, SVG, HTML).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which place carries the words? Clean activations are patched into the corrupted run, cell by cell.

    The metric is the log-likelihood of what the clean prompt plays, in nats. The gap between the two prompts comes
    first, with its interval: where that covers 0, there is nothing to share out.

    Examples:

        audiolens patch tempo

        audiolens patch tempo --by head --pairs 32 -o tempo-heads
    """
    from analysis import folder, patching
    from audiolens.errors import InputError

    if pairs < 2:
        raise InputError(f"--pairs={pairs}: expected at least 2.")
    if out is not None:
        folder.check(out, overwrite=None)
    lens = open_lens(model)
    sets = prompt_set(concept, lens)
    told = patching.pairs(lens, sets, pairs, seconds=seconds, first_seed=seed, same_length=by == "token")
    options: dict[str, Any] = {"by": by, "mode": mode, "site": site}
    metric = patching.LogLikelihood((0.0, seconds))
    found = patching.patch(
        lens, told.clean, told.corrupted, told.codes, metric, seed=seed, progress=not as_json, **options
    )
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            write_result(found, work, "patching")
    shown(found, as_json, _SHOWN, codebook="total")
