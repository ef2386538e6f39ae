"""The screen of a placement's strength, on étude, compared with clips that the test steers itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

import audiolens as al
from analysis import placement
from analysis.placement import capacity
from analysis.placement.shifts import Candidate
from audiolens import measure
from audiolens.errors import InputError
from audiolens.tracing.sampling import Sampling

PROMPTS = al.prompts.load("tempo").development[:2]


@pytest.fixture(scope="module")
def etude() -> Any:
    return al.AudioLens.from_pretrained("etude")


@pytest.fixture(scope="module")
def where(etude: Any) -> Candidate:
    read = al.prompts.load("tempo", lens=etude)
    directions = al.difference_in_means(
        etude, read.positive[:2], read.negative[:2], codes="shared", neutral=PROMPTS, seconds=1.0
    )
    return Candidate("one-to-one", 3, directions)


def screened(lens: Any, where: Candidate, strength: float, **options: Any) -> capacity.Capacity:
    plain: dict[str, Any] = {"seconds": 4.0, "seed": 0, "batch_size": 8, "progress": False, "sampling": Sampling()}
    return capacity.screen(lens, where, strength, PROMPTS, **{**plain, **options})


def test_a_strength_that_does_no_harm_is_kept(etude: Any, where: Candidate) -> None:
    found = screened(etude, where, 0.01)
    assert found.strength == 0.01
    assert list(found.tried.strength) == [0.01, -0.01]
    assert list(found.tried.clips) == [8, 8]
    assert list(found.tried.failed) == [0, 0]


def test_a_strength_that_breaks_clips_is_halved_until_it_does_not(etude: Any, where: Candidate) -> None:
    found = screened(etude, where, 32.0)
    tried = found.tried.set_index("strength")
    amounts = [32.0 * share for share in capacity.SHARES]
    harmless = (tried.failed <= capacity.MOST_FAILED) & (tried.drift <= capacity.MOST_DRIFT)
    fine = [amount for amount in amounts if all(harmless.get(signed, False) for signed in (amount, -amount))]
    assert found.strength == max(fine, default=0.0)
    assert found.strength < 32.0
    # A strength is given up at the first sign that breaks clips, and no smaller one is tried after one that does not.
    assert not harmless.iloc[0]
    assert np.abs(tried.index).min() == (found.strength or amounts[-1])

    prompts, seeds = list(PROMPTS) * capacity.SEEDS, [capacity.FIRST_SEED + row for row in range(4)]
    base, steered = (
        etude.generate(prompts, 4.0, seeds=seeds, interventions=steps) for steps in ([], where.steps(32.0))
    )
    nats = [measure.code_nats(etude, prompts, clips.codes).mean(dim=(1, 2)).numpy() for clips in (base, steered)]
    assert tried.failed[32.0] == measure.failed(steered, base).mean()
    further = etude.generate(prompts, 4.0, seeds=[seed + 4 for seed in seeds])
    more = measure.code_nats(etude, prompts, further.codes).mean(dim=(1, 2)).numpy()
    between = np.mean([abs(one[at] - one[at + 2]) for one in (nats[0], more) for at in range(2)])
    assert tried.clips[32.0] == 4
    assert tried.drift[32.0] == pytest.approx(np.abs(nats[1] - nats[0]).mean() / between, rel=1e-4)


def test_a_model_whose_clips_all_fail_is_not_screened(lens: Any, vector: Any) -> None:
    directions = al.difference_in_means(lens, ["a fast song"], ["a slow song"], seconds=0.4)
    found = screened(lens, Candidate("one-to-one", 1, directions), 1.0, seconds=0.5)
    assert np.isnan(found.strength)
    assert found.tried.empty


@pytest.fixture(scope="module")
def placed(etude: Any, where: Candidate) -> placement.Placement:
    return placement.place(
        etude, "tempo", where.directions, prompts=PROMPTS, seconds=1.0, layers=[3], strategies=["one-to-one"],
        compute=(), n_random=1, screen_seconds=4.0, progress=False,
    )  # fmt: skip


def test_a_placement_steers_with_the_strength_that_was_screened(placed: placement.Placement) -> None:
    assert placed.rejected == ""
    assert placed.screened is not None
    assert placed.strength == min(placed.words_strength, placed.capacity)
    (step,) = placed.steer(-0.5)
    (same,) = al.steer(placed.directions, **placed.where, strength=-0.5 * placed.strength)
    assert repr(step) == repr(same)


def test_a_cap_is_stated(placed: placement.Placement) -> None:
    capped = dataclasses.replace(placed, capacity=placed.words_strength / 2)
    assert capped.strength == placed.words_strength / 2
    assert "strength capped at" in repr(capped)
    assert "capped" not in repr(dataclasses.replace(placed, capacity=2 * placed.words_strength))


@pytest.mark.parametrize(
    ("alignment", "random", "most", "why"),
    [
        (0.2, (0.1,), 1.0, "its alignment of 0.20 is below 0.3"),
        (0.5, (0.1, -0.6), 1.0, r"its alignment of 0.50 is within chance \(random directions: 0.60\)"),
        (0.9, (0.1,), 0.0, "clips break down even at strength 0.25"),
    ],
)
def test_a_placement_is_rejected_with_a_reason(
    placed: placement.Placement, alignment: float, random: tuple[float, ...], most: float, why: str
) -> None:
    screened = pd.DataFrame({"strength": [0.5, -0.5, 0.25, -0.25], "failed": 1.0, "drift": 9.0, "clips": 16})
    weak = dataclasses.replace(
        placed, candidates=placed.candidates.assign(alignment=alignment), random=random, capacity=most,
        screened=screened,
    )  # fmt: skip
    for use in (lambda: weak.strength, weak.steer):
        with pytest.raises(InputError, match=f"one-to-one 3 is rejected as a place, because {why}"):
            use()
    assert "is rejected" in repr(weak)
