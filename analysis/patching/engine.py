"""Compute many patching cells in one pass up the blocks, where each cell joins the batch at its own block.

A patch does not change the blocks below it or the steps before it. The run to be patched is therefore recorded only
once, with its residual stream at every block and its keys and values at earlier steps. Cells with the same first step
share one pass up the blocks, which this module calls a climb. A cell joins the batch at the block where its patch is
made, as one row per pair, and the metric is computed once, after the last block. Climbs from different steps differ in
length, but only attention depends on the length. Climbs therefore advance in lockstep, and everything that is computed
per position is computed for all of them at once. Recordings are made through the lens. A climb (`climb.py`) instead
uses the plain decoder, so that only what the cells need is computed and stored, and nothing is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.likelihood import Window, log_probability
from analysis.patching.climb import FINAL, Climb, recorded_as
from analysis.patching.grid import BEGIN, EMBEDDINGS, INSIDE, TEXT_STATES, WRITES, Cell
from audiolens.errors import InputError, SiteError
from audiolens.model.plain_decoder import PlainDecoder, Positionwise, Steps
from audiolens.tracing.fast_clips import changes_missed

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.cache.activation_cache import ActivationCache

LOGITS = "hook_logits"
REACHED = {*BEGIN, *WRITES, *EMBEDDINGS, *INSIDE, TEXT_STATES, FINAL, LOGITS}
"""The sites that a climb edits. A patch at any other site would change nothing."""
POSITIONS = 512
"""Number of positions that a CPU computes at a time. More positions would not fit in the CPU's cache."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two runs over a batch of pairs, with its recording and the number of positions before its step 0.

    `scores` are the log-probabilities of the scored codes, "pair codebook frame".
    """

    cache: ActivationCache
    prefix: int
    scores: Float[Tensor, "pair codebook frame"]

    def all(self, hook: str, layer: int | None, stop: int | None = None) -> Tensor:
        """Return a site's values at all positions, or only at those before step `stop`."""
        value = self.cache[hook if layer is None else f"blocks.{layer}.{hook}"]
        return value if stop is None else value[:, : self.prefix + stop]

    def steps(self, hook: str, layer: int | None, start: int, stop: int) -> Tensor:
        return self.cache[hook if layer is None else f"blocks.{layer}.{hook}"][
            :, self.prefix + start : self.prefix + stop
        ]


def recorded_hooks(lens: AudioLens, cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """Return the sites to record in the patched run, and in the run that supplies the values.

    Raises:
        SiteError: if a patch at one of the sites cannot be computed.
        InputError: if something changes the model's own runs, but would not change the patched ones.
    """
    hooks = {hook for cell in cells for hook in cell.hooks}
    if unknown := sorted(hooks - REACHED):
        raise SiteError(f"{unknown[0]}: patching does not reach this site. It reaches {', '.join(sorted(REACHED))}.")
    if missed := changes_missed(lens.traced_model):
        raise InputError(f"patching computes the blocks itself: {missed}.")
    cross = lens.traced_model.family.has("hook_cross_attn_out")
    base = ["attn.hook_k", "attn.hook_v", "hook_resid_pre", f"blocks.{lens.config.n_layers - 1}.hook_resid_post"]
    base += ["cross_attn.hook_k", "cross_attn.hook_v", "hook_resid_mid", "hook_resid_cross"] if cross else []
    base += [] if cross else ["hook_resid_mid"]
    base += [hook for hook in (*EMBEDDINGS, TEXT_STATES, FINAL) if hook in hooks]
    return base, [recorded_as(hook) for hook in sorted(hooks - {LOGITS})]


@dataclass(frozen=True, eq=False)
class PairBatch:
    """A batch of pairs, with both runs, the scored codes, and the mask of the text.

    `steps` is the number of steps up to the last one that is scored. `tokens` gives each pair's token in each column of
    a grid by tokens (-1 for none). `seen` marks which of the padded tokens are text.
    """

    lens: AudioLens
    base: Side
    source: Side
    codes: Int[Tensor, "pair codebook frame"]
    window: Window
    steps: int
    seen: Bool[Tensor, "pair token"] | None
    tokens: Int[Tensor, "pair column"] | None

    @property
    def pairs(self) -> int:
        return len(self.codes)

    @cached_property
    def decoder(self) -> PlainDecoder:
        return PlainDecoder(self.lens.traced_model)

    def scored(self, cells: Sequence[Cell]) -> Float[Tensor, "cell pair codebook"]:
        """Return the summed log-probability of the scored codes under each cell's patch, in nats.

        The sum is NaN if the pair lacks the cell's token.
        """
        plain = self.base.scores.double().sum(-1)
        out = plain.expand(len(cells), -1, -1).clone()
        index_of = {cell: i for i, cell in enumerate(cells)}
        moving = [cell for cell in cells if cell.start < cell.stop]
        swapped = [cell for cell in moving if cell.hooks[0] == LOGITS]
        # A patch of the text states changes every block, so these cells need a separate pass.
        on_text = [cell for cell in moving if cell.hooks[0] == TEXT_STATES]
        for cell in swapped:
            out[index_of[cell]] = self._swapped(cell)
        for group in (on_text, [cell for cell in moving if cell not in on_text and cell not in swapped]):
            for start, order, top in self.climbed(group):
                out[[index_of[cell] for cell in order]] = self._read(top, start, order)
        for i, cell in enumerate(cells):
            if cell.token is not None and self.tokens is not None:
                out[i, self.tokens[:, cell.token] < 0] = torch.nan
        return out

    def towards(self, source: Side) -> PairBatch:
        """Return the batch with another run that supplies the values."""
        return replace(self, source=source)

    def climbed(self, cells: Sequence[Cell]) -> list[tuple[int, list[Cell], Tensor]]:
        """Run all climbs, and return each climb's first step, its cells, and their stream after the last block."""
        starts: dict[int, list[Cell]] = {}
        for cell in cells:
            starts.setdefault(cell.start, []).append(cell)
        hooks = frozenset(hook for cell in cells for hook in cell.hooks)
        first = min(cell.layer or 0 for cell in cells) if cells else 0
        climbs = [(start, Climb(self, start, hooks, first).run(group)) for start, group in starts.items()]
        reached = together([steps for _, steps in climbs])
        return [(start, order, top) for (start, _), (top, order) in zip(climbs, reached, strict=True)]

    def _swapped(self, cell: Cell) -> Float[Tensor, "pair codebook"]:
        """Return the score of a patch at the logits, which needs no forward pass."""
        frames = torch.arange(self.window.first, self.window.end, device=self.codes.device)
        steps = frames + torch.tensor(self.window.delays, device=frames.device)[:, None]
        inside = (steps >= cell.start) & (steps < cell.stop)
        return torch.where(inside, self.source.scores, self.base.scores).double().sum(-1)

    def _read(self, top: Tensor, start: int, order: Sequence[Cell]) -> Float[Tensor, "cell pair codebook"]:
        stream = self.decoder.final_norm(top)
        for i, cell in enumerate(order):
            if cell.hooks == (FINAL,):
                stream[i] = self.base.steps(FINAL, None, start, self.steps)
                value = self.source.steps(FINAL, None, cell.start, cell.stop)
                stream[i, :, cell.start - start : cell.stop - start] = value
        first, end = self.window.first, self.window.end
        sums = []
        for codebook, shift in enumerate(self.window.delays):
            # Frames predicted before the patch keep the scores of the unpatched run.
            begin = max(first, start - shift)
            kept = self.base.scores[:, codebook, : begin - first].double().sum(-1)
            if begin >= end:
                sums.append(kept.expand(len(top), -1))
                continue
            logits = self.decoder.heads[codebook](stream[:, :, begin + shift - start : end + shift - start])
            mine = log_probability(logits, self.codes[:, codebook, begin:end].expand(len(top), -1, -1))
            sums.append(kept + mine.double().sum(-1))
        return torch.stack(sums, dim=-1)


def together(climbs: Sequence[Steps[Any]]) -> list[Any]:
    """Run climbs in lockstep, calling each function once for all of them, and return the result of each climb."""
    asked = [next(climb) for climb in climbs]
    ended: list[Any] = []
    while asked:
        values = _positionwise(asked[0][0], [stream for _, stream in asked])
        asked = []
        for climb, value in zip(climbs, values, strict=True):
            try:
                asked.append(climb.send(value))
            except StopIteration as end:
                ended.append(end.value)
    return ended


def _positionwise(function: Positionwise, streams: Sequence[Tensor]) -> list[Any]:
    """Apply a function at every position of several streams, and return its values for each stream."""
    values: list[Any] = []
    waiting: list[Tensor] = []
    for stream in streams:
        waiting.append(stream.flatten(0, 2))
        if sum(map(len, waiting)) >= POSITIONS or len(values) + len(waiting) == len(streams):
            values += _at_once(function, waiting)
            waiting = []
    shaped = zip(values, (stream.shape[:3] for stream in streams), strict=True)
    return [tuple(part.unflatten(0, shape) for part in value) for value, shape in shaped]


def _at_once(function: Positionwise, streams: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    flat = torch.cat(list(streams)) if len(streams) > 1 else streams[0]
    size = max(len(flat), 1) if flat.device.type != "cpu" or len(flat) <= 4 * POSITIONS else POSITIONS
    made = [function(part) for part in flat.split(size)]
    whole = made[0] if len(made) == 1 else tuple(torch.cat(parts) for parts in zip(*made, strict=True))
    return list(zip(*(column.split([len(stream) for stream in streams]) for column in whole), strict=True))
