"""Generate the codes of one batch with the plain decoder instead of transformers' `generate`: `engine="fast"`.

The steps, the sampling and the edits are the same. What differs is the work around them: keys and values are stored in
place, the text is read once, and the cross-attention of the unconditional half, whose output is zero, is not computed.
Sums can therefore differ from transformers' in the last bits, and a code can flip where two codes are almost equally
likely. `tracing/engines.py` compares both engines before this one is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.modules.module as torch_hooks
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from audiolens.errors import InputError
from audiolens.model.hooks import acting_hooks
from audiolens.model.plain_decoder import Attended, PlainDecoder, computed
from audiolens.model.timeline import Timeline, delay, undelay
from audiolens.model.traced_model import TracedModel
from audiolens.tracing import static_step
from audiolens.tracing.fast_sites import FastSites
from audiolens.tracing.model_calls import device_of
from audiolens.tracing.nnsight_source import Model, has_own_forward, only
from audiolens.tracing.overflow import Watch
from audiolens.tracing.plan import Run
from audiolens.tracing.sampling import Forbid, RowSampler
from audiolens.tracing.static_step import StaticSteps


def refusal(traced: TracedModel) -> str | None:
    """Return why the fast engine cannot run this model now, or `None` if it can."""
    attention = traced.model.decoder.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"the model uses {attention} attention: load it with attn_implementation='sdpa' or 'eager'"
    if len({parameter.device for parameter in traced.model.decoder.parameters()}) > 1:
        return "the decoder is distributed over several devices"
    return changes_missed(traced)


def changes_missed(traced: TracedModel) -> str | None:
    """Return what changes a run of the model, but would not change a run of the plain decoder; `None` if nothing does.

    The plain decoder calls the modules inside blocks, the embeddings, the final norm and the heads. It replaces the
    calls of the modules that contain them.
    """
    if torch_hooks._global_forward_hooks or torch_hooks._global_forward_pre_hooks:
        return "torch has a forward hook for all modules, which would be missed"
    called = {id(part) for one in _called_modules(traced) for part in one.modules()}
    for name, module in [("the model", traced.model), *traced.model.decoder.named_modules(prefix="decoder")]:
        if module.training and module is not traced.model:
            return f"{name} is in training mode: call model.eval()"
        if id(module) in called:
            continue
        if acting_hooks(module):
            return f"{name} has a hook, which would be missed: remove it, or use interventions"
        if not has_own_forward(module):
            return f"the forward method of {name} was replaced, which would be missed"
    return None


def _called_modules(traced: TracedModel) -> Iterator[nn.Module]:
    """Yield the modules that the plain decoder calls."""
    family = traced.family
    yield from (traced.final_norm, *traced.heads, *family.embeddings(traced.model))
    for block in traced.blocks:
        modules = family.modules(block)
        parts = [modules.attention_norm, modules.cross_attention_norm, modules.mlp_norm, modules.mlp_in]
        parts += [modules.activation, modules.mlp_out]
        for attention in (modules.attention, modules.cross_attention):
            if attention is not None:
                parts += [attention.query, attention.key, attention.value, attention.output]
        yield from (part for part in parts if isinstance(part, nn.Module))


class StepMemory:
    """The keys and values of one batch: of every step so far, stored in place, and of its text.

    With `grows`, the keys of a head have little more room than for the steps so far, in memory that is reserved for all
    `positions`, and are copied when they need more. Otherwise they have room for all `positions` from the start.
    """

    def __init__(self, decoder: PlainDecoder, rows: int, positions: int, like: Tensor, grows: bool) -> None:
        config = decoder.config
        shape = (rows, config.n_heads, 0 if grows else positions, config.d_head)
        # Static steps attend to positions that are not filled yet, with a weight of 0, and 0 x NaN would be NaN.
        self.keys = [like.new_zeros(shape) for _ in decoder.blocks]
        self.values = [like.new_zeros(shape) for _ in decoder.blocks]
        self.most = rows * config.n_heads * (positions + ROOM) * config.d_head
        self.spare: Tensor | None = None
        """The memory of the tensor that last grew, which the next one grows into."""
        self.texts: list[Attended] = []
        self.position = 0
        self.static: tuple[Int[Tensor, "1"], Bool[Tensor, "1 1 1 key"]] | None = None
        """In a static step: its position, and the keys that it sees."""

    def extended(self, layer: int, key: Tensor, value: Tensor) -> Attended:
        if self.static is not None:
            position, seen = self.static
            self.keys[layer].index_copy_(2, position, key.transpose(1, 2))
            self.values[layer].index_copy_(2, position, value.transpose(1, 2))
            return Attended(self.keys[layer], self.values[layer], seen)
        start, end = self.position, self.position + key.shape[1]
        if self.keys[layer].shape[2] < end:
            for held in (self.keys, self.values):
                held[layer] = self._grown(held[layer], end)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, start:end] = key.transpose(1, 2)
        values[:, :, start:end] = value.transpose(1, 2)
        # Only the first pass covers several steps, and then there are no earlier ones.
        return Attended(keys[:, :, :end], values[:, :, :end], causal=True)

    def _grown(self, held: Tensor, end: int) -> Tensor:
        """Copy keys or values "row head key d_head" to a tensor with room for `end` steps and up to `ROOM` - 1 more."""
        rows, heads, steps, d_head = held.shape
        shape = rows, heads, end + -end % ROOM, d_head
        space = held.new_empty(self.most) if self.spare is None else self.spare
        grown = space[: math.prod(shape)].view(shape)
        grown[:, :, :steps] = held
        self.spare = held.as_strided((self.most,), (1,)) if steps else None
        return grown

    def text(self, layer: int) -> Attended:
        text = self.texts[layer]
        return Attended(text.key, text.value, text.mask, rows=text.rows)


def generate(
    traced: TracedModel,
    run: Run,
    timeline: Timeline,
    sampler: RowSampler,
    inputs: dict[str, Any],
    given: Int[Tensor, "row codebook start"] | None,
) -> Int[Tensor, "row codebook frame"]:
    """Generate one batch under the run's plan, and return its codes. `given` are the frames to continue, if any."""
    nnsight: Model = traced.nnsight
    nnsight.check_unchanged()
    # Inference tensors cannot be used with gradients, so they are not given to users.
    recorded = run.recorder is not None or any(edit.intervention.called for one in run.points for edit in one.edits)
    with only(traced.model, ()), device_of(traced.device), torch.no_grad() if recorded else torch.inference_mode():
        return _Clips(traced, run, timeline, sampler, inputs).codes(given)


class _Clips:
    """One batch of clips while it is generated."""

    def __init__(
        self, traced: TracedModel, run: Run, timeline: Timeline, sampler: RowSampler, inputs: dict[str, Any]
    ) -> None:
        self.timeline, self.sampler = timeline, sampler
        self.layout, self.rows = run.layout, len(run.layout.rows)
        self.config, self.decoder, self.sites = traced.config, PlainDecoder(traced), FastSites(run)
        self.watch = run.watch or Watch(run.layout, timeline.frame_rate, origin=run.origin)
        users = any(edit.runs_users_code for point in run.points for edit in point.edits)
        self.unread = 1 if users else UNREAD
        self.forbid = Forbid() if run.forbids else None
        self.prefix: Tensor | None = inputs.get("encoder_hidden_states")
        self.positions = position_embeddings(traced, run.layout.prefix + timeline.steps)
        self.static: StaticSteps | None = None
        if traced.device.type in static_step.DEVICES and static_step.is_steady(run, _called_modules(traced)):
            shape = self.rows, self.config.n_codebooks, 1
            self.static = StaticSteps(self._static_pass, run, self.watch, shape, self.positions.device)
        batch = self.rows * self.layout.branches
        grows = self.static is None and traced.device.type == "cpu"
        self.memory = StepMemory(self.decoder, batch, len(self.positions), self.positions, grows)
        if self.decoder.crosses:
            self._read_text(traced, inputs)
            self.watch.look()
        # A step is repeated if it overflows, but functions of the user must run once, and not on infinite values.
        self.watch.deferred = not users

    def codes(self, given: Int[Tensor, "row codebook start"] | None) -> Int[Tensor, "row codebook frame"]:
        timeline, device = self.timeline, self.positions.device
        frames = torch.full((self.rows, self.config.n_codebooks, timeline.frames), -1, device=device)
        first = 0 if given is None else given.shape[-1]
        if given is not None:
            frames[..., :first] = given
        # Column s + 1 is predicted at step s. A code of -1 is still to be drawn.
        columns = delay(frames, timeline.delays, self.config.pad_code)
        for begin in range(first, timeline.steps, self.unread):
            for step in range(begin, min(begin + self.unread, timeline.steps)):
                self._step(columns, step, step if step > first else 0)
            for step in self.watch.suspects():
                self._repeat(columns, step, step if step > first else 0)
        self.sites.finished()
        return undelay(columns, timeline.delays, timeline.frames)

    def _step(self, columns: Int[Tensor, "row codebook column"], step: int, start: int) -> None:
        """Draw the codes of one column, after a pass over the steps from `start` on.

        Unless a function of the user runs, the host neither waits for the device here nor copies anything to it.
        """
        if self.static is not None and start > 0:
            self.sites.start, self.sites.length = step, 1
            scores = self.static(columns[..., step : step + 1], step, step + self.layout.prefix)
        else:
            scores = self._pass(columns[..., start : step + 1], start)
        if self.watch.deferred:
            self.watch.note(scores, step)
        else:
            self.watch.check(scores, step)
        if self.forbid is not None:
            scores = self.forbid.among(scores, self.layout.branches)
        drawn = self.sampler.merged(scores, self.layout.branches > 1, step).argmax(-1)
        column = columns[..., step + 1]
        columns[..., step + 1] = torch.where(column < 0, drawn.view_as(column), column)

    def _repeat(self, columns: Int[Tensor, "row codebook column"], step: int, start: int) -> None:
        """Repeat the pass of a step in which a value seems to be infinite or NaN, and raise an error that names it.

        Earlier steps are intact, and so are their keys and values.
        """
        self.watch.deferred = False
        self.watch.check(self._pass(columns[..., start : step + 1], start), step)
        self.watch.deferred = True

    def _pass(self, columns: Int[Tensor, "row codebook step"], start: int) -> Float[Tensor, "branch_sequence vocab"]:
        """Run the decoder over some steps, and return the logits of the last one in transformers' layout."""
        length, prefix = columns.shape[-1], None
        if start == 0 and self.prefix is not None:
            start, length, prefix = -self.layout.prefix, self.layout.prefix + length, self.prefix
        self.sites.start, self.sites.length = start, length
        self.memory.position = position = start + self.layout.prefix
        return self._logits(columns, self.positions[position : position + length], prefix)

    def _static_pass(
        self, column: Int[Tensor, "row codebook 1"], position: Int[Tensor, "1"]
    ) -> Float[Tensor, "branch_sequence vocab"]:
        """Run the decoder over one step, with tensors whose shapes do not depend on the step."""
        keys = torch.arange(len(self.positions), device=position.device)
        self.memory.static = position, (keys <= position)[None, None, None]
        try:
            return self._logits(column, self.positions.index_select(0, position))
        finally:
            self.memory.static = None

    def _logits(
        self,
        columns: Int[Tensor, "row codebook step"],
        positions: Float[Tensor, "position d_model"],
        prefix: Float[Tensor, "batch before d_model"] | None = None,
    ) -> Float[Tensor, "branch_sequence vocab"]:
        stream = self.decoder.embedded(columns).repeat(self.layout.branches, 1, 1)
        sites, memory, hooks = self.sites, self.memory, self.sites.hooks(None)
        if prefix is not None:
            stream = torch.cat([prefix, stream], dim=1)
        if "hook_embed" in hooks:
            stream = sites.visit("hook_embed", None, stream)
        if "hook_pos_embed" in hooks:
            positions = sites.visit("hook_pos_embed", None, positions.expand(len(stream), -1, -1))
        stream = stream + positions
        for layer in range(self.config.n_layers):
            stream = computed(self.decoder.block(layer, stream, sites, memory))
        if not hooks.isdisjoint(_EXITS):
            return self._logits_visited(stream)
        stream = self.decoder.final_norm(stream[:, -1])
        # transformers samples in float32, whatever the dtype of the model.
        return torch.stack([head(stream) for head in self.decoder.heads], dim=1).flatten(0, 1).float()

    def _logits_visited(self, stream: Tensor) -> Float[Tensor, "branch_sequence vocab"]:
        hooks = self.sites.hooks(None)
        stream = self.decoder.final_norm(stream)
        if "ln_final.hook_normalized" in hooks:
            stream = self.sites.visit("ln_final.hook_normalized", None, stream)
        logits = torch.stack([head(stream) for head in self.decoder.heads], dim=2)
        if "hook_logits" in hooks:
            logits = self.sites.visit("hook_logits", None, logits)
        return logits[:, -1].flatten(0, 1).float()

    def _read_text(self, traced: TracedModel, inputs: dict[str, Any]) -> None:
        """Compute every block's keys and values of the text."""
        states, mask = projected_text(traced, inputs)
        if "hook_text_states" in self.sites.hooks(None):
            self.sites.start, self.sites.length = 0, 1
            states = self.sites.visit("hook_text_states", None, states)
        seen: Bool[Tensor, "batch 1 1 token"] | None = mask.bool()[:, None, None]
        # The second half of the rows attends to nothing, and sdpa then returns zero.
        blind = self.layout.branches == 2 and not self.decoder.eager and not bool(mask[self.rows :].any())
        blind = blind and self.rows >= ALIKE
        if bool(mask.all()):
            seen = None
        for layer, block in enumerate(self.decoder.blocks):
            rows = self.rows if blind and layer not in self.sites.reads_all and block.silent else None
            key, value = (
                of(states[:rows]).unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2)
                for of in (block.cross_key, block.cross_value)
            )
            self.memory.texts.append(Attended(key, value, None if seen is None else seen[:rows], rows=rows))


ROOM = 4
"""The number of steps by which a CPU's keys and values grow. Attention reads every head's keys one after another, and a
CPU reads memory without gaps up to twice as fast. More room leaves larger gaps, and less room is copied more often."""
UNREAD = 32
"""The number of steps after which the host asks the device whether a value overflowed."""
ALIKE = 4
"""The number of rows from which a CPU's matrix product computes a row in the same way however many others there are.
Smaller batches keep both halves, so that their codes are also those of the exact engine."""
_EXITS = ("ln_final.hook_normalized", "hook_logits")


def projected_text(traced: TracedModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the text states that a decoder with cross-attention receives, and their mask, as in the model's forward
    pass."""
    model, states, mask = traced.model, inputs["encoder_outputs"][0], inputs["attention_mask"]
    own = model.decoder.config
    if model.text_encoder.config.hidden_size != own.hidden_size and own.cross_attention_hidden_size is None:
        states = model.enc_to_dec_proj(states)
    return states * mask[..., None], mask


def position_embeddings(traced: TracedModel, positions: int) -> Float[Tensor, "position d_model"]:
    """Return the embeddings of the first positions."""
    table: Tensor = traced.family.positions(traced.model).weights
    if len(table) < positions:
        raise InputError(f"engine='fast': the model has embeddings for {len(table)} positions, not {positions}.")
    return table[:positions].to(traced.dtype)
