"""Study several concepts on one model, and measure how steering along each concept affects the others.

Each concept has its own folder, as `analysis.study` writes it, and one index page links to all studies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import similarity
from analysis.distributed.settings import Ray
from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.similarity import Comparison
from analysis.store.folder import refuse_path
from analysis.study import experiment as study
from analysis.study import others as other_concepts
from analysis.study import stages
from analysis.study.result import Study
from analysis.study.settings import Settings, settings_or_default
from analysis.study.test_result import corrected, cross_effects
from analysis.sweep.rows import OnRows, handing, of_concept
from audiolens.checks import checked_flags, shown
from audiolens.errors import InputError, InputTypeError
from audiolens.files.atomic import as_path, inside
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet

if TYPE_CHECKING:
    from audiolens import AudioLens


@dataclass(frozen=True, eq=False)
class Several:
    """Studies of different concepts on one model, or other studies that are listed together (`is_crossed`).

    The cross-effects do not show that two concepts are the same or independent. A cross-effect may come from a musical
    correlation (fast tunes are busier), and directions with a low cosine similarity can still affect the same property.

    The p-values of the studies are corrected for both poles of all concepts (Holm). On each study's own page, they are
    corrected for the two poles of its concept only.
    """

    studies: tuple[Study, ...]

    def __post_init__(self) -> None:
        every = iter(corrected([outcome for one in self.studies for outcome in one.outcomes]))
        jointly = tuple(replace(one, outcomes=(next(every), next(every))) for one in self.studies)
        object.__setattr__(self, "studies", jointly)

    @property
    def is_crossed(self) -> bool:
        """Whether cross-effects and cosines are defined: for several concepts, each studied once, on one model."""
        concepts = {one.concept for one in self.studies}
        models = {(one.directions.meta.weights, one.directions.layers) for one in self.studies}
        return 1 < len(self.studies) == len(concepts) and len(models) == 1

    def to_frame(self) -> pd.DataFrame:
        """Return the cross-effects, with one row per steered concept, strength, and measured concept.

        The columns are `concept`, `pole`, `strength`, `measured_concept` (which can be the steered one), `measure`,
        `effect` (median of steered / unsteered - 1 at the same seed), `low`, `high` and `failed`.
        """
        rows = []
        measures = dict.fromkeys(one.measure for one in self.studies)
        for one in self.studies:
            cells: dict[Any, Any] = {(row["measure"], row["strength"]): row for row in _effects_on(one, measures)}
            for outcome in one.outcomes:
                for other in self.studies:
                    found = cells.get((other.measure, outcome.strength), {})
                    numbers = {name: float(found.get(name, "nan")) for name in ("effect", "low", "high", "failed")}
                    steered = {"concept": one.concept, "pole": outcome.pole, "strength": outcome.strength}
                    rows.append({**steered, "measured_concept": other.concept, "measure": other.measure, **numbers})
        return pd.DataFrame(rows)

    @property
    def cosines(self) -> Comparison:
        """Cosine similarity between the concepts' directions at each block."""
        return similarity.compare({one.concept: one.directions for one in self.studies})

    @drawable
    def plot(self) -> Any:
        """Plot the effect of steering towards each pole on every concept's measure (matplotlib figure)."""
        from analysis.report import crossing

        return crossing.paper(self.to_frame())

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.report import crossing

        return crossing.screen(self.to_frame())

    @property
    def finding(self) -> str:
        """The studies' findings, one per line."""
        return "\n".join(one.finding for one in self.studies)

    @property
    def qualification(self) -> str:
        """The qualifications of the findings, one line per study."""
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
    others: Sequence[str | PromptSet] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    command: str = "",
    ray: Ray | None = None,
    figures: Sequence[str] = (),
    on_rows: OnRows | None = None,
) -> Several:
    """Study several concepts, each in a subfolder of `out` with its name.

    The other arguments are as in `study.run`. Each concept is also a control for the others. In the rows that
    `on_rows` gets, the names of stages begin with the concept, as in "tempo/scan".

    Raises:
        InputError: (or a subclass) in the same cases as `study.run`, before the first study runs.
    """
    checked_flags(overwrite=overwrite, progress=progress)
    from analysis.report.writer import checked_kinds

    checked_kinds(figures)
    hand = None if on_rows is None else handing(on_rows)
    if isinstance(concepts, str) or not isinstance(concepts, Sequence):
        raise InputTypeError(f"concepts={shown(concepts)}: expected a list, such as ['tempo', 'timbre'].")
    chosen = settings_or_default(settings)
    if chosen.measured is not None:
        raise InputError(
            f"measured={shown(chosen.measured)} would apply to every concept: leave it out, so that each concept has "
            "its own measure, or study the concepts one by one."
        )
    sets = [study.prompts_of(concept, lens, chosen) for concept in concepts]
    names = [one.concept for one in sets]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"concepts {', '.join(names)}: expected two or more different concepts.")
    for name in names:
        refuse_path(name)
    compared = {one.concept: _others(lens, one, sets, chosen, others) for one in sets}
    folder = None if out is None else as_path(out)
    for one in sets:
        chosen.check(lens, one)
        if folder is not None:
            stages.check(inside(folder, one.concept), overwrite=overwrite)
            if not overwrite:
                other_names = [other.concept for other in compared[one.concept]]
                stages.refuse_other_settings(folder / one.concept, {**asdict(chosen), "others": other_names})
    if folder is not None:
        _check_index(folder, overwrite)
    found = []
    for one in sets:
        tell(f"\n{one.concept}")
        where = None if folder is None else folder / one.concept
        found.append(
            study.run(
                lens,
                one,
                where,
                settings=chosen,
                others=compared[one.concept],
                overwrite=overwrite,
                progress=progress,
                tell=tell,
                command=command,
                ray=ray,
                figures=figures,
                on_rows=None if hand is None else partial(of_concept, hand, one.concept),
            )  # fmt: skip
        )
    result = Several(tuple(found))
    if folder is not None:
        from analysis.report import index

        index.write(result, folder, command)
    return result


def _others(
    lens: AudioLens,
    own: PromptSet,
    sets: Sequence[PromptSet],
    settings: Settings,
    given: Sequence[str | PromptSet] | None,
) -> tuple[PromptSet, ...]:
    """Return the other concepts that are controls for one concept: those studied with it, and any others given."""
    names = {one.concept for one in sets}
    if given is not None and not isinstance(given, str):
        given = [one for one in given if (one if isinstance(one, str) else one.concept) not in names]
    further = other_concepts.chosen(lens, own, settings.measure_of(own.concept), given)
    return (*(one for one in sets if one is not own), *(one for one in further if one.concept not in names))


def _effects_on(one: Study, measures: Iterable[str]) -> list[Any]:
    """Return the effects of one study's steering on these measures.

    The effects come from the study's table or, if they are missing there, from its clips.
    """
    tested = one.clips[one.clips["split"] == "test"]
    # The table of a study that was run separately may lack the other concepts' measures.
    further = [name for name in measures if name not in set(one.cross["measure"]) and name in tested]
    rows = one.cross.to_dict("records")
    if further:
        rows += cross_effects(tested, measures=further).to_dict("records")
    return rows


def _check_index(folder: Path, overwrite: bool) -> None:
    """Check that the index does not replace a link or, without `overwrite`, a page that audiolens did not write."""
    from analysis.report import index

    index.check(folder)
    if not overwrite:
        index.refuse_foreign(folder, "replace it with --force")
