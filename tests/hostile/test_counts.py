"""Counts of any size are rejected at once, before anything is looped over or allocated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from ends import ends

import audiolens as al
from analysis import attention, logit_lens, pca, reading_comparison, statistics, study, sweep
from analysis.commands import early
from analysis.commands import sweep as sweep_command
from audiolens import measure
from audiolens.checks import MOST, MOST_ITEMS, bounded, checked_count
from audiolens.errors import AudioLensError, InputError

HUGE = 10**18
RATE = 16_000


def refused(act: Callable[[], object]) -> None:
    with ends(), pytest.raises(AudioLensError) as caught:
        act()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["batch_size", "n_bootstrap", "n_shuffles"])
def test_a_count_has_an_end(name: str) -> None:
    assert checked_count(name, MOST) == MOST
    for value in (MOST + 1, HUGE, np.int64(HUGE), 10**400):
        with pytest.raises(InputError, match=rf"{name}=.*expected a whole number of at most 1,000,000"):
            checked_count(name, value)


@pytest.mark.parametrize("items", [range(HUGE), range(10**30), range(0, -HUGE, -1), count()])
def test_a_list_has_an_end(items: Any) -> None:
    with ends(), pytest.raises(InputError, match=r"rows=.*expected at most 10,000,000 items"):
        bounded("rows", items)


def test_lists_within_the_bound_are_as_they_are() -> None:
    for items in (range(0), range(5), range(10, 0, -3), iter([1, 2]), np.arange(3), torch.arange(3), "ab"):
        wanted = list(items) if not hasattr(items, "__next__") else [1, 2]
        assert bounded("rows", items) == wanted
    assert len(bounded("rows", range(MOST_ITEMS // 10))) == MOST_ITEMS // 10


STREAM, HEADS = {"sites": ["resid_post"]}, {"sites": ["attn.z"]}


@pytest.mark.parametrize(
    "asked",
    [
        {"seeds": range(HUGE)},
        {"seeds": HUGE},
        {"seeds": [1], "batch_size": HUGE},
        {**STREAM, "layers": HUGE},
        {**STREAM, "layers": range(HUGE)},
        {**STREAM, "layers": count()},
        {**HEADS, "heads": range(HUGE)},
        {**HEADS, "heads": count()},
        {**STREAM, "span": (0, 10**400)},
        {"sites": ["blocks." + "9" * 6000 + ".hook_resid_post"]},
        {"seconds": 1e300},
        {"seconds": 10**400},
        {"guidance_scale": 10**400},
        {"temperature": 10**400},
    ],
)
def test_generate_refuses_what_has_no_end(lens: Any, asked: dict[str, Any]) -> None:
    refused(lambda: lens.generate(["fast"], **{"seconds": 0.4, **asked}))


@pytest.mark.parametrize("rate", [2, 1, 999, 10**6, HUGE, 10**400, 1e300, 0.5])
def test_rates_that_no_sound_has_are_refused_before_it_is_resampled(lens: Any, rate: Any) -> None:
    refused(lambda: lens.encode_audio(torch.zeros(RATE), rate))


@pytest.mark.parametrize("rate", [1_000, 8_000, 48_000, 767_999])
def test_rates_of_sound_are_taken(lens: Any, rate: int) -> None:
    with ends():
        assert lens.encode_audio(torch.zeros(rate // 4), rate).shape[1] == 4


def test_interventions_and_timelines_refuse_what_has_no_end(lens: Any) -> None:
    vector = torch.ones(lens.config.d_model)
    refused(lambda: al.Add(vector, layers=range(HUGE)))
    refused(lambda: al.Add(vector, layers=[0], rows=range(HUGE)))
    refused(lambda: al.Scale(2.0, site="attn.z", layers=[0], heads=range(HUGE)))
    refused(lambda: al.Add(vector, layers=[0], seconds=(0, 10**400), strength=10**400))


def test_statistics_refuse_what_has_no_end() -> None:
    values = np.arange(12.0)
    refused(lambda: statistics.means(values, values, n_permutations=HUGE))
    refused(lambda: statistics.effect(values, values[::-1], values, n_bootstrap=HUGE))


@pytest.mark.parametrize(
    "name", ["poles", "development", "development_seeds", "test", "test_seeds", "n_random", "pairs"]
)
def test_a_study_of_no_end_is_refused(name: str) -> None:
    asked: dict[str, Any] = {name: HUGE}
    with pytest.raises(InputError, match=f"{name}={HUGE}: expected a whole number of at most"):
        study.Settings(**asked)


def test_sweeps_and_measures_refuse_what_has_no_end(lens: Any) -> None:
    refused(lambda: sweep.clips(["a", "b"], HUGE))
    refused(lambda: measure.table(np.zeros((2, 1, RATE), np.float32), RATE, n_jobs=HUGE))
    refused(lambda: measure.table(np.zeros((2, 1, RATE), np.float32), RATE, n_jobs=10**6))


@pytest.mark.parametrize("text", [f"0-{HUGE}", "0-999999999", "9" * 6_000])
def test_ranges_of_the_command_line_have_an_end(text: str) -> None:
    refused(lambda: sweep_command._blocks(text))
    refused(lambda: early.numbers(text, "--layers"))


def test_strengths_of_the_command_line_have_an_end() -> None:
    refused(lambda: early.strengths("--strengths", f"-2:2:{HUGE}"))


@pytest.mark.parametrize("beat_steps", [1e-300, 1e-9, 0.5, 1.0])
def test_beats_shorter_than_a_step_end(beat_steps: float) -> None:
    with ends():
        assert np.isfinite(attention.beat_score(np.ones((2, 20)), beat_steps)).all()


@pytest.mark.parametrize("beat_steps", [0.0, -1.0, float("nan"), float("inf"), "a", None])
def test_beats_of_no_length_are_refused(beat_steps: Any) -> None:
    refused(lambda: attention.beat_score(np.ones((2, 20)), beat_steps))


@pytest.mark.parametrize("asked", [0, -1, HUGE, 10**30, 1.5, "a"])
def test_readings_compare_a_number_of_prompts(lens: Any, asked: Any) -> None:
    sets = al.prompts.load("tempo")
    refused(lambda: reading_comparison.compare(lens, sets, prompts=asked, progress=False))
    refused(lambda: reading_comparison.compare(lens, sets, batch_size=asked, progress=False))


@pytest.mark.parametrize("seeds", [range(HUGE), count(), [0] * 100, HUGE])
def test_what_each_block_plays_takes_a_seed_a_row(lens: Any, codes: torch.Tensor, seeds: Any) -> None:
    refused(lambda: logit_lens.listen(lens, ["fast"], codes[:1], seeds=seeds))


@pytest.mark.parametrize("dimensions", [1, 4, HUGE, True, 2.5, "2", None, np.ones(3)])
def test_components_are_drawn_in_two_or_three_dimensions(dimensions: Any) -> None:
    found = pca.fit(np.random.default_rng(0).normal(size=(1, 8, 4)), ["a", "b"] * 4, n_shuffles=9)
    refused(lambda: found.plot(dimensions))
    refused(lambda: found.figure(dimensions))


@pytest.mark.parametrize("seconds", [1e300, 0, -1, float("nan"), "a"])
def test_a_length_is_refused_before_a_bar_is_shown(lens: Any, capsys: pytest.CaptureFixture[str], seconds: Any) -> None:
    refused(lambda: al.difference_in_means(lens, ["fast"], ["slow"], seconds=seconds, progress=True))
    assert capsys.readouterr().err == ""
