"""Analyses refuse wrong types, counts and amounts in one line, before a model runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from analysis import attention, attribution, patching, pca, probing, similarity
from analysis.probing import Dataset
from audiolens.checks import checked_amount, checked_count
from audiolens.errors import AudioLensError, InputError, InputTypeError

ROWS = np.random.default_rng(0).normal(size=(2, 24, 6))
LABELS = ["a", "b"] * 12
PAIR: dict[str, Any] = {"clean": ["fast", "bright"], "corrupted": ["slow", "dark"]}
CLIPS = ["fast", "slow", "calm", "dark", "loud"]


class Given:
    """What the cases are made of."""

    def __init__(self, lens: al.AudioLens, codes: torch.Tensor, directions: al.Directions) -> None:
        self.lens, self.codes, self.d = lens, codes, directions

    def attribute(self, **options: Any) -> Any:
        return attribution.attribute(self.lens, **PAIR, codes=self.codes[:2], **options)

    def by_lag(self, **options: Any) -> Any:
        return attention.by_lag(
            self.lens, CLIPS, self.codes, **{"beat_seconds": [0.12, 0.16, 0.2, 0.2, 0.2], **options}
        )

    def patch(self, **options: Any) -> Any:
        metric = patching.LogLikelihood((0.0, 0.2))
        return patching.patch(self.lens, **PAIR, codes=self.codes[:2], metric=metric, progress=False, **options)

    def synth(self, **options: Any) -> Any:
        return Dataset.from_synth(self.lens, "tempo", **options)


def probe(**options: Any) -> Any:
    return probing.probe(None, ROWS, options.pop("labels", LABELS), **{"n_shuffles": 2, "n_bootstrap": 0, **options})


@pytest.fixture(scope="module")
def given(lens: al.AudioLens, codes: torch.Tensor) -> Given:
    made = al.difference_in_means(lens, ["fast"], ["slow"], seconds=0.2, progress=False)
    return Given(lens, codes, made)


@pytest.fixture(scope="module")
def words(lens: al.AudioLens, codes: torch.Tensor) -> attention.TextAttention:
    return attention.to_text(lens, CLIPS, codes, layers=[0, 1])


REFUSED: list[tuple[Callable[[Given], Any], type[AudioLensError], str]] = [
    (lambda g: similarity.cosine_map(None), InputTypeError, "expected Directions"),
    (lambda g: similarity.cosine_map({"a": g.d}), InputTypeError, "not dict"),
    (lambda g: similarity.cosine_map(g.d, null="shuffle"), InputError, "null='shuffle'"),
    (lambda g: similarity.compare([g.d, g.d]), InputTypeError, "sets by name"),
    (lambda g: similarity.compare({"a": g.d, "b": None}), InputTypeError, "b: expected"),
    (lambda g: patching.pairs(g.lens, "tempo"), InputTypeError, "expected a PromptSet"),
    (lambda g: g.patch(n_bootstrap=-1), InputError, "n_bootstrap=-1: expected a whole number of at least 0"),
    (lambda g: g.patch(n_permutations=-1), InputError, "n_permutations=-1"),
    (lambda g: g.patch(seed="a"), InputError, "seed='a'"),
    (lambda g: g.patch(memory_gib="a"), InputError, "memory_gib='a'"),
    (lambda g: patching.Sound("tempo", pairs=1.5), InputError, "pairs=1.5"),
    (lambda g: g.attribute(metric="x"), InputTypeError, "metric='x': expected a function"),
    (lambda g: g.attribute(metric=lambda logits, _: logits.sum()), InputError, r"returned shape \(\) for 2 rows"),
    (lambda g: g.attribute(metric=lambda *_: 1.0), InputError, "returned float for 2 rows"),
    (lambda g: g.attribute(seed=-1), InputError, "seed=-1"),
    (lambda g: g.by_lag(n_permutations=0), InputError, "n_permutations=0"),
    (lambda g: g.by_lag(beat_seconds="a"), InputTypeError, "beat_seconds='a'"),
    (
        lambda g: g.by_lag(beat_seconds=np.ma.masked_array([0.12, 0.2], mask=[0, 1])),
        InputTypeError,
        "beat_seconds is a masked array",
    ),
    (lambda g: pca.fit(torch.from_numpy(ROWS) * 1j, LABELS), InputTypeError, "activations has dtype complex128"),
    (lambda g: pca.fit(ROWS * 1j, LABELS), InputTypeError, "activations has dtype complex128"),
    (lambda g: pca.fit(ROWS > 0, LABELS), InputTypeError, "activations has dtype bool"),
    (lambda g: pca.fit(torch.from_numpy(ROWS) > 0, LABELS), InputTypeError, "activations has dtype bool"),
    (lambda g: g.by_lag(longest_seconds="a"), InputError, "longest_seconds='a'"),
    (lambda g: attention.ablate(g.lens, CLIPS, g.codes, factor="a"), InputError, "factor='a'"),
    (lambda g: pca.fit(ROWS, LABELS, n_components=0), InputError, "n_components=0"),
    (lambda g: pca.fit(ROWS, LABELS, n_components=-1), InputError, "n_components=-1"),
    (lambda g: pca.fit(ROWS, LABELS, n_components=1.5), InputError, "n_components=1.5"),
    (lambda g: pca.trajectories(ROWS[:, :, None], LABELS, n_components=0), InputError, "n_components=0"),
    (lambda g: probe(penalty="a"), InputError, "penalty='a'"),
    (lambda g: probe(n_jobs=0), InputError, "n_jobs=0"),
    (lambda g: probe(seed="a"), InputError, "seed='a'"),
    (lambda g: probe(task="regression"), InputError, "needs numeric labels"),
    (lambda g: probe(n_components=0), InputError, "n_components=0"),
    (lambda g: probe(n_bootstrap=-1), InputError, "n_bootstrap=-1"),
    (lambda g: probe(n_shuffles=2.5), InputError, "n_shuffles=2.5"),
    (lambda g: g.synth(n=0, task="regression"), InputError, "n=0"),
    (lambda g: g.synth(n=4, seconds=-1), InputError, "seconds=-1"),
    (lambda g: g.synth(n=4, task="x"), InputError, "task='x'"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_cannot_be_is_refused(
    given: Given, call: Callable[[Given], Any], error: type[AudioLensError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 99}, "row=99: there are rows 0 to 4"),
        ({"row": -1}, "row=-1"),
        ({"heads": [(5, 5)]}, r"\(5, 5\) was not read; there are layers 0, 1 and heads 0, 1, 2, 3"),
        ({"heads": [3]}, "expected .layer, head. pairs"),
    ],
)
def test_a_figure_of_what_was_not_read_is_refused(words: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        words.plot(**options)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -3, torch.tensor(1.5), np.arange(2)])
def test_a_count_is_a_whole_number(value: Any) -> None:
    with pytest.raises(InputError, match="n=.*: expected a whole number of at least 1"):
        checked_count("n", value)
    assert checked_count("n", np.int64(3)) == 3


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), 0.0])
def test_an_amount_is_a_finite_number(value: Any) -> None:
    with pytest.raises(InputError, match="x=.*: expected a finite number above 0"):
        checked_amount("x", value, above=0)
    assert checked_amount("x", np.float32(0.5)) == 0.5
