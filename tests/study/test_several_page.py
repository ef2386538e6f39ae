"""The page of several studies in a real browser: it opens from disk, plays, fits a telephone and leads to them."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chromium import DRAWN, PATIENCE, barred, launched, wait_for
from plants import tables as planted

from analysis.report import index
from analysis.study.study_set import Several
from audiolens.files.integrity import read_json


def several() -> Several:
    first = planted.study()
    return Several(
        (first, replace(first, concept="timbre", measure="brightness", directions=planted.directions(seed=1)))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("index")
    found = several()
    for one in found.studies:
        # Drawing the pages of studies takes long, and `test_page` opens one.
        (place / one.concept).mkdir()
        (place / one.concept / "index.html").write_text(f"<!doctype html><title>{one.concept}</title>")
    index.write(found, place, "audiolens study --concepts tempo,timbre")
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


class Page:
    """A page in a browser, with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri(), timeout=PATIENCE)


def test_it_opens_without_a_word_or_a_network_and_leads_to_every_study(browser: Any, folder: Path) -> None:
    found = Page(browser, folder / "index.html")
    page, studies = found.page, several().studies
    assert page.inner_text("h1") == "Steering tempo and timbre"
    assert page.locator(".study .finding").all_inner_texts() == [one.headline for one in studies]
    for one in studies:
        assert one.verdict in page.inner_text("main")
    assert page.locator("img").evaluate_all("all => all.filter(i => i.src.startsWith('data:image/png')).length") == 0
    assert page.locator(".drawn svg").count() == 2 * 4
    page.click("a.page >> nth=1")
    wait_for(page, "document.title === 'timbre'")
    assert page.url == (folder / "timbre" / "index.html").as_uri()
    assert found.said == []
    assert {url.split(":")[0] for url in found.asked} <= {"file", "data", "blob"}
    page.close()
    assert (folder / "index.html").stat().st_size < 3e6


def test_the_players_of_all_studies_play_one_at_a_time_by_keyboard(browser: Any, folder: Path) -> None:
    page = Page(browser, folder / "index.html").page
    wait_for(page, "[...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    sounds = page.evaluate("[...document.querySelectorAll('.player')].map(e => e.dataset.sound)")
    assert len(set(sounds)) == len(sounds) == 6
    lengths = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    found = planted.study()
    (kept,) = {samples.shape[-1] / found.sample_rate for samples in found.sounds.values()}
    assert lengths == pytest.approx([kept] * 6, abs=0.02)
    playing = (
        "[...document.querySelectorAll('audio')].filter(a => !a.paused && a.currentTime > 0).map(a => a.id).join()"
    )
    for place in (0, 5):
        page.locator(".player button").nth(place).focus()
        page.keyboard.press("Enter")
        wait_for(page, f"{playing} === '{sounds[place]}'")
    page.close()


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (400, "dark")])
def test_nothing_is_cut_and_nothing_serious_bars_anyone(browser: Any, folder: Path, width: int, colours: Any) -> None:
    page = Page(browser, folder / "index.html", viewport={"width": width, "height": 900}, color_scheme=colours).page
    assert barred(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate(DRAWN)
    assert {*drawn} == {"finding-0", "finding-1", "cross_effects", "cosines"}
    for name, (cut, least) in drawn.items():
        assert cut == [], name
        assert 7 <= least < 20, name
    wide = "[...document.querySelectorAll('table, .trio, pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(wide) == 0
    look = "getComputedStyle(document.body)"
    shown = [page.evaluate(f"{look}.{name}") for name in ("color", "backgroundColor")]
    page.click("#theme")
    other = [page.evaluate(f"{look}.{name}") for name in ("color", "backgroundColor")]
    light, dark = (shown, other) if colours == "light" else (other, shown)
    assert (light[1], dark[1]) == ("rgb(255, 255, 255)", "rgb(20, 24, 28)")
    assert page.evaluate("getComputedStyle(document.querySelector('.drawn text')).fill") == other[0]
    texts = "[...document.querySelectorAll('text, p, button, td')].filter(e => e.textContent.trim())"
    assert len(set(page.evaluate(f"{texts}.map(e => getComputedStyle(e).fontFamily)"))) == 1
    page.close()


def test_a_table_downloads_as_it_lies_in_the_folder(browser: Any, folder: Path) -> None:
    page = Page(browser, folder / "index.html").page
    for name in ("cross_effects", "cosines"):
        with page.expect_download(timeout=PATIENCE) as download:
            page.click(f"#csv-{name}")
        assert Path(download.value.path()).read_bytes() == (folder / f"{name}.csv").read_bytes()
    page.close()


def test_no_two_parts_of_the_page_have_one_name(folder: Path) -> None:
    text = (folder / "index.html").read_text("utf-8")
    names = re.findall(r'\sid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', text)} <= set(names)


def test_numbers_are_corrected_for_all_studies_on_the_page(folder: Path) -> None:
    text = (folder / "index.html").read_text("utf-8")
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    # The negative pole first.
    words = [(one.concept, word) for one in several().studies for word in one.words[::-1]]
    signs = ["−", "+", "−", "+"]
    assert [name for name, _ in rows] == [
        f"{concept}: {word} ({sign}0.5)" for (concept, word), sign in zip(words, signs, strict=True)
    ]
    outcomes = [outcome for one in several().studies for outcome in one.outcomes[::-1]]
    assert [outcome.n_tests for outcome in outcomes] == [4] * 4
    for (_, cells), outcome in zip(rows, outcomes, strict=True):
        assert re.findall(r'"p, corrected">(.*?)<', cells) == [f"{outcome.p_corrected:.3f}"]
        assert re.findall(r'"change">(.*?)<', cells)[0].replace("−", "-") == f"{outcome.effect:+.0%}"


def test_studies_that_cannot_be_compared_are_listed_without_their_effects_on_one_another(tmp_path: Path) -> None:
    first = planted.study()
    other_model = replace(first.directions.meta, weights="others")
    for second in (first, replace(first, concept="timbre", directions=replace(first.directions, meta=other_model))):
        found = Several((first, second))
        assert not found.is_crossed
        index.write(found, tmp_path, names=["one", "two"])
        text = (tmp_path / "index.html").read_text("utf-8")
        assert "are not compared" in text
        assert 'href="two/index.html"' in text
        assert {path.name for path in tmp_path.iterdir()} == {"index.html", "summary.json"}
        assert read_json(tmp_path / "summary.json")["folders"] == ["one", "two"]
    assert several().is_crossed


def test_studies_without_kept_sound_have_no_players(tmp_path: Path) -> None:
    found = several()
    index.write(Several(tuple(replace(one, sounds={}) for one in found.studies)), tmp_path)
    assert "<audio" not in (tmp_path / "index.html").read_text("utf-8")
    assert set(pd.read_csv(tmp_path / "cross_effects.csv")["concept"]) == {"tempo", "timbre"}
    shutil.rmtree(tmp_path)
