"""What a page says and shows of a study, without a browser: losses beside effects, the choice in words, figures."""

from dataclasses import replace

import plotly.graph_objects as go
import pytest
from plants import tables as planted

from analysis.figures.style import NAMES
from analysis.report import crossing, drawings
from analysis.study import Study
from analysis.study.several import Several


@pytest.fixture(scope="module")
def study() -> Study:
    found = planted.study()
    assert found.choice.layer is not None
    where = planted.placed(found.choice.strategy, found.choice.layer)
    return replace(found, placement=where, scan=found.scan.assign(stage="strength"))


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
