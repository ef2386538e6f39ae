"""The proof at load, of weights: every projection does what its matrix and bias say, on random input.

`lens.W_Q` and its kin, per-head results and the readout stand on that. A plain layer is compared with its own weights,
which a hook on it may not be all of; any other module is shown to be linear, step by step. Then one forward over random
text states and codes: what the heads of each attention write, with the bias, must be what the attention returns.

Where weights are broken or overflow, there is nothing to compare, and nothing is refused.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from audiolens.errors import UnsupportedModelError
from audiolens.model.projections import affine
from audiolens.model.text import Text
from audiolens.model.timeline import codes_timeline
from audiolens.model.weights import decoder_of
from audiolens.tracing import model_calls
from audiolens.tracing.batching import Layout, read_columns
from audiolens.tracing.plan import Run
from audiolens.tracing.recording import Reading, Recorder

ROWS, STEPS, TOKENS = 2, 3, 2
CLOSE = 1e-3
"""Sums in another order agree within this share of the largest, or within twelve roundings of a coarser dtype."""


@torch.no_grad()
def prove_projections(lens: Any) -> None:
    """Raise unless every projection is linear and its weights are all of it.

    Raises:
        UnsupportedModelError: naming the module.
    """
    with model_calls.alone(lens.model), model_calls.random_state(keep=True):
        for name, module, width in _projections(lens):
            _linear(lens, name, module, width)
        _summed(lens)


def _projections(lens: Any) -> Iterator[tuple[str, nn.Module, int]]:
    config, decoder = lens.config, lens._family.decoder
    for layer, block in enumerate(decoder_of(lens).layers):
        attentions = [part for part in ("self_attn", "encoder_attn") if hasattr(block, part)]
        for attention in attentions:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                module = block.get_submodule(f"{attention}.{part}")
                yield f"{decoder}.layers.{layer}.{attention}.{part}", module, config.d_model
        yield f"{decoder}.layers.{layer}.fc1", block.fc1, config.d_model
        yield f"{decoder}.layers.{layer}.fc2", block.fc2, config.d_mlp
    for codebook, head in enumerate(lens.model.decoder.lm_heads):
        yield f"decoder.lm_heads.{codebook}", head, config.d_model


def _linear(lens: Any, name: str, module: nn.Module, width: int) -> None:
    given = _random(lens, ROWS, STEPS, width).to(next(module.parameters()).device)
    found = module(given)
    if type(module) is nn.Linear:
        weight, bias = affine(module, width, given)
        expected = given @ weight.T + (0 if bias is None else bias)
    else:
        nothing, other = module(torch.zeros_like(given)), given.flip(0, 1)
        # Steps by themselves, and a sum by its parts.
        alone = torch.stack([torch.stack([module(step[None])[0] for step in row]) for row in given])
        if not _close(found, alone):
            raise _unlike(lens, name, module, "gives a step another value next to other steps")
        expected = module(given - 2 * other) + 2 * module(other) - 2 * nothing
    if not _close(found, expected):
        raise _unlike(lens, name, module, "is not a matrix and a bias")


def _summed(lens: Any) -> None:
    """One forward: results plus bias against what each attention adds."""
    config, family = lens.config, lens._family
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (ROWS, config.n_codebooks, STEPS)
    codes = torch.randint(0, config.vocab_size, shape, generator=generator, device="cpu").to(lens.device)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=lens.device)
    states = _random(lens, ROWS, TOKENS, lens.model.config.text_encoder.d_model)
    prefix = config.prefix(TOKENS)
    timeline = codes_timeline(codes, config, prefix)
    layout = Layout(tuple(range(ROWS)), ROWS, 1, ROWS, prefix)
    pairs = {"attn": "self_attn", "cross_attn": "encoder_attn"}
    pairs = {short: module for short, module in pairs.items() if f"{short}.hook_result" in family.block_taps}
    reading = Reading([f"{short}{part}" for short in pairs for part in (".result", "_out")])
    recorder = Recorder.of(reading, family, config, ROWS, timeline)
    assert recorder is not None
    recorder.begin(layout)
    run = Run(
        lens._nnsight,
        family,
        config,
        layout=layout,
        timeline=timeline,
        interventions=(),
        recorder=recorder,
        device=lens.device,
    )
    told = family.inputs(lens.model, Text(ids, torch.ones_like(ids), states), False)
    model_calls.forward(lens._nnsight, run, decoder_input_ids=read_columns(codes, config, layout, lens.device), **told)
    cache = recorder.cache((None,) * ROWS, lens.name, config.frame_rate)
    for layer, block in enumerate(decoder_of(lens).layers):
        for short, module in pairs.items():
            projection = block.get_submodule(f"{module}.out_proj")
            out = cache[f"{short}_out", layer]
            _, bias = affine(projection, config.d_model, out)
            whole = cache[f"{short}.result", layer].sum(2) + (0 if bias is None else bias.to(out.device))
            if not _close(out, whole):
                name = f"{family.decoder}.layers.{layer}.{module}"
                raise _unlike(lens, name, block.get_submodule(module), "adds more than its heads write")


def _random(lens: Any, *shape: int) -> Tensor:
    """The same numbers whatever the defaults and the global state."""
    made = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    return made.to(lens.device, lens.dtype)


def _close(found: Tensor, expected: Tensor) -> bool:
    one, other = found.float(), expected.float()
    largest = float(one.abs().max())
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        return True
    return bool((one - other).abs().max() <= max(CLOSE, 12 * torch.finfo(found.dtype).eps) * max(largest, 1e-30))


def _unlike(lens: Any, name: str, module: nn.Module, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} ({type(module).__name__}) {what}, so that weights and per-head results would lack a part of "
        f"{type(lens.model).__name__}: merge its adapter into the weights (merge_and_unload), or remove its hooks."
    )
