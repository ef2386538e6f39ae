"""The command `audiolens report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands import early
from analysis.commands.common import Json, say, say_json
from audiolens.errors import InputError


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a finished study, or of several from `audiolens study --concepts`.")
    ],
    figures: Annotated[
        str | None, typer.Option(help="Kinds of files in which figures are written besides SVG: pdf, png or pdf,png.")
    ] = None,
    index: Annotated[
        bool,
        typer.Option(
            "--index", help="Only write the page that lists all studies in the folder; theirs stay as they are."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Redraw the page of a finished study, with its tables and figures, from the files in its folder.

    This takes a few seconds, because no model is opened and nothing is generated. The numbers do not change.

    Examples:

        audiolens report study-tempo

        audiolens report study-tempo --figures pdf

        audiolens report runs --index
    """
    kinds = () if figures is None else early.checked_figures(figures)
    from analysis.store.folder import SUMMARY, studies_in
    from analysis.study import stages

    if index:
        if kinds:
            raise InputError(
                "--figures and --index were both given, but --index draws no figures of studies: give one."
            )
        studies_in(folder)
        from analysis import study
        from analysis.wording import counted

        listed = study.write_index(folder)
        if as_json:
            say_json(folder / SUMMARY)
            return
        say(f"{listed.finding}\n\n{folder / 'index.html'} lists {counted(len(listed.studies), 'study', 'studies')}.")
        return

    if not (folder / SUMMARY).is_file():
        stages.refuse_unfinished(folder)
    from analysis import study

    found = study.redraw(folder, figures=kinds)
    if as_json:
        say_json(folder / "summary.json")
        return
    say(f"{found.finding}\n{found.qualification}\n\n{folder / 'index.html'} has been redrawn.")
