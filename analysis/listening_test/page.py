"""Render the page of a listening test: one HTML file and a folder of sounds, without a server and without a network.

The page contains the random names of trials and clips, and the text of the questions. It contains nothing of the key.
Its policy lets only its own script run, and only its own sounds be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from analysis.listening_test.design import RESPONSES, SOUNDS, Key

VOLUME = "volume"
"""The name of the sound by which listeners set their volume."""
RESPONSE = "audiolens.listening-response.1"
"""The format of a response."""
CONSENT = """Who we are: [name, institution, e-mail]

What you do: you listen to short clips of music and answer questions about them, for about [N] minutes. Please wear
headphones.

What is stored: your answers, how often you played each clip, and how long you took. No name, address or device is
stored. The answers stay on your device until you download them and send them to us.

You may stop at any time by closing the page; nothing is then stored. [Ethics approval, data protection, payment]"""


def render(key: Key, consent: str | None) -> str:
    """Return the HTML of the page, with a consent text in paragraphs, or the template of one."""
    from jinja2 import Environment, FunctionLoader

    script = _text("page.js")
    hashed = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    env = Environment(loader=FunctionLoader(_text), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return env.get_template("page.html.j2").render(
        # Sounds are files next to the page. Opened from disk, they are not of its origin ('self') in every browser.
        policy=f"default-src 'none'; script-src 'sha256-{hashed}'; style-src 'unsafe-inline'; img-src data:; "
        "media-src 'self' file:; base-uri 'none'; form-action 'none'",
        style=_text("page.css"),
        script=script,
        test=json.dumps(shown(key)).replace("<", r"\u003c"),
        paragraphs=[one.strip() for one in (CONSENT if consent is None else consent).split("\n\n") if one.strip()],
        template=consent is None,
        coded=bool(key.listeners),
        volume=f"{SOUNDS}/{VOLUME}.wav",
        trials=len(key.trials),
        mode=key.mode,
        responses=RESPONSES,
    )


def shown(key: Key) -> dict[str, object]:
    """Return the part of a test that its page contains: no role, prompt, right answer or code of a listener."""
    return {
        "format": RESPONSE,
        "test": key.test,
        "mode": key.mode,
        "questions": key.questions,
        "trials": [{"trial": one.trial, "open": one.open, "clips": sorted(one.clips)} for one in key.trials],
    }


def _text(name: str) -> str:
    return files("analysis.listening_test").joinpath(name).read_text("utf-8")
