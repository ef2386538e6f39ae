"""Head ablation: what becomes less likely when one head is silenced.

Cells (a layer and a head) share a batch: each is scaled on its own rows, so that a small model is kept busy.
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
from analysis.likelihood import Window, checked_rows
from analysis.site_grid import places_of
from analysis.statistics import LEVEL, N_PERMUTATIONS, UNTESTED, Means, means
from audiolens.checks import checked_amount
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.interventions import Scale
from audiolens.lens import AudioLens
from audiolens.model.sites import checked_heads
from audiolens.model.timeline import Span
from audiolens.model.tokens import named_once
from audiolens.tracing.batching import whole_batch_size


@guarded
@dataclass(frozen=True, eq=False)
class HeadAblation:
    """Change of the log-likelihood of given codes when one head's output is scaled, in nats a code.

    Attributes:
        changes: scaled minus intact; negative where the head helps.
        intact: log-likelihood of the unchanged model, in nats a code.
        site, factor: what was scaled, by how much.
        layers, heads, prompts: of the axes.
        window: the frames scored.

    It does not show what a head does alone: others may take over for it (self-repair), and a head that is always on
    also shifts what comes after it when it falls silent. Zero is not its usual output.
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
        """Mean over rows and codebooks with intervals over prompts and p over all heads: "layer head"."""
        return means(np.moveaxis(self.changes.mean(3), 2, 0), self.prompts, n_permutations=N_PERMUTATIONS)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, head and codebook: `change`, `low`, `high` in nats a code, and `p` over all rows."""
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
        """Layers by heads (matplotlib figure)."""
        from analysis.attention import figures

        return figures.ablation_paper(self)

    def figure(self) -> Any:
        """The same on screen (plotly figure)."""
        from analysis.attention import figures

        return figures.ablation_screen(self)

    def __repr__(self) -> str:
        found = self.means
        layer, head = np.unravel_index(found.value.argmin(), found.value.shape)
        p = found.p_adjusted[layer, head]
        few = UNTESTED if found.least_p > LEVEL else "no head clear of chance; "
        matters = f"{few}at most" if p > LEVEL else "most"
        return (
            f"HeadAblation({self.site} x {self.factor:g}: {matters} block {self.layers[layer]} head "
            f"{self.heads[head]}, {found.value[layer, head]:+.3g} nats a code [{found.low[layer, head]:+.3g}, "
            f"{found.high[layer, head]:+.3g}], p = {p:.2g} over {found.value.size} heads)"
        )


@guarded
@named_once
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
) -> HeadAblation:
    """Scale one head after the other and read what the given codes lose.

    Args:
        site: one with heads: "attn.z" or "cross_attn.z" (scaling z scales the head's result).
        factor: 0 silences.
        seconds: the window; default the whole clip.
        batch_size: rows in one run, of several heads where they fit.

    Raises:
        SiteError: for a site the family lacks.
        InputError: for one without heads, or that stands on the text's side.
    """
    listed, codes = checked_rows(lens, prompts, codes)
    whole_batch_size(batch_size)
    places = list(places_of(lens, site, layers).values())[0]
    if not places[0].heads or places[0].place != "step":
        raise InputError(f"site={site!r}: expected one with heads and steps, 'attn.z' or 'cross_attn.z'.")
    factor = checked_amount("factor", factor)
    whole = (0.0, lens.timeline(codes.shape[-1]).seconds)
    window = Window.of(lens, codes, whole if seconds is None else seconds)
    codes = window.cropped(codes)
    chosen = list(range(lens.config.n_heads)) if heads is None else list(checked_heads(heads, lens.config.n_heads))
    each = window.end - window.first
    n = len(codes)
    intact = window(lens.run_with_cache(list(listed), codes, sites=())[0], codes) / each
    todo = [(place, head) for place in places for head in chosen]
    at_once = max(1, whole_batch_size(batch_size) // n)
    parts = []
    for first in range(0, len(todo), at_once):
        cells = todo[first : first + at_once]
        edits = [
            Scale(factor, site=place.name, heads=[head], rows=range(n * i, n * (i + 1)), branch="cond")
            for i, (place, head) in enumerate(cells)
        ]
        many = codes.repeat(len(cells), 1, 1)
        logits = lens.run_with_interventions(list(listed) * len(cells), many, edits, batch_size=max(batch_size, n))
        scores = window(logits, many.to(logits.device)) / each
        parts += list(scores.unflatten(0, (len(cells), n)) - intact)
    changes = np.stack([part.double().cpu().numpy() for part in parts]).reshape(len(places), len(chosen), n, -1)
    return HeadAblation(
        changes=changes,
        intact=intact.double().cpu().numpy(),
        site=places[0].short,
        factor=factor,
        layers=tuple(-1 if place.layer is None else place.layer for place in places),
        heads=tuple(chosen),
        prompts=listed,
        window=window,
    )
