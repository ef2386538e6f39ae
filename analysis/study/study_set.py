"""Several: concepts studied one after the other on one model, and what steering along each does to the others.

A folder each, as `analysis.study` writes it, and an index that stands above them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import similarity
from analysis.similarity import Comparison
from analysis.store.folder import refuse_path
from analysis.study import experiment as study
from analysis.study import stages
from analysis.study.result import Study
from analysis.study.settings import Settings
from analysis.study.test_result import cross_effects
from audiolens.checks import checked_flags
from audiolens.errors import InputError, InputTypeError
from audiolens.files.atomic import as_path, inside
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet

if TYPE_CHECKING:
    from audiolens import AudioLens


@dataclass(frozen=True, eq=False)
class Several:
    """Studies of different concepts on one model.

    It does not show that two concepts are one, or independent: a cross-effect may come from the music that goes with
    a concept (fast tunes are busier), and directions that lie apart may still act on the same thing.
    """

    studies: tuple[Study, ...]

    def to_frame(self) -> pd.DataFrame:
        """The cross-effects: one row per steered concept, strength, and concept that is heard.

        `concept`, `pole`, `strength`, `heard` (the other concept, or itself), `measure`, and its `effect` (median of
        steered / unsteered - 1 at the same seed), `low`, `high` and `failed`.
        """
        rows = []
        measures = dict.fromkeys(one.measure for one in self.studies)
        for one in self.studies:
            cells: dict[Any, Any] = {(row["measure"], row["strength"]): row for row in _heard(one, measures)}
            for outcome in one.outcomes:
                for other in self.studies:
                    found = cells.get((other.measure, outcome.strength), {})
                    numbers = {name: float(found.get(name, "nan")) for name in ("effect", "low", "high", "failed")}
                    steered = {"concept": one.concept, "pole": outcome.pole, "strength": outcome.strength}
                    rows.append({**steered, "heard": other.concept, "measure": other.measure, **numbers})
        return pd.DataFrame(rows)

    @property
    def cosines(self) -> Comparison:
        """How the concepts' directions lie to one another at each block."""
        return similarity.compare({one.concept: one.directions for one in self.studies})

    def plot(self) -> Any:
        """Every steered pole's effect on every concept's measure (matplotlib figure)."""
        from analysis.report import crossing

        return crossing.paper(self.to_frame())

    def figure(self) -> Any:
        """The same for the screen (plotly figure)."""
        from analysis.report import crossing

        return crossing.screen(self.to_frame())

    @property
    def finding(self) -> str:
        """The studies' findings, one per line."""
        return "\n".join(one.finding for one in self.studies)

    @property
    def qualification(self) -> str:
        """What qualifies each finding, one line per study."""
        return "\n".join(f"{one.concept}: {one.qualification}" for one in self.studies)

    def __repr__(self) -> str:
        findings = " ".join(f"{one.finding} {one.qualification}" for one in self.studies)
        return f"Several({', '.join(one.concept for one in self.studies)} on {self.studies[0].model!r}: {findings})"


@named_once
def run(
    lens: AudioLens,
    concepts: Sequence[str | PromptSet],
    out: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> Several:
    """Study several concepts, each in a folder of its name inside `out`; the other arguments are those of `study.run`.

    Raises:
        InputError: (or a subclass) before the first of them runs, as `study.run`.
    """
    checked_flags(overwrite=overwrite, progress=progress)
    if isinstance(concepts, str) or not isinstance(concepts, Sequence):
        raise InputTypeError(f"concepts={concepts!r}: expected a list, such as ['tempo', 'timbre'].")
    chosen = settings or Settings()
    if chosen.measured is not None:
        raise InputError(
            f"the measure {chosen.measured!r} would hear every one of the concepts: leave measured out, so that each "
            "is heard by its own, or study them one by one."
        )
    sets = [study.prompts_of(concept, lens, chosen) for concept in concepts]
    names = [one.concept for one in sets]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"concepts {', '.join(names)}: expected two or more different ones.")
    for name in names:
        refuse_path(name)
    place = None if out is None else as_path(out)
    for one in sets:
        chosen.check(lens, one)
        if place is not None:
            stages.check(inside(place, one.concept), overwrite=overwrite)
            if not overwrite:
                stages.refuse_other_settings(place / one.concept, asdict(chosen))
    if place is not None:
        _check_index(place)
    found = []
    for one in sets:
        tell(f"\n{one.concept}")
        where = None if place is None else place / one.concept
        found.append(
            study.run(
                lens, one, where, settings=chosen, overwrite=overwrite, progress=progress, tell=tell, command=command
            )
        )
    result = Several(tuple(found))
    if place is not None:
        from analysis.report import index

        index.write(result, place, command)
    return result


def _heard(one: Study, measures: Iterable[str]) -> list[Any]:
    """What one study's steering did to these measures: as it tells, or else from its clips."""
    tested = one.clips[one.clips["split"] == "test"]
    # Of folders that were made by themselves, some may not have been heard by all of them.
    further = [name for name in measures if name not in set(one.cross["measure"]) and name in tested]
    rows = one.cross.to_dict("records")
    if further:
        rows += cross_effects(tested, measures=further).to_dict("records")
    return rows


def _check_index(place: Path) -> None:
    """Refuse to write over an index that is another's, or where links have its names."""
    from analysis.report import index

    index.check(place)
    if (place / "index.html").exists() and not index.is_ours(place):
        raise InputError(f"{place / 'index.html'} is there and is no index of studies: choose another folder.")
