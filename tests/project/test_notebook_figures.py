"""On the site, the figures of notebooks are pictures until a script draws them in the colours of the page."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from chromium import PATIENCE, launched
from plants import tables as planted

from analysis.figures.offline import PLOTLY

ROOT = Path(__file__).parents[2]
BADGES = "[![Open in Colab](https://a.example/colab.svg)](https://b.example/x.ipynb)"


@pytest.fixture(scope="module")
def prepared() -> ModuleType:
    """`docs/site/notebook_figures.py`, which is in no package."""
    path = ROOT / "docs" / "site" / "notebook_figures.py"
    spec = importlib.util.spec_from_file_location("notebook_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(prepared: ModuleType) -> list[str]:
    """The HTML of two figures: one with a caption below it, and one with a slider."""
    outputs = [
        nbformat.v4.new_output("execute_result", one.figure()._repr_mimebundle_(), execution_count=1)
        for one in (planted.placed(), planted.study().components)
    ]
    cells = [nbformat.v4.new_markdown_cell(f"# 1. X\n\n{BADGES}"), nbformat.v4.new_code_cell("x", outputs=outputs)]
    notebook = json.loads(prepared.for_page(nbformat.writes(nbformat.v4.new_notebook(cells=cells))))
    title, code = notebook["cells"]
    assert title["source"] == "# 1. X\n\n[Open in Colab](https://b.example/x.ipynb)"
    assert [[*output["data"]] for output in code["outputs"]] == [["text/html"]] * 2
    return [output["data"]["text/html"] for output in code["outputs"]]


def test_a_figure_begins_as_a_picture_with_the_result_in_words(prepared: ModuleType, shown: list[str]) -> None:
    for number, html in enumerate(shown, 1):
        assert f'<div id="figure-{number}"' in html
        assert '<img src="data:image/png;base64,' in html
        assert prepared.has_figures(html)
    assert 'alt="Placement(' in shown[0]
    assert "<figcaption>" in shown[0]
    assert 'type="range"' in shown[1]
    assert not prepared.has_figures("<p>No figures.</p>")
    # The caption is in the text of the page alone.
    caption = re.search("<figcaption>(.+)</figcaption>", shown[0])
    assert caption is not None
    assert shown[0].count(caption[1][:40]) == 1


def test_panels_side_by_side_can_be_scrolled(prepared: ModuleType) -> None:
    def html(**layout: Any) -> str:
        figure = {"data": [{"type": "scatter", "y": [1], "xaxis": "x2"}], "layout": {"xaxis2": layout}}
        return prepared._html({PLOTLY: figure, "image/png": "", "text/plain": "x"}, "one")

    assert '<div class="panels"' in html(domain=[0.5, 1])
    assert '<div class="panels"' not in html(domain=[0, 1])


def test_the_site_draws_it_without_a_network_and_follows_the_theme(
    prepared: ModuleType, shown: list[str], tmp_path: Path
) -> None:
    static = ROOT / "docs" / "site" / "static"
    prepared.write_scripts(tmp_path)
    scripts = "".join(f'<script src="{name}" defer></script>' for name in prepared.SCRIPTS)
    style = (static / "site.css").read_text("utf-8") + "body{color:#111}body[data-theme=dark]{color:#eee}"
    page = (
        f"<!doctype html><meta charset=utf-8><style>{style}</style>{scripts}<script>{(static / 'site.js').read_text()}"
    )
    (tmp_path / "page.html").write_text(f"{page}</script><body><article>{''.join(shown)}</article>", "utf-8")
    asked: list[str] = []
    with launched() as browser:
        opened: Any = browser.new_page(viewport={"width": 400, "height": 900})
        opened.set_default_timeout(PATIENCE)
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto((tmp_path / "page.html").as_uri())
        opened.wait_for_selector("#figure-2 .main-svg")
        assert opened.locator("figure img").count() == 0
        buttons = opened.locator(".modebar-btn").evaluate_all("all => all.map(e => e.dataset.title ?? '')")
        assert buttons
        assert not [name for name in buttons if "hare" in name or "loud" in name or "rodu" in name]
        assert opened.evaluate("document.documentElement.scrollWidth") <= 400
        ink = "getComputedStyle(document.querySelector('#figure-1 .ytick text')).fill"
        assert opened.evaluate(ink) == "rgb(17, 17, 17)"
        opened.evaluate("document.body.dataset.theme = 'dark'")
        opened.wait_for_function(f"{ink} === 'rgb(238, 238, 238)'")
    assert {url.rpartition("/")[2] for url in asked} == {"page.html", *prepared.SCRIPTS}
    assert PLOTLY not in "".join(shown)
