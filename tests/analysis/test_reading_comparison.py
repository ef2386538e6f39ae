"""The comparison of readings equals each reading computed separately, and finds a planted density concept."""

from typing import Any

import numpy as np
import pytest

import audiolens as al
from analysis import reading_comparison
from audiolens.errors import InputError
from audiolens.prompts import PromptSet

FAST = ("a fast song", "fast piano", "the fast jazz with drums", "fast guitar and drums")
SETS = PromptSet("tempo", ("fast", "slow"), FAST, tuple(text.replace("fast", "slow") for text in FAST))


def test_rows_are_those_of_each_reading_by_itself(lens: Any) -> None:
    positions = ("mean", "first", (0.2, 0.4))
    found = reading_comparison.compare(
        lens, SETS, positions=positions, branches=("cond", "null"), seconds=0.6, progress=False
    )
    table = found.to_frame()
    assert len(table) == 3 * 2 * 3
    codes = tuple(
        lens.generate(list(side), 0.6, seeds=[0, 1, 2, 3], decode=False).codes
        for side in (SETS.positive, SETS.negative)
    )
    mean = None
    for position in positions:
        read = al.difference_in_means(
            lens, SETS.positive, SETS.negative, position=position, codes=codes, progress=False
        )
        mean = mean or read
        rows = table[(table["position"] == str(position)) & (table["branch"] == "cond")]
        np.testing.assert_allclose(rows["norm"], read.norms.numpy(), rtol=1e-4)
        np.testing.assert_allclose(rows["cosine"], read.cosine(mean).numpy(), atol=1e-4)
        np.testing.assert_allclose(rows["relative_norm"], rows["norm"] / rows["residual_norm"])
    # The null half has not heard the prompt at the start token: there is no direction, and nothing said of one.
    start = table[(table["position"] == "first") & (table["branch"] == "null")]
    assert start["norm"].max() < 1e-3
    assert start[["cosine", "auc", "onset_correlation"]].isna().all(axis=None)
    summed = found.summary().set_index(["position", "branch"])
    assert summed.loc[("first", "cond"), "cosine"] == pytest.approx(
        np.median(table.loc[(table["position"] == "first") & (table["branch"] == "cond"), "cosine"])
    )
    # Said in a line, without the reading that has no direction.
    assert repr(found).startswith("Readings(tempo on ")
    assert f"first cond {summed.loc[('first', 'cond'), 'cosine']:+.2f}" in repr(found)
    assert "first null" not in repr(found)
    assert "\n" not in repr(found)
    # Drawn too: five lines of six in each panel, and the same on screen.
    assert [sum(len(line.get_xdata()) == 3 for line in axes.lines) for axes in found.plot().axes] == [5, 5, 5]
    assert len(found.figure().data) == 15


def test_positions_and_branches_are_checked_before_a_clip_is_made(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(al.AudioLens, "generate", lambda *_, **__: pytest.fail("the model ran"))
    for given, message in (
        ({"positions": ()}, "at least one of each"),
        ({"positions": ("mean", "eos")}, "cross-attention"),
        ({"positions": ("mean", (0.5, 9.0))}, "ends after the clips"),
        ({"branches": ("cond", "left")}, "expected 'cond', 'null' or 'both'"),
        ({"guidance_scale": 1.0}, "needs guidance"),
    ):
        with pytest.raises(InputError, match=message):
            reading_comparison.compare(lens, SETS, seconds=0.6, progress=False, **given)


def test_busyness_is_looked_for_within_the_poles() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) < 100
    rates = rng.normal(size=200) + 3 * labels
    # Poles that differ in both are no sign of it by themselves.
    assert abs(reading_comparison.within_poles(5.0 * labels + rng.normal(size=200), rates, labels)) < 0.2
    assert reading_comparison.within_poles(rates - 10.0 * labels, rates, labels) == pytest.approx(1.0)
    assert np.isnan(reading_comparison.within_poles(np.zeros(200), rates, labels))
