"""Interactive figures work in notebooks without a network, hold a picture for other programs, and offer no upload."""

import base64
import copy
import importlib
import inspect
import io
import pkgutil
from collections.abc import Iterator
from typing import Any

import matplotlib.image
import numpy as np
import plotly.io
import pytest
from IPython.core.formatters import DisplayFormatter

import analysis
from analysis import pca
from analysis.figures import interactive
from analysis.figures.offline import PLOTLY, OfflineFigure

UPLOADS = ("plot.ly", "cloud.plotly", "cdn.", "sendChartToCloud")


@pytest.fixture(scope="module")
def result() -> Any:
    rng = np.random.default_rng(0)
    return pca.fit(rng.standard_normal((3, 24, 8)), ["a"] * 12 + ["b"] * 12)


def methods() -> Iterator[tuple[type, Any]]:
    """Every class in `analysis` that is drawn for the screen, with the method that draws it."""
    for found in pkgutil.walk_packages(analysis.__path__, "analysis."):
        module = importlib.import_module(found.name)
        for _, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == found.name and "plot" in vars(one) and "figure" in vars(one):
                yield one, vars(one)["figure"]


def is_interactive(method: Any) -> bool:
    while method is not None and method.__code__.co_filename != interactive.__file__:
        method = getattr(method, "__wrapped__", None)
    return method is not None


def test_the_figure_of_every_result_is_offline() -> None:
    found = list(methods())
    assert len(found) > 20
    assert not [one.__qualname__ for one, method in found if not is_interactive(method)]


def test_a_notebook_stores_the_data_a_picture_and_words_but_no_script(result: Any) -> None:
    shown, _ = DisplayFormatter().format(result.figure())
    assert {*shown} == {PLOTLY, "image/png", "text/plain"}
    assert shown["text/plain"] == repr(result)
    assert len(shown[PLOTLY]["data"]) == len(result.figure().data) > 0
    assert shown[PLOTLY]["config"]["showSendToCloud"] is False
    assert shown[PLOTLY]["config"]["plotlyServerURL"] == ""
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(shown["image/png"])))
    height, width, _ = picture.shape
    assert min(height, width) > 100
    assert picture.std() > 0
    assert {*DisplayFormatter().format(result.figure(), include={PLOTLY})[0]} == {PLOTLY}


def test_the_picture_is_drawn_with_the_options_of_the_figure(result: Any) -> None:
    flat, deep = (result.figure(dimensions=dimensions)._picture() for dimensions in (2, 3))
    assert [hasattr(figure.axes[0], "get_zlim") for figure in (flat, deep)] == [False, True]


def test_a_figure_that_is_shown_or_written_offers_no_upload(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = result.figure()
    # plotly's library contains these words, the page around it must not.
    page = figure.to_html(include_plotlyjs=False)
    assert not [word for word in UPLOADS if word in page]
    assert '"showSendToCloud": false' in page
    assert '"displaylogo": true' in figure.to_html({"displaylogo": True}, include_plotlyjs=False)
    written = io.StringIO()
    figure.write_html(written, include_plotlyjs=False)
    assert '"showSendToCloud": false' in written.getvalue()
    asked: dict[str, Any] = {}
    monkeypatch.setattr(plotly.io, "show", lambda _, *args, **options: asked.update(options))
    figure.show(config={"scrollZoom": True})
    assert asked["config"]["showSendToCloud"] is False
    assert asked["config"]["scrollZoom"] is True


def test_a_copy_and_a_changed_figure_are_still_offline(result: Any) -> None:
    changed = copy.deepcopy(result.figure()).update_layout(title="other")
    assert isinstance(changed, OfflineFigure)
    shown, _ = DisplayFormatter().format(changed)
    assert shown[PLOTLY]["layout"]["title"]["text"] == "other"
    assert shown[PLOTLY]["config"]["showSendToCloud"] is False
