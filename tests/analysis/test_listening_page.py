"""The page of a listening test in a real browser: from consent to the downloaded file, and from there to the result."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE, launched
from plants import listening as people

from analysis import listening_test
from analysis.listening_test.design import Key, Trial, read_key
from analysis.study import Study

SPEED = ["right", "positive", "unsteered", "negative", "wrong"]
HOSTILE = "</p><script>window.ran = 1</script>\n\n<img src=x onerror='window.ran = 1'> Second paragraph"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="module")
def study() -> Study:
    return people.study(prompts=1, seconds=0.6)


class Listener:
    """Somebody who opens the page from disk, without the rest of the folder, and answers all trials."""

    def __init__(self, browser: Any, folder: Path, published: Path) -> None:
        shutil.copytree(folder / "page", published)
        self.key: Key = read_key(folder)
        self.page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark", accept_downloads=True)
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto((published / "index.html").as_uri())

    def begin(self) -> None:
        # Without consent, the page does not go on.
        self.page.click("#consent button")
        assert self.page.is_visible("#welcome")
        self.page.check("#agree")
        self.page.click("#consent button")
        self.page.click("#begin")

    def trial(self) -> tuple[Trial, list[str]]:
        """The trial on the screen, and the names of its clips from top to bottom."""
        sources = self.page.eval_on_selector_all("#players audio", "all => all.map(one => one.getAttribute('src'))")
        names = [source.removeprefix("sounds/").removesuffix(".wav") for source in sources]
        found = next(one for one in self.key.trials if names[-1] in one.clips)
        return found, [name for name in names if name in found.clips]

    def hear(self, keys: str) -> None:
        """Play the clips by keyboard; each stops the one before."""
        for letter in keys:
            assert self.page.is_disabled("#next")
            self.page.keyboard.press(letter)
            name = "reference" if letter == "r" else f"clip {letter.upper()}"
            self.until(f"!document.getElementById('missing').textContent.includes({json.dumps(name)})")
        playing = "[...document.querySelectorAll('audio')].filter(one => !one.paused).length"
        assert self.page.evaluate(playing) <= 1

    def until(self, condition: str) -> None:
        """Wait from outside, because the page's policy forbids playwright's own loop."""
        for _ in range(300):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never came true: {condition}")

    def finish(self, into: Path) -> dict[str, Any]:
        with self.page.expect_download() as download:
            self.page.click("#download")
        path = into / download.value.suggested_filename
        download.value.save_as(path)
        assert self.said == []
        assert {url.split(":")[0] for url in self.asked} <= {"file", "data", "blob"}
        assert self.page.evaluate("window.ran") is None
        assert self.page.evaluate("document.documentElement.scrollWidth") <= 400
        return json.loads(path.read_text())


def test_pairs_from_consent_to_preference(browser: Any, study: Study, tmp_path: Path) -> None:
    folder = listening_test.write(study, tmp_path / "test", pairs=2, checks=1, consent=HOSTILE)
    one = Listener(browser, folder, tmp_path / "published")
    assert "<script>window.ran = 1</script>" in one.page.inner_text("#welcome")
    one.begin()
    for place in range(3):
        assert f"{place + 1} of 3" in one.page.inner_text("#count")
        trial, names = one.trial()
        one.hear("ab")
        # Steering worked: the faster clip is the one steered to fast, the right one, or the one not steered to slow.
        faster = min(names, key=lambda name: SPEED.index(trial.clips[name]))
        one.page.check(f"input[name=concept][value='{faster}']")
        assert one.page.is_disabled("#next")
        one.page.focus(f"input[name=quality][value='{names[1]}']")
        one.page.keyboard.press("ArrowUp")
        one.page.keyboard.press("Enter")
    content = one.finish(folder / "responses")
    assert len(content["listener"]) == 16
    found: Any = listening_test.read(folder, n_bootstrap=20)
    assert found.refused == ()
    concept = found.table[found.table["question"] == "concept"].set_index("clip")["share"]
    assert dict(concept) == {"steered to fast": 1.0, "steered to slow": 0.0}
    assert found.listeners["used"].all()
    quality = found.answers[found.answers["question"] == "quality"]
    assert list(quality["value"] == 1) == list(quality["first"] == quality["clip"])


def test_ratings_from_code_to_result(browser: Any, study: Study, tmp_path: Path) -> None:
    folder = listening_test.write(study, tmp_path / "test", mode="mushra", pairs=2, anchor_hz=400, listeners=["p 01"])
    one = Listener(browser, folder, tmp_path / "published")
    one.page.fill("#code", "p 01")
    one.begin()
    trial, names = one.trial()
    one.hear("rabcd")
    want = {"reference": 100, "positive": 51, "negative": 49, "anchor": 0}
    keys = {100: "End", 51: "ArrowRight", 49: "ArrowLeft", 0: "Home"}
    for place, name in enumerate(names):
        assert one.page.is_disabled("#next")
        one.page.focus(f"input[aria-label='rating of clip {'ABCD'[place]}']")
        one.page.keyboard.press(keys[want[trial.clips[name]]])
    one.page.click("#next")
    one.finish(folder / "responses")
    found: Any = listening_test.read(folder, n_bootstrap=20)
    means = dict(found.table.set_index("condition")["mean"])
    assert means == {"hidden reference": 100, "steered to fast": 51, "steered to slow": 49, "anchor": 0}
    assert list(found.listeners["listener"]) == ["p 01"]
