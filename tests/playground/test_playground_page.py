"""The playground's page in a real browser, served by the command itself: move, play, draw, reload, tabs, bad input."""

import json
import shlex
import signal
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from visitors import codes, opened, serving, settled, until

HOSTILE = "</p><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


def test_a_visitor_moves_plays_draws_reloads_and_is_told_what_is_wrong(browser: Any, address: str) -> None:
    page = opened(browser, address)
    assert page.inner_text("#model") == "etude"
    # Move: with the keyboard, as everything on the page.
    page.focus("#slider-0")
    page.keyboard.press("End")
    page.click("#play")
    settled(page)
    for clip in ("steered", "unsteered", "asked"):
        until(page, f"document.querySelector('#clip-{clip} audio').readyState >= 2")
        assert page.evaluate(f"document.querySelector('#clip-{clip} audio').duration") == pytest.approx(1.52, abs=0.05)
    page.click("#clip-steered summary")
    page.click("#clip-unsteered summary")
    first = codes(page)
    assert "--steer" in first
    assert "--steer" not in codes(page, "unsteered")
    assert page.inner_text("#clip-asked .asked") == "a little fast tune with drums"
    assert "Drift" in page.inner_text("#clip-steered .verdict")
    # Draw a falling line, which makes the clip anew.
    page.check("#live")
    box = page.locator("#strip").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    settled(page)
    drawn = codes(page)
    points = [part.split(":") for part in shlex.split(drawn)[shlex.split(drawn).index("--curve") + 1].split(",")]
    factors = [float(factor) for _, factor in points]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > 0.9
    assert abs(factors[-1]) < 0.1
    # Reload: the controls and the clips are as they were.
    page.reload()
    until(page, "document.querySelector('#clip-asked audio')?.readyState >= 2")
    until(page, "document.querySelector('#status').textContent === 'Ready.'")
    page.click("#clip-steered summary")
    assert codes(page) == drawn
    assert page.input_value("#seconds") == "1.5"
    # Bad prompts are told, and hostile ones are only text.
    page.uncheck("#live")
    page.fill("#prompt", "   ")
    page.click("#play")
    settled(page)
    assert "prompt is empty" in page.inner_text("#error")
    page.fill("#prompt", HOSTILE)
    page.click("#play")
    settled(page)
    page.set_input_files("#file", {"name": f"{HOSTILE}.safetensors", "mimeType": "", "buffer": b"nothing"})
    until(page, "document.querySelector('#error').textContent.includes('not a complete safetensors file')")
    assert page.title() == "audiolens play"
    assert page.evaluate("document.querySelectorAll('main script, main img, #error *').length") == 0
    # Nothing was fetched from elsewhere, and nothing complained but the refusals.
    assert {url.removeprefix("blob:").split("/")[2] for url in page.asked} == {address.split("/")[2]}
    assert [text for kind, text in page.said if kind in ("error", "warning") and "422" not in text] == []
    page.close()


def test_two_tabs_wait_for_one_another_and_both_get_their_clips(browser: Any, address: str) -> None:
    pages = [opened(browser, address) for _ in range(2)]
    for seed, page in enumerate(pages):
        page.fill("#seed", str(7 + seed))
        page.click("#play")
    for seed, page in enumerate(pages):
        settled(page)
        page.click("#clip-unsteered summary")
        assert f"--seed {7 + seed}" in codes(page, "unsteered")
        assert page.inner_text("#error") == ""
        page.close()


def answer(address: str, path: str, content: Any = None, **headers: str) -> tuple[int, str]:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


WISH = {"prompt": "a little tune", "seed": 1, "seconds": 30.0, "guidance": 3.0, "pushes": []}


def begun(address: str) -> tuple[HTTPConnection, Any, str]:
    """A request for a long clip that is being made: the connection, what it tells, and the token of its clips."""
    line = HTTPConnection(address.split("/")[2], timeout=120)
    line.request("POST", "/clips", json.dumps({"visitor": "me", "wish": WISH}), {"Content-Type": "application/json"})
    heard = line.getresponse()
    token = json.loads(heard.readline())["token"]
    while json.loads(heard.readline())["event"] != "step":
        pass
    return line, heard, token


def test_ctrl_c_ends_it_at_once_and_without_a_traceback(tmp_path: Path) -> None:
    with serving(tmp_path) as (address, server):
        line, _, _ = begun(address)
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        line.close()
    assert (tmp_path / "said").read_text().splitlines() == [f"Open {address} in a browser. Ctrl-C stops it."]


def test_a_browser_that_leaves_cancels_its_clips_and_strangers_are_refused(address: str) -> None:
    line, heard, token = begun(address)
    heard.close()
    line.close()
    for _ in range(600):
        events = json.loads(answer(address, f"/clips/{token}")[1])["events"]
        if events and events[-1]["event"] == "cancelled":
            break
        time.sleep(0.1)
    assert events
    assert events[-1]["event"] == "cancelled", "it was generated to its end"
    assert "clip" not in {event["event"] for event in events}
    facts = json.loads(answer(address, "/state")[1])
    assert all(one["ready"] for one in facts["concepts"]), "the directions that come with étude are not of this étude"
    assert answer(address, "/state", Host="evil.example")[0] == 400
    assert answer(address, "/clips", {"visitor": "me", "wish": WISH}, **{"Content-Type": "text/plain"})[0] == 422
    assert "larger than" in answer(address, "/clips", {"visitor": "x" * 70_000, "wish": WISH})[1]
    assert answer(address, "/../server.py")[0] == 404
    assert answer(address, "/clips/none/steered.wav")[0] == 404
