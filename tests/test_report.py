"""What a page says and shows of a study, without a browser: losses beside effects, the choice in words, figures."""

from dataclasses import replace

import plotly.graph_objects as go
import pytest
from plants import tables as planted

from analysis.figures.style import NAMES
from analysis.report import crossing, drawings, losses
from analysis.study import Study
from analysis.study.several import Several


@pytest.fixture(scope="module")
def study() -> Study:
    found = planted.study()
    assert found.choice.layer is not None
    where = planted.placed(found.choice.strategy, found.choice.layer)
    return replace(found, placement=where, scan=found.scan.assign(stage="strength"))


def test_every_loss_stands_beside_the_effect_of_its_own_condition(study: Study) -> None:
    assert study.lost is not None
    table, response = losses.beside(study.lost, study.response), study.response
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
    assert study.lost is not None
    table = losses.beside(study.lost, study.response).set_index("kind")
    spread = float(study.lost.set_index("kind").loc["baseline", "drift"])
    own, another = table.loc["baseline"], table.loc["another seed"]
    assert spread > 0
    assert (own["drift"], own["effect"], own["rms_ratio"]) == (0, 0, 1)
    assert another["drift"] == spread
    assert another[["effect", "failed", "rms_ratio", "onsets", "entropy_ratio"]].isna().all()
    told = losses.words({"kind": "another seed", **another})
    assert (told["label"], told["drift"], told["onsets"]) == ("unsteered, another seed", f"{spread:.3f}", "–")


def test_concepts_are_named_in_words_and_a_caption_is_not_said_twice(study: Study) -> None:
    table = Several((study, replace(study, concept="timbre", measure="brightness"))).to_frame()
    bare, whole = crossing.paper(table, caption=False), crossing.paper(table)
    assert not bare.get_supxlabel()
    assert "95% interval" in whole.get_supxlabel()
    names = [label.get_text() for label in bare.axes[0].get_xticklabels()]
    assert [name.split("\n")[1] for name in names] == [NAMES["tempo_ioi"], NAMES["brightness"]]
    assert "tempo_ioi" not in crossing.screen(table).to_json()


def _drawing(study: Study, name: str) -> drawings.Drawing:
    return next(one for one in drawings.drawings(replace(study, sounds={}), []) if one.name == name)


def _screen(study: Study, name: str) -> go.Figure:
    screen = _drawing(study, name).screen
    assert screen is not None
    return screen
