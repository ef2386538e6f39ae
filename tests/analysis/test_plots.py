"""Every figure labels its axes, draws what its table holds, and leaves the caller's settings unchanged."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from plants import tables as planted

from analysis import sweep
from analysis.figures import plots, screen, spectrograms
from analysis.study import scan


@pytest.fixture(scope="module")
def response() -> pd.DataFrame:
    choice = scan.Choice("one-to-all", 3, 0.5, 2.0, 0.0, 32)
    other = scan.Choice("one-to-one", 4, 2.0, 1.5, 0.0, 16)
    table = planted.steered(choice, [other], failing=lambda labels: 0.5 if labels["strength"] == 0.5 else 0.0)
    return sweep.effects(table, "tempo_ioi", n_bootstrap=50)


@pytest.fixture(scope="module")
def scanned() -> pd.DataFrame:
    found = sweep.effects(planted.scanned(), "tempo_ioi", n_bootstrap=0)
    return found[found["strategy"].notna()]


def _labelled(axes: Any) -> bool:
    return bool(axes.get_xlabel()) and bool(axes.get_ylabel())


def test_dose_response_draws_every_strength_and_reference(response: pd.DataFrame) -> None:
    figure = plots.dose_response(response, "tempo_ioi", ("fast", "slow"))
    upper, other, lower, _ = figure.axes
    assert "inter-onset" in upper.get_ylabel()
    assert "strength" in lower.get_xlabel()
    assert "block 3" in upper.get_title()
    assert "block 4" in other.get_title()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"random directions", "prompted for “fast”", "prompted for “slow”"} <= set(legend)
    steered = response[response["kind"] == "steered"]
    heights = {round(bar.get_height(), 6) for bar in lower.patches}
    assert {round(float(share), 6) for share in steered["failed"]} <= heights


def test_points_where_too_many_clips_failed_are_hollow(response: pd.DataFrame) -> None:
    upper = plots.dose_response(response, "tempo_ioi", ("fast", "slow")).axes[0]
    hollow = [line for line in upper.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[0.5]]


def test_layers_shows_a_panel_per_strategy_and_marks_the_choice(scanned: pd.DataFrame) -> None:
    figure = plots.layers(scanned, "tempo_ioi", chosen={"strategy": "one-to-all", "layer": 3})
    assert [axes.get_title() for axes in figure.axes] == ["one-to-one", "one-to-all"]
    assert _labelled(figure.axes[0])
    assert [text.get_text() for text in figure.axes[1].texts] == ["chosen"]


def test_norms_have_units() -> None:
    left, right = plots.norms(planted.directions().to_frame()).axes
    assert "raw" in left.get_ylabel()
    assert "residual stream" in right.get_ylabel()
    assert "block" in left.get_xlabel()


def test_spectrograms_have_seconds_and_kilohertz() -> None:
    rng = np.random.default_rng(0)
    clips = [[rng.normal(size=(1, 16_000)) for _ in range(3)] for _ in range(2)]
    figure = spectrograms.paired(clips, 16_000, ["one", "two"], ["a", "b", "c"])
    assert figure.axes[3].get_xlabel() == "time [s]"
    assert "kHz" in figure.axes[0].get_ylabel()
    assert "dB" in figure.axes[-1].get_ylabel()


def test_a_tone_stands_at_its_frequency() -> None:
    seconds = np.arange(16_000) / 16_000
    figure = spectrograms.one(np.sin(2 * np.pi * 1000 * seconds)[None], 16_000)
    axes = figure.axes[0]
    image = axes.images[0].get_array()
    loudest = float(np.argmax(image.mean(axis=1)))
    ticks = {label.get_text(): place for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert abs(loudest + 0.5 - ticks["1"]) < 1.5


def test_silence_can_be_drawn() -> None:
    assert spectrograms.one(np.zeros((1, 16_000)), 16_000).axes


def test_everything_unmeasured_can_be_drawn(response: pd.DataFrame, scanned: pd.DataFrame) -> None:
    nothing = {"effect": np.nan, "low": np.nan, "high": np.nan, "median": np.nan, "failed": 1.0}
    plots.dose_response(response.assign(**nothing), "tempo_ioi", ("fast", "slow")).savefig("/dev/null", format="png")
    plots.layers(scanned.assign(**nothing), "tempo_ioi").savefig("/dev/null", format="png")
    assert screen.dose_response(response.assign(**nothing), "tempo_ioi", ("fast", "slow")).data


def test_on_screen_the_dose_response_has_its_controls(response: pd.DataFrame) -> None:
    figure = screen.dose_response(response, "tempo_ioi", ("fast", "slow"))
    assert {"one-to-all", "one-to-one", "random directions"} <= {trace.name for trace in figure.data}
    assert "strength" in figure.layout.xaxis.title.text


def test_on_screen_lines_are_drawn_and_places_with_too_many_failed_clips_are_hollow(response: pd.DataFrame) -> None:
    figure = screen.dose_response(response, "tempo_ioi", ("fast", "slow"))
    assert len(figure.layout.shapes) == 3
    # plotly's own template draws lines of no width.
    assert not figure.layout.template.layout.shapedefaults.to_plotly_json()
    steered = response[(response["kind"] == "steered") & (response["strategy"] == "one-to-all")]
    trace = next(trace for trace in figure.data if trace.name == "one-to-all")
    hollow = {x for x, symbol in zip(trace.x, trace.marker.symbol, strict=True) if symbol.endswith("-open")}
    assert hollow == {*steered.loc[steered["failed"] > 0.1, "strength"]} == {0.5}
    assert "more than 10% of the clips failed" in {trace.name for trace in figure.data}


def test_drawing_leaves_the_callers_style(response: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    plots.dose_response(response, "tempo_ioi", ("fast", "slow"))
    assert dict(mpl.rcParams) == before
