"""Visitors of the playground's page who need its keyboard, its contrast, its pickers, or its word that it is gone."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chromium import barred
from visitors import codes, opened, settled, until

from analysis.playground.ready import BUNDLED
from audiolens.files.integrity import sealed_json

HOSTILE = "x'; $(touch it) <img src=x onerror=document.title=1>"
VALUES = {"tempo_ioi": 120.0, "brightness": 1000.0, "onset_rate": 0.0, "pitch": None, "loudness": 0.0}
COMPARED = {"event": "compared", "failed": False, "why": [], "difference": 0.25}


def clip(name: str) -> dict[str, Any]:
    """The event of a clip without a sound."""
    return {
        "event": "clip", "clip": name, "prompt": "a song", "seconds": 1.0, "again": {"command": "c", "python": "p"},
        "waveform": {"low": [0.0], "high": [0.0]},
        "spectrogram": {"width": 1, "height": 1, "bytes": "AA==", "top_hz": 1},
    }  # fmt: skip


def measured(name: str, **values: float | None) -> dict[str, Any]:
    return {"event": "measured", "clip": name, "values": {**VALUES, **values}}


def answered(page: Any, events: Sequence[dict[str, Any]]) -> None:
    """Ask for clips, and let the page hear these events, after which the line ends."""
    lines = [{"event": "begun", "token": "none"}, *events]
    page.route("**/clips", lambda route: route.fulfill(body="".join(f"{json.dumps(line)}\n" for line in lines)))
    page.click("#play")
    settled(page)
    page.unroute("**/clips")


def changes(page: Any, name: str) -> list[str]:
    """The third column of a card."""
    return page.locator(f"#clip-{name} dl > :nth-child(3n)").all_inner_texts()


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (400, "dark")])
def test_nothing_serious_bars_anyone_from_the_page(browser: Any, address: str, width: int, colours: Any) -> None:
    page = opened(browser, address)
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=colours)
    assert barred(page) == []
    page.focus("#slider-0")
    page.keyboard.press("End")
    page.click("#play")
    settled(page)
    for summary in page.locator("summary:visible").all():
        summary.click()
    assert barred(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Clips from before, an error, and a failed clip.
    page.fill("#prompt", " ")
    page.click("#play")
    settled(page)
    assert page.is_visible("#error")
    assert page.is_visible("#clip-steered .stale")
    assert barred(page) == []
    failed = {"event": "compared", "failed": True, "why": ["it has 1 onset"], "difference": -0.5}
    answered(page, [clip("steered"), {"event": "note", "text": "a note"}, failed])
    assert barred(page) == []
    page.close()


def test_everything_is_done_with_the_keyboard(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.focus("#prompt")
    page.keyboard.press("End")
    page.keyboard.type(" again")
    page.keyboard.press("Enter")
    settled(page)
    assert page.input_value("#prompt") == "a little tune with drums again"
    assert page.inner_text("#clip-unsteered .asked") == "a little tune with drums again"
    assert page.is_hidden("#clip-steered")
    # Tab goes through every slider, and a curve is taken without drawing.
    page.focus("#slider-0")
    page.keyboard.press("End")
    assert page.get_attribute("#slider-0", "aria-valuetext") != "off"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.curve || ''"))
    wanted = {"slider-1", "drawn", "rise", "seed", "seconds", "guidance", "play", "off", "live"}
    assert wanted <= reached
    page.focus("[data-curve=rise]")
    page.keyboard.press("Enter")
    label = page.get_attribute("#strip", "aria-label")
    assert label.endswith("0 of it at first, 0.5 in the middle, 1 at the end.")
    page.focus("#off")
    page.keyboard.press("Enter")
    assert page.get_attribute("#slider-0", "aria-valuetext") == "off"
    # The names that a screen reader says are not the same in every row.
    names = page.evaluate("[...document.querySelectorAll('.concept select')].map(e => e.getAttribute('aria-label'))")
    assert len({*names}) == len(names) > 9
    page.close()


def test_a_change_is_never_against_the_clip_of_another_seed(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.focus("#slider-0")
    page.keyboard.press("End")
    first = [clip("steered"), measured("steered"), clip("unsteered"), measured("unsteered", tempo_ioi=100.0)]
    answered(page, [*first, COMPARED, {"event": "done"}])
    # Onsets were 0 before, and pitch was not measurable: there is no share to state.
    assert changes(page, "steered") == ["+20 %", "0 %", "", "", "0.0 dB"]
    assert page.is_hidden("#error")
    # The next request ends after its first clip: nothing of its own seed is there to compare with.
    answered(page, [clip("steered"), measured("steered"), {"event": "cancelled"}])
    assert changes(page, "steered") == [""] * 5
    assert page.is_hidden("#clip-steered .stale")
    assert page.is_visible("#clip-unsteered .stale")
    # What was not asked for again is gone when all is done.
    answered(page, [clip("unsteered"), measured("unsteered"), {"event": "done"}])
    assert page.is_hidden("#clip-steered")
    assert [text for kind, text in page.said if kind == "error" and "404" not in text] == []
    page.close()


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        ({}, "This clip did not fail. Drift: 0.25 nats per code (less likely to the model"),
        ({"difference": -0.25}, "Drift: 0.25 nats per code (more likely to the model"),
        ({"difference": 0.0}, "Drift: 0 nats per code (as likely to the model without steering as its own clip)."),
        ({"difference": None}, "Its drift cannot be computed."),
        ({"failed": True, "why": ["it has 1 onset", "it is quiet"]}, "failed: it has 1 onset, it is quiet."),
    ],
)  # fmt: skip
def test_the_verdict_says_what_was_measured(browser: Any, address: str, compared: Any, said: str) -> None:
    page = opened(browser, address)
    page.focus("#slider-0")
    page.keyboard.press("End")
    answered(page, [clip("steered"), {**COMPARED, **compared}, {"event": "done"}])
    assert said in page.inner_text("#clip-steered .verdict")
    assert page.is_hidden("#error")
    page.close()


def test_a_playground_that_is_gone_is_named_as_such(browser: Any, address: str) -> None:
    page = opened(browser, address)
    answered(page, [])
    assert "is it still running?" in page.inner_text("#error")
    page.route("**/clips", lambda route: route.abort())
    page.click("#play")
    settled(page)
    assert "is it still running?" in page.inner_text("#error")
    page.unroute("**/clips")
    page.click("#play")
    settled(page)
    assert page.is_hidden("#error")
    page.close()


def test_directions_are_loaded_from_files_and_folders(browser: Any, address: str, file: Path, tmp_path: Path) -> None:
    page = opened(browser, address)
    sliders = page.locator(".concept").count()
    # Those of another model are refused, whatever they are called, and the same name can be chosen again.
    chosen = tmp_path / f"{HOSTILE}.safetensors".replace("/", "")
    shutil.copy(file, chosen)
    page.set_input_files("#file", chosen)
    until(page, "document.querySelector('#error').textContent.includes('these directions were read from')")
    assert HOSTILE in page.inner_text("#error")
    assert page.locator(".concept").count() == sliders
    shutil.copy(BUNDLED / "tempo.safetensors", chosen)
    page.set_input_files("#file", chosen)
    until(page, f"document.querySelectorAll('.concept').length === {sliders + 1}")
    assert page.inner_text(".concept:last-child .name") == f"tempo ({chosen.name})"[:80]
    assert page.is_hidden("#error")
    # The folder of a study, and one that is none.
    folder = tmp_path / "my study"
    folder.mkdir()
    shutil.copy(BUNDLED / "tempo.safetensors", folder / "directions.safetensors")
    page.set_input_files("#folder", folder)
    until(page, "document.querySelector('#error').textContent.includes('my study has no summary.json')")
    choice = {"strategy": "one-to-all", "layer": 3, "strength": 0.4}
    facts = {"format": "audiolens.study.2", "concept": "tempo", "poles": ["fast", "slow"], "choice": choice}
    (folder / "summary.json").write_bytes(sealed_json(facts))
    page.set_input_files("#folder", folder)
    until(page, f"document.querySelectorAll('.concept').length === {sliders + 2}")
    assert page.inner_text(".concept:last-child .name") == "tempo (my study)"
    (folder / "summary.json").write_bytes(bytes(2**20 + 1))
    page.set_input_files("#folder", folder)
    until(page, "document.querySelector('#error').textContent.includes('summary.json is larger than 1 MB')")
    # They act, and a reload keeps them.
    page.focus(".concept:last-child input")
    page.keyboard.press("Home")
    page.click("#play")
    settled(page)
    page.click("#clip-steered summary")
    # Its directions are calibrated, so that the slider is in the unit of the measure.
    value = page.inner_text(".concept:last-child output")
    assert value.endswith(" BPM")
    assert f"--steer 'tempo-my-study.safetensors:{value}'" in codes(page)
    page.reload()
    until(page, f"document.querySelectorAll('.concept').length === {sliders + 2}")
    until(page, "document.querySelector('#status').textContent === 'Ready.'")
    assert page.inner_text(".concept:last-child output") == value
    assert page.title() == "audiolens play"
    page.close()


def test_what_a_tab_kept_of_another_model_is_forgotten(browser: Any, address: str) -> None:
    page = opened(browser, address)
    row = {"value": "200", "strategy": "one-to-one", "layer": "47", "unit": "unit", "curve": None}
    kept = {"model": "another", "rows": {"tempo": row}, "fields": {"seed": "9"}, "token": "x", "added": ["y"]}
    page.evaluate("kept => sessionStorage.setItem('audiolens play', JSON.stringify(kept))", kept)
    page.reload()
    page.wait_for_selector("#play:not([disabled])")
    assert page.inner_text(".concept output") == "off"
    assert page.input_value("#seed") == "0"
    page.close()
