"""Visitors of the playground's page: serve it, open it in a browser, wait for what it shows, and read its recipes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address that `audiolens play` prints, on a free port, and its process. No traceback may be printed."""
    command = [sys.executable, "-m", "analysis.cli", "play", "--port", "0", "--device", "cpu", *map(str, options)]
    kept = {**os.environ, "OMP_NUM_THREADS": "1", "AUDIOLENS_CACHE": str(folder), "PYTHONPATH": str(Path.cwd())}
    with (folder / "said").open("w+") as said, subprocess.Popen(command, stdout=said, stderr=said, env=kept) as server:
        try:
            for _ in range(3000):
                text = (folder / "said").read_text()
                if "Open http" in text or server.poll() is not None:
                    break
                time.sleep(0.1)
            assert "Open http://127.0.0.1:" in text, text
            yield text.partition("Open ")[2].split()[0], server
        finally:
            server.terminate()
    assert "Traceback" not in (folder / "said").read_text()


def opened(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append((message.type, message.text)))
    page.on("pageerror", lambda error: page.said.append(("error", str(error))))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address, timeout=PATIENCE)
    page.wait_for_selector("#play:not([disabled])")
    page.uncheck("#live")
    page.fill("#seconds", "1.5")
    return page


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds: from outside, for the page's security policy forbids playwright's own loop."""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never came true: {condition}; {page.inner_text('body')}")


def settled(page: Any) -> None:
    until(page, "document.querySelector('#stop').disabled")


def codes(page: Any, clip: str = "steered") -> str:
    return page.inner_text(f"#clip-{clip} .command")
