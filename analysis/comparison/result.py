"""The comparison of several studies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.figures.style import name_of
from analysis.wording import change, counted, interval
from audiolens.checks import checked_text
from audiolens.door import guarded
from audiolens.files.atomic import as_path


@guarded
@dataclass(frozen=True, eq=False)
class StudyComparison:
    """The outcomes of several studies next to each other.

    Attributes:
        table: one row per study and pole. `effect`, `low` and `high` are the study's own (median of steered / baseline
            - 1), and `alone` is its own claim. `p_corrected` is corrected for every row with `chosen`, `claimable` is
            the claim with this p, and `testable` states whether there were enough controls for it to reach .05. `slope`
            with its interval is the change at the same strength according to the mixed model. Rows without `chosen` are
            other strategies of a study.
        pooled: one row per concept, measure and pole with at least two studies: the mean change at the chosen
            strengths (random effects), its interval, the standard deviation `tau` between studies on the logarithmic
            scale, and Cochran's test of whether the studies have the same effect.
        variation: per study and pole, the standard deviations of the mixed model (`Slope`), on the logarithmic scale.
        differences: what was set differently in the studies, with a text for each study.
        names: the studies' names.
        weights: the hash of each study's model.
        shared: pairs of studies of one concept that have unsteered test clips in common. Studies of such a concept are
            not pooled.

    Strengths were chosen in each study by itself, so the pooled effect is that of steering as strongly as each study
    found best, not of one strength. Studies of one model share its weights: an interval over them says nothing about
    other models. A difference between two studies can come from anything in `differences`.
    """

    table: pd.DataFrame
    pooled: pd.DataFrame
    variation: pd.DataFrame
    differences: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]
    weights: tuple[str, ...]
    shared: tuple[tuple[str, str], ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return `table`."""
        return self.table

    @property
    def finding(self) -> str:
        """One sentence for each pole of each concept: in how many studies it holds, and the pooled effect."""
        return "\n".join(self._sentences())

    @property
    def cautions(self) -> list[str]:
        """A sentence for each pair of studies that are not independent."""
        return [
            f"{first} and {second} have unsteered clips in common, so their concept is not pooled: repeat one of them "
            "with another seed."
            for first, second in self.shared
        ]

    def _sentences(self) -> list[str]:
        chosen = self.table[self.table["chosen"]]
        found = []
        for (concept, measured, pole), mine in chosen.groupby(["concept", "measure", "pole"], sort=False):
            held = int(mine["alone"].sum())
            verb = "supports" if 1 in (held, len(mine)) else "support"
            count = f"{held} of {counted(len(mine), 'study', 'studies')} {verb} the claim"
            if len(mine) > 1 or len(chosen) > 2:
                few = int((~mine["testable"].astype(bool)).sum())
                count += f", {int(mine['claimable'].sum())} with p corrected for all {len(chosen)} tests"
                count += f" ({few} {'has' if few == 1 else 'have'} too few controls for that)" if few else ""
            mean = self.pooled[(self.pooled["concept"] == concept) & (self.pooled["measure"] == measured)
                               & (self.pooled["pole"] == pole)]  # fmt: skip
            if mean.empty:
                found.append(f"{concept} towards {pole}: {count}.")
                continue
            row = mean.iloc[0]
            models = f"{row['studies']} studies of {counted(row['models'], 'model', 'models')}"
            found.append(
                f"{concept} towards {pole}: {count}; pooled over {models}, {name_of(str(measured))} changes by "
                f"{change(row['effect'])} {interval(row['low'], row['high'])}."
            )
        return found

    @drawable
    def plot(self) -> Any:
        """Plot the effects of all studies with their intervals, and the pooled effects (matplotlib figure)."""
        from analysis.comparison import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.comparison import figures

        return figures.screen(self)

    def save(self, folder: str | os.PathLike[str], *, command: str = "", figures: Sequence[str] = ()) -> Path:
        """Write a page (`index.html`), the tables (CSV) and the figure (SVG) into a new folder.

        Args:
            folder: the new folder.
            command: the command that the page states, if there is one.
            figures: further kinds of files in which the figure is written ("pdf", "png").

        Raises:
            InputError: if the folder exists and is not empty, or a kind is unknown.
        """
        checked_text("command", command)
        from analysis.comparison import page

        return page.write(self, as_path(folder), command, figures)

    def __repr__(self) -> str:
        sizes = counted(len(self.names), "study", "studies")
        return f"StudyComparison({sizes}: {' '.join([*self._sentences(), *self.cautions])})"
