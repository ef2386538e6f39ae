"""The contents of a study's page without a browser: side effects, the description of the choice, figures."""

from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plants import tables as planted

from analysis import similarity
from analysis.figures.style import NAMES
from analysis.report import crossing, drawings, losses, screens, words
from analysis.study import Study
from analysis.study.study_set import Several


@pytest.fixture(scope="module")
def study() -> Study:
    found = planted.study()
    assert found.choice.layer is not None
    where = planted.placed(found.choice.strategy, found.choice.layer)
    return replace(found, placement=where, scan=found.scan.assign(stage="strength"))


def test_every_loss_stands_beside_the_effect_of_its_own_condition(study: Study) -> None:
    assert study.side_effects is not None
    table, response = losses.with_effects(study.side_effects, study.response), study.response
    steered = table[table["kind"].isin(["steered", "alternative"])]
    assert len(steered) == 8
    for row in steered.itertuples():
        same = (response["strategy"] == row.strategy) & (response["strength"] == row.strength)
        own = response[same & (response["kind"] == row.kind)]
        assert [row.effect, row.low, row.high] == own[["effect", "low", "high"]].to_numpy()[0].tolist()
    asked = table[table["kind"] == "prompted"].set_index("pole")["effect"]
    own = response[response["kind"] == "prompted"].set_index("pole")["effect"]
    assert asked.to_dict() == own.to_dict()
    assert asked["fast"] > 0.3 > -0.2 > asked["slow"]


def test_what_another_seed_does_is_not_told_of_the_unsteered_clips_themselves(study: Study) -> None:
    assert study.side_effects is not None
    table = losses.with_effects(study.side_effects, study.response).set_index("kind")
    spread = float(study.side_effects.set_index("kind").loc["baseline", "drift"])
    own, another = table.loc["baseline"], table.loc["another seed"]
    assert spread > 0
    assert (own["drift"], own["effect"], own["rms_ratio"]) == (0, 0, 1)
    assert another["drift"] == spread
    assert another[["effect", "failed", "rms_ratio", "onsets", "entropy_ratio"]].isna().all()
    told = losses.words({"kind": "another seed", **another})
    assert (told["label"], told["drift"], told["onsets"]) == ("unsteered, another seed", f"{spread:.3f}", "–")


def test_the_choice_of_the_strength_is_told_with_what_was_tried(study: Study) -> None:
    choice, told = study.choice, words.strength(study)
    scan = study.scan[(study.scan["strategy"] == choice.strategy) & (study.scan["layer"] == choice.layer)]
    for amount in scan["strength"].abs().unique():
        assert f"±{amount:g}" in told.split("tried there")[0]
    up, down = (scan.loc[scan["strength"] == sign * choice.strength, "effect"].iloc[0] for sign in (1, -1))
    assert f"at +{choice.strength:g} is {(1 + up) / (1 + down):.3g} times that at −{choice.strength:g}" in told
    assert "widest span" in told
    assert "the best of" not in told
    assert f"the best of {choice.candidates} places" in words.strength(replace(study, placement=None))
    lost = words.strength(replace(study, choice=replace(choice, failed=0.4, span=float("nan"))))
    assert "fewest failed clips" in lost
    assert "not measured; 40% failed" in lost


def test_the_second_cosine_of_a_place_is_explained(study: Study) -> None:
    told = words.place(study)
    assert "at strength 0.56" in told
    assert "It is 0.72" in told.split("small strength")[1]


def test_a_rejected_place_is_stated_and_its_strength_is_that_of_the_words(study: Study) -> None:
    placed = study.placement
    assert placed is not None
    weak = replace(placed, candidates=placed.candidates.assign(alignment=0.2, low=0.1), random=())
    told = words.place(replace(study, placement=weak))
    assert "is rejected as a place, because its alignment of 0.20 is below 0.3. The study steered there" in told
    assert f"at strength {placed.words_strength:.2g}" in told


def test_components_open_at_the_block_that_was_chosen(study: Study) -> None:
    figure = _screen(study, "pca")
    slider: Any = figure.layout["sliders"][0]
    layer = study.choice.layer
    assert study.components.layers[slider.active] == layer
    assert layer != 0
    assert figure.layout["title"].text.startswith(f"block {layer}")
    visible = [place for place, trace in enumerate(figure.data) if trace.visible is True]
    assert visible == [2 * slider.active, 2 * slider.active + 1]
    own = study.components.scores[slider.active][:20, 0]
    assert np.allclose(figure.data[visible[0]].x, own)
    assert "component 1" in figure.layout["xaxis"].title.text


def test_without_a_block_components_open_where_the_poles_lie_furthest_apart(study: Study) -> None:
    nowhere = replace(study, choice=replace(study.choice, layer=None, strategy="all-to-all"), placement=None)
    slider: Any = _screen(nowhere, "pca").layout["sliders"][0]
    assert slider.active == int(np.argmax(study.components.silhouettes))


@pytest.mark.parametrize("name", ["patching_windows", "patching_components", "patching_heads", "pca"])
def test_no_title_has_small_print(study: Study, name: str) -> None:
    figure = _screen(study, name)
    slider: Any = figure.layout["sliders"][0]
    titles = [figure.layout["title"].text, *(step.args[1]["title.text"] for step in slider.steps)]
    assert all(titles)
    assert not any("<sup>" in title for title in titles)
    assert len({len(title.split("<br>")) for title in titles}) == 1


def test_a_model_of_one_codebook_has_a_grid_without_a_slider(study: Study) -> None:
    assert study.where is not None
    windows = study.where.windows
    assert windows is not None
    parts = {name: getattr(windows, name)[:, :1] for name in ("patched", "clean", "corrupted")}
    alone = replace(study, where=replace(study.where, windows=replace(windows, **parts, codebooks=("0",))))
    grid = _drawing(alone, "patching_windows")
    assert grid.screen is not None
    assert "<sup>" not in grid.screen.layout["title"].text
    assert not grid.screen.layout["sliders"]
    assert "slider" not in grid.caption


def test_what_the_small_print_said_is_in_the_caption(study: Study) -> None:
    grid = _drawing(study, "patching_windows")
    assert "8 pairs" in grid.caption
    assert "0.05" in grid.caption


def test_every_panel_of_the_evidence_has_its_name(study: Study) -> None:
    names = {note.text for note in _screen(study, "layer_attribution").layout["annotations"]}
    assert names == {"alignment", "norm", "patching"}
    assert study.placement is not None
    before = {note.text for note in study.placement.figure().layout.annotations}
    assert any("95% intervals" in text for text in before)


def test_what_else_changed_has_loudness_in_decibels(study: Study) -> None:
    shares, differences = _drawing(study, "cross_effects").figure.axes
    assert [label.get_text() for label in differences.get_yticklabels()] == ["loudness"]
    assert "[dB]" in differences.get_xlabel()
    assert NAMES["brightness"] in [label.get_text() for label in shares.get_yticklabels()]


def test_concepts_are_named_in_words_and_a_caption_is_not_said_twice(study: Study) -> None:
    table = Several((study, replace(study, concept="timbre", measure="brightness"))).to_frame()
    bare, whole = crossing.paper(table, caption=False), crossing.paper(table)
    assert not bare.get_supxlabel()
    assert "95% interval" in " ".join(whole.get_supxlabel().split())
    assert [axes.get_xlabel() for axes in bare.axes] == [
        f"change in {NAMES['tempo_ioi']}", f"change in {NAMES['brightness']}",
    ]  # fmt: skip
    bare.canvas.draw()
    left, right = (axes.xaxis.label.get_window_extent() for axes in bare.axes)
    assert left.x1 < right.x0
    assert "tempo_ioi" not in str(crossing.screen(table).to_json())


def test_a_concepts_own_effect_is_filled_and_every_effect_is_where_the_table_has_it(study: Study) -> None:
    several = Several((study, replace(study, concept="timbre", measure="brightness")))
    table = several.to_frame()
    figure = several.plot()
    for axes, concept in zip(figure.axes, ("tempo", "timbre"), strict=True):
        mine = table[table["measured_concept"] == concept].sort_values(["concept", "strength"]).reset_index(drop=True)
        drawn = {float(bar[0].get_ydata()[0]): bar[0] for bar in axes.containers}
        assert [drawn[place].get_xdata()[0] for place in range(len(mine))] == pytest.approx(mine["effect"].tolist())
        filled = [drawn[place].get_markerfacecolor() != "none" for place in range(len(mine))]
        assert filled == (mine["concept"] == concept).tolist()


def test_cosines_are_lines_and_those_that_are_most_alike_are_told_apart() -> None:
    found = similarity.compare({f"concept {place}": planted.directions(seed=place % 5) for place in range(6)})
    (axes,) = crossing.cosines(found).axes
    lines = axes.get_lines()[1:]
    assert len(lines) == 15
    assert lines[0].get_label() == "concept 0 and concept 5"
    assert lines[0].get_ydata() == pytest.approx(1)
    assert [line.get_label() for line in lines[7:]] == 8 * ["other pairs"]
    assert len({(line.get_color(), line.get_marker()) for line in lines[:7]}) == 7


def test_a_title_keeps_its_large_lines() -> None:
    assert screens.large("one<br>two<br><sup>small</sup><br><sup>smaller</sup>") == "one<br>two"


def _drawing(study: Study, name: str) -> drawings.Drawing:
    return next(one for one in drawings.drawings(replace(study, sounds={}), []) if one.name == name)


def _screen(study: Study, name: str) -> go.Figure:
    screen = _drawing(study, name).screen
    assert screen is not None
    return screen
