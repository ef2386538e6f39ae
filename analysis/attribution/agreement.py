"""Compare attributions with exact activation patching on a uniform random sample of cells.

Cells are scored together by the patching engine. With a metric of the caller's own, and at sites that the engine does
not reach, each cell takes one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from analysis.attribution.gradients import Metric, scored
from analysis.likelihood import Window
from analysis.patching.engine import LOGITS, REACHED
from analysis.patching.experiment import scored_cells
from analysis.patching.grid import Cell
from analysis.patching.runs import Runs, checked_prompts
from analysis.resampling import Interval, interval_of, resampled
from analysis.site_grid import GridSite
from audiolens.interventions import Replace
from audiolens.lens import AudioLens
from audiolens.model.timeline import codes_timeline


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
            rho[str(site)] = float(_spearman(pairs[None])[0])
            draws = resampled(np.arange(len(pairs)), n_bootstrap=300)
            values = np.nan_to_num(_spearman(pairs[np.stack(draws)])) if draws else np.empty(0)
            intervals[str(site)] = interval_of(values, len(pairs))
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


def reached(site: GridSite, metric: Metric) -> bool:
    """Return whether the patching engine can score cells of this site under this metric."""
    return isinstance(metric, Window) and _hook(site) in REACHED - {LOGITS}


def patched_together(
    lens: AudioLens,
    own: Sequence[str | None],
    other: Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    cells: Sequence[CheckedCell],
    window: Window,
) -> Float[np.ndarray, "cell row codebook"]:
    """Return how much each cell's patch changes the log-likelihood of the codes, in nats.

    `own` are the prompts of the run that is patched, and `other` those of the run that supplies the values. The result
    is the same as that of `patched` minus the unpatched scores, but all cells share their passes through the model.
    """
    theirs, ours, sizes = checked_prompts(lens, other, own)
    longest = max(map(max, sizes))
    timeline = codes_timeline(codes, lens.config, lens.config.prefix(longest))
    places = torch.arange(longest, device="cpu").expand(len(ours), -1)
    runs = Runs(lens, theirs, ours, codes.to(lens.device), (codes, codes), window, sizes, timeline, places)
    found, before = scored_cells(runs, [_engine_cell(cell, runs.steps) for cell in cells])
    return np.moveaxis(found - before[..., None], -1, 0)


def _engine_cell(cell: CheckedCell, steps: int) -> Cell:
    hooks = (_hook(cell.site),)
    if cell.site.cell_unit == "token":
        return Cell((0, 0), hooks, cell.site.layer, 0, steps, cell.head, cell.start)
    # Steps after the last scored one cannot change the score.
    return Cell((0, 0), hooks, cell.site.layer, min(cell.start, steps), min(cell.stop, steps), cell.head)


def _hook(site: GridSite) -> str:
    return site.name if site.layer is None else site.name.removeprefix(f"blocks.{site.layer}.")


def _spearman(pairs: Float[np.ndarray, "draw cell 2"]) -> Float[np.ndarray, " draw"]:
    """Return the rank correlation of every draw. It is NaN with fewer than three cells, or without differences."""
    if pairs.shape[1] < 3:
        return np.full(len(pairs), np.nan)
    ranks = stats.rankdata(pairs, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (ranks[..., 0] * ranks[..., 1]).sum(1) / np.sqrt((ranks**2).sum(1).prod(1))
