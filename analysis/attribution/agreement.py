"""Compare attributions with exact activation patching on a uniform random sample of cells, with one run per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from analysis.attribution.gradients import Metric, scored
from analysis.resampling import Interval, bootstrap
from analysis.site_grid import GridSite
from audiolens.interventions import Replace
from audiolens.lens import AudioLens


@dataclass(frozen=True)
class CheckedCell:
    """The steps (or tokens) from `start` to `stop` of one head at one site. `head=None` means all heads."""

    site: GridSite
    start: int
    stop: int
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Agreement:
    """Attributed and exact effects of the same cells.

    Attributes:
        cells: one row per cell: `site`, `layer`, `start`, `stop`, `head`, `attributed`, `exact` (nats, mean over
            pairs).
        rho: Spearman's rank correlation between attributed and exact effects over the cells of each site, by short
            name. It is NaN if either effect is the same in all cells.
        intervals: bootstrap intervals of `rho`, over cells.
        n_pairs: number of prompt pairs on which the cells were patched.

    Cells are sampled uniformly, so most effects might be near 0, where ranks are noise. If there are few strong cells,
    the correlation can therefore be low even though the attributions of those cells are right. Ranks do not show scale.
    To check the scale, compare the columns `attributed` and `exact`.
    """

    cells: pd.DataFrame
    rho: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n_pairs: int

    @classmethod
    def of(cls, cells: pd.DataFrame, n_pairs: int) -> Agreement:
        rho, intervals = {}, {}
        for site, mine in cells.groupby("site", sort=False):
            pairs = mine[["attributed", "exact"]].to_numpy()
            rho[str(site)] = _spearman(pairs)
            with np.errstate(invalid="ignore"):
                intervals[str(site)] = bootstrap(
                    lambda index, of=pairs: float(np.nan_to_num(_spearman(of[index]))), np.arange(len(pairs)), None,
                    n_bootstrap=300,
                )  # fmt: skip
        return cls(cells, rho, intervals, n_pairs)

    def __repr__(self) -> str:
        by_site = [
            f"{site} {rho:.2f} [{self.intervals[site].low:.2f}, {self.intervals[site].high:.2f}]"
            for site, rho in self.rho.items()
        ]
        return f"Agreement(Spearman with exact patching: {', '.join(by_site)}; {len(self.cells)} cells)"


def patched(
    lens: AudioLens,
    prompts: Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    cells: Sequence[CheckedCell],
    metric: Metric,
) -> Float[np.ndarray, "cell row codebook"]:
    """Return the metric with each cell patched in turn, in one run per cell.

    `own` contains the activations of the patched run, and `other` the replacements, both by full site name.
    """
    found = []
    for cell in cells:
        name = cell.site.name
        mask = cell.site.cell(own[name], cell.start, cell.stop, cell.head)
        mixed = torch.where(mask, other[name], own[name])
        logits = lens.run_with_interventions(list(prompts), codes, Replace(mixed, site=name, branch="cond"))
        found.append(scored(metric, logits, codes.to(logits.device)).double().cpu().numpy())
    return np.stack(found)


def _spearman(pairs: np.ndarray) -> float:
    if len(pairs) < 3 or np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return float("nan")
    found: Any = stats.spearmanr(pairs[:, 0], pairs[:, 1])
    return float(found.statistic)
