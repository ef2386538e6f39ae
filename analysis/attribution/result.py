"""The result of attribution patching, which is each cell's first-order effect on the metric for pairs of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.attribution.agreement import Agreement
from analysis.attribution.pairing import Towards
from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.likelihood import Window
from analysis.resampling import Resampling
from analysis.statistics import LEVEL, N_PERMUTATIONS, Means, means
from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError, nearest
from audiolens.groups import takes

Method = Literal["gradient", "integrated"]
By = Literal["layer", "codebook", "place", "head"]
_AXES: tuple[By, ...] = ("layer", "codebook", "place", "head")


@guarded
@dataclass(frozen=True, eq=False)
class Scores:
    """One site's attributions, in nats.

    Attributes:
        values: attributions of every pair. The head axis has length 1 if the site has no heads, and the codebook axis
            has length 1 if codebooks were summed.
        layers: labels of the layer axis; (-1,) for a site that is not in a block.
        cell_unit: what one cell of the place axis covers: a "step" (including the last steps, which only finish the
            delayed codebooks) or a "token" of the text.
        heads: whether the site has heads.
    """

    values: Float[np.ndarray, "layer pair codebook place head"]
    layers: tuple[int, ...]
    cell_unit: Literal["step", "token"]
    heads: bool


@guarded
@dataclass(frozen=True, eq=False)
class AttributionResult:
    """First-order effect on the metric, in nats, of replacing each cell's activation with the one from the other run.

    Attributes:
        sites: the `Scores` of each site, by short name.
        clean_scores, corrupted_scores: the metric of both unpatched runs (log-likelihood of the given codes in the
            window, in nats).
        clean, corrupted: the prompts, paired by row.
        tokens: tokens of the clean prompts.
        window: the frames scored; `None` with a custom metric.
        frame_rate: steps per second.
        method, steps: "gradient", or "integrated" over `steps` points of the path between the text states.
        towards: "denoising" patches clean activations into the corrupted run (positive: the cell restores the clean
            behaviour). "noising" patches corrupted activations into the clean run (negative: the cell was needed).
        agreement: agreement with exact patching on a sample of cells; `None` with `check=0`.

    The scores do not show which activations the model *uses*, because a gradient is local to one run and misses
    saturation. Interactions between two cells do not appear in either cell's score. Cells on one path (resid_post of
    successive blocks) share the same effect, so their scores do not add up over layers. Both runs read the same codes,
    which already determine most of the continuation. Check `gap` before interpreting a share of it.
    """

    sites: Mapping[str, Scores]
    clean_scores: Float[np.ndarray, "pair codebook"]
    corrupted_scores: Float[np.ndarray, "pair codebook"]
    clean: tuple[str | None, ...]
    corrupted: tuple[str | None, ...]
    tokens: tuple[tuple[str, ...], ...]
    window: Window | None
    frame_rate: float
    method: Method
    steps: int
    towards: Towards
    agreement: Agreement | None

    @property
    def gap(self) -> Means:
        """The clean minus the corrupted metric in nats, averaged over pairs, with an interval over clean prompts."""
        return means((self.clean_scores - self.corrupted_scores).sum(1), self.clean)

    def of(self, site: str, by: By | Sequence[By] = ("layer", "place")) -> Float[np.ndarray, "..."]:
        """Return the mean over pairs along axes `by` ("layer", "codebook", "place", "head"), summed over the others."""
        return self._along(site, by).mean(-1)

    def normalised(self, site: str, by: By | Sequence[By] = ("layer", "place")) -> Float[np.ndarray, "..."]:
        """Return the values of `of` as a share of the gap, where 1 is the full difference between the prompts.

        Raises:
            InputError: if the interval of the gap covers 0, so that shares are meaningless.
        """
        gap = self.gap
        if not (gap.low > 0 or gap.high < 0):
            raise InputError(
                f"the gap between clean and corrupted is {gap.value:+.3g} nats [{gap.low:+.3g}, {gap.high:+.3g}]. Its "
                "interval covers 0, so shares of it are meaningless. Use the values in nats (.of), or give more pairs."
            )
        return self.of(site, by) / float(gap.value)

    @takes("resampling", Resampling, keeps=["n_bootstrap", "confidence", "seed"])
    def over(
        self,
        site: str,
        by: By | Sequence[By] = "layer",
        n_permutations: int = 0,
        *,
        resampling: Resampling | None = None,
    ) -> Means:
        """Return mean attributions with intervals over clean prompts, and permutation p-values for all cells.

        `resampling` is a `Resampling` that replaces `n_permutations`, as in `analysis.statistics.means`.
        """
        how = resampling or Resampling(n_permutations=n_permutations)
        return means(np.moveaxis(self._along(site, by), -1, 0), self.clean, resampling=how)

    @property
    def completeness(self) -> float:
        """For "integrated", the summed attribution of the text states as a share of the gap.

        The share is near 1 if `steps` was large enough.

        Raises:
            InputError: if the text states were not attributed by the method "integrated".
        """
        if self.method != "integrated" or "text_states" not in self.sites:
            raise InputError("completeness needs method='integrated' and the site 'text_states'.")
        whole = float(self.gap.value) * (1 if self.towards == "denoising" else -1)
        return float(self._scores("text_states").values.sum((0, 2, 3, 4)).mean()) / whole

    def to_frame(self) -> pd.DataFrame:
        """Return one row per site, layer and head.

        The columns `effect`, `low` and `high` are in nats, and `p` is adjusted for the cells of the site. Layer -1
        means that the site is not in a block, and head -1 means that it has no heads.
        """
        frames = []
        for site, scores in self.sites.items():
            found = self.over(site, ("layer", "head"), N_PERMUTATIONS)
            layer, head = np.meshgrid(scores.layers, self._heads(scores), indexing="ij")
            frames.append(
                pd.DataFrame(
                    {
                        "site": site,
                        "layer": layer.ravel(),
                        "head": head.ravel(),
                        "effect": found.value.ravel(),
                        "low": found.low.ravel(),
                        "high": found.high.ravel(),
                        "p": found.p_adjusted.ravel(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def by_layer(self, site: str) -> pd.DataFrame:
        """Return one row per layer (`layer`, `effect`, `low`, `high`), summed over steps, heads and codebooks."""
        found = self.over(site, "layer")
        table = {"layer": self._scores(site).layers, "effect": found.value, "low": found.low, "high": found.high}
        return pd.DataFrame(table)

    @drawable
    def plot(self) -> Any:
        """Plot one panel per site, with layers as rows and times, heads or tokens as columns (matplotlib figure)."""
        from analysis.attribution import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Plot one site at a time, selected by a menu (plotly figure)."""
        from analysis.attribution import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        gap = self.gap
        found = [
            f"clean minus corrupted {gap.value:+.3g} nats [{gap.low:+.3g}, {gap.high:+.3g}], {len(self.clean)} pairs"
        ]
        for site, scores in self.sites.items():
            by: tuple[By, ...] = ("layer", "head") if scores.heads else ("layer",)
            cells = self.over(site, by, N_PERMUTATIONS)
            peak = np.unravel_index(np.abs(cells.value).argmax(), cells.value.shape)
            p = cells.p_adjusted[peak]
            head = f" head {peak[1]}" if scores.heads else ""
            rho = "" if self.agreement is None else f", rho {self.agreement.rho[site]:.2f}"
            peaks = "is nowhere clear of chance, largest" if p > LEVEL else "peaks"
            where = "the text" if scores.layers[peak[0]] < 0 else f"block {scores.layers[peak[0]]}{head}"
            found.append(f"{site} {peaks} at {where}: {cells.value[peak]:+.3g} (p = {p:.2g}{rho})")
        return f"AttributionResult({self.method}, {self.towards}: {'; '.join(found)})"

    def _along(self, site: str, by: By | Sequence[By]) -> Float[np.ndarray, "..."]:
        """Return attributions along some axes, summed over the others, with pairs on the last axis."""
        kept = [by] if isinstance(by, str) else list(by)
        if not kept or any(axis not in _AXES for axis in kept) or len(set(kept)) < len(kept):
            raise InputError(f"by={shown(by)}: expected one or several of {', '.join(_AXES)}.")
        values = np.moveaxis(self._scores(site).values, 1, -1)
        order = [axis for axis in _AXES if axis in kept]
        summed = values.sum(axis=tuple(place for place, axis in enumerate(_AXES) if axis not in kept))
        return np.moveaxis(summed, [order.index(axis) for axis in kept], range(len(kept)))

    def _scores(self, site: str) -> Scores:
        if site not in self.sites:
            raise InputError(
                f"{shown(site)} was not attributed.{nearest(site, self.sites)} There are: {[*self.sites]}."
            )
        return self.sites[site]

    @staticmethod
    def _heads(scores: Scores) -> list[int]:
        return list(range(scores.values.shape[-1])) if scores.heads else [-1]
