"""One pass up the blocks, which cells join at their own blocks, and the patches that it makes on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor, nn

from analysis.patching.grid import BEGIN, EMBEDDINGS, INSIDE, TEXT_STATES, WRITES, Cell
from audiolens.model.plain_decoder import Attended, Attention, Steps
from audiolens.model.site_access import attention_pattern

if TYPE_CHECKING:
    from analysis.patching.engine import PairBatch

FINAL = "ln_final.hook_normalized"
_Climbing = Steps[tuple[Tensor, list[Cell]]]
_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_cross")


def recorded_as(hook: str) -> str:
    """Return the site to record for a patch at `hook`.

    A head's result is recorded as z, because the result is a linear function of z but takes more memory.
    """
    return hook.replace("hook_result", "hook_z")


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
        theirs = self.source.all(recorded_as(hook), layer)
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
