"""Check at load, on random input, that every projection computes what its weight matrix and bias define.

`lens.W_Q` and the other weight properties, per-head results and the readout rely on this. The output of a plain linear
layer is compared with what its own weights give, because a hook can change the output. Any other module is tested for
linearity at each step. Then one forward pass over random text states and codes checks that the head results and the
bias of each attention layer add up to the output of that layer.

If weights are broken or overflow, no comparison is possible, and the check passes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from audiolens.errors import UnsupportedModelError
from audiolens.model.projections import affine
from audiolens.model.text import Text
from audiolens.model.timeline import codes_timeline
from audiolens.model.traced_model import TracedModel
from audiolens.tracing import model_calls
from audiolens.tracing.batching import Layout, read_columns
from audiolens.tracing.plan import Run
from audiolens.tracing.recording import Reading, Recorder

ROWS, STEPS, TOKENS = 2, 3, 2
CLOSE = 1e-3
"""The tolerance for sums in another order, relative to the largest value; at least 12 eps of the dtype is allowed."""


@torch.no_grad()
def prove_projections(traced: TracedModel) -> None:
    """Raise an error unless every projection is linear and fully described by its weights.

    Raises:
        UnsupportedModelError: if a projection is not; the message names the module.
    """
    with model_calls.alone(traced.model), model_calls.random_state(keep=True):
        for name, module, width in _projections(traced):
            _linear(traced, name, module, width)
        _summed(traced)


def _projections(traced: TracedModel) -> Iterator[tuple[str, nn.Module, int]]:
    config, family, parts = traced.config, traced.family, traced.family.parts
    widths = {parts.mlp_in: config.d_model, parts.mlp_out: config.d_mlp}
    for attention in parts.attentions.values():
        for projection in (parts.query, parts.key, parts.value, parts.output):
            widths[f"{attention}.{projection}"] = config.d_model
    for layer, block in enumerate(traced.blocks):
        for path, width in widths.items():
            yield f"{family.decoder}.{family.body_blocks}.{layer}.{path}", family.part(block, path), width
    for codebook, head in enumerate(traced.heads):
        yield f"{family.lm_heads}.{codebook}", head, config.d_model


def _linear(traced: TracedModel, name: str, module: nn.Module, width: int) -> None:
    given = _random(traced, ROWS, STEPS, width).to(next(module.parameters()).device)
    found = module(given)
    if type(module) is nn.Linear:
        weight, bias = affine(module, width, given)
        expected = given @ weight.T + (0 if bias is None else bias)
    else:
        nothing, other = module(torch.zeros_like(given)), given.flip(0, 1)
        # Each step must give the same value alone as next to other steps, and the module must be linear.
        alone = torch.stack([torch.stack([module(step[None])[0] for step in row]) for row in given])
        if not _close(found, alone):
            raise _unlike(traced, name, module, "gives a step a different value next to other steps")
        expected = module(given - 2 * other) + 2 * module(other) - 2 * nothing
    if not _close(found, expected):
        raise _unlike(traced, name, module, "is not a matrix and a bias")


def _summed(traced: TracedModel) -> None:
    """Run one forward pass and compare the sum of head results and bias with the output of each attention layer."""
    config, family = traced.config, traced.family
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (ROWS, config.n_codebooks, STEPS)
    codes = torch.randint(0, config.vocab_size, shape, generator=generator, device="cpu").to(traced.device)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=traced.device)
    states = _random(traced, ROWS, TOKENS, traced.model.config.text_encoder.d_model)
    prefix = config.prefix(TOKENS)
    timeline = codes_timeline(codes, config, prefix)
    layout = Layout(tuple(range(ROWS)), ROWS, ("cond",), ROWS, prefix)
    pairs = family.parts.attentions
    reading = Reading([f"{short}{part}" for short in pairs for part in (".result", "_out")])
    recorder = Recorder.of(reading, traced, ROWS, timeline)
    assert recorder is not None
    recorder.begin(layout)
    run = Run(
        traced,
        layout=layout,
        timeline=timeline,
        interventions=(),
        recorder=recorder,
    )
    arguments = family.inputs(traced.model, Text(ids, torch.ones_like(ids), states), False)
    model_calls.forward(
        traced.nnsight, run, decoder_input_ids=read_columns(codes, config, layout, traced.device), **arguments
    )
    cache = recorder.cache((None,) * ROWS, traced.name, config.frame_rate)
    for layer, block in enumerate(traced.blocks):
        for short, module in pairs.items():
            projection = block.get_submodule(f"{module}.{family.parts.output}")
            out = cache[f"{short}_out", layer]
            _, bias = affine(projection, config.d_model, out)
            whole = cache[f"{short}.result", layer].sum(2) + (0 if bias is None else bias.to(out.device))
            if not _close(out, whole):
                name = f"{family.decoder}.{family.body_blocks}.{layer}.{module}"
                raise _unlike(traced, name, block.get_submodule(module), "adds more than its heads write")


def _random(traced: TracedModel, *shape: int) -> Tensor:
    """Return the same random numbers regardless of torch's defaults and global random state."""
    made = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    return made.to(traced.device, traced.dtype)


def _close(found: Tensor, expected: Tensor) -> bool:
    one, other = found.float(), expected.float()
    largest = float(one.abs().max())
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        return True
    return bool((one - other).abs().max() <= max(CLOSE, 12 * torch.finfo(found.dtype).eps) * max(largest, 1e-30))


def _unlike(traced: TracedModel, name: str, module: nn.Module, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} ({type(module).__name__}) {what}, so weights and per-head results would miss a part of "
        f"{type(traced.model).__name__}: merge its adapter into the weights (merge_and_unload), or remove its hooks."
    )
