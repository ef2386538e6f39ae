"""Every strategy, schedule, branch and operator makes the very codes that plain torch hooks on the bare model make."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import audiolens as al
from audiolens import schedules
from audiolens.provenance import Provenance

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS, FRAMES, RATE = 0.4, 10, 25
STRENGTH = torch.tensor([0.0, -2.0, 3.0])
STRATEGIES: Mapping[str, tuple[dict[str, Any], dict[int, int]]] = {
    # strategy -> options, and block -> whose vector it gets
    "one-to-one": ({"layer": 1}, {1: 1}),
    "one-to-all": ({"layer": 1}, {0: 1, 1: 1, 2: 1}),
    "one-to-band": ({"layer": 0, "band": (1, 2)}, {1: 0, 2: 0}),
    "all-to-all": ({}, {0: 0, 1: 1, 2: 2}),
}
SCHEDULES: Mapping[str, tuple[Any, Callable[[float], float]]] = {
    # name -> what steer is given, and the factor at a time as its definition has it
    "constant": (None, lambda t: 1.0),
    "linear": (schedules.linear(0.1, 0.3), lambda t: min(max((t - 0.1) / 0.2, 0.0), 1.0)),
    "cosine": (
        schedules.cosine(0.0, 0.3, 1.0, -1.0),
        lambda t: 1.0 - 2.0 * (1 - math.cos(math.pi * min(max(t / 0.3, 0.0), 1.0))) / 2,
    ),
    "exponential": (schedules.exponential(0.1), lambda t: 0.5 ** (t / 0.1)),
    "function": (lambda t: math.sin(9 * t), lambda t: math.sin(9 * t)),
    # A list has no factor for the tail, which follows the last frame.
    "list": ([float(i % 3) for i in range(FRAMES)], lambda t: float(min(round(t * RATE), FRAMES - 1) % 3)),
}


@pytest.fixture(scope="module")
def directions() -> al.Directions:
    return al.Directions(
        vectors=torch.randn(3, 48, generator=torch.Generator().manual_seed(0)),
        layers=(0, 1, 2),
        residual_norms=torch.tensor([2.0, 4.0, 8.0]),
        meta=Provenance(model="tiny", weights="", n_layers=3, label="tempo"),
    )


def hooked(lens: Any, edits: Mapping[int, Callable[[Tensor, Tensor], Tensor]], branch: str, factor: Any) -> Tensor:
    """The bare model's greedy audio under guidance 3. `edits[block](output, amount)`, amounts "row step 1"."""
    chosen = torch.cat([STRENGTH * (branch != "null"), STRENGTH * (branch != "cond")])[:, None, None]
    handles = []
    for block, edit in edits.items():
        calls: list[int] = []

        def hook(_module: Any, _inputs: Any, output: Tensor, edit: Any = edit, calls: list[int] = calls) -> Tensor:
            # transformers runs MusicGen's first forward twice, once to fill the cache and once to sample.
            step = max(0, len(calls) - 1)
            calls.append(step)
            amount = chosen if factor is None else chosen * torch.tensor(factor(step / RATE), dtype=torch.float32)
            return torch.where(chosen != 0, edit(output, amount), output)

        handles.append(lens.model.decoder.model.decoder.layers[block].register_forward_hook(hook))
    inputs = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    try:
        return lens.model.generate(**inputs, max_new_tokens=FRAMES + 3, do_sample=False, guidance_scale=3.0)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("branch", ["cond", "null", "both"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_schedule_and_branch_equals_raw_hooks(
    lens: Any, directions: al.Directions, strategy: Any, branch: Any, schedule: str
) -> None:
    options, where = STRATEGIES[strategy]
    given, factor = SCHEDULES[schedule]
    steps = al.steer(directions, strategy, strength=STRENGTH, branch=branch, schedule=given, **options)
    out = lens.generate(PROMPTS, SECONDS, temperature=0, interventions=steps)
    edits = {
        block: lambda output, amount, vector=directions[source]: output + amount * vector
        for block, source in where.items()
    }
    assert torch.equal(out.audio, hooked(lens, edits, branch, factor))


def added(output: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
    return output + amount * vector


def ablated(output: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
    unit = vector / vector.norm()
    return output - amount * (output @ unit)[..., None] * unit


def clamped(output: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
    unit = vector / vector.norm()
    return output + (amount * vector.norm() - (output @ unit)[..., None]) * unit


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("branch", ["cond", "null", "both"])
@pytest.mark.parametrize(("operator", "oracle"), [("add", added), ("ablate", ablated), ("clamp", clamped)])
def test_every_operator_equals_raw_hooks(
    lens: Any, directions: al.Directions, operator: Any, oracle: Any, branch: Any, preserve_norm: bool
) -> None:
    # A clamp holds a row of strength 0 at no direction: there it differs from no change.
    rows = [1, 2]
    steps = al.steer(
        directions,
        "one-to-all",
        layer=1,
        strength=STRENGTH[rows],
        rows=rows,
        branch=branch,
        operator=operator,
        preserve_norm=preserve_norm,
    )
    out = lens.generate(PROMPTS, SECONDS, temperature=0, interventions=steps)

    def edit(output: Tensor, amount: Tensor) -> Tensor:
        changed = oracle(output, amount, directions[1])
        if preserve_norm:
            changed = changed * output.norm(dim=-1, keepdim=True) / changed.norm(dim=-1, keepdim=True)
        return changed

    assert torch.equal(out.audio, hooked(lens, dict.fromkeys(range(3), edit), branch, None))
