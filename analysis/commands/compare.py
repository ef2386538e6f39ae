"""The command `audiolens compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands import early
from analysis.commands.common import Json, command_line, print_result, say
from audiolens.errors import InputError


def compare(
    studies: Annotated[
        list[Path], typer.Argument(metavar="STUDY...", help="Folders of finished studies, or of several studies.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder for a page, tables and a figure.")] = None,
    names: Annotated[
        str | None, typer.Option(help="A name for each study, separated by commas [default: the folders' names].")
    ] = None,
    figures: Annotated[
        str | None, typer.Option(help="Kinds of files in which the figure is written besides SVG: pdf, png or pdf,png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare studies of several models, seeds, strategies or methods, and pool their effects.

    Prints each study's effects with intervals, and the mean over the studies of each concept (random effects). The
    p-values are corrected for all studies. No model is opened, and nothing is generated.

    Examples:

        audiolens compare study-tempo study-tempo-melody -o comparison

        audiolens compare runs-etude runs-etude-2 --names first,second -o both --figures pdf
    """
    kinds = () if figures is None else early.checked_figures(figures)
    if kinds and out is None:
        raise InputError(f"--figures {figures}: no figure is written without a folder: give --out.")
    from analysis.store import folder as folders
    from analysis.study import stages

    if out is not None:
        folders.check(out, overwrite=None)
    for folder in studies:
        if not (folder / folders.SUMMARY).is_file():
            stages.refuse_unfinished(folder)
    from analysis import comparison

    found = comparison.compare(studies, names=None if names is None else [name.strip() for name in names.split(",")])
    if out is not None:
        found.save(out, command=command_line(), figures=kinds)
    print_result(
        found, as_json, ["study", "concept", "pole", "strategy", "layer", "strength", "effect", "low", "high", "failed",
                         "p_corrected", "claimable"], chosen=True,
    )  # fmt: skip
    if out is not None and not as_json:
        say(f"\n{out / 'index.html'} has the page.")
