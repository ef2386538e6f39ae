"""Synthetic listeners of a listening test, with known preferences, who answer as the page would store it."""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.listening_test.design import RESPONSES, Key, Trial, read_key
from analysis.listening_test.page import RESPONSE
from analysis.study import Study
from plants import tables

Prefers = Callable[[str, str, str, str], float]
"""The probability of choosing the first of two roles, from (question, first, second, prompt)."""


def study(prompts: int = 8, seconds: float = 1.0) -> Study:
    """A planted study that kept the sound of several prompts: tones of different levels, repeated at three tempos."""
    found = tables.study()
    strength = found.choice.strength
    steered = found.response[found.response["kind"] == "steered"].set_index("strength")["condition"]
    paces = {"baseline": 4.0, steered[strength]: 6.0, steered[-strength]: 3.0}
    times = np.arange(round(seconds * tables.RATE)) / tables.RATE
    texts = dict.fromkeys(found.clips.loc[found.clips["split"] == "test", "prompt"])
    sounds = {
        (condition, prompt, place): 0.05
        * (1 + place + pace)
        * (np.sin(2 * np.pi * (300 + 50 * place) * times) * np.exp(-8 * (times % (1 / pace))))[None].astype(np.float32)
        for place, prompt in enumerate([*texts][:prompts])
        for condition, pace in paces.items()
    }
    return replace(found, sounds=sounds)


def response(folder: Path, listener: str, answered: Callable[[Key, Trial], Mapping[str, Any]]) -> dict[str, Any]:
    """A response whose answers (or ratings) to every trial come from a function."""
    key = read_key(folder)
    own = "ratings" if key.mode == "mushra" else "answers"
    answers = [
        {"trial": one.trial, "order": sorted(one.clips), "plays": [1] * len(one.clips), "seconds": 9.5,
         own: answered(key, one)}
        for one in key.trials
    ]  # fmt: skip
    return {
        "format": RESPONSE, "test": key.test, "listener": listener, "consent": True,
        "started": "2026-01-02T03:04:05.000Z", "finished": "2026-01-02T03:24:05.000Z", "answers": answers,
    }  # fmt: skip


def send(folder: Path, content: Any, name: str | None = None) -> Path:
    """Put a response into the test's folder."""
    path = folder / RESPONSES / f"{name or content['listener']}.json"
    path.write_text(json.dumps(content))
    return path


def chooser(prefers: Prefers, seed: int = 0, *, careless: bool = False) -> Callable[[Key, Trial], Any]:
    """Answers to pairs; a careless listener gives the wrong answer to attention checks.

    The names and the order of the trials are random, so each answer is drawn from what is asked, not in their order.
    """

    def answered(key: Key, trial: Trial) -> dict[str, str]:
        names = {role: name for name, role in trial.clips.items()}
        if trial.right:
            return {question: names["wrong" if careless else "right"] for question in key.questions}
        (first, second) = next(pair for pair in key.compared if {*pair} == {*names})
        chances = {question: prefers(question, first, second, trial.prompt) for question in key.questions}
        return {
            question: names[first if _drawn(seed, trial, question, first) < chance else second]
            for question, chance in chances.items()
        }

    return answered


def _drawn(seed: int, trial: Trial, *asked: str) -> float:
    """A number from 0 to 1."""
    text = " ".join([trial.prompt, *sorted(trial.clips.values()), *asked])
    return float(np.random.default_rng([seed, zlib.crc32(text.encode())]).random())


def rater(means: Mapping[str, float], seed: int = 0, noise: float = 3.0) -> Callable[[Key, Trial], Any]:
    """Ratings with a given mean per role, between 0 and 100."""

    def answered(_: Key, trial: Trial) -> dict[str, float]:
        off = {role: 2 * noise * (_drawn(seed, trial, role) - 0.5) for role in trial.clips.values()}
        return {name: float(np.clip(round(means[role] + off[role]), 0, 100)) for name, role in trial.clips.items()}

    return answered
