"""The search for a strength finds the target where a dose-response reaches it, and says why where it does not."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from audiolens.control.search import Goal, Search, Try, rises
from audiolens.directions.calibration import Calibration
from audiolens.measure import MEASURES
from audiolens.measure.targets import RANGES, deviation, is_near

LIMIT = 2.0
GOAL = Goal("tempo", 120.0, 0.05)
Response = Callable[[float], float]


def searched(
    responses: list[Response], goal: Goal = GOAL, budget: int = 10, known: Calibration | None = None
) -> list[Search]:
    """What `steer_to` does, on responses that are known functions of the strength. NaN stands for a failed clip."""
    rows = [Search(goal, -LIMIT, LIMIT) for _ in responses]
    for _ in range(budget):
        rising = rises(rows, known)
        for row, response in zip(rows, responses, strict=True):
            strength = row.following(known, rising)
            if strength is not None:
                value = response(strength)
                # A tempo of 0 stands for a clip that does not fail, but has no tempo.
                row.add(Try(strength, value or math.nan, failed=math.isnan(value)))
    return rows


def calibrated(values: list[float]) -> Calibration:
    grid, size = np.linspace(-LIMIT, LIMIT, len(values)), len(values)
    empty = (None,) * size
    return Calibration("tempo", "BPM", tuple(grid), tuple(values), empty, empty, (0.0,) * size, {}, 4, 5.0, 3.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("base", [70.0, 100.0, 118.0, 170.0])
@pytest.mark.parametrize("slope", [0.2, 0.4, 2.0])
def test_smooth_responses_are_solved_within_few_clips(sign: int, base: float, slope: float) -> None:
    (row,) = searched([lambda strength: base * math.exp(sign * slope * strength)])
    reachable = abs(math.log(120 / base)) <= slope * LIMIT + math.log(1.05)
    assert row.reached == reachable
    if reachable:
        assert row.best is not None
        assert abs(row.best.value / 120 - 1) <= 0.05
        assert len(row.tries) <= 7
    else:
        assert "at strength" in row.stuck
        assert abs(max((one.strength for one in row.tries), key=abs)) == LIMIT


def test_the_direction_is_learnt_from_all_rows() -> None:
    """A flat row does not know on which side to look; the others tell it."""
    flat = [lambda strength: 100.0 if abs(strength) < 1 else 100 - 20 * strength]
    falling = [lambda strength: 100.0 * math.exp(-0.3 * strength)] * 3
    assert all(row.reached for row in searched([*flat, *falling]))


def test_a_calibration_gives_the_first_guess() -> None:
    known = calibrated([60.0, 80.0, 100.0, 120.0, 140.0])
    (row,) = searched([lambda strength: 90 * (1 + 0.2 * strength)], known=known)
    # The clip needs a third more; the median clip changes from 100 to 133 at 1.667.
    assert [one.strength for one in row.tries[:2]] == pytest.approx([0.0, 5 / 3])
    assert row.reached
    assert len(row.tries) == 2


def test_jumps_are_narrowed_and_then_the_rest_is_searched() -> None:
    def jumping(strength: float) -> float:
        if 0.33 < strength < 0.42:
            return 121.0
        return 80.0 if strength < 0.05 else 160.0

    (row,) = searched([jumping], budget=30)
    assert row.reached
    (never,) = searched([lambda strength: 80.0 if strength < 0.3 else 160.0], budget=1000)
    assert not never.reached
    assert "jumps over the target" in never.stuck


def test_both_sides_are_searched_where_the_measure_jumps_over_the_target() -> None:
    def jumping(strength: float) -> float:
        if -1.2 < strength < -0.6:
            return 121.0
        return 80.0 if strength < 0.3 else 160.0

    (row,) = searched([jumping], budget=20)
    assert row.reached
    assert max(one.strength for one in row.tries) > 0.3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clip_that_cannot_be_measured_bounds_the_search(sign: int) -> None:
    def undefined(strength: float) -> float:
        return 0.0 if sign * strength > 0.9 else 100 + sign * 20 * strength

    # Other rows tell on which side the target is.
    rising = [lambda strength: 100.0 * math.exp(sign * 0.2 * strength)] * 2
    row, *_ = searched([undefined, *rising], budget=20)
    assert row.reached
    assert any(math.isnan(one.value) for one in row.tries)
    assert max(abs(row.low), abs(row.high)) == LIMIT
    assert min(abs(row.low), abs(row.high)) < 1
    row, *_ = searched([lambda strength: 0.0 if sign * strength > 0.8 else 100.0, *rising], budget=20)
    assert "beyond which clips cannot be measured" in row.stuck


def test_an_unsteered_clip_that_cannot_be_measured_is_steered_into_the_range() -> None:
    (row,) = searched([lambda strength: 0.0 if strength < 0.6 else 100 + 20 * strength])
    assert row.reached
    assert [one.strength for one in row.tries] == [0, 0.5, 1]


def pathological(rng: np.random.Generator) -> Response:
    """Steps between random values, some of which fail or are undefined."""
    edges = np.sort(rng.uniform(-LIMIT, LIMIT, rng.integers(1, 8)))
    values = rng.choice([math.nan, 0.0, *rng.uniform(50, 240, 6)], len(edges) + 1)
    return lambda strength: float(values[int(np.searchsorted(edges, strength))])


@pytest.mark.parametrize("seed", range(300))
def test_no_strength_is_tried_twice_or_beyond_a_clip_that_fails(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = [None, calibrated([60.0, 80.0, 100.0, 120.0, 140.0])][seed % 2]
    for row in searched([pathological(rng) for _ in range(3)], budget=60, known=known):
        strengths = [one.strength for one in row.tries]
        assert len(set(strengths)) == len(strengths)
        assert max(map(abs, strengths)) <= LIMIT
        for at, one in enumerate(row.tries):
            sound = [two for two in row.tries[:at] if not two.failed and math.isfinite(two.value)]
            failed = [two for two in row.tries[:at] if two.failed and two.strength]
            for two in failed:
                inner = all(abs(three.strength) < abs(two.strength) or three.strength * two.strength < 0
                            for three in sound)  # fmt: skip
                beyond = one.strength * two.strength > 0 and abs(one.strength) > abs(two.strength)
                assert not (inner and beyond)
        assert row.reached or row.stuck or len(row.tries) == 60


@pytest.mark.parametrize("jump", [-0.787, 0.3, 1.234])
def test_the_reason_names_the_strength_of_the_jump(jump: float) -> None:
    (row,) = searched([lambda strength: 164.0 if strength > jump else 59.0], budget=120)
    assert float(row.stuck.rsplit(maxsplit=1)[-1]) == pytest.approx(jump, abs=0.01)


def test_a_side_without_strengths_is_not_tried() -> None:
    known = calibrated([80.0, 90.0, 100.0, 110.0, 120.0])
    row = Search(GOAL, 0.0, LIMIT)
    for _ in range(10):
        strength = row.following(known, True)
        if strength is None:
            break
        row.add(Try(strength, 150.0 + strength, failed=False))
    assert len({one.strength for one in row.tries}) == len(row.tries)


def test_no_strength_beyond_a_failed_clip_is_tried() -> None:
    (row,) = searched([lambda strength: math.nan if strength > 0.8 else 100 + 10 * strength], budget=30)
    assert not row.reached
    assert "beyond which clips fail" in row.stuck
    failed = min(one.strength for one in row.tries if one.failed)
    assert row.tries[-1].strength < failed
    (near,) = searched([lambda strength: math.nan if strength > 0.8 else 100 + 24 * strength], budget=30)
    assert near.reached


def test_a_row_that_cannot_be_measured_says_so() -> None:
    (row,) = searched([lambda strength: math.nan], budget=30)
    assert row.best is None
    assert "unsteered clip fails" in row.stuck
    assert len(row.tries) == 1
    (row,) = searched([lambda strength: math.nan if strength else 0.0], budget=30)
    assert "undefined" in row.stuck


def test_a_clip_inside_that_fails_is_not_tried_again() -> None:
    def broken(strength: float) -> float:
        return math.nan if 0.1 < strength < 0.45 else 100.0 if strength < 0.3 else 160.0

    (row,) = searched([broken], budget=10)
    strengths = [one.strength for one in row.tries]
    assert len(set(strengths)) == len(strengths)


def test_a_reason_states_what_was_measured_there() -> None:
    (row,) = searched([lambda strength: 100 - 10 * strength if strength > 0.6 else 100 + 20 * strength], budget=20)
    assert "at strength 2, the limit, tempo is still 80 BPM" in row.stuck


def test_the_first_clip_is_kept_until_one_can_be_measured() -> None:
    row = Search(GOAL, -LIMIT, LIMIT)
    assert row.add(Try(0.0, math.nan, False))
    assert not row.add(Try(0.5, math.nan, False))
    assert row.add(Try(1.0, 100.0, False))
    assert not row.add(Try(2.0, 90.0, False))


def test_deviations_are_ratios_or_differences() -> None:
    assert deviation("tempo", 60.0, 120.0) == pytest.approx(-math.log(2))
    assert deviation("loudness", -22.0, -20.0) == -2
    assert math.isnan(deviation("brightness", 0.0, 100.0))
    assert is_near("tempo", 125.9, 120.0, 0.05)
    assert not is_near("tempo", 126.1, 120.0, 0.05)
    assert is_near("loudness", -20.9, -20.0, 1.0)
    assert set(RANGES) == set(MEASURES) - {"pitch_class"}
