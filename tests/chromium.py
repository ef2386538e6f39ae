"""A real browser for page tests, driven by playwright; without one these tests are skipped with a message."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

NAMES = (
    "chromium", "chromium-browser", "google-chrome", "chrome",
    # On macOS, no browser is on the path.
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip
PATIENCE = 120_000
"""Milliseconds: a busy machine draws slowly."""

DRAWN = """() => {
    const drawn = {};
    for (const svg of document.querySelectorAll('.drawn svg')) {
        const whole = svg.getBoundingClientRect();
        if (!whole.width) continue;
        const texts = [...svg.querySelectorAll('text')];
        const out = texts.filter(text => {
            const own = text.getBoundingClientRect();
            return own.left < whole.left - 2 || own.right > whole.right + 2 || own.top < whole.top - 2
                || own.bottom > whole.bottom + 2;
        });
        const scale = whole.width / svg.viewBox.baseVal.width;
        const sizes = texts.map(text => scale * parseFloat(getComputedStyle(text).fontSize));
        drawn[svg.closest('figure').id] = [out.map(text => text.textContent), Math.min(...sizes)];
    }
    return drawn;
}"""
"""For every drawn figure that is shown, the texts that its edges cut, and its smallest font size in pixels."""


def wait_for(opened: Any, condition: str) -> None:
    """Wait until a condition holds: from outside, for the page's security policy forbids playwright's own loop."""
    for _ in range(300):
        if opened.evaluate(condition):
            return
        opened.wait_for_timeout(100)
    pytest.fail(f"never came true: {condition}")


@contextmanager
def launched() -> Iterator[Any]:
    """A running Chromium."""
    try:
        import playwright.sync_api as playwright
    except ImportError:
        _unopened("playwright is not installed (pip install .[dev])")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        _unopened("no Chromium on this machine (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        # Root, as in a container, has no sandbox of its own; nobody is there to click before a sound plays.
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        opened = driver.chromium.launch(executable_path=program, args=flags, timeout=PATIENCE)
        yield opened
        opened.close()


def barred(page: Any) -> list[tuple[str, list[str]]]:
    """What keeps people with other eyes or hands from a page: the serious and critical violations that axe finds."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 10
    grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in grave]


def _unopened(why: str) -> NoReturn:
    """Pages go unseen only where a person is told so; a machine that tests by itself (`CI`) must have a browser."""
    told = f"the pages were NOT opened in a browser: {why}"
    if os.environ.get("CI"):
        pytest.fail(told)
    warnings.warn(told, stacklevel=2)
    pytest.skip(told)
