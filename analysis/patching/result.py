"""The result of a patching grid: the effect of every patch on a metric, in the metric's own unit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.patching.grid import By, Mode
from analysis.patching.runs import N_PAIRS
from analysis.resampling import CONFIDENCE, Interval, bootstrap
from analysis.statistics import LEVEL, Means, means
from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.model.timeline import Span

TOTAL = "total"


@guarded
@dataclass(frozen=True)
class Gap:
    """The clean run's metric minus the corrupted run's, as a mean over pairs with a clustered interval."""

    value: float
    interval: Interval
    unit: str

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0. If it includes 0, effects as a share of the gap are meaningless."""
        return bool(self.interval.low > 0 or self.interval.high < 0)

    def __repr__(self) -> str:
        if not np.isfinite(self.value):
            return f"unknown (no pair was measured in both runs) [{self.unit}]"
        return f"{self.value:+.3g} {self.unit} [{self.interval.low:+.3g}, {self.interval.high:+.3g}]"


@guarded
@dataclass(frozen=True, eq=False)
class PatchingResult:
    """The result of a grid of patches.

    Attributes:
        patched: the metric of every patched run, "pair codebook layer column"; NaN if a pair lacks the cell's token or
            could not be measured.
        clean, corrupted: the metric of the unpatched runs, "pair codebook".
        codebooks: names along the metric's codebook axis. A grid with a `Sound` metric has one entry, named after the
            measure.
        layers: rows of the grid; `None` for a site outside the blocks.
        columns: time windows, heads, components or tokens, depending on `by`. `spans` are the windows in seconds.
        sites: the patched sites.
        mode: "denoising" (clean values copied into the corrupted run) or "noising" (corrupted values copied into the
            clean run).
        metric, unit: the metric and its unit; log-likelihoods of the clean codes are in nats.
        scored: the scored window of the clean continuation, in seconds.
        clusters: the cluster of each pair. Intervals resample clusters.
        prompts: the (clean, corrupted) prompts of each pair.
        sound: the coarser grid with a `Sound` metric that accompanies a grid with a metric on codes.

    The result does not show that a site *encodes* the concept. A patch transfers every difference between the two runs,
    and a site that recovers the gap might merely pass that difference on. If both runs read the same codes, the text
    changes the metric little, so `normalised` raises an error if the gap's interval covers 0. A cell without effect can
    still matter, because another part of the model might act as its backup.
    """

    patched: Float[np.ndarray, "pair codebook layer column"]
    clean: Float[np.ndarray, "pair codebook"]
    corrupted: Float[np.ndarray, "pair codebook"]
    codebooks: tuple[str, ...]
    layers: tuple[int | None, ...]
    columns: tuple[str, ...]
    spans: tuple[Span, ...] | None
    by: By
    sites: tuple[str, ...]
    mode: Mode
    metric: str
    unit: str
    scored: Span
    prompts: tuple[tuple[str | None, str | None], ...]
    clusters: tuple[str, ...]
    sound: PatchingResult | None = None
    n_bootstrap: int = 1000
    n_permutations: int = 2000
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The codebooks, followed by their total if there are several."""
        return (*self.codebooks, TOTAL) if len(self.codebooks) > 1 else self.codebooks

    @cached_property
    def means(self) -> Means:
        """The effect of every cell (patched minus unpatched), "codebook layer column", with the total last."""
        before = (self.corrupted if self.mode == "denoising" else self.clean)[:, :, None, None]
        change = _with_total(self.patched - before)
        return means(
            change, self.clusters, n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, seed=self.seed
        )

    def gap(self, codebook: int | str = TOTAL) -> Gap:
        """Return the metric of the clean run minus that of the corrupted run, for one codebook or the total.

        The gap is NaN if no pair was measured in both runs.
        """
        each = self._gaps[:, self._index(codebook)]
        usable = np.isfinite(each)
        if not usable.any():
            return Gap(float("nan"), Interval(float("nan"), float("nan"), CONFIDENCE, 0), self.unit)
        own = each[usable]
        interval = bootstrap(
            lambda index: float(own[index].mean()),
            np.asarray(self.clusters)[usable],
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
        )
        return Gap(float(own.mean()), interval, self.unit)

    def effect(self, codebook: int | str = TOTAL) -> Float[np.ndarray, "layer column"]:
        """Return the mean change that each patch made, in the metric's unit."""
        return self.means.value[self._index(codebook)]

    def normalised(self, codebook: int | str = TOTAL) -> Float[np.ndarray, "layer column"]:
        """Return the grid rescaled so that 0 is the corrupted run and 1 is the clean run, by dividing by the mean gap.

        Raises:
            InputError: if the gap's interval covers 0, or there are too few prompts for an interval.
        """
        gap = self.gap(codebook)
        if not gap.clear:
            raise InputError(
                f"{self.metric}: the gap between clean and corrupted runs is {gap!r}, not clearly different from 0, so "
                "shares of it are undefined. Use .effect(), score another window, take more pairs, or give the "
                "corrupted run its own history (history=)."
            )
        # Both means cover only the pairs that have the cell. In both modes, they are relative to the corrupted run.
        index = self._index(codebook)
        patched, clean, corrupted = (_with_total(v)[:, index] for v in (self.patched, self.clean, self.corrupted))
        there = np.isfinite(patched) & np.isfinite(clean - corrupted)[:, None, None]
        whole = np.where(there, (clean - corrupted)[:, None, None], np.nan)
        part = np.where(there, patched - corrupted[:, None, None], np.nan)
        with warnings.catch_warnings():
            # A cell is NaN if no pair has it, or if nothing could be measured in it.
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean(part, axis=0) / np.nanmean(whole, axis=0)

    def best(self, codebook: int | str = TOTAL) -> tuple[int | None, str]:
        """Return the layer and column whose patch moves the metric furthest towards the run that the values come from.

        Raises:
            InputError: if no cell was measured.
        """
        effect = self.effect(codebook)
        if not np.isfinite(effect).any():
            raise InputError(f"no clip has a {self.metric} before and after a patch: there is no best cell.")
        gap = self.gap(codebook).value
        towards = np.sign(gap) * (1 if self.mode == "denoising" else -1) * effect
        row, column = np.unravel_index(
            np.nanargmax(towards if np.isfinite(gap) else np.abs(effect)), self.patched.shape[2:]
        )
        return self.layers[int(row)], self.columns[int(column)]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per codebook (and their total), layer and column, with effect, interval, p and gap.

        `normalised` is NaN where the interval of the gap covers 0.
        """
        found, tables = self.means, []
        rows, columns = np.meshgrid(np.arange(len(self.layers)), np.arange(len(self.columns)), indexing="ij")
        for index, name in enumerate(self.names):
            gap = self.gap(name)
            share = self.normalised(name) if gap.clear else np.full(rows.shape, np.nan)
            parts = ("value", "stderr", "low", "high", "p", "p_adjusted", "n")
            numbers = {part: getattr(found, part)[index].ravel() for part in parts}
            table = pd.DataFrame(
                {
                    "codebook": name,
                    "layer": [self.layers[row] for row in rows.ravel()],
                    self.by: [self.columns[column] for column in columns.ravel()],
                    "effect": numbers.pop("value"),
                    **numbers,
                    "normalised": share.ravel(),
                    "gap": gap.value,
                    "gap_low": gap.interval.low,
                    "gap_high": gap.interval.high,
                    "unit": self.unit,
                }
            )
            tables.append(table.astype({"n": int}))
        return pd.concat(tables, ignore_index=True)

    @drawable
    def plot(self, codebook: int | str = TOTAL) -> Any:
        """Draw the grid as a heat map, with the grid measured on sound to its right (matplotlib figure)."""
        from analysis.patching import figures

        return figures.paper(self, codebook)

    @interactive
    def figure(self, codebook: int | str = TOTAL) -> Any:
        """Draw the interactive version of `plot`, with a slider over codebooks (plotly figure).

        `.sound.figure()` draws the grid measured on sound.
        """
        from analysis.patching import figures

        return figures.screen(self, codebook)

    @property
    def by_ear(self) -> bool:
        """Whether the metric was measured on generated clips."""
        return self.codebooks == (self.metric,)

    @property
    def too_few(self) -> str:
        """A note if a grid with a metric on codes has too few pairs to support a claim about a few nats, else an empty
        string.
        """
        return "" if self.by_ear or len(self.clean) >= N_PAIRS else f"fewer than {N_PAIRS} pairs"

    @property
    def description(self) -> str:
        """A description of what was patched."""
        if self.by == "component":
            return "the output of each part of a block"
        return f"{' and '.join(self.sites)} by {self.by}"

    def _index(self, codebook: int | str) -> int:
        name = str(codebook)
        if len(self.codebooks) == 1 and name == TOTAL:
            return 0
        if name not in self.names:
            raise InputError(f"codebook={shown(codebook)}: this grid has {', '.join(self.names)}.")
        return self.names.index(name)

    @cached_property
    def _gaps(self) -> Float[np.ndarray, "pair codebook"]:
        return _with_total(self.clean - self.corrupted)

    def __repr__(self) -> str:
        gap = self.gap()
        if not np.isfinite(self.effect()).any():
            return f"PatchingResult({self.mode} {self.description}: gap {gap!r}; no patched clip has a {self.metric})"
        layer, column = self.best()
        row, index = self.layers.index(layer), self.columns.index(column)
        found, total = self.means, self._index(TOTAL)
        where = f"{self.by} {column}" if layer is None else f"block {layer}, {self.by} {column}"
        at = (total, row, index)
        share = f" ({self.normalised()[row, index]:.0%} of the way to clean)" if gap.clear else ""
        unclear = "" if gap.clear else "; no clear gap, so no share is given"
        few = f", {self.too_few}" if self.too_few else ""
        most = "no cell clear of chance, largest effect" if found.p_adjusted[at] > LEVEL else "largest effect"
        pairs, measured = len(self.clean), int(np.isfinite(self._gaps[:, total]).sum())
        both = f"{pairs}" if measured == pairs else f"{measured} of {pairs}"
        # The number of pairs that have this cell and could be measured in it.
        own = "" if found.n[at] == measured else f" over {found.n[at]:.0f} pairs"
        return (
            f"PatchingResult({self.mode} {self.description}: gap {gap!r} over {both} pairs of "
            f"{gap.interval.n_clusters} prompts{few}{unclear}; {most} at {where}: {found.value[at]:+.3g} {self.unit} "
            f"[{found.low[at]:+.3g}, {found.high[at]:+.3g}]{own}, p = {found.p_adjusted[at]:.2g}{share})"
        )


def _with_total(values: np.ndarray) -> np.ndarray:
    """Return values "pair codebook ..." with the sum over codebooks appended, if there are several codebooks."""
    return values if values.shape[1] == 1 else np.concatenate([values, values.sum(1, keepdims=True)], axis=1)
