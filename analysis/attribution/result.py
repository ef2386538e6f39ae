"""AttributionResult: what each cell would change of the metric, to first order, over pairs of prompts."""

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
from analysis.likelihood import Window
from analysis.statistics import LEVEL, N_PERMUTATIONS, Means, means
from audiolens.door import guarded
from audiolens.errors import InputError, nearest

Method = Literal["gradient", "integrated"]
By = Literal["layer", "codebook", "place", "head"]
_AXES: tuple[By, ...] = ("layer", "codebook", "place", "head")


@guarded
@dataclass(frozen=True, eq=False)
class Scores:
    """One site's attributions, in nats.

    Attributes:
        values: every pair's; the head axis has length 1 where the site has no heads, the codebook axis where
            codebooks were summed.
        layers: of the layer axis; (-1,) for a site that stands in no block.
        place: what the place axis counts: "step" (the tail included) or "token" of the text.
        heads: whether the site has heads.
    """

    values: Float[np.ndarray, "layer pair codebook place head"]
    layers: tuple[int, ...]
    place: Literal["step", "token"]
    heads: bool


@guarded
@dataclass(frozen=True, eq=False)
class AttributionResult:
    """What each cell would change of the metric if its activation were the other run's, in nats, to first order.

    Attributes:
        sites: short site name -> its `Scores`.
        clean_scores, corrupted_scores: the metric of both unpatched runs (log-likelihood of the given codes in the
            window, in nats).
        clean, corrupted: the prompts, paired by row.
        tokens: of the clean prompts.
        window: the frames scored; `None` with a metric of one's own.
        frame_rate: steps a second.
        method, steps: "gradient", or "integrated" over so many points of the path.
        towards: "denoising": the corrupted run is given clean activations (positive: the cell restores what the clean
            prompt says); "noising": the clean run is given corrupted ones (negative: the cell was needed).
        agreement: with exact patching, on a sample of cells; `None` where `check=0`.

    It does not show what is *used*: a gradient is that of one run, blind to saturation, and what two cells do
    together is in neither. Cells of one path (resid_post of block after block) each carry the same effect: over
    layers they do not add up. Both runs read the same codes, so most of what they will play is settled by the
    history; see `gap` before reading anything into a share of it.
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
        """Clean minus corrupted metric, in nats, over pairs; its interval is over clean prompts."""
        return means((self.clean_scores - self.corrupted_scores).sum(1), self.clean)

    def of(self, site: str, by: By | Sequence[By] = ("layer", "place")) -> Float[np.ndarray, "..."]:
        """Mean over pairs along some of the axes "layer", "codebook", "place" and "head", summed over the others."""
        return self._along(site, by).mean(-1)

    def normalised(self, site: str, by: By | Sequence[By] = ("layer", "place")) -> Float[np.ndarray, "..."]:
        """The same as a share of the gap: 1 is the whole difference between the prompts.

        Raises:
            InputError: if the interval of the gap covers 0, so that there is no scale to give a share of.
        """
        gap = self.gap
        if not (gap.low > 0 or gap.high < 0):
            raise InputError(
                f"the gap between clean and corrupted is {gap.value:+.3g} nats [{gap.low:+.3g}, {gap.high:+.3g}]: its "
                "interval covers 0, so shares of it mean nothing. Read the raw nats (.of), or give more pairs."
            )
        return self.of(site, by) / float(gap.value)

    def over(self, site: str, by: By | Sequence[By] = "layer", n_permutations: int = 0) -> Means:
        """Mean attribution along some axes with intervals over clean prompts, and p over all cells if permuted."""
        return means(np.moveaxis(self._along(site, by), -1, 0), self.clean, n_permutations=n_permutations)

    @property
    def completeness(self) -> float:
        """Of "integrated": the sum over the text states as a share of the gap. Near 1 the steps were enough.

        Raises:
            InputError: if the text states were not attributed by that method.
        """
        if self.method != "integrated" or "text_states" not in self.sites:
            raise InputError("completeness is that of method='integrated', at site 'text_states'.")
        whole = float(self.gap.value) * (1 if self.towards == "denoising" else -1)
        return float(self._scores("text_states").values.sum((0, 2, 3, 4)).mean()) / whole

    def to_frame(self) -> pd.DataFrame:
        """One row per site, layer and head: `effect`, `low`, `high` in nats, and `p` over the site's cells.

        Layer -1 is in no block, head -1 is none.
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
        """One row per layer: `layer`, `effect`, `low`, `high`, summed over steps, heads and codebooks."""
        found = self.over(site, "layer")
        table = {"layer": self._scores(site).layers, "effect": found.value, "low": found.low, "high": found.high}
        return pd.DataFrame(table)

    @drawable
    def plot(self) -> Any:
        """A panel per site: layer x time, layer x head or layer x token (matplotlib figure)."""
        from analysis.attribution import figures

        return figures.paper(self)

    def figure(self) -> Any:
        """The same on screen (plotly figure)."""
        from analysis.attribution import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        gap = self.gap
        found = [
            f"clean over corrupted {gap.value:+.3g} nats [{gap.low:+.3g}, {gap.high:+.3g}], {len(self.clean)} pairs"
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
        """Along some axes, pairs last."""
        kept = [by] if isinstance(by, str) else list(by)
        if not kept or any(axis not in _AXES for axis in kept) or len(set(kept)) < len(kept):
            raise InputError(f"by={by!r}: expected one or several of {', '.join(_AXES)}.")
        values = np.moveaxis(self._scores(site).values, 1, -1)
        order = [axis for axis in _AXES if axis in kept]
        summed = values.sum(axis=tuple(place for place, axis in enumerate(_AXES) if axis not in kept))
        return np.moveaxis(summed, [order.index(axis) for axis in kept], range(len(kept)))

    def _scores(self, site: str) -> Scores:
        if site not in self.sites:
            raise InputError(f"{site!r} was not attributed.{nearest(site, self.sites)} There are: {[*self.sites]}.")
        return self.sites[site]

    @staticmethod
    def _heads(scores: Scores) -> list[int]:
        return list(range(scores.values.shape[-1])) if scores.heads else [-1]
