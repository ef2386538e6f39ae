"""Every rule for choosing a place finds what was planted, and its numbers are those of a naive loop."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import plants
import pytest
import torch
from conftest import write_model
from plants.placing import NEUTRAL, codes_of, placed, set_of

import audiolens as al
from analysis import placement
from analysis.placement import capacity, confirm, equal_damage, rules, shifts
from audiolens import measure
from audiolens.errors import InputError
from audiolens.tracing.sampling import Sampling

BLOCKS = 5


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> plants.Plant:
    model = write_model(tmp_path_factory.mktemp("five"), layers=BLOCKS)
    return plants.head_plant(al.AudioLens.from_pretrained(model), 1, 3)


@pytest.fixture(scope="module")
def equal(plant: plants.Plant) -> placement.Placement:
    return placed(plant, set_of(plant, words=True), by="equal_damage", screen_seconds=0)


class Naive:
    """Predictions "row codebook frame vocab" of the bare model, with vectors added by hooks."""

    def __init__(self, plant: plants.Plant) -> None:
        self.lens, self.codes = plant.lens, codes_of(plant, 3)

    def __call__(self, prompts: list[str], added: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        blocks, frames = self.lens.model.decoder.model.decoder.layers, self.codes.shape[-1]
        hooks = [
            blocks[at].register_forward_hook(lambda _m, _i, out, v=vector: out + v)
            for at, vector in (added or {}).items()
        ]
        try:
            rows = [[[32] * (k + 1) + row[k].tolist() + [32] * (3 - k) for k in range(4)] for row in self.codes]
            inputs = self.lens.tokenizer(prompts, return_tensors="pt", padding=True)
            with torch.no_grad():
                logits = self.lens.model(**inputs, decoder_input_ids=torch.tensor(rows).flatten(0, 1)[:, :-1]).logits
        finally:
            for hook in hooks:
                hook.remove()
        logits = logits.view(3, 4, -1, 32).double()
        return torch.stack([logits[:, k, k : k + frames] for k in range(4)], dim=1).log_softmax(-1)


def divergence(base: torch.Tensor, other: torch.Tensor) -> float:
    return float((base.exp() * (base - other.log_softmax(-1))).sum())


def cosine(base: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> float:
    def inner(a: torch.Tensor, b: torch.Tensor) -> float:
        p = base.exp()
        return float((p * a * b).sum() - ((p * a).sum(-1) * (p * b).sum(-1)).sum())

    return inner(one, other) / math.sqrt(inner(one, one) * inner(other, other))


def test_at_equal_damage_steering_diverges_as_far_as_the_words_do(
    plant: plants.Plant, equal: placement.Placement
) -> None:
    naive, neutral = Naive(plant), list(NEUTRAL[:3])
    sets = set_of(plant, words=True)
    base = naive(neutral)
    high, low = (naive([sets.prompted(prompt, pole) for prompt in neutral]) for pole in ("high", "low"))
    target = (divergence(base, high) + divergence(base, low)) / 2
    rows = equal.candidates
    assert len(rows) == 8
    for row in rows.itertuples():
        vector = equal.directions[row.layer] * row.equal_damage_strength
        blocks = [row.layer] if row.strategy == "one-to-one" else range(BLOCKS)
        up, down = (naive(neutral, {at: sign * vector for at in blocks}) for sign in (1, -1))
        reached = (divergence(base, up) + divergence(base, down)) / 2
        assert reached == pytest.approx(target, rel=equal_damage.TOLERANCE + 0.005)
        assert row.equal_damage == pytest.approx(cosine(base, up - down, high - low), abs=1e-3)
    assert equal.name == "one-to-one 1" == equal.choices["equal_damage"]
    assert equal.chosen.equal_damage == rows.equal_damage.max()
    assert "at the strength that changes the predictions as much as the words do" in equal.reason
    assert 0 <= equal.certainty <= 1
    assert equal.costs["alignment"] < equal.costs["equal_damage"]
    assert equal.row_steps >= equal.costs["equal_damage"]


def test_without_words_each_pole_is_half_of_the_shift_between_them(plant: plants.Plant) -> None:
    found = placed(plant, by="equal_damage", layers=[1], strategies=("one-to-one",), n_random=0, screen_seconds=0)
    naive, neutral = Naive(plant), list(NEUTRAL[:3])
    base = naive(neutral)
    half = (naive(list(plant.positive)) - naive(list(plant.negative))) / 2
    vector = found.directions[1] * found.chosen.equal_damage_strength
    reached = sum(divergence(base, naive(neutral, {1: sign * vector})) for sign in (1, -1))
    target = divergence(base, base + half) + divergence(base, base - half)
    assert reached == pytest.approx(target, rel=equal_damage.TOLERANCE + 0.005)


@pytest.mark.parametrize(
    ("ratio", "found"),
    [
        (lambda s: (s / 3) ** 2, 3.0),
        (lambda s: (s / 3) ** 5, 3.0),
        (lambda s: 1.2 - 1.2 * math.exp(-s), math.log(6)),
        (lambda s: 0.9 - 0.9 * math.exp(-s), None),
    ],
)
def test_the_search_finds_the_strength_unless_it_is_out_of_reach(ratio: Any, found: float | None) -> None:
    search, rounds = equal_damage._Search(0.0, math.log(equal_damage.MOST_GROWTH)), 0
    while search.open and rounds < equal_damage.MOST_ROUNDS:
        search.add(ratio(math.exp(search.log_strength)))
        rounds += 1
    assert search.found == (found is not None)
    if found is not None:
        reached = ratio(math.exp(search.points[-1][0]))
        assert reached == pytest.approx(1, abs=equal_damage.TOLERANCE)


def test_constancy_is_1_for_the_same_shift_at_all_frames_and_0_for_a_zero_mean() -> None:
    base = torch.randn(2, 4, 6, 32, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    still = torch.randn(2, 4, 1, 32, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 6, -1)
    turning = still * torch.tensor([1.0, -1.0] * 3)[:, None]
    # A constant at one code changes no probability.
    raised = still + torch.arange(6.0)[:, None]
    for shift, value in ((still, 1), (raised, 1), (turning, 0)):
        np.testing.assert_allclose(shifts._constancy(base.exp(), shift), value, atol=1e-5)
    half = still + turning
    expected = [cosine(base[[row]].double(), half[[row]], still[[row]]) for row in (0, 1)]
    np.testing.assert_allclose(shifts._constancy(base.exp(), half), expected, atol=1e-5)


def test_constant_words_are_added_everywhere_and_changing_ones_in_the_middle(plant: plants.Plant) -> None:
    assert rules.by_constancy(0.4, 24) == ("one-to-all", 23)
    assert rules.by_constancy(0.39, 24) == ("one-to-one", 12)
    found = placed(plant, by="constancy", screen_seconds=0, n_random=0)
    naive = Naive(plant)
    base, words = naive(list(NEUTRAL[:3])), naive(list(plant.positive)) - naive(list(plant.negative))
    mean = words.mean(2, keepdim=True).expand_as(words)
    expected = np.mean([cosine(base[[row]], words[[row]], mean[[row]]) for row in range(3)])
    assert found.constancy == pytest.approx(expected, abs=1e-4)
    # The planted head writes the same at all steps.
    assert found.name == "one-to-all 4" == found.choices["constancy"]
    assert found.certainty == 1
    assert f"constancy of the words' shift, {expected:.2f}, is at least 0.4" in found.reason


def test_the_middle_block_and_every_choice_are_stated(plant: plants.Plant) -> None:
    found = placed(plant, by="middle", screen_seconds=0, n_random=0)
    assert found.name == "one-to-one 2"
    assert found.choices == {"alignment": "one-to-one 1", "middle": "one-to-one 2", "constancy": "one-to-all 4"}
    assert found.costs["middle"] == 0 < found.costs["constancy"] < found.costs["alignment"]
    assert "the middle block" in found.reason
    assert np.isnan(found.certainty)
    table = found.to_frame().set_index(["strategy", "layer"])
    assert table.rules["one-to-one", 2] == "middle"
    assert table.chosen["one-to-one", 2]
    # A rule whose place is not a candidate has no choice.
    few = placed(plant, layers=[1, 4], screen_seconds=0, n_random=0)
    assert set(few.choices) == {"alignment", "constancy"}


PLANTED = {"one-to-one 3": 1.0, "one-to-one 4": 4.0, "one-to-one 6": 2.0, "one-to-all 7": 3.0}
"""The change of the measure per unit of strength at every place."""


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`confirmed` on clips that are numbers: the measure's value. A strength above a place's limit fails."""
    tried: list[tuple[str, float, int]] = []

    def confirmed(limits: dict[str, float], later: dict[str, float], prompts: int = 8) -> Any:
        def generated(screen: Any, steps: list[Any], number: int) -> Any:
            rows = len(screen.prompts[number])
            screen.n_clips += rows
            values, broken = np.arange(rows, dtype=float), np.zeros(rows, dtype=bool)
            if steps:
                ((name, strength),) = steps
                tried.append((name, strength, number))
                change = PLANTED[name] if number == 0 else later.get(name, PLANTED[name])
                values, broken = values + change * strength, np.full(rows, abs(strength) > limits.get(name, 9))
            return SimpleNamespace(clips=SimpleNamespace(values=values, broken=broken), nats=np.arange(rows) / 10)

        monkeypatch.setattr(capacity.Screen, "generated", generated)
        monkeypatch.setattr(measure, "failed", lambda steered, _: steered.broken)
        monkeypatch.setattr(confirm._Ear, "values", lambda _, clips: clips.values)
        places = [
            SimpleNamespace(
                strategy=name[:10], layer=int(name[-1]), name=name, steps=lambda strength, name=name: [(name, strength)]
            )
            for name in PLANTED
        ]
        lens: Any = SimpleNamespace(
            config=SimpleNamespace(prefix=lambda _: 0), text_tokens=lambda prompts: [["a"]] * len(prompts)
        )
        monkeypatch.setattr(capacity, "longest_seconds", lambda *_: 10.0)
        return confirm.confirmed(
            lens, places, [1.0] * 4, [f"prompt {at}" for at in range(prompts)], 8, len, seconds=5.0, seed=0,
            batch_size=8, progress=False, sampling=Sampling(),
        )  # fmt: skip

    return confirmed, tried


def test_confirm_chooses_the_place_with_the_widest_measured_span(heard: Any) -> None:
    confirmed, tried = heard
    found = confirmed({}, {})
    assert (found.where.name, found.strength) == ("one-to-one 4", 1.0)
    assert list(found.heard.span) == [2, 8, 4, 6]
    assert list(found.heard.rounds) == [1, 2, 1, 2]
    # 24 unsteered clips, 8 per sign and place, and 16 per sign at the two better places.
    assert found.n_clips == 24 + 4 * 2 * 8 + 2 * 2 * 16
    assert list(found.heard.clips) == [16, 48, 16, 48]
    assert {name for name, _, number in tried if number == 1} == {"one-to-one 4", "one-to-all 7"}


def test_further_clips_decide_between_the_better_half(heard: Any) -> None:
    found = heard[0]({}, {"one-to-one 4": 0.0})
    assert found.where.name == "one-to-all 7"


def test_a_place_is_heard_at_the_strength_that_it_tolerates(heard: Any) -> None:
    found = heard[0]({"one-to-one 4": 0.3, "one-to-one 6": 0.1}, {})
    # At a quarter of the strength, the steepest place has a span of 2 only; another tolerates no strength.
    assert dict(zip(found.heard.strength, found.heard.span, strict=True)) == {1.0: 6, 0.25: 2, 0.0: 0}
    assert found.where.name == "one-to-all 7"
    assert found.heard.clips.iloc[2] == 3 * 8
    assert found.heard.rounds.iloc[2] == 0
    none = heard[0](dict.fromkeys(PLANTED, 0.1), {})
    assert (none.where.name, none.strength) == ("one-to-one 3", 0.0)


def test_place_with_confirm_measures_what_it_generates(plant: plants.Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "failed", lambda steered, _: np.zeros(len(steered), dtype=bool))
    monkeypatch.setattr(capacity, "MOST_DRIFT", np.inf)
    monkeypatch.setattr("analysis.placement.experiment.SCREEN_SECONDS", 0.4)
    liked = (plant.lens.model.decoder.lm_heads[0].weight @ plant.direction > 0).detach()

    def share(clips: Any) -> np.ndarray:
        return liked[clips.codes[:, 0]].double().mean(1).numpy()

    found = placed(plant, confirm=2, measured=share, screen_seconds=0, n_random=0)
    assert found.by == "confirmed"
    assert found.heard is not None
    last = found.heard[found.heard.rounds == 2]
    assert list(found.heard.rounds).count(2) == 2
    best = last.loc[last.span.idxmax()]
    assert found.name == f"{best.strategy} {best.layer}" == found.choices["confirmed"]
    assert found.capacity == best.strength
    assert best.span > 0.2
    assert found.n_heard == 6 + found.heard.clips.sum()
    assert found.costs["confirmed"] > found.costs["constancy"]
    assert f"in {found.n_heard} clips, at a cost of {found.costs['confirmed']:,} decoder steps" in found.reason
    # The same clips, steered here.
    prompts, first = [NEUTRAL[clip % 3] for clip in range(6)], confirm.FIRST_SEED
    options: dict[str, Any] = {"seconds": 0.4, "seeds": list(range(first, first + 6))}
    steps = al.steer(found.directions, best.strategy, layer=int(best.layer), strength=best.strength)
    back = al.steer(found.directions, best.strategy, layer=int(best.layer), strength=-best.strength)
    up, down = (share(plant.lens.generate(prompts, interventions=one, **options)) for one in (steps, back))
    assert best.span == pytest.approx((up - down).mean(), abs=1e-9)
    still = dataclasses.replace(found, heard=found.heard.assign(span=-0.1))
    assert "because the span of its clips is -0.1" in still.rejected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "constancy", "strategies": ("one-to-one",)}, "by='constancy' considers one-to-all 4, which is not"),
        ({"by": "middle", "layers": [1]}, "by='middle' considers one-to-one 2, which is not among"),
        ({"confirm": 2, "measured": "pitch", "layers": [1, 2]}, "confirm=2 considers one-to-one 3, which is not"),
        ({"confirm": 2, "by": "middle"}, "by='middle' and confirm=2"),
        ({"confirm": 2}, "'planted' has no measure of its own"),
        ({"confirm": 1, "measured": "pitch"}, "confirm=1: expected at least 2 for 3 prompts"),
        ({"confirm": -1}, "confirm=-1"),
        ({"confirm": 2, "measured": "pich"}, "Did you mean 'pitch'"),
        ({"measured": "pitch"}, "only confirm measures clips"),
        ({"evidence": {"middle": [0.1] * 5}}, "evidence 'middle' has the name of a rule"),
        (
            {"confirm": 2, "measured": "pitch", "screen_seconds": 0.4},
            "6 of 6 unsteered clips already fail, so places cannot be compared",
        ),
    ],
)
def test_what_a_rule_cannot_do_is_one_line(plant: plants.Plant, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        placed(plant, **options)
    assert "\n" not in str(caught.value)


def test_words_that_change_nothing_have_no_equal(plant: plants.Plant) -> None:
    found = shifts.Shifts(*np.zeros((3, 1, 2)), *np.zeros((3, 2)), 0, 0)
    with pytest.raises(InputError, match="the words of the poles do not change the predictions"):
        equal_damage.at_equal_damage(
            plant.lens, NEUTRAL[:2], (NEUTRAL[:2], NEUTRAL[2:]), torch.zeros(2, 4, 5, dtype=torch.long), [], found,
            batch_size=8, words_added=True,
        )  # fmt: skip
