"""`audiolens report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.common import Json, say, say_json


def report(
    folder: Annotated[
        Path, typer.Argument(help="Of a finished study, or of several that `audiolens study --concepts` wrote.")
    ],
    as_json: Json = False,
) -> None:
    """Draw the page of a finished study anew, with its tables and figures, from what the folder keeps.

    No model is opened and nothing is generated; it takes some seconds. The numbers stay what they are.

    Examples:

        audiolens report study-tempo

        audiolens report studies
    """
    from analysis import study

    found = study.redraw(folder)
    if as_json:
        say_json(folder / "summary.json")
        return
    say(f"{found.finding}\n{found.qualification}\n\n{folder / 'index.html'} is drawn anew.")
