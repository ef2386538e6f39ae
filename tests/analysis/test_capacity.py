"""The screen of a placement's strength, on étude, compared with clips that the test steers itself."""

from __future__ import annotations

import dataclasses
from itertools import combinations
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


@pytest.fixture(autouse=True)
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate two clips per prompt and round, which is enough for what is tested here."""
    monkeypatch.setattr(capacity, "ROUND_CLIPS", 4)


def screened(lens: Any, where: Candidate, strength: float, **options: Any) -> capacity.Capacity:
    plain: dict[str, Any] = {"seconds": 3.0, "seed": 0, "batch_size": 8, "progress": False, "sampling": Sampling()}
    return capacity.screen(lens, where, strength, PROMPTS, **{**plain, **options})


def test_a_strength_that_does_no_harm_is_kept(etude: Any, where: Candidate) -> None:
    found = screened(etude, where, 0.01)
    assert found.strength == 0.01
    assert list(found.tried.strength) == [0.01, -0.01]
    assert list(found.tried.clips) == [8, 8]
    assert list(found.tried.failed) == [0, 0]


def test_few_prompts_have_more_seeds(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "ROUND_CLIPS", 7)
    directions = al.difference_in_means(lens, ["a fast song"], ["a slow song"], seconds=0.4)
    found = screened(lens, Candidate("one-to-one", 1, directions), 1.0, seconds=0.5)
    # Two rounds of two prompts with four seeds each.
    assert found.left_out.startswith("16 of 16 unsteered clips")


def test_smaller_strengths_are_tried_until_one_does_no_harm(
    etude: Any, where: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SHARES", (1.0, 1 / 8192))
    found = screened(etude, where, 64.0)
    tried = found.tried.set_index("strength")
    assert found.strength == 64 / 8192
    assert max(tried.drift[:2]) > capacity.MOST_DRIFT
    assert list(tried.failed[-2:]) == [0, 0]

    prompts, first = list(PROMPTS) * 2, capacity.FIRST_SEED
    rounds = [list(range(start, start + 4)) for start in (first, first + 4)]
    unsteered, steered = (
        [etude.generate(prompts, 3.0, seeds=seeds, interventions=steps) for seeds in rounds]
        for steps in ([], where.steps(64.0))
    )
    nats = [
        np.concatenate([measure.code_nats(etude, prompts, one.codes).mean(dim=(1, 2)).numpy() for one in clips])
        for clips in (unsteered, steered)
    ]
    between = np.mean([abs(a - b) for at in range(2) for a, b in combinations(nats[0][at::2], 2)])
    assert tried.clips[64.0] == 8
    failed = [measure.failed(one, base) for one, base in zip(steered, unsteered, strict=True)]
    assert tried.failed[64.0] == np.concatenate(failed).mean()
    assert tried.drift[64.0] == pytest.approx(np.abs(nats[1] - nats[0]).mean() / between, rel=1e-4)


def test_a_model_whose_clips_all_fail_is_not_screened(lens: Any, vector: Any) -> None:
    directions = al.difference_in_means(lens, ["a fast song"], ["a slow song"], seconds=0.4)
    found = screened(lens, Candidate("one-to-one", 1, directions), 1.0, seconds=0.5)
    assert np.isnan(found.strength)
    assert found.tried.empty
    assert found.left_out == "8 of 8 unsteered clips already fail, so the strength is not capped."


def test_clips_that_fail_without_steering_are_not_counted(
    etude: Any, where: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measure.failed

    def third_fails(steered: Any, baseline: Any) -> Any:
        failed = measured(steered, baseline).copy()
        failed[2] = True
        return failed

    monkeypatch.setattr(measure, "failed", third_fails)
    found = screened(etude, where, 0.01)
    assert found.strength == 0.01
    assert list(found.tried.clips) == [6, 6]


def test_a_strength_that_overflows_breaks_every_clip(
    etude: Any, where: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SHARES", (1.0, 1e-32))
    found = screened(etude, where, 1e30)
    assert found.strength == pytest.approx(0.01)
    assert found.tried.failed.iloc[0] == 1
    assert np.isinf(found.tried.drift.iloc[0])


@pytest.fixture(scope="module")
def placed(etude: Any, where: Candidate) -> placement.Placement:
    with pytest.MonkeyPatch.context() as few:
        few.setattr(capacity, "ROUND_CLIPS", 4)
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
    first = placed.words_strength
    tried = pd.DataFrame(
        {"strength": [first, -first, first / 2, -first / 2], "failed": [0.0, 0.25, 0, 0], "drift": 1.0, "clips": 32}
    )
    capped = dataclasses.replace(placed, capacity=first / 2, screened=tried)
    assert capped.strength == first / 2 == capped.to_frame().strength.item()
    assert f"strength capped at {first / 2:.2g}, because 25% of 32 clips failed at strength -{first:.2g}" in repr(
        capped
    )
    drifted = dataclasses.replace(capped, screened=tried.assign(failed=0.0, drift=[3.5, 4, 1, 1]))
    assert f"drift at strength -{first:.2g} was 4.0 times" in repr(drifted)
    assert "capped" not in repr(dataclasses.replace(placed, capacity=2 * placed.words_strength))


@pytest.mark.parametrize(
    ("alignment", "random", "most", "why"),
    [
        (0.2, (0.1,), 1.0, "its alignment of 0.20 is below 0.3"),
        (0.5, (0.1, -0.6), 1.0, r"its alignment of 0.50 is within chance \(random directions: 0.60\)"),
        (-0.5, (0.1,), 1.0, "its alignment is -0.50: the direction acts against the words"),
        (0.9, (0.1,), 0.0, r"it tolerates no strength: 100% of 16 clips failed at strength -0.25"),
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
    assert np.isnan(weak.to_frame().strength).all()
    for use in (lambda: weak.strength, weak.steer):
        with pytest.raises(InputError, match=f"one-to-one 3 is rejected as a place, because {why}"):
            use()
    assert "is rejected" in repr(weak)
