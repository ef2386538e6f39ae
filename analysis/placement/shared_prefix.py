"""Compute the logits under directions that are each added at one block, without running the blocks below it again.

Adding a vector after a block does not change the blocks below. The unsteered run is therefore recorded once, and every
candidate joins a pass up the blocks at its own block, like a cell of a patching grid (`analysis.patching.engine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.likelihood import Window
from analysis.patching.engine import PairBatch, Side
from analysis.patching.grid import Cell
from analysis.patching.runs import Runs, checked_prompts
from audiolens.model.timeline import codes_timeline
from audiolens.tracing.model_calls import alone

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.directions.directions import Directions

SITE = "resid_post"
_HOOK = "hook_resid_post"
ROWS = 64
"""The largest number of rows that run together, unless a single candidate has more."""
MOST_BYTES = 2**30
"""The largest recording that is kept. For more, every candidate takes a pass of its own."""


@dataclass(frozen=True, eq=False)
class _Moved:
    """The unsteered run with a vector added after a block, in the place of a patching run's source."""

    base: Side
    vectors: dict[int, Tensor]
    n_layers: int

    def steps(self, _: str, layer: int, start: int, stop: int) -> Tensor:
        # The residual stream after a block is that before the next one, which the unsteered run has recorded.
        last = layer + 1 == self.n_layers
        own = self.base.steps(_HOOK, layer, start, stop) if last else self.base.steps(
            "hook_resid_pre", layer + 1, start, stop
        )  # fmt: skip
        return own + self.vectors[layer].to(own)


@dataclass(frozen=True, eq=False)
class Unsteered:
    """The recording of an unsteered run over some rows, which all candidates share."""

    lens: AudioLens
    recorded: PairBatch

    @classmethod
    def of(cls, lens: AudioLens, prompts: Sequence[str], codes: Int[Tensor, "row codebook frame"]) -> Unsteered:
        """Run the model once."""
        ours, theirs, sizes = checked_prompts(lens, list(prompts), list(prompts))
        codes, timeline = codes.to(lens.device), codes_timeline(codes, lens.config)
        whole = Window(0, codes.shape[-1], lens.config.frame_rate, timeline.delays)
        runs = Runs(lens, ours, theirs, codes, (codes, codes), whole, sizes, timeline)
        return cls(lens, runs.unpatched(range(len(prompts)), _cells(range(lens.config.n_layers), runs.steps)))

    @staticmethod
    def serves(lens: AudioLens, directions: Directions, codes: Int[Tensor, "row codebook frame"]) -> bool:
        """Return whether the directions are added at a site that is shared here, and the recording is not too large."""
        config, rows = lens.config, len(codes)
        size = torch.finfo(lens.dtype).bits // 8
        recorded = 7 * rows * config.n_layers * codes.shape[-1] * config.d_model * size
        return directions.meta.site == SITE and not config.has_prefix and recorded <= MOST_BYTES

    def both_signs(
        self, directions: Directions, strengths: Mapping[int, float]
    ) -> Iterator[tuple[Float[Tensor, "row codebook step vocab"], Float[Tensor, "row codebook step vocab"]]]:
        """Yield, for each layer, the logits under its own vector added there, times its strength of either sign."""
        chunk, layers = max(1, ROWS // self.recorded.pairs), list(strengths)
        for first in range(0, len(layers), chunk):
            part = layers[first : first + chunk]
            with alone(self.lens.model), torch.no_grad():
                up, down = (
                    self._tops({layer: sign * strengths[layer] * directions[layer] for layer in part})
                    for sign in (1, -1)
                )
                found = [(_logits(self.lens, up[layer]), _logits(self.lens, down[layer])) for layer in part]
            yield from found

    def _tops(self, vectors: dict[int, Tensor]) -> dict[int, Float[Tensor, "row step d_model"]]:
        """Return the stream after the last block for each layer after which a vector is added."""
        source: Any = _Moved(self.recorded.base, vectors, self.lens.config.n_layers)
        ((_, order, top),) = self.recorded.towards(source).climbed(_cells(list(vectors), self.recorded.steps))
        return {cell.layer: stream for cell, stream in zip(order, top, strict=True) if cell.layer is not None}


def _cells(layers: Sequence[int], steps: int) -> list[Cell]:
    return [Cell((at, 0), (_HOOK,), layer, 0, steps) for at, layer in enumerate(layers)]


def _logits(lens: AudioLens, stream: Float[Tensor, "row step d_model"]) -> Float[Tensor, "row codebook step vocab"]:
    traced = lens.traced_model
    normed = traced.final_norm(stream)
    return torch.stack([head(normed) for head in traced.heads], dim=1)
