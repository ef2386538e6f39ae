"""What `compare` returns: one row per method and concept, and one row per condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.methods.reading import Place
from analysis.methods.table import REFERENCE
from analysis.statistics import LEVEL
from audiolens.door import guarded


@guarded
@dataclass(frozen=True, eq=False)
class MethodsResult:
    """Effect and preservation of every method for every concept.

    An effect on the concept's own measure is expressed in standard deviations of the unsteered clips (of logarithms, if
    the measure is a ratio), and is positive if it goes in the direction of the dose's sign. Drift is the mean absolute
    change in nats per code under the unsteered model, as a multiple of that between two seeds of a prompt
    (`seed_drift`). A clip is scored under the prompt that it was generated from. A prompted clip is thus scored under
    its own words, which keeps its drift small, and a steered one under words that do not name the pole. A failed clip
    counts as no effect. Intervals resample prompts, and keep the spread of the unsteered clips and `seed_drift` fixed.

    Attributes:
        table: one row per concept and method, with random directions, shuffles and prompting among them (`kind`).
            `area` is the mean effect of both signs over drifts from that of other seeds to `limit` more (the mean over
            prompts of `area_under`), and `difference` is the area minus that of the difference in means, with the
            sign-flip p-value `p` over prompts and `p_holm`, corrected for all methods, prompting and kinds of control
            of all concepts; single controls are not tested. `best_share` is the share of
            resamples in which the method has the largest area of the concept's methods. `change_down` and `change_up`
            are the effects at the outermost doses, in the direction of the measure, and `drift_down` and `drift_up`
            the drifts there. `selectivity` is the mean effect divided by the largest mean change of another measure,
            `monotone` the share of steps between neighbouring doses that go up (chance: .5), and `calibration_error`
            the mean distance from targets of half a standard deviation, at doses that the other half of the prompts
            chose. `failed` is the share of failed clips, `unmeasured` that of clips which did not fail but have no
            own measure (they count as no effect, too), `frechet` the mean Fréchet distance at the outermost doses
            (and, if a CLAP model was given, `clap` and `lpaps` the mean distances of `measure.clap_distance` there),
            `clips` the number of steered clips, `prompts` the number of prompts whose unsteered clips could be
            measured, and `seconds` the time it took to compute the method's direction. `p_random` and `p_balanced` are
            the ranks of the area among those of the controls of a kind, (1 + as large ones) / (1 + controls), without
            correction.
        conditions: one row per condition: `effect` in the measure's own unit (`sweep.effects`), `change`, `drift`,
            `loudness_db`, `failed`, `unmeasured`, `frechet` (`clap`, `lpaps`), and the change of every measure
            (`on ...`).
        controls: one row per concept and kind of control: the mean `area` over `draws`, with Student's interval over
            draws (not prompts), the `lowest` and the `highest` area of a draw, and the `difference` of the mean from
            the difference in means, with `p` and `p_holm` as in `table`.
        overall: one row per method that steers all concepts, prompting and kind of control: the mean `area` over
            concepts and its `difference` from that of the difference in means, with `p`, and `p_holm`, corrected for
            the rows of this table. Each prompt has one mean over concepts, and prompts are resampled as in `table`.
        limit: the largest drift of the area, beyond that of other seeds.
        seed_drift: the drift between two seeds of a prompt, in nats per code.
        n_prompts: number of test prompts.
        places: where each concept was steered.
        measured: the measure of each concept.
        left_out: methods that do not apply to a concept, and why.

    The comparison does not show which method is best in general: it holds for this model, these concepts and places,
    and doses that were scaled by the norm of the difference in means. The measures do not hear whether clips sound
    good. With few prompts, only large differences are significant.
    """

    table: pd.DataFrame
    conditions: pd.DataFrame
    controls: pd.DataFrame
    overall: pd.DataFrame
    model: str
    limit: float
    seed_drift: float
    n_prompts: int
    places: Mapping[str, Place] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        return self.table

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(self.places)

    @property
    def best(self) -> pd.DataFrame:
        """The row of each concept's best method, which is the one with the largest area, prompting left out."""
        mine = self.table[self.table["kind"] == "method"]
        return mine.loc[mine.groupby("concept", sort=False)["area"].idxmax()].reset_index(drop=True)

    def better(self, level: float = LEVEL) -> pd.DataFrame:
        """The rows of methods whose area is significantly larger than that of the difference in means."""
        mine = self.table[self.table["kind"] == "method"]
        return mine[(mine["p_holm"] <= level) & (mine["difference"] > 0)].reset_index(drop=True)

    @drawable
    def plot(self) -> Any:
        """Draw the area of every method, with one panel per concept (matplotlib figure)."""
        from analysis.methods import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.methods import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        names = REFERENCE.replace("_", " ")
        found = self.better()
        counts = found["method"].value_counts()
        beats = ", ".join(f"{name} on {count}" for name, count in counts.items()) or "no method"
        best = ", ".join(f"{row.concept} {row.method} ({row.area:.2f})" for row in self.best.itertuples())
        missing = f"; {len(self.left_out)} cells left out" if self.left_out else ""
        return (
            f"MethodsResult({self.table[self.table['kind'] == 'method']['method'].nunique()} methods, "
            f"{len(self.concepts)} concepts, {self.n_prompts} prompts: significantly better than {names}: {beats}; "
            f"largest area: {best}{missing})"
        )
