"""A study's page in a real browser: it opens from disk, players play, sliders move by keyboard, tables download."""

import gzip
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from chromium import DRAWN, PATIENCE, barred, launched, wait_for
from plants import tables as planted

from analysis.figures import spectrograms
from analysis.report import page as pages
from analysis.report import writer
from analysis.study import Study


@pytest.fixture(scope="module")
def study() -> Study:
    """A planted study with as many clips as a full one has."""
    found, rng = planted.study(), np.random.default_rng(0)
    again = [found.clips]
    while sum(map(len, again)) < 8500:
        more = found.clips.copy()
        more[["tempo_ioi", "brightness"]] *= rng.normal(1, 0.1, (len(more), 2))
        again.append(more.assign(seed=more["seed"] + 10_000 * len(again)))
    where = planted.placed(found.choice.strategy, found.choice.layer or 0)
    scan = found.scan.assign(stage="scan")
    return replace(found, clips=pd.concat(again, ignore_index=True), placement=where, scan=scan)


@pytest.fixture(scope="module")
def folder(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.save(tmp_path_factory.mktemp("page") / "tempo", command="audiolens study tempo")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="module")
def opened(browser: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page as one has it from a mail, without its folder, with what it complained of and asked for."""
    mailed = shutil.copy(folder / "index.html", tmp_path_factory.mktemp("mailed"))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append((message.type, message.text)))
    page.on("pageerror", lambda error: page.said.append(("error", str(error))))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(Path(mailed).as_uri(), timeout=PATIENCE)
    return page


def test_it_opens_from_disk_without_a_word_and_without_a_network(opened: Any) -> None:
    opened.wait_for_selector("#live-pca .main-svg")
    assert [said for said in opened.said if said[0] in ("error", "warning")] == []
    assert {url.split(":")[0] for url in opened.asked} <= {"file", "data", "blob"}
    assert opened.inner_text(".finding").endswith(", steering tempo at strength ±0.5.")
    live = {
        "pca", "cosines", "layer_attribution", "patching_windows", "patching_components", "patching_heads",
        "attention_words",
    }  # fmt: skip
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].filter(e => e.querySelector('.main-svg')).map(e => e.id)"
    assert set(opened.evaluate(drawn)) == {f"live-{name}" for name in live}
    assert opened.locator("[data-title*=Share], [data-title*=loud]").count() == 0
    broken = "[...document.images].filter(i => !i.complete || i.naturalWidth == 0).length"
    assert opened.evaluate(broken) == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_lies_on_anything_else_at_any_width(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    opened.reload()
    wait_for(opened, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 7")
    opened.wait_for_timeout(500)
    found, drawn = opened.evaluate(_LAID_OUT), opened.evaluate(DRAWN)
    opened.set_viewport_size({"width": 1280, "height": 900})
    for name, parts in found["figures"].items():
        assert {"plot", "x ticks", "x title"} <= set(parts), name
        for (one, a), (other, b) in combinations(parts.items(), 2):
            across = min(a[2], b[2]) - max(a[0], b[0])
            down = min(a[3], b[3]) - max(a[1], b[1])
            assert min(across, down) <= 1, f"{name}: {one} {a} lies on {other} {b}"
    assert found["width"] <= width
    # Every figure is in the page whole, with its letters at least seven pixels high.
    assert len(drawn) == 5
    for name, (cut, least) in drawn.items():
        assert cut == [], name
        assert 7 <= least < 20, name
    assert found["cut"] == []


_LAID_OUT = """() => {
    const box = (nodes) => {
        const all = nodes.map(n => n.getBoundingClientRect()).filter(r => r.width && r.height);
        const side = (name, pick) => pick(...all.map(r => r[name]));
        return all.length && ["left", "top", "right", "bottom"].map((n, i) => side(n, i < 2 ? Math.min : Math.max));
    };
    const figures = {};
    for (const figure of document.querySelectorAll('.js-plotly-plot')) {
        const parts = {};
        const part = (name, nodes) => { const found = box([...nodes]); if (found) parts[name] = found; };
        const inside = (selector) => figure.querySelectorAll(selector);
        part("plot", inside('.bglayer .bg').length ? inside('.bglayer .bg') : inside('.draglayer .nsewdrag'));
        part("x ticks", inside('[class^=x][class$=tick] text'));
        part("x title", [...inside('g.infolayer > g')].filter(g => /^g-x\\d*title$/.test(g.getAttribute('class'))));
        part("title", inside('.g-gtitle'));
        part("legend", inside('g.infolayer > .legend'));
        const notes = [...inside('g.annotation')].map(n => [n.getBoundingClientRect().top, n]);
        if (notes.length) part("first name", [notes.sort((a, b) => a[0] - b[0])[0][1]]);
        figures[figure.id] = parts;
    }
    const cut = [...document.querySelectorAll('table, .takes, .trio, pre')]
        .filter(part => part.scrollWidth > part.clientWidth + 1 && part.clientWidth).map(part => part.className);
    return { figures, cut, width: document.documentElement.scrollWidth };
}"""


def test_every_player_plays_its_clip(opened: Any, folder: Path) -> None:
    lengths = {f"audio/{path.name}": soundfile.info(path).duration for path in (folder / "audio").glob("*.wav")}
    wait_for(opened, "[...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    found = opened.evaluate("[...document.querySelectorAll('audio')].map(a => [a.title, a.duration])")
    assert 0 < len(found) <= pages.MOST_PLAYERS
    for name, duration in found:
        assert duration == pytest.approx(lengths[name], abs=0.02)


def test_a_player_seeks_and_stops_the_others_by_keyboard(opened: Any) -> None:
    opened.reload()
    wait_for(opened, "[...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    names = opened.evaluate("[...document.querySelectorAll('.trio .player')].map(e => e.getAttribute('aria-label'))")
    assert [name.split(":")[0] for name in names] == ["steered −0.5", "baseline", "steered +0.5"]
    assert opened.locator(".trio .label").all_inner_texts() == ["Slower (−0.5)", "Original", "Faster (+0.5)"]
    playing = "[...document.querySelectorAll('audio')].filter(a => !a.paused && a.currentTime > 0).map(a => a.id)"
    sounds = opened.evaluate("[...document.querySelectorAll('.trio .player')].map(e => e.dataset.sound)")
    assert len(set(sounds)) == 3
    opened.locator(".trio button").nth(0).focus()
    opened.keyboard.press("Enter")
    wait_for(opened, f"({playing}).join() === '{sounds[0]}'")
    opened.locator(".trio button").nth(2).focus()
    opened.keyboard.press("Space")
    wait_for(opened, f"({playing}).join() === '{sounds[2]}'")
    assert opened.locator(".trio button").nth(2).get_attribute("aria-label") == f"Pause {names[2]}"
    opened.keyboard.press("Space")
    wait_for(opened, f"({playing}).length === 0")
    slider = opened.locator(".trio input").nth(1)
    slider.focus()
    opened.keyboard.press("End")
    opened.keyboard.press("ArrowLeft")
    time = opened.evaluate(f"document.getElementById('{sounds[1]}').currentTime")
    assert time == pytest.approx(float(slider.get_attribute("max") or "nan") - 0.05, abs=0.06)


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (400, "dark")])
def test_nothing_serious_bars_anyone_from_the_page(browser: Any, folder: Path, width: int, colours: Any) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
    page.goto((folder / "index.html").as_uri(), timeout=PATIENCE)
    wait_for(page, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 7")
    assert barred(page) == []
    look = "getComputedStyle(document.body)"
    shown = [page.evaluate(f"{look}.{name}") for name in ("color", "backgroundColor")]
    page.click("#theme")
    other = [page.evaluate(f"{look}.{name}") for name in ("color", "backgroundColor")]
    light, dark = (shown, other) if colours == "light" else (other, shown)
    assert light[1] == "rgb(255, 255, 255)"
    assert dark[1] == "rgb(20, 24, 28)"
    assert {*light}.isdisjoint(dark)
    # Live figures and drawn ones follow.
    tick = "(tick => tick && getComputedStyle(tick).fill)(document.querySelector('#live-pca .xtick text'))"
    wait_for(page, f"{tick} === '{other[0]}'")
    assert page.evaluate("getComputedStyle(document.querySelector('.drawn text')).fill") == other[0]
    # The buttons of figures are pictures.
    texts = "[...document.querySelectorAll('text, p, button, td')].filter(e => e.textContent.trim())"
    assert len(set(page.evaluate(f"{texts}.map(e => getComputedStyle(e).fontFamily)"))) == 1
    page.close()


def test_the_slider_moves_from_block_to_block_by_keyboard(opened: Any, study: Study) -> None:
    shown = """() => {
        const p = document.getElementById('live-pca');
        return [p.layout.title.text, p.data.map(d => d.visible === true)];
    }"""
    title, visible = opened.evaluate(shown)
    start = 2 * study.components.layers.index(study.choice.layer)
    assert f"block {study.choice.layer}:" in title
    assert [place for place, seen in enumerate(visible) if seen] == [start, start + 1]
    assert start != 0
    assert opened.locator(".slider-container").count() == 0
    opened.focus("input[data-into='live-pca']")
    opened.keyboard.press("ArrowRight")
    title = "document.getElementById('live-pca').layout.title.text"
    wait_for(opened, f"{title}.startsWith('block {study.choice.layer + 1}')")
    opened.keyboard.press("End")
    wait_for(opened, f"{title}.startsWith('block 7')")
    _, visible = opened.evaluate(shown)
    assert visible[-2:] == [True, True]
    assert not any(visible[:-2])


def _file(folder: Path, name: str) -> Path:
    return folder / name if name == "clips.csv" else folder / "tables" / name


def test_every_table_downloads_as_it_lies_in_the_folder(opened: Any, folder: Path) -> None:
    links = opened.locator("#tables a.csv").all()
    packed = [link.get_attribute("data-csv") is not None for link in links]
    assert {link.inner_text() for link in links} == {
        *(path.name for path in (folder / "tables").iterdir()),
        "clips.csv",
    }
    assert any(packed)
    assert not all(packed)
    for place, link in enumerate(links):
        if place % 8 == 7:
            # Chromium stops a page after ten downloads that no hand has asked for.
            opened.reload()
        with opened.expect_download(timeout=PATIENCE) as download:
            link.click()
        path = _file(folder, link.inner_text())
        assert download.value.suggested_filename == path.name
        assert Path(download.value.path()).read_bytes() == path.read_bytes()


def test_the_clips_of_a_full_study_download_without_their_folder(opened: Any, folder: Path) -> None:
    assert (folder / "clips.csv").stat().st_size > 2e6
    opened.reload()
    with opened.expect_download(timeout=PATIENCE) as download:
        opened.click("#csv-clips")
    assert Path(download.value.path()).read_bytes() == (folder / "clips.csv").read_bytes()


def test_a_browser_that_cannot_unpack_saves_tables_packed(opened: Any, folder: Path) -> None:
    opened.reload()
    opened.evaluate("delete window.DecompressionStream")
    with opened.expect_download(timeout=PATIENCE) as download:
        opened.click("#csv-clips")
    opened.reload()
    assert download.value.suggested_filename == "clips.csv.gz"
    assert gzip.decompress(Path(download.value.path()).read_bytes()) == (folder / "clips.csv").read_bytes()


def test_the_link_below_a_figure_saves_its_table(opened: Any, folder: Path) -> None:
    with opened.expect_download(timeout=PATIENCE) as download:
        opened.click("#dose_response figcaption a.csv")
    assert Path(download.value.path()).read_bytes() == (folder / "tables" / "dose_response.csv").read_bytes()


def test_all_tables_stand_in_the_page(folder: Path, study: Study) -> None:
    text = (folder / "index.html").read_text("utf-8")
    for name, table in writer.tables(study).items():
        assert f'id="csv-{name}" href="data:' in text, name
        assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) == len(table)
    assert {"lost", "patching_windows", "patching_heads", "attention_words", "by_prompt"} <= set(writer.tables(study))
    # Most of it is the table of 8,500 clips.
    assert (folder / "index.html").stat().st_size < 5e6


class _Links(HTMLParser):
    """What a page points to, and what it names."""

    def __init__(self) -> None:
        super().__init__()
        self.pointed: list[str] = []
        self.named: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.pointed += [value for name in ("src", "href") if (value := told.get(name)) is not None]
        self.named += [value for value in [told.get("id")] if value is not None]


def test_a_page_points_to_nothing_outside_itself(folder: Path) -> None:
    links = _Links()
    links.feed((folder / "index.html").read_text("utf-8"))
    assert len(links.named) == len(set(links.named))
    inside = {link[1:] for link in links.pointed if link.startswith("#")}
    assert {"csv-clips", "csv-lost", "words"} - inside == {"csv-clips"}
    assert inside <= set(links.named)
    assert [link[:80] for link in links.pointed if not link.startswith(("#", "data:"))] == []


def test_every_figure_and_word_that_needs_one_has_its_explanation(folder: Path) -> None:
    text = (folder / "index.html").read_text("utf-8")
    words = text.partition('<section id="words">')[2].partition("</section>")[0]
    for word in ("nat", "codebook", "resid_post", "cross_attn_out", "one-to-all", "cosine", "gap"):
        assert word in "".join(re.findall("<dt>(.*?)</dt>", words)), word
    for live in ("patching_windows", "patching_components", "pca"):
        # Small print in a title would lie on its other lines.
        assert "<sup>" not in text.partition(f'id="live-{live}"')[2].partition("</figure>")[0]


def test_players_are_no_more_than_the_page_bears_and_pairs_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planted.study()
    condition = "baseline"
    rng = np.random.default_rng(0)
    heard = found.clips[(found.clips["split"] == "test") & (found.clips["condition"] == condition)]
    keys = [(condition, row.prompt, row.seed) for row in heard.itertuples()][:6]
    sounds = [
        writer.PageSound(pair, *key, f"steered {n:+d}", rng.normal(0, 0.1, (1, 4000)).astype(np.float32))
        for pair, key in enumerate(keys)
        for n in range(7)
    ]
    drawn: list[int] = []
    thumbnail = pages.thumbnail
    monkeypatch.setattr(pages, "thumbnail", lambda *given: drawn.append(1) or thumbnail(*given))
    fitting = pages.fitting(sounds, found.sample_rate)
    assert [sound for sound, _ in fitting] == sounds[:21]
    assert [len(row["clips"]) for row in pages._rows(found, fitting)] == [7, 7, 7]
    assert len(drawn) == 21


ODD = "a <b>bold</b> & 'quoted' song"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """The folder of a study with more sounds than a page bears, one of an odd prompt; their number, and how many were
    drawn."""
    found = planted.study()
    conditions = list(dict.fromkeys(condition for condition, *_ in found.sounds))
    clips = found.clips.replace({"prompt": {next(iter(found.sounds))[1]: ODD}})
    tested = clips[(clips["split"] == "test") & clips["condition"].isin(conditions)]
    keys = [(row.condition, row.prompt, int(row.seed)) for row in tested.itertuples()]
    # Those of the odd prompt are the first.
    keys.sort(key=lambda key: key[1] != ODD)
    assert keys[0][1] == ODD
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 4000)).astype(np.float32)
    drawn: list[int] = []
    one = spectrograms.one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrograms, "one", lambda *given, **named: drawn.append(1) or one(*given, **named))
        whole = replace(found, clips=clips, sounds=dict.fromkeys(keys, noise))
        folder = whole.save(tmp_path_factory.mktemp("crowded") / "many")
    return folder, len(keys), len(drawn)


def test_spectrograms_are_drawn_of_the_clips_on_the_page_alone(crowded: tuple[Path, int, int]) -> None:
    folder, sounds, drawn = crowded
    players = (folder / "index.html").read_text("utf-8").count("<audio")
    assert sounds > 2 * pages.MOST_PLAYERS
    assert 0 < players <= pages.MOST_PLAYERS
    # Each is drawn next to its player, and those that are not prompted once in the figure.
    # The three players at the top have a larger picture.
    assert players < drawn <= 2 * players + 3
    assert len(list((folder / "audio").glob("*.wav"))) == sounds


def test_prompts_are_shown_as_they_are_written(crowded: tuple[Path, int, int]) -> None:
    text = (crowded[0] / "index.html").read_text("utf-8")
    assert "a &lt;b&gt;bold&lt;/b&gt;" in text
    assert re.search(r"<b>bold", text.split("plotly.js")[-1]) is None


def test_what_is_compressed_sounds_like_what_was_kept() -> None:
    seconds = np.arange(32_000) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)[None].astype(np.float32)
    link = pages.compressed(tone, 16_000)
    import base64

    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(link.split(",")[1])))
    assert (rate, len(samples)) == (16_000, 32_000)
    assert len(link) < 32_000
    assert np.corrcoef(samples, tone[0])[0, 1] > 0.98
