"""State on which devices, and with how many rows at once, the batches of a sweep were generated.

A sweep can be resumed on another card of the same kind, and a batch that does not fit in memory is generated in parts
(`audiolens.tracing.fitting`). Seeds and noise stay the same, but sums can round differently, so the plan and the result
state both. `plan.json` lists the runs in order. A batch belongs to the last run that lists it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from audiolens.errors import AudioLensWarning, InputError
from audiolens.model.tokens import callers_level

SHAPE = {"device": str, "at_once": (int, None), "batches": [[int, int]]}
"""A run in `plan.json`: `batches` are ascending ranges, both ends included."""
KINDS = ("cpu", "cuda", "mps")
"""What a plan states if it does not name the card, as in earlier versions and while workers elsewhere are unknown."""
_MOST = 1000
"""The largest number of runs in a plan."""


@dataclass(frozen=True)
class Made:
    """Where some rows of a sweep were generated.

    Attributes:
        device: the name of the card, such as "NVIDIA H200", or the kind of processor. Several are joined by "and".
        at_once: the largest number of rows in one pass, or `None` for whole batches.
        rows: the number of rows.
    """

    device: str
    at_once: int | None
    rows: int


def first(device: str, n_batches: int) -> list[dict[str, Any]]:
    """Return the runs of a sweep that begins on a device. Only its kind is given if workers elsewhere generate."""
    return [_run(device, None, range(n_batches))]


def continued(begun: Mapping[str, Any], facts: Mapping[str, Any], left: Sequence[int], folder: Path) -> dict[str, Any]:
    """Return the plan of a sweep that is resumed, with a further run if the device is another card.

    Args:
        begun, facts: the plan in the folder, and that of this run.
        left: the numbers of the batches to generate.
    """
    here = facts["runs"][-1]["device"]
    return dict(begun) if not left or here in KINDS else changed(begun, left, folder, device=here)


def changed(
    begun: Mapping[str, Any],
    left: Sequence[int],
    folder: Path | None = None,
    *,
    at_once: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Return the plan with a further run, if batches are now generated on another device, or fewer rows at once.

    A `folder` is named in a warning if the device is another one than that on which its sweep was begun.

    Args:
        left: the numbers of the batches that are not finished.
        at_once: the number of rows that fit in memory; `None` if it has not changed or, on another device, is unknown.
        device: `None` if it has not changed.
    """
    runs = _runs(begun)
    there = runs[-1]["device"]
    if device in (None, there) and at_once in (None, runs[-1]["at_once"]):
        return dict(begun)
    if folder is not None and device not in (None, there) and there not in KINDS:
        warnings.warn(
            AudioLensWarning(
                f"{folder} was begun on {there}, and goes on on {device}. Seeds and noise are the same, but sums can "
                "round differently: `runs` of the result states how many clips are from which."
            ),
            stacklevel=callers_level(),
        )
    missing = frozenset(left)
    # A run of which no batch is finished is replaced, so that plans of equal sweeps are equal.
    kept = [run for run in runs if not missing.issuperset(_numbers(run))]
    return {**begun, "runs": [*kept, _run(device or there, at_once, left)]}


def at_once(facts: Mapping[str, Any]) -> int | None:
    """Return the number of rows of a batch that fit in memory when the sweep last ran, or `None` for whole batches."""
    return facts["runs"][-1]["at_once"] if facts.get("runs") else None


def made(facts: Mapping[str, Any], done: Iterable[int]) -> tuple[Made, ...]:
    """Return where the finished batches were generated. A plan of an earlier version names only the kind of device."""
    sizes = np.array(facts["batches"], dtype=int)
    runs = _runs(facts)
    own = np.zeros(len(sizes), dtype=int)
    for number, run in enumerate(runs):
        for start, end in run["batches"]:
            own[start : end + 1] = number
    finished = np.array([*done], dtype=int)
    rows = np.bincount(own[finished], sizes[finished], minlength=len(runs)).astype(int).tolist()
    return tuple(Made(run["device"], run["at_once"], count) for run, count in zip(runs, rows, strict=True) if count)


def check(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise an error if the runs of a plan name batches that it does not have, or no row at once."""
    runs = facts.get("runs", ())
    for run in runs:
        ends = [0, *(end for pair in run["batches"] for end in pair)]
        fits = all(one <= other for one, other in pairwise(ends)) and ends[-1] < len(facts["batches"])
        if not fits or (run["at_once"] is not None and run["at_once"] < 1) or len(runs) > _MOST:
            raise InputError(f"{path} cannot be used: its runs do not fit its batches.")


def told(made: Sequence[Made]) -> str:
    """Return on how many devices clips were generated, if on several, such as "64 on A, 32 on B"."""
    rows: dict[str, int] = {}
    for one in made:
        rows[one.device] = rows.get(one.device, 0) + one.rows
    return "" if len(rows) < 2 else ", ".join(f"{count} on {device}" for device, count in rows.items())


def _runs(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return facts.get("runs") or first(facts["model"]["device"], len(facts["batches"]))


def _run(device: str, at_once: int | None, batches: Sequence[int]) -> dict[str, Any]:
    return {"device": device, "at_once": at_once, "batches": _ranges(batches)}


def _numbers(run: Mapping[str, Any]) -> Iterator[int]:
    return (batch for start, end in run["batches"] for batch in range(start, end + 1))


def _ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Return ascending numbers as ranges, both ends included."""
    if not numbers:
        return []
    cuts = [place for place, (one, other) in enumerate(pairwise(numbers), start=1) if other != one + 1]
    return [[numbers[start], numbers[end - 1]] for start, end in pairwise([0, *cuts, len(numbers)])]
