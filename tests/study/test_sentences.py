"""The headline and the verdict of a study say what its numbers say, in words."""

from dataclasses import replace
from typing import Any

import pytest

from analysis.study.sentences import headline, verdict, words_of
from analysis.study.test_result import Outcome
from analysis.wording import change, clips_of, counted, interval, rounded

FAST = Outcome(
    pole="fast", strength=2.0, effect=0.66, low=0.19, high=0.89, failed=0.0, median=180.0, prompted=0.66, opposed=0.1,
    ranked=0.5, p_random=1 / 20, n_random=19, p_shuffled=1 / 20, n_shuffled=19, p_other=1 / 4, n_other=3,
    p_controls=1 / 42, n_controls=41, p_corrected=2 / 42, n_tests=2,
)  # fmt: skip
SLOW = replace(FAST, pole="slow", strength=-2.0, effect=-0.37, low=-0.49, high=-0.25)
BEATEN: dict[str, Any] = {"p_random": 3 / 20, "p_controls": 3 / 42, "p_corrected": 3 / 42}
WORDS = words_of(("fast", "slow"), "tempo_ioi")
NAN = float("nan")


@pytest.mark.parametrize(
    ("fast", "slow", "head", "said"),
    [
        (
            {},
            {},
            "Steering made the music 66% faster or 37% slower.",
            "No random direction of 19, no balanced shuffle of 19 and no direction of another concept of 3 did as much "
            "towards either pole. The study supports both effects.",
        ),
        (
            BEATEN,
            {},
            "Steering made the music 37% slower; the change to faster (+66%) was no larger than that of some controls.",
            "No random direction of 19, no balanced shuffle of 19 and no direction of another concept of 3 did as much "
            "towards slow. 2 of 19 random directions did as much towards fast. The study supports only the effect "
            "towards slow.",
        ),
        (
            BEATEN,
            BEATEN,
            "Steering made the music 66% faster or 37% slower, but so did some control directions.",
            "2 of 19 random directions did as much towards either pole. The study supports no claim.",
        ),
        (
            {},
            {"high": 0.01},
            "Steering made the music 66% faster, but not reliably slower.",
            "No random direction of 19, no balanced shuffle of 19 and no direction of another concept of 3 did as much "
            "towards fast. The study supports the effect.",
        ),
        (
            {"low": -0.1},
            {"failed": 0.2},
            "Steering did not reliably make the music faster or slower.",
            "Towards slow, 20% of the clips failed, which is too many for a claim. There is no reliable effect to "
            "compare with control directions.",
        ),
        (
            {"n_random": 5, "p_random": 1 / 6, "n_shuffled": 0, "n_other": 0},
            {"effect": float("nan"), "low": float("nan"), "high": float("nan")},
            "Steering made the music 66% faster, but not reliably slower.",
            "No random direction of 5 did as much towards fast. With so few controls, the study supports no claim.",
        ),
        (
            # One control of 41 is not what controls do.
            {"p_random": 2 / 20, "p_controls": 2 / 42, "p_corrected": 4 / 42},
            {"high": 0.01},
            "Steering made the music 66% faster, but so did some control directions, and not reliably slower.",
            "1 of 19 random directions did as much towards fast. The study supports no claim.",
        ),
        (
            # The pairs on which controls were run could not be measured.
            {"ranked": NAN, "p_random": NAN, "p_shuffled": NAN, "p_other": NAN, "p_controls": NAN, "p_corrected": NAN},
            {"high": 0.01},
            "Steering made the music 66% faster, but not reliably slower.",
            "The controls could not be compared towards fast. Without that comparison, the study supports no claim.",
        ),
        (
            {"n_random": 1, "p_random": 1.0, "n_shuffled": 1, "p_shuffled": 0.5, "n_other": 0},
            {"high": 0.01},
            "Steering made the music 66% faster, but not reliably slower.",
            "1 of 1 random direction did as much towards fast. With so few controls, the study supports no claim.",
        ),
        (
            {"effect": 0.004, "low": 0.001},
            {"high": 0.01},
            "Steering made the music less than 1% faster, but not reliably slower.",
            "No random direction of 19, no balanced shuffle of 19 and no direction of another concept of 3 did as much "
            "towards fast. The study supports the effect.",
        ),
    ],
)
def test_what_is_said_follows_from_the_outcomes(fast: Any, slow: Any, head: str, said: str) -> None:
    outcomes = (replace(FAST, **fast), replace(SLOW, **slow))
    assert headline(outcomes, WORDS, "tempo") == head
    assert verdict(outcomes) == said


def test_a_concept_of_ones_own_is_said_with_its_measure() -> None:
    told = headline((FAST, replace(SLOW, high=0.1)), words_of(("plucked", "bowed"), "onset_rate"), "onset rate")
    assert told == "Steering made the music more plucked (onset rate +66%), but not reliably more bowed."


def test_nothing_is_called_faster_by_a_measure_of_something_else_or_at_the_other_pole() -> None:
    assert words_of(("bright", "dark"), "brightness") == ("brighter", "darker")
    assert words_of(("fast", "slow"), "brightness") == ("more fast", "more slow")
    assert words_of(("slow", "fast"), "tempo_ioi") == ("more slow", "more fast")


@pytest.mark.parametrize("value", [0.0, -0.12345, 3.14159, 31.4159, 314.159, 31415.9])
def test_a_rounded_number_is_within_half_a_percent(value: float) -> None:
    assert float(rounded(value).replace("−", "-")) == pytest.approx(value, rel=0.005)


def test_what_is_not_a_number_or_one_of_a_kind_is_said_so() -> None:
    assert rounded(NAN) == "not measured"
    assert change(NAN) == "not measurable"
    assert (interval(-0.37, 0.2), interval(NAN, NAN)) == ("[−37, 20]", "[no interval]")
    assert (clips_of(1, 1), clips_of(8, 4, "test prompt")) == ("1 prompt x 1 seed", "8 test prompts x 4 seeds")
    assert (counted(1, "study", "studies"), counted(8500, "row")) == ("1 study", "8,500 rows")
