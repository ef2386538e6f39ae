"""Generate the clips of a concept in one or several sweeps, so that methods can be added to a comparison later.

The first call plays all conditions in one sweep. A later call with further methods finishes and reads that sweep, and
plays only the conditions that it lacks in another one, which has the same unsteered clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import sweep
from analysis.sweep import ledger
from analysis.sweep.conditions import BASELINE, Condition, PromptSeed
from analysis.sweep.planned import PLAN, condition_hashes
from analysis.sweep.result import SweepResult
from audiolens.checks import shown
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens


def play(
    lens: AudioLens,
    conditions: Sequence[Condition],
    clips: Sequence[PromptSeed],
    folder: Path | None,
    **playing: Any,
) -> list[SweepResult]:
    """Return the sweeps that contain all conditions. `playing` are arguments of `sweep.play`.

    Raises:
        InputError: if a sweep in the folder has conditions that are not among those given, or other settings.
    """
    if folder is None:
        return [sweep.play(lens, conditions, clips, **playing)]
    hashes = condition_hashes(lens, conditions, playing["seconds"])
    parts = list(_parts(conditions, hashes, folder))
    return [sweep.play(lens, mine, clips, out=place, **playing) for place, mine in parts]


def _parts(
    conditions: Sequence[Condition], hashes: dict[str, str], folder: Path
) -> Iterator[tuple[Path, list[Condition]]]:
    """Yield the folder and the conditions of each sweep: those that were begun, and one of what they lack."""
    left = {one.name: one for one in conditions if one.name != BASELINE}
    for number in count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not (place / PLAN).is_file():
            if left:
                yield place, [one for one in conditions if one.name == BASELINE or one.name in left]
            return
        begun = ledger.read_facts(place)["conditions"]
        if further := [name for name in begun if name not in hashes]:
            raise InputError(
                f"{place} was begun with further conditions, such as {shown(further[0])}: give the same methods, doses "
                "and controls, or more, or choose another folder."
            )
        left = {name: one for name, one in left.items() if name not in begun}
        yield place, [one for one in conditions if one.name in begun]
