"""Calls that the API driver once saw end in another library's error, or run something that was not asked for."""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import audiolens as al
from analysis import patching, probing, study, sweep
from analysis.commands import early
from analysis.statistics import rank_test
from analysis.sweep import response
from analysis.sweep.concept_measures import measure_of
from audiolens import measure
from audiolens.checks import checked_text
from audiolens.door import guarded
from audiolens.errors import AudioLensError, InputError, InputTypeError
from audiolens.etude import synth

RECORDS = np.zeros(2, dtype=[("a", float), ("b", int)])


def cache_of(lens: Any) -> Any:
    return lens.run_with_cache("calm", sites="resid_post")[1]


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a sweep of numbers": (lambda lens: sweep.plan(lens, {"a": 1}), "directions={'a': 1}: expected Directions"),
    "a sweep of lists": (lambda lens: sweep.plan(lens, {1: [2]}), r"directions={1: \[2\]}: expected Directions"),
    "a vocabulary of digits": (
        lambda _: al.prompts.PromptSet("a", ("b", "c"), ("d",), ("e",), vocabulary=10**5000),
        "vocabulary=.*expected text",
    ),
    "records as labels": (
        lambda lens: probing.Dataset.from_arrays(lens, [np.zeros(16_000)] * 2, 16_000, RECORDS),
        "expected numbers, text or booleans, got values of type",
    ),
    "times as labels": (
        lambda lens: probing.Dataset.from_arrays(lens, [np.zeros(16_000)] * 2, 16_000, np.zeros(2, "datetime64[s]")),
        "expected numbers, text or booleans, got values of type",
    ),
    "a projection on an intervention": (
        lambda lens: cache_of(lens).project(al.Add(torch.ones(lens.config.d_model), layers=[1])),
        "direction",
    ),
    "a strength past numpy's whole numbers": (
        lambda _: study.Settings(strengths={"one-to-one": (10**400,)}),
        "strengths of one-to-one: .*expected finite numbers above 0",
    ),
    "one text as names of measures": (
        lambda _: measure.refuse_lacking("tempo_beat_this"),
        "measures: expected a list of names",
    ),
    "a function without arguments": (lambda _: al.Apply(lambda: None), "function=.*expected a function of the activ"),
    "a clip without a spectrum": (
        lambda lens: probing.Dataset.from_synth(lens, "tempo", 4, seconds=0.01),
        "seconds=0.01: a synthesised clip lasts at least 0.1 s",
    ),
    "no settings at all": (lambda lens: study.run(lens, "tempo", settings=False), "settings=False: expected"),
    "an empty dict of settings": (lambda lens: study.run(lens, "tempo", settings={}), "settings={}: expected"),
}


MISSPELT: dict[str, Callable[[Any], object]] = {
    "measures": lambda _: response.checked_names(["tempoo"], {}),
    "measures of a table": lambda _: measure.table(np.zeros((1, 1, 16_000)), 16_000, measures=["tempoo"]),
    "measure of a grid": lambda _: patching.Sound("tempoo"),
    "measure of a study": lambda _: measure_of("tempo", "tempoo"),
    "measure of a target": lambda lens: al.steer_to(lens, None, "a", measure="tempoo", target=100),
    "measure of a sorting": lambda lens: al.estimate(lens, prompts=["a"], method="by_measure", measure="tempoo"),
    "option": lambda _: early.check_measures("--sound", "tempoo"),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_an_unknown_measure_is_refused_in_the_same_words_everywhere(lens: Any, name: str) -> None:
    with pytest.raises(
        InputError,
        match=r"(measures?|--sound)='tempoo': no such measure\. Did you mean 'tempo'.*Choose from: tempo, ",
    ):
        MISSPELT[name](lens)


def test_a_clip_of_the_synthesiser_without_a_note_has_its_accompaniment() -> None:
    clip = synth.labelled_clip(160, 3, 0.1)
    assert clip.audio.shape == (1600,)
    assert np.abs(clip.audio).max() > 0


def test_a_wrong_type_is_a_kind_of_value_that_is_not_accepted() -> None:
    assert issubclass(InputTypeError, InputError)
    assert issubclass(InputTypeError, TypeError)


@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused_by_name(lens: Any, name: str) -> None:
    call, match = CALLS[name]
    with pytest.raises((AudioLensError, ValueError, TypeError), match=match) as caught:
        call(lens)
    assert "\n" not in str(caught.value)


def test_numbers_of_torch_are_numbers(lens: Any) -> None:
    """scikit-learn takes no tensor as a seed, and a tensor in settings would be written into files as text."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal((12, 4))).float()
    labels, groups = [0, 1] * 6, list(range(12))
    plain = probing.probe(None, values, labels, groups=groups, seed=3, n_bootstrap=20, n_jobs=1, progress=False)
    same = probing.probe(
        None, values, labels, groups=groups, seed=torch.tensor(3), n_bootstrap=torch.tensor(20),
        n_jobs=torch.tensor(1), progress=False,
    )  # fmt: skip
    assert repr(plain) == repr(same)
    assert study.Settings(test=torch.tensor(2)).test == 2
    assert type(study.Settings(test=torch.tensor(2)).test) is int


def test_a_whole_number_past_64_bits_is_a_strength() -> None:
    assert study.Settings(strengths={"one-to-one": (10**30,)}).strengths["one-to-one"] == (10**30,)


def test_the_observed_value_of_a_rank_test_is_any_real_number() -> None:
    numbers = (0.5, Fraction(1, 2), torch.tensor(0.5), np.float32(0.5))
    assert len({rank_test(one, [0.1, 0.2, 0.7]) for one in numbers}) == 1


def test_an_array_without_names_is_an_empty_list_of_measures() -> None:
    measure.refuse_lacking(torch.zeros(0))


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(InputTypeError, match="name="):
        checked_text("name", "a\ud800")


def test_an_error_inside_a_compiled_library_is_not_the_callers() -> None:
    @guarded
    def tabled(name: str) -> pd.DataFrame:
        return pd.DataFrame({"a": [1], name: [2]})

    with pytest.raises(InputTypeError, match="name="):
        tabled("\ud800")


def test_only_columns_of_numbers_are_summarised() -> None:
    table = pd.DataFrame({"condition": ["baseline", "a"], "kind": ["baseline", "steered"], "prompt": "p", "seed": 0})
    table = table.assign(brightness=[100.0, 120.0], failed=False, rms_ratio=1.0, onsets=5, entropy_ratio=1.0)
    assert sweep.effects(table, "brightness", 0)["effect"].iloc[1] == pytest.approx(0.2)
    with pytest.raises(InputError, match="further: 'prompt' is not a column of numbers"):
        sweep.effects(table, "brightness", 0, further=["prompt"])
