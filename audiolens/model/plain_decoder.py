"""The decoder's forward pass in plain torch, over the model's own modules, with every site as a named point.

transformers' forward pass copies the key-value cache at every step, rebuilds its masks and passes through several
layers of Python. This one does not, and computes the same function. It has two users. `tracing/fast_clips.py` generates
clips with it. `analysis/patching/engine.py` runs many patched streams through it at once. Whoever runs it decides what
happens at the sites (`Sites`) and where earlier keys and values come from (`Memory`).

Each part of a block is a generator. It yields the functions that act on every position separately, together with their
input, and is sent their output. Clips call these functions directly (`computed`). Patching calls each one once for many
streams of different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from audiolens.model.hooks import acting_hooks

if TYPE_CHECKING:
    from audiolens.model.families.family import AttentionModules, BlockModules
    from audiolens.model.traced_model import TracedModel

Positionwise = Callable[[Tensor], tuple[Tensor, ...]]
Made = TypeVar("Made")
Steps = Generator[tuple[Positionwise, Tensor], Any, Made]
"""A generator that yields a function to apply at every position of a stream, and is sent the resulting values."""


class Sites(Protocol):
    """What happens at the sites of a forward pass. Heads have the layout "... step head d_head"."""

    def hooks(self, layer: int | None) -> frozenset[str]:
        """The names (without the block) of the sites of a block, or outside the blocks, where something happens."""
        ...

    def visit(self, hook: str, layer: int | None, value: Tensor) -> Tensor:
        """Return the value with which the forward pass continues."""
        ...

    def pattern(self, hook: str, layer: int, attention: Attention, z: Tensor) -> Tensor:
        """Return the z with which the forward pass continues, given an attention and its z."""
        ...

    def result(self, hook: str, layer: int, z: Tensor, projection: nn.Module, out: Tensor) -> Tensor:
        """Return the attention's output with which the forward pass continues, given z and the output projection."""
        ...


class Memory(Protocol):
    """The keys and values that a forward pass attends to, in addition to its own. A mask is true at visible keys."""

    def extended(self, layer: int, key: Tensor, value: Tensor) -> Attended:
        """Return the keys and values of a self-attention, given those of the present steps "... step head d_head"."""
        ...

    def text(self, layer: int) -> Attended:
        """Return the keys and values of a cross-attention."""
        ...


class Attended:
    """Keys and values "row head key d_head", and what the queries see of them.

    `rows` limits a cross-attention to the first rows of the batch, because the others see no text.
    """

    __slots__ = ("causal", "key", "mask", "rows", "value")

    def __init__(
        self, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False, rows: int | None = None
    ) -> None:
        self.key, self.value, self.mask, self.causal, self.rows = key, value, mask, causal, rows


class Attention:
    """The inputs of one attention: the query "row head query d_head" and what it attends to."""

    __slots__ = ("query", "to")

    def __init__(self, query: Tensor, to: Attended) -> None:
        self.query, self.to = query, to

    def z(self, eager: bool) -> Float[Tensor, "row query head d_head"]:
        """Return the weighted values. If all keys of a query are masked, eager attention averages the values, whereas
        sdpa returns zero."""
        mask = self.to.mask
        if mask is not None and eager and mask.dtype == torch.bool:
            least = torch.finfo(self.query.dtype).min
            mask = torch.zeros(mask.shape, dtype=self.query.dtype, device=mask.device).masked_fill(~mask, least)
        # On a CPU, two batched products would be faster for single queries, but they round differently: one clip in 40
        # would then differ from the exact engine's.
        attended = functional.scaled_dot_product_attention(
            self.query, self.to.key, self.to.value, attn_mask=mask, is_causal=self.to.causal and self.query.shape[2] > 1
        )
        return attended.transpose(1, 2)


def computed(steps: Steps[Made]) -> Made:
    """Run a generator by applying each function to the whole stream."""
    try:
        function, stream = next(steps)
        while True:
            function, stream = steps.send(function(stream))
    except StopIteration as end:
        return end.value


class PlainDecoder:
    """The decoder of an opened model.

    A plain linear layer, layer norm or embedding is applied directly. Any other module (such as an adapter's), or one
    whose `forward` was replaced (as nnsight does, unless `only` removes its wrappers), is called as it is.
    """

    def __init__(self, traced: TracedModel) -> None:
        family, model = traced.family, traced.model
        self.config = traced.config
        self.eager = model.decoder.config._attn_implementation == "eager"
        self.crosses = family.has("hook_cross_attn_out")
        self.embeddings = [_called(part) for part in family.embeddings(model)]
        self.blocks = [PlainBlock(family.modules(block)) for block in traced.blocks]
        self.final_norm = _called(traced.final_norm)
        self.heads = [_called(head) for head in traced.heads]

    def embedded(self, ids: Int[Tensor, "row codebook step"]) -> Float[Tensor, "row step d_model"]:
        """Return the sum of the codebooks' embeddings, added in the model's order."""
        total = self.embeddings[0](ids[:, 0])
        for codebook in range(1, len(self.embeddings)):
            total = total + self.embeddings[codebook](ids[:, codebook])
        return total

    def block(self, layer: int, stream: Tensor, sites: Sites, memory: Memory) -> Steps[Tensor]:
        """Return the stream after a block."""
        hooks = sites.hooks(layer)
        if "hook_resid_pre" in hooks:
            stream = sites.visit("hook_resid_pre", layer, stream)
        stream = stream + (yield from self.self_attention(layer, stream, sites, memory))
        if "hook_resid_mid" in hooks:
            stream = sites.visit("hook_resid_mid", layer, stream)
        if self.crosses:
            out = yield from self.cross_attention(layer, stream, sites, memory)
            stream = stream + out if len(out) == len(stream) else _added(stream, out)
            if "hook_resid_cross" in hooks:
                stream = sites.visit("hook_resid_cross", layer, stream)
        stream = stream + (yield from self.mlp(layer, stream, sites))
        if "hook_resid_post" in hooks:
            stream = sites.visit("hook_resid_post", layer, stream)
        return stream

    def self_attention(self, layer: int, stream: Tensor, sites: Sites, memory: Memory) -> Steps[Tensor]:
        """Return what a block's self-attention adds to the stream."""
        block, hooks = self.blocks[layer], sites.hooks(layer)
        if "ln1.hook_normalized" in hooks:
            (given,) = yield block.normed, stream
            made = yield block.projected, sites.visit("ln1.hook_normalized", layer, given)
        else:
            made = yield block.read, stream
        query, key, value = map(self._heads, made)
        if hooks:
            if "attn.hook_q" in hooks:
                query = sites.visit("attn.hook_q", layer, query)
            if "attn.hook_k" in hooks:
                key = sites.visit("attn.hook_k", layer, key)
            if "attn.hook_v" in hooks:
                value = sites.visit("attn.hook_v", layer, value)
        to = memory.extended(layer, key, value)
        return (yield from self._attend("attn", layer, query, to, block.write, block.attention.output, sites))

    def cross_attention(self, layer: int, stream: Tensor, sites: Sites, memory: Memory) -> Steps[Tensor]:
        """Return what a block's cross-attention adds to the stream: for the first rows only, if the others see no text
        and no site needs theirs."""
        block, hooks, to = self.blocks[layer], sites.hooks(layer), memory.text(layer)
        (query,) = yield block.cross_read, stream if to.rows is None else stream[: to.rows]
        query = self._heads(query)
        if hooks:
            if "cross_attn.hook_q" in hooks:
                query = sites.visit("cross_attn.hook_q", layer, query)
            if "cross_attn.hook_k" in hooks:
                to.key = sites.visit("cross_attn.hook_k", layer, to.key.transpose(-3, -2)).transpose(-3, -2)
            if "cross_attn.hook_v" in hooks:
                to.value = sites.visit("cross_attn.hook_v", layer, to.value.transpose(-3, -2)).transpose(-3, -2)
        assert block.cross_attention is not None
        output = block.cross_attention.output
        return (yield from self._attend("cross_attn", layer, query, to, block.cross_write, output, sites))

    def mlp(self, layer: int, stream: Tensor, sites: Sites) -> Steps[Tensor]:
        """Return what a block's MLP adds to the stream."""
        block, hooks = self.blocks[layer], sites.hooks(layer)
        if hooks.isdisjoint(("mlp.hook_pre", "mlp.hook_post")):
            (out,) = yield block.mlp, stream
        else:
            (pre,) = yield block.mlp_read, stream
            if "mlp.hook_pre" in hooks:
                pre = sites.visit("mlp.hook_pre", layer, pre)
            post = block.activation(pre)
            if "mlp.hook_post" in hooks:
                post = sites.visit("mlp.hook_post", layer, post)
            (out,) = yield block.mlp_write, post
        return sites.visit("hook_mlp_out", layer, out) if "hook_mlp_out" in hooks else out

    def _attend(
        self,
        group: str,
        layer: int,
        query: Float[Tensor, "... step head d_head"],
        to: Attended,
        write: Positionwise,
        projection: Any,
        sites: Sites,
    ) -> Steps[Tensor]:
        hooks = sites.hooks(layer)
        leading = query.shape[:-3]
        attention = Attention(query.flatten(0, -4).transpose(1, 2) if len(leading) > 1 else query.transpose(1, 2), to)
        z = attention.z(self.eager)
        if len(leading) > 1:
            z = z.unflatten(0, leading)
        if hooks:
            if (hook := f"{group}.hook_pattern") in hooks:
                z = sites.pattern(hook, layer, attention, z)
            if (hook := f"{group}.hook_z") in hooks:
                z = sites.visit(hook, layer, z)
        (out,) = yield write, z.flatten(-2)
        if hooks:
            if (hook := f"{group}.hook_result") in hooks:
                out = sites.result(hook, layer, z, projection, out)
            if (hook := f"hook_{group}_out") in hooks:
                out = sites.visit(hook, layer, out)
        return out

    def _heads(self, tensor: Tensor) -> Float[Tensor, "... step head d_head"]:
        return tensor.view(*tensor.shape[:-1], self.config.n_heads, self.config.d_head)


class PlainBlock:
    """The positionwise functions of one block. Each takes "... d_model" (or what the previous one returned) and returns
    a tuple."""

    def __init__(self, modules: BlockModules) -> None:
        self.attention, self.cross_attention = modules.attention, modules.cross_attention
        norm = _called(modules.attention_norm)
        query, key, value = (_called(part) for part in _read(modules.attention))
        output = _called(modules.attention.output)

        def projected(x: Tensor) -> tuple[Tensor, ...]:
            return query(x), key(x), value(x)

        self.normed: Positionwise = lambda x: (norm(x),)
        self.projected: Positionwise = projected
        self.read: Positionwise = lambda x: projected(norm(x))
        self.write: Positionwise = lambda x: (output(x),)
        if modules.cross_attention is not None:
            cross_norm, cross_query = _called(modules.cross_attention_norm), _called(modules.cross_attention.query)
            cross_output = _called(modules.cross_attention.output)
            self.cross_read: Positionwise = lambda x: (cross_query(cross_norm(x)),)
            self.cross_write: Positionwise = lambda x: (cross_output(x),)
            self.cross_key, self.cross_value = (_called(part) for part in _read(modules.cross_attention)[1:])
            last = modules.cross_attention.output
            self.silent = type(last) is nn.Linear and _is_plain(last) and last.bias is None
            """Whether the cross-attention adds nothing if z is zero."""
        mlp_norm, mlp_in, mlp_out = (_called(part) for part in (modules.mlp_norm, modules.mlp_in, modules.mlp_out))
        self.activation = activation = _called(modules.activation)
        self.mlp_read: Positionwise = lambda x: (mlp_in(mlp_norm(x)),)
        self.mlp_write: Positionwise = lambda x: (mlp_out(x),)
        self.mlp: Positionwise = lambda x: (mlp_out(activation(mlp_in(mlp_norm(x)))),)


def _read(attention: AttentionModules) -> Sequence[Any]:
    return attention.query, attention.key, attention.value


def _called(module: Any) -> Callable[[Tensor], Tensor]:
    """Return a function that computes what calling a module computes, with less overhead if nothing hooks the call."""
    if not isinstance(module, nn.Module) or acting_hooks(module):
        return module
    if type(module) is nn.Linear and _is_plain(module):
        return partial(functional.linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm and _is_plain(module):
        return partial(
            torch.layer_norm,
            normalized_shape=module.normalized_shape,
            weight=module.weight,
            bias=module.bias,
            eps=module.eps,
        )
    if type(module) is nn.Embedding and _is_plain(module) and module.max_norm is None:
        return partial(functional.embedding, weight=module.weight)
    return module.forward


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module does nothing but run the forward method of its class."""
    return "forward" not in module.__dict__ and not acting_hooks(module)


def _added(stream: Tensor, out: Tensor) -> Tensor:
    """Add `out` to the first rows of a stream."""
    return torch.cat([stream[: len(out)] + out, stream[len(out) :]])
