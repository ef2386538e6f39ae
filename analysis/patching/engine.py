"""Compute many patching cells in one pass up the blocks, where each cell joins the batch at its own block.

A patch does not change the blocks below it or the steps before it. The run to be patched is therefore recorded only
once, with its residual stream at every block and its keys and values at earlier steps. Cells with the same first step
share one pass up the blocks, which this module calls a climb. A cell joins the batch at the block where its patch is
made, as one row per pair, and the metric is computed once, after the last block. Climbs from different steps differ in
length, but only attention depends on the length. Climbs therefore advance in lockstep, and everything that is computed
per position is computed for all of them at once. Recordings are made through the lens. A climb instead uses the plain
decoder, so that only what the cells need is computed and stored, and nothing is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analysis.likelihood import Window, log_probability
from analysis.patching.grid import BEGIN, EMBEDDINGS, INSIDE, TEXT_STATES, WRITES, Cell
from audiolens.errors import InputError, SiteError
from audiolens.model.plain_decoder import Attended, Attention, PlainDecoder, Positionwise, Steps
from audiolens.model.site_access import attention_pattern
from audiolens.tracing.fast_clips import changes_missed

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.cache.activation_cache import ActivationCache

LOGITS, FINAL = "hook_logits", "ln_final.hook_normalized"
REACHED = {*BEGIN, *WRITES, *EMBEDDINGS, *INSIDE, TEXT_STATES, FINAL, LOGITS}
"""The sites that a climb edits. A patch at any other site would change nothing."""
POSITIONS = 512
"""Number of positions that a CPU computes at a time. More positions would not fit in the CPU's cache."""
_Climbing = Steps[tuple[Tensor, list[Cell]]]
_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_cross")


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
    return base, [_recorded_as(hook) for hook in sorted(hooks - {LOGITS})]


def _recorded_as(hook: str) -> str:
    """Return the site to record for a patch at `hook`.

    A head's result is recorded as z, because the result is a linear function of z but takes more memory.
    """
    return hook.replace("hook_result", "hook_z")


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


class Climb:
    """One pass up the blocks over the steps from `start`. Streams are "cell pair step d_model".

    `hooks` are the sites patched by this climb or by any climb in lockstep with it, and `first` is their lowest block.
    Climbs that run in lockstep must yield (as generators) the same functions in the same order.
    """

    def __init__(self, batch: PairBatch, start: int, hooks: frozenset[str], first: int) -> None:
        self.batch, self.start, self.first = batch, start, first
        self.base, self.source, self.steps = batch.base, batch.source, batch.steps
        self.config = batch.lens.config
        self.decoder = batch.decoder
        self.visited = frozenset(hook.replace("hook_result", "hook_z") for hook in hooks & set(INSIDE))
        length, before = batch.steps - start, batch.base.prefix + start
        past = torch.ones(length, before + length, dtype=torch.bool, device=batch.codes.device).tril(before)
        self.past: Bool[Tensor, "1 1 query key"] = past[None, None]
        self.text_states: Tensor | None = None
        self.rows = 0
        """The number of cells in the stream of the part that is being computed."""
        self.new: list[Cell] = []

    def run(self, cells: Sequence[Cell]) -> _Climbing:
        """Run the pass, and return the stream after the last block and the cell of each of its rows."""
        waiting = list(cells)
        joined: list[Cell] = []
        stream = self._stream(0, self.config.n_layers)[None][:0]
        if cells[0].hooks == (TEXT_STATES,):
            states = self.base.all(TEXT_STATES, None).expand(len(cells), -1, -1, -1)
            self.new, joined, waiting = waiting, waiting, []
            self.text_states = self._edited(TEXT_STATES, None, states)
            # The first self-attention does not depend on the text.
            stream, self.new = self._stream(1, 0).expand(len(joined), -1, -1, -1), []
        for layer in range(self.first, self.config.n_layers):
            for part in (1, 2, 3):
                ready = [cell for cell in waiting if not cell.inside and self._enters(cell) == (layer, part - 1)]
                self.new = [cell for cell in waiting if cell.inside and (cell.layer, cell.part) == (layer, part)]
                waiting = [cell for cell in waiting if cell not in ready and cell not in self.new]
                rows = [self._patched(cell) for cell in ready]
                rows += [self._stream(part - 1, layer)] * len(self.new)
                joined = [*joined, *ready, *self.new]
                if rows:
                    stream = torch.cat([stream, torch.stack(rows)])
                # Nothing depends on the text before the first cross-attention.
                if self.text_states is None or (layer, part) != (0, 1):
                    self.rows = len(stream)
                    stream = stream + (yield from self._part(layer, part, stream))
        rows = [self._patched(cell) for cell in waiting]
        return torch.cat([stream, torch.stack(rows)]) if rows else stream, [*joined, *waiting]

    def _enters(self, cell: Cell) -> tuple[int, int]:
        """Return the block at which a patched stream joins the climb, and how many parts of that block it skips.

        A patch of the stream after the last block joins at block `n_layers`.
        """
        hook = cell.hooks[0]
        if cell.layer is None:
            return (self.config.n_layers, 0) if hook == FINAL else (0, 0)
        behind = BEGIN[hook] if hook in BEGIN else WRITES[hook]
        return (cell.layer + 1, 0) if behind == 3 else (cell.layer, behind)

    def _stream(self, behind: int, layer: int) -> Float[Tensor, "pair step d_model"]:
        """Return the unpatched run's stream at a block, after the block's first `behind` parts."""
        if behind == 3:
            layer, behind = layer + 1, 0
        if layer == self.config.n_layers:
            return self.base.steps("hook_resid_post", layer - 1, self.start, self.steps)
        # Without cross-attention the second part is empty.
        hook = _STREAM[behind] if self.decoder.crosses else _STREAM[min(behind, 1)]
        return self.base.steps(hook, layer, self.start, self.steps)

    def _patched(self, cell: Cell) -> Float[Tensor, "pair step d_model"]:
        """Return the patched stream of a cell, at the point where it joins the climb."""
        hook, (layer, behind) = cell.hooks[0], self._enters(cell)
        stream = self._stream(behind, layer).clone()
        if hook == FINAL:
            return stream
        window = slice(cell.start - self.start, cell.stop - self.start)
        value = self.source.steps(hook, cell.layer, cell.start, cell.stop)
        if hook in WRITES and cell.layer is not None:
            # The MLP reads the stream after cross-attention, or after self-attention if there is no cross-attention.
            value = self._stream(WRITES[hook] - 1, cell.layer)[:, window] + value
        elif hook in EMBEDDINGS:
            value = stream[:, window] + value - self.base.steps(hook, None, cell.start, cell.stop)
        stream[:, window] = value
        return stream

    def _part(self, layer: int, part: int, stream: Tensor) -> Steps[Tensor]:
        """Return what a part of a block adds to the stream."""
        if part == 1:
            return self.decoder.self_attention(layer, stream, self, self)
        if part == 3:
            return self.decoder.mlp(layer, stream, self)
        return self.decoder.cross_attention(layer, stream, self, self) if self.decoder.crosses else _nothing(stream)

    def hooks(self, layer: int | None) -> frozenset[str]:  # noqa: ARG002 - the climbs of all blocks run in lockstep
        """The sites inside blocks that this climb, or one in lockstep with it, visits."""
        return self.visited

    def extended(self, layer: int, key: Tensor, value: Tensor) -> Attended:
        """Return the self-attention's keys and values, with those of the unpatched run at earlier steps."""
        past = self.batch.base.prefix + self.start
        if past:
            before = (self.base.all(f"attn.hook_{name}", layer, self.start) for name in "kv")
            key, value = (
                torch.cat([old.expand(len(new), -1, -1, -1, -1), new], dim=2)
                for old, new in zip(before, (key, value), strict=True)
            )
        return Attended(_by_head(key), _by_head(value), self.past if past else None, causal=not past)

    def text(self, layer: int) -> Attended:
        """Return the cross-attention's keys and values: those of the unpatched run, or of patched text states."""
        rows = self.rows
        if self.text_states is None:
            key, value = (self.base.all(f"cross_attn.hook_{name}", layer).expand(rows, -1, -1, -1, -1) for name in "kv")
        else:
            block, heads = self.decoder.blocks[layer], (self.config.n_heads, self.config.d_head)
            key, value = (of(self.text_states).unflatten(-1, heads) for of in (block.cross_key, block.cross_value))
        seen = self.batch.seen
        mask = None if seen is None else seen.expand(rows, -1, -1).flatten(0, 1)[:, None, None]
        return Attended(_by_head(key), _by_head(value), mask)

    def visit(self, hook: str, layer: int | None, value: Tensor) -> Tensor:
        """Apply the patches at a site."""
        if hook.endswith("hook_z"):
            # A head's result is a linear map of its z, so a patch of the result is a patch of z.
            value = self._edited(hook, layer, value)
            return self._edited(hook.replace("hook_z", "hook_result"), layer, value)
        if self.batch.lens.traced_model.family.form(hook).on_text:
            return self._edited(hook, layer, value.unflatten(0, (-1, self.batch.pairs))).flatten(0, 1)
        return self._edited(hook, layer, value)

    def pattern(self, hook: str, layer: int, attention: Attention, z: Tensor) -> Tensor:
        """Recompute the z of the rows whose attention pattern is patched at this block."""
        if not any(hook in cell.hooks for cell in self.new):
            return z
        new, to, query = len(self.new), attention.to, attention.query
        mine = new * self.batch.pairs
        mask = None if to.mask is None else to.mask.expand(len(query), -1, -1, -1)[-mine:]
        causal = to.causal and query.shape[2] > 1
        pattern = attention_pattern(query[-mine:], to.key[-mine:], mask, float(self.config.d_head**-0.5), causal)
        pattern = self._edited(hook, layer, pattern.unflatten(0, (new, -1)))
        values = to.value[-mine:].unflatten(0, (new, -1))
        z = z.clone()
        z[-new:] = einsum(pattern, values, "c p h q k, c p h k d -> c p q h d")
        return z

    def result(self, hook: str, layer: int, z: Tensor, projection: nn.Module, out: Tensor) -> Tensor:  # noqa: ARG002
        """Return the output unchanged, because patches of heads' results are made at z."""
        return out

    def _edited(self, hook: str, layer: int | None, value: Tensor) -> Tensor:
        """Return `value` with the patches at this site applied. The patched cells are the last rows of `value`."""
        mine = [i - len(self.new) for i, cell in enumerate(self.new) if hook in cell.hooks]
        if not mine:
            return value
        value = value.clone()
        for i in mine:
            self._put(value[i], hook, layer, self.new[i])
        return value

    def _put(self, value: Tensor, hook: str, layer: int | None, cell: Cell) -> None:
        """Write the other run's values for one cell into `value`, a view "pair ..." of this run's values."""
        theirs = self.source.all(_recorded_as(hook), layer)
        window = slice(cell.start - self.start, cell.stop - self.start)
        form = self.batch.lens.traced_model.family.form(hook)
        if form.keyed:
            heads = slice(None) if cell.head is None else slice(cell.head, cell.head + 1)
            there = slice(self.source.prefix + cell.start, self.source.prefix + cell.stop)
            value[:, heads, window] = theirs[:, heads, there, : value.shape[-1]]
            return
        if form.on_text:
            if cell.token is None or self.batch.tokens is None:
                chosen = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
            else:
                positions = torch.arange(value.shape[1], device=value.device)
                chosen = positions == self.batch.tokens[:, cell.token, None]
            if cell.head is not None:
                value, theirs = value[:, :, cell.head], theirs[:, :, cell.head]
            value[chosen] = theirs[chosen]
            return
        theirs = theirs[:, self.source.prefix + cell.start : self.source.prefix + cell.stop]
        if cell.head is not None:
            value, theirs = value[:, :, cell.head], theirs[:, :, cell.head]
        value[:, window] = theirs


def _by_head(tensor: Float[Tensor, "cell pair step head d_head"]) -> Float[Tensor, "row head step d_head"]:
    return tensor.flatten(0, 1).transpose(1, 2)


def _nothing(stream: Tensor) -> Steps[Tensor]:
    """Add nothing: the part of a block that the family does not have."""
    return stream.new_zeros(())
    yield  # pragma: no cover - makes this a generator
