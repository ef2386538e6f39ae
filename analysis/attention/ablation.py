"""Measure how the likelihood of given codes changes when one head's output is scaled, by default to zero.

Several heads share a batch, and each head is scaled in its own rows only. Large batches make better use of the hardware
when the model is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.likelihood import Window, checked_rows
from analysis.site_grid import grid_sites
from analysis.statistics import LEVEL, N_PERMUTATIONS, UNTESTED, Means, means
from audiolens.checks import checked_amount, shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.groups import takes
from audiolens.interventions import Scale
from audiolens.lens import AudioLens
from audiolens.model.sites import checked_heads
from audiolens.model.timeline import Span
from audiolens.model.tokens import named_once
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.recording import Reading


@guarded
@dataclass(frozen=True, eq=False)
class HeadAblation:
    """Change in the log-likelihood of given codes when one head's output is scaled, in nats per code.

    Attributes:
        changes: log-likelihood with the head scaled, minus `intact`. The change is negative if scaling the head lowers
            the likelihood.
        intact: log-likelihood under the unchanged model, in nats per code.
        site, factor: the site that was scaled, and the factor.
        layers, heads, prompts: the labels of the first three axes.
        window: the scored frames.

    The change does not isolate a head's function. Other heads can compensate for the scaled head (self-repair). Zero
    ablation also removes the head's mean output, which shifts the inputs of later blocks.
    """

    changes: Float[np.ndarray, "layer head row codebook"]
    intact: Float[np.ndarray, "row codebook"]
    site: str
    factor: float
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    prompts: tuple[str | None, ...]
    window: Window

    @property
    def means(self) -> Means:
        """Mean change over rows and codebooks, "layer head", with intervals over prompts and p-values for each head."""
        return means(np.moveaxis(self.changes.mean(3), 2, 0), self.prompts, n_permutations=N_PERMUTATIONS)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer, head and codebook.

        The columns `change`, `low` and `high` are in nats per code, and `p` is adjusted for all rows of the table.
        """
        found = means(np.moveaxis(self.changes, 2, 0), self.prompts, n_permutations=N_PERMUTATIONS)
        layer, head, codebook = np.indices(found.value.shape)
        return pd.DataFrame(
            {
                "layer": np.asarray(self.layers)[layer.ravel()],
                "head": np.asarray(self.heads)[head.ravel()],
                "codebook": codebook.ravel(),
                "change": found.value.ravel(),
                "low": found.low.ravel(),
                "high": found.high.ravel(),
                "p": found.p_adjusted.ravel(),
            }
        )

    @drawable
    def plot(self) -> Any:
        """Plot the changes by layer and head (matplotlib figure)."""
        from analysis.attention import figures

        return figures.ablation_paper(self)

    @interactive
    def figure(self) -> Any:
        """Plot the changes by layer and head (plotly figure)."""
        from analysis.attention import figures

        return figures.ablation_screen(self)

    def __repr__(self) -> str:
        found = self.means
        layer, head = np.unravel_index(found.value.argmin(), found.value.shape)
        p = found.p_adjusted[layer, head]
        few = UNTESTED if found.least_p > LEVEL else "no head clear of chance; "
        matters = f"{few}lowest at" if p > LEVEL else "lowest at"
        return (
            f"HeadAblation({self.site} x {self.factor:g}: {matters} block {self.layers[layer]} head "
            f"{self.heads[head]}, {found.value[layer, head]:+.3g} nats per code [{found.low[layer, head]:+.3g}, "
            f"{found.high[layer, head]:+.3g}], p = {p:.2g} over {found.value.size} heads)"
        )


@guarded
@named_once
@takes("reading", Reading, single=["sites"], sites="site", seconds=None)
def ablate(
    lens: AudioLens,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    site: str = "attn.z",
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    factor: float = 0.0,
    seconds: Span | None = None,
    batch_size: int = 64,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> HeadAblation:
    """Scale the output of each head in turn, and return the change in the log-likelihood of the given codes.

    Args:
        site: a site with heads: "attn.z" or "cross_attn.z" (scaling z scales the head's result).
        factor: 0 removes the head's output.
        seconds: the window that is scored; the whole clip by default.
        reading: a `Reading` instead of `site`, `layers` and `heads`.
        batch_size: number of rows per forward pass. One pass covers several heads if their rows fit.

    Raises:
        SiteError: if the model family lacks the site.
        InputError: if the site has no heads or is on the text side.
    """
    listed, codes = checked_rows(lens, prompts, codes)
    batch_size = whole_batch_size(batch_size)
    sites = list(grid_sites(lens, site, layers).values())[0]
    if not sites[0].heads or sites[0].cell_unit != "step":
        raise InputError(f"site={shown(site)}: expected a site with heads and steps, 'attn.z' or 'cross_attn.z'.")
    factor = checked_amount("factor", factor)
    whole = (0.0, lens.timeline(codes.shape[-1]).seconds)
    window = Window.of(lens, codes, whole if seconds is None else seconds)
    codes = window.cropped(codes)
    chosen = list(range(lens.config.n_heads)) if heads is None else list(checked_heads(heads, lens.config.n_heads))
    each = window.end - window.first
    n = len(codes)
    intact = window(lens.run_with_cache(list(listed), codes, sites=())[0], codes) / each
    todo = [(one, head) for one in sites for head in chosen]

    def part(at: slice) -> list[Tensor]:
        cells = todo[at]
        edits = [
            Scale(factor, site=one.name, heads=[head], rows=range(n * i, n * (i + 1)), branch="cond")
            for i, (one, head) in enumerate(cells)
        ]
        many = codes.repeat(len(cells), 1, 1)
        logits = lens.run_with_interventions(list(listed) * len(cells), many, edits, batch_size=max(batch_size, n))
        scores = window(logits, many.to(logits.device)) / each
        return list(scores.unflatten(0, (len(cells), n)) - intact)

    fit = reading_fit(
        lens.traced_model, listed, codes.shape[-1], max(1, batch_size // n), rows=f"ablated heads, in {n} rows each,"
    )  # fmt: skip
    parts = [scores for _, found in fit.run(len(todo), part) for scores in found]
    changes = np.stack([part.double().cpu().numpy() for part in parts]).reshape(len(sites), len(chosen), n, -1)
    return HeadAblation(
        changes=changes,
        intact=intact.double().cpu().numpy(),
        site=sites[0].short,
        factor=factor,
        layers=tuple(-1 if one.layer is None else one.layer for one in sites),
        heads=tuple(chosen),
        prompts=listed,
        window=window,
    )
