"""Every strategy, schedule, branch and operator gives the same codes as plain torch hooks on the bare model.

One batch holds a row per schedule (or operator), all with the same prompt, so that rows differ only in the schedule.
Since each row's clip equals that of the hooks, rows do not affect each other either.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from melodies import PREFIX
from torch import Tensor

import audiolens as al
from audiolens.directions import schedules
from audiolens.model.provenance import Provenance

PROMPT = "slow dark guitar"
SECONDS, FRAMES, RATE = 0.4, 10, 25
STRENGTH = 6.0
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
    "piecewise": (
        schedules.piecewise([(0.1, 1.0), (0.3, -1.0)]),
        lambda t: 1 - 2 * min(max((t - 0.1) / 0.2, 0.0), 1.0),
    ),
    "exponential": (schedules.exponential(0.1), lambda t: 0.5 ** (t / 0.1)),
    "function": (lambda t: math.sin(9 * t), lambda t: math.sin(9 * t)),
    # A list has no factor for the tail, which follows the last frame.
    "list": ([float(i % 3) for i in range(FRAMES)], lambda t: float(min(round(t * RATE), FRAMES - 1) % 3)),
}
Edit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(activations "row step d_model", amount "row step 1", vector) -> new activations."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, and whether its prefix is steered too."""

    lens: Any
    prefix: bool

    @property
    def melody(self) -> bool:
        return self.lens.config.conditioning == "prefix"


@pytest.fixture(params=["cross-attention", "melody", "melody with its prefix"])
def case(request: pytest.FixtureRequest) -> Case:
    name = "lens" if request.param == "cross-attention" else "melody_lens"
    return Case(request.getfixturevalue(name), prefix="with" in request.param)


@pytest.fixture(scope="module")
def directions() -> al.Directions:
    return al.Directions(
        vectors=torch.randn(3, 48, generator=torch.Generator().manual_seed(0)),
        layers=(0, 1, 2),
        residual_norms=torch.tensor([2.0, 4.0, 8.0]),
        meta=Provenance(model="tiny", weights="", n_layers=3, label="tempo"),
    )


def added(value: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
    return value + amount * vector


def ablated(value: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
    unit = vector / vector.norm()
    return value - amount * (value @ unit)[..., None] * unit


def clamped(value: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
    unit = vector / vector.norm()
    return value + (amount * vector.norm() - (value @ unit)[..., None]) * unit


def as_long(edit: Edit) -> Edit:
    """The edit, at the length that the activations had."""

    def rescaled(value: Tensor, amount: Tensor, vector: Tensor) -> Tensor:
        changed = edit(value, amount, vector)
        return changed * value.norm(dim=-1, keepdim=True) / changed.norm(dim=-1, keepdim=True)

    return rescaled


def hooked(
    case: Case,
    vectors: Mapping[int, Tensor],
    branch: str,
    rows: Sequence[tuple[Edit, float, Callable[[float], float]] | None],
) -> tuple[Tensor, Tensor]:
    """The bare model's greedy audio under guidance 3, each row under its own (edit, strength, factor of seconds).

    Beside it what the last block then gives at every step: "branch row step d_model".
    """
    handles, last = [], dict[int, Tensor]()
    for block in vectors:
        calls: list[int] = []

        def hook(_module: Any, _inputs: Any, output: Any, *, block: int = block, calls: list[int] = calls) -> Any:
            whole = output[0] if case.melody else output
            # transformers runs MusicGen's first forward twice, once to fill the cache and once to sample; Melody's
            # runs once, and holds the prefix before its step.
            step = len(calls) if case.melody else max(0, len(calls) - 1)
            before = PREFIX if case.melody and not calls else 0
            calls.append(step)
            changed = whole.clone()
            for place, row in enumerate(rows):
                if row is None:
                    continue
                edit, strength, factor = row
                amounts = torch.full((whole.shape[1], 1), strength)
                # The prefix has no time: it keeps its strength whatever the schedule.
                amounts[before:] *= factor(step / RATE)
                first = 0 if case.prefix else before
                halves = {"cond": [place], "null": [len(rows) + place], "both": [place, len(rows) + place]}[branch]
                for sequence in halves:
                    changed[sequence, first:] = edit(whole[sequence, first:], amounts[first:], vectors[block])
            if block == 2:
                last[step] = changed[:, -1]
            return (changed, *output[1:]) if case.melody else changed

        handles.append(case.lens.model.decoder.model.decoder.layers[block].register_forward_hook(hook))
    inputs = case.lens.tokenizer([PROMPT] * len(rows), return_tensors="pt")
    wanted = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    try:
        audio = case.lens.model.generate(**wanted, max_new_tokens=FRAMES + 3, do_sample=False, guidance_scale=3.0)
    finally:
        for handle in handles:
            handle.remove()
    return audio, torch.stack(list(last.values()), dim=1).unflatten(0, (2, -1)) if last else torch.empty(0)


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_schedule_and_branch_equals_raw_hooks(
    case: Case, directions: al.Directions, strategy: Any, branch: Any
) -> None:
    options, where = STRATEGIES[strategy]
    steps = [
        step
        for row, (given, _) in enumerate(SCHEDULES.values(), start=1)
        for step in al.steer(
            directions,
            strategy,
            strength=[STRENGTH],
            rows=[row],
            branch=branch,
            schedule=given,
            prefix=case.prefix,
            **options,
        )
    ]
    made = case.lens.generate([PROMPT] * (1 + len(SCHEDULES)), SECONDS, temperature=0, interventions=steps).audio
    vectors = {block: directions[source] for block, source in where.items()}
    todo = [None, *((added, STRENGTH, factor) for _, factor in SCHEDULES.values())]
    expected, _ = hooked(case, vectors, branch, todo)
    assert len(torch.unique(expected, dim=0)) == len(todo), "two schedules do the same: nothing tells them apart"
    for row, name in enumerate(("not steered", *SCHEDULES)):
        assert torch.equal(made[row], expected[row]), name


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_every_operator_equals_raw_hooks(case: Case, directions: al.Directions, branch: Any) -> None:
    operators: Mapping[str, tuple[Edit, float]] = {
        "add": (added, 3.0),
        "ablate": (ablated, 0.75),
        "clamp": (clamped, 2.0),
    }
    todo = [(name, keep) for name in operators for keep in (False, True)]
    steps = [
        step
        for row, (name, keep) in enumerate(todo, start=1)
        for step in al.steer(
            directions,
            "one-to-all",
            layer=1,
            strength=operators[name][1],
            rows=[row],
            branch=branch,
            operator=name,  # pyright: ignore[reportArgumentType]
            preserve_norm=keep,
            prefix=case.prefix,
        )
    ]
    made = case.lens.generate(
        [PROMPT] * (1 + len(todo)), SECONDS, temperature=0, interventions=steps, sites="resid_post", layers=2,
        branch="both",
    )  # fmt: skip
    rows = [
        (as_long(edit) if keep else edit, strength, lambda t: 1.0)
        for (edit, strength), keep in ((operators[name], keep) for name, keep in todo)
    ]
    expected, stream = hooked(case, dict.fromkeys(range(3), directions[1]), branch, [None, *rows])
    half = stream[int(branch == "null")]
    assert min(float((a - b).abs().max()) for i, a in enumerate(half) for b in half[:i]) > 0.02, "two do the same"
    for row, name in enumerate(("not steered", *todo)):
        assert torch.equal(made.audio[row], expected[row]), name
    # A projection summed in another order has other last bits.
    torch.testing.assert_close(made.cache["resid_post", 2], stream, rtol=1e-3, atol=1e-3)
