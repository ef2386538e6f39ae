"""Hand the rows of finished batches to a function of the user's, which must not stop the run if it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pandas as pd

from audiolens.checks import checked_function
from audiolens.errors import AudioLensWarning
from audiolens.model.tokens import callers_level

OnRows = Callable[[pd.DataFrame], object]
"""A function of the rows of one batch, whose index is their number in the table of the sweep."""


def handing(on_rows: OnRows | None) -> OnRows:
    """Return a function that passes rows on, and that warns of the first exception instead of raising it.

    Raises:
        InputTypeError: if `on_rows` is neither a function of one argument nor `None`.
    """
    if on_rows is None:
        return _dropped
    checked_function("on_rows", on_rows, "a function of a table of rows, or None", None)
    failed: list[Exception] = []

    def hand(rows: pd.DataFrame) -> None:
        try:
            on_rows(rows)
        except Exception as error:
            if not failed:
                told = f"on_rows failed ({type(error).__name__}: {str(error)[:200]})"
                message = f"{told}: it misses rows, and the run goes on. Further failures are not reported."
                warnings.warn(AudioLensWarning(message), stacklevel=callers_level())
            failed.append(error)

    return hand


def of_stage(hand: OnRows, stage: str, rows: pd.DataFrame) -> None:
    """Pass the rows of one stage of a study on, with the stage's name as the first column."""
    rows.insert(0, "stage", stage)
    hand(rows)


def of_concept(hand: OnRows, concept: str, rows: pd.DataFrame) -> None:
    """Pass the rows of a study on, with the concept in front of the names of its stages."""
    rows["stage"] = concept + "/" + rows["stage"]
    hand(rows)


def _dropped(rows: pd.DataFrame) -> None:  # noqa: ARG001 - called like a function of the user's
    pass
