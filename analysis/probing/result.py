"""The result of probing, with scores by layer or head, controls and baselines, and probe weights as directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.probing.features import ProbedSite
from analysis.probing.probes import Probe, Scored, balanced_accuracy, least_p, target_of
from analysis.resampling import Resampling, bootstrap
from analysis.statistics import LEVEL, rank_test
from audiolens.checks import shown
from audiolens.directions.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.groups import takes
from audiolens.model.provenance import Provenance

UNTESTED = "too few rows or shuffles to test: "
UNGROUPED = "rows have no prompts or groups=, so each counts as independent"
"""The caveat of a result in which rows of one prompt or piece might be on both sides of a split."""


@guarded
@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Probe scores by layer or head, compared with shuffled labels and with the sound itself.

    Attributes:
        scored: one entry per `ProbedSite`, with score, interval, AUC and shuffled labels.
        sites: where the vectors were read (site, layer, head), in the model's order.
        baselines: the scores of probes on the sound ("mel") and on the codec's vectors ("codec"), without the model.
        labels, groups, folds: one value per row.
        grouped: whether it is known, from `groups=` or from the prompts, which rows belong together. If not, every row
            (except equal clips) is treated as independent, and the probe can get a high score merely by recognising a
            prompt or piece.
        classes: the classes of a classification; empty for a quantity.
        probe: the settings of the probe.
        name, unit: name and unit of the label.
        vectors: for linear probes, the weights fitted to all rows in the activations' own units, "place output
            feature". They are rescaled to the difference between the mean of the class and the mean of the rest,
            measured along the weights.
        meta: the origin of the activations; `None` for arrays, and for caches given without their lens.
        lengths: mean norm of the activations at each `ProbedSite`.

    A score does not show that the model uses what a probe reads, or that the model computed it. For example, every
    block can read a tempo from the given music. The baselines therefore measure what the sound alone reveals. A low
    score does not show that the information is absent, only that this kind of probe does not find it in this many rows.
    The best of many layers or heads is chosen on the same rows on which it is scored. `p` accounts for that choice, but
    the score and its interval do not.
    """

    scored: tuple[Scored, ...]
    sites: tuple[ProbedSite, ...]
    baselines: Mapping[str, Scored]
    labels: np.ndarray
    groups: Int[np.ndarray, " row"]
    folds: Int[np.ndarray, " row"]
    classes: tuple[str, ...]
    probe: Probe
    name: str
    unit: str
    vectors: Float[np.ndarray, "site output feature"] | None
    lengths: Float[np.ndarray, " site"]
    meta: Provenance | None
    grouped: bool = True

    @property
    def scores(self) -> Float[np.ndarray, " site"]:
        """Out-of-fold scores, named by `metric`. 1 is perfect, and an uninformative probe scores `chance`."""
        return np.array([one.score for one in self.scored])

    @property
    def shuffled(self) -> Float[np.ndarray, "site shuffle"]:
        """The scores of shuffled labels. Shuffle i is the same at every `ProbedSite`."""
        return np.stack([one.shuffled for one in self.scored])

    @property
    def selectivity(self) -> Float[np.ndarray, " site"]:
        """The score minus the mean score of shuffled labels (after Hewitt and Liang, 2019).

        Their control task gives each word type a random label, which a probe can memorise because types recur in the
        test set. Here no prompt or clip recurs, so a shuffled label cannot be predicted. The column `memorised` of the
        table shows how well the probe memorises shuffled labels on its training rows.
        """
        return np.array([one.selectivity for one in self.scored])

    @property
    def chance(self) -> float:
        """The chance score: 1 / n_classes, or 0 for a quantity (the score of predicting the training mean)."""
        return 1 / len(self.classes) if self.classes else 0.0

    @property
    def metric(self) -> str:
        """The metric of `scores`: the mean recall of the classes, or the explained share of variance for a quantity."""
        return "balanced accuracy" if self.classes else "R²"

    @property
    def best(self) -> int:
        """The index in `sites` of the highest score."""
        return int(np.argmax(self.scores))

    @property
    def p(self) -> Float[np.ndarray, " site"]:
        """The family-wise p-value of each score, from its rank among the shuffles' best scores over all `sites`."""
        highest = self.shuffled.max(axis=0)
        return np.array([rank_test(score, highest).p for score in self.scores])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per `ProbedSite`, then one per baseline, with score, interval, AUC, selectivity and p.

        `shuffled` is the mean over shuffles; `shuffled_low` and `shuffled_high` are the lowest and highest value. `p`
        is family-wise over `sites`; the `p` of a baseline is for that baseline alone.
        """
        rows = [
            _row("model", str(probed), probed.layer, probed.head, one, p)
            for probed, one, p in zip(self.sites, self.scored, self.p, strict=True)
        ]
        rows += [
            _row("baseline", name, None, None, one, rank_test(one.score, one.shuffled).p)
            for name, one in self.baselines.items()
        ]
        table = pd.DataFrame(rows)
        table.insert(0, "label", self.name)
        table.insert(5, "metric", self.metric)
        return table.astype({"layer": "Int64", "head": "Int64"})

    @takes("resampling", Resampling)
    def gains(
        self,
        n_bootstrap: int = 500,
        seed: int = 0,
        *,
        resampling: Resampling | None = None,  # noqa: ARG002 - its values arrive as the loose arguments
    ) -> pd.DataFrame:
        """Return each score minus that of each baseline on the same rows and folds, with paired intervals.

        `resampling` is a `Resampling` that replaces `n_bootstrap` and `seed`.
        """
        rows = []
        target = self._target()
        strata = target if self.classes else None
        for name, other in self.baselines.items():
            for probed, one in zip(self.sites, self.scored, strict=True):

                def gain(index: np.ndarray, mine: Scored = one, theirs: Scored = other) -> float:
                    return _score(self, mine, index) - _score(self, theirs, index)

                interval = bootstrap(gain, self.groups, strata, n_bootstrap=n_bootstrap, seed=seed)
                rows.append(
                    {"baseline": name, "place": str(probed), "layer": probed.layer, "head": probed.head,
                     "gain": one.score - other.score, "low": interval.low, "high": interval.high}
                )  # fmt: skip
        return pd.DataFrame(rows)

    def directions(self, towards: Any = None) -> Directions:
        """Return the probes' weights as one direction per block, scaled to the difference in means along the direction.

        Args:
            towards: the class that the directions point to; the remaining classes form the other pole. For a quantity,
                the directions point towards larger values.

        Raises:
            InputError: if the probe is an MLP, if the site has no single vector per block (for example, a site with
                heads), or if it is not known which model the activations come from.
        """
        if self.vectors is None:
            raise InputError(
                f"a probe of kind {shown(self.probe.kind)} has no direction of weights: use a linear probe."
            )
        if self.meta is None:
            raise InputError("the model of these activations is unknown: probe with lens=, or probe a Dataset.")
        layers = [probed.layer for probed in self.sites if probed.layer is not None and probed.head is None]
        if len(layers) < len(self.sites) or self.meta.site.startswith(("attn.", "cross_attn.")):
            raise InputError(
                f"{self.meta.site} was probed by head or outside the blocks: directions need one vector per block."
            )
        output, poles = 0, (0, 0)
        if self.classes:
            if shown(towards).strip("'") not in self.classes and str(towards) not in self.classes:
                raise InputError(f"towards={shown(towards)}: expected one of the classes {', '.join(self.classes)}.")
            output = self.classes.index(str(towards))
            mine = len(np.unique(self.groups[self._target() == output]))
            poles = (mine, len(np.unique(self.groups[self._target() != output])))
        label = f"{self.name}: {towards}" if self.classes else self.name
        return Directions(
            vectors=torch.from_numpy(self.vectors[:, output]).float(),
            layers=tuple(layers),
            residual_norms=torch.from_numpy(self.lengths),
            meta=replace(self.meta, label=label, n_prompts=poles),
        )

    @drawable
    def plot(self) -> Any:
        """Draw the scores by block (or a map of heads) with shuffled labels and baselines (matplotlib figure)."""
        from analysis.probing import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.probing import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        best = self.best
        ways = least_p(self._target(), self.groups, self.folds, self.shuffled.shape[1])
        least = max(ways, rank_test(1.0, self.shuffled.max(axis=0)).p)
        verdict = UNTESTED if least >= LEVEL else "no better than shuffled labels: "
        chance = verdict if self.p[best] > LEVEL else ""
        one, interval = self.scored[best], self.scored[best].interval
        baselines = "".join(f", {name} {other.score:.2f}" for name, other in self.baselines.items())
        ends = f"[{interval.low:.2f}, {interval.high:.2f}]" + (f", AUC {one.auc:.2f}" if self.classes else "")
        return (
            f"ProbeResult({self.name}: {self.metric} {one.score:.2f} {ends} at "
            f"{self.sites[best]}, best of {len(self.sites)} ({chance}p = {self.p[best]:.3f}); shuffled labels "
            f"{one.shuffled.mean():.2f}{baselines}{'' if self.grouped else f'; {UNGROUPED}'})"
        )

    def _target(self) -> np.ndarray:
        return target_of(self.labels, self.classes)


def _score(result: ProbeResult, one: Scored, index: np.ndarray) -> float:
    target = result._target()[index]
    if result.classes:
        return balanced_accuracy(target, one.outputs[index])
    return float(1 - ((target - one.outputs[index, 0]) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def _row(kind: str, place: str, layer: int | None, head: int | None, one: Scored, p: float) -> dict[str, Any]:
    interval = one.interval
    return {
        "kind": kind, "place": place, "layer": layer, "head": head, "score": one.score, "low": interval.low,
        "high": interval.high, "auc": one.auc, "auc_low": one.auc_interval.low, "auc_high": one.auc_interval.high,
        "shuffled": float(one.shuffled.mean()), "shuffled_low": float(one.shuffled.min()),
        "shuffled_high": float(one.shuffled.max()), "selectivity": one.selectivity, "memorised": one.memorised, "p": p,
    }  # fmt: skip
