"""Read the responses that listeners sent back, and refuse those that do not belong to the test.

A response comes from a stranger. Its size, structure, names and numbers are checked against the key before anything is
used, and nothing of it is used if one of them is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.listening_test.design import RESPONSES, Key, Trial
from analysis.listening_test.page import RESPONSE
from audiolens.characters import refuse_control
from audiolens.checks import shown
from audiolens.errors import InputError
from audiolens.files.bounded import read_object
from audiolens.files.json_shapes import refuse_other

MOST_BYTES, MOST_FILES, LONGEST_NAME = 2**21, 10_000, 64
_ANSWER: dict[str, Any] = {"trial": str, "order": [str], "plays": [int], "seconds": float}
_SHAPE: dict[str, Any] = {
    "format": str, "test": str, "listener": str, "consent": bool, "started": str, "finished": str,
}  # fmt: skip


@dataclass(frozen=True)
class Response:
    """One listener's answers.

    `answers` maps a trial's random name to the name of the chosen clip by question (pairs), or to the rating of each
    clip by its name (ratings). `first` is the name of the clip that was on the left, or first.
    """

    listener: str
    file: str
    answers: Mapping[str, Mapping[str, Any]]
    first: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A file that was not used, and why."""

    file: str
    reason: str


def read_responses(folder: Path, key: Key) -> tuple[list[Response], list[Refused]]:
    """Return the usable responses in a test's folder, and the files that were refused.

    A response that is there twice with the same content counts once. If two responses of one listener differ, neither
    counts, because nothing says which one is the listener's.

    Raises:
        InputError: if there is no folder of responses, or it contains far too many files.
    """
    place = folder / RESPONSES
    try:
        paths = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}.") from None
    if len(paths) > MOST_FILES:
        raise InputError(f"{place} contains {len(paths):,} files: expected at most {MOST_FILES:,}.")
    found: list[tuple[Response, dict[str, Any]]] = []
    refused: list[Refused] = []
    for path in paths:
        try:
            found.append(_read(path, key))
        except InputError as error:
            refused.append(Refused(path.name, str(error).removeprefix(f"{path}").lstrip(": ")))
    own: dict[str, list[tuple[Response, dict[str, Any]]]] = {}
    for response, content in found:
        own.setdefault(response.listener, []).append((response, content))
    kept: list[Response] = []
    for listener, several in own.items():
        first, content = several[0]
        if all(other == content for _, other in several):
            kept.append(first)
            refused += [Refused(one.file, f"it repeats {first.file}, and counts once.") for one, _ in several[1:]]
        else:
            reason = f"listener {shown(listener)} has several different responses, and none counts: keep one."
            refused += [Refused(one.file, reason) for one, _ in several]
    return kept, refused


def _read(path: Path, key: Key) -> tuple[Response, dict[str, Any]]:
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link, and links are not followed.")
    content = read_object(path, MOST_BYTES)
    own = {"ratings": {str: float}} if key.mode == "mushra" else {"answers": {str: str}}
    refuse_other(path, content, {**_SHAPE, "answers": [{**_ANSWER, **own}]})
    if content["format"] != RESPONSE:
        raise InputError(f"{path} has the format {shown(content['format'])}: expected {RESPONSE}.")
    if content["test"] != key.test:
        raise InputError(f"{path} answers another test ({shown(content['test'])}, not {key.test}).")
    if content["consent"] is not True:
        raise InputError(f"{path} has no consent, so it is not used.")
    listener = content["listener"]
    if not 0 < len(listener) <= LONGEST_NAME:
        raise InputError(f"{path}: listener {shown(listener)}: expected 1 to {LONGEST_NAME} characters.")
    refuse_control("listener", listener)
    if key.listeners and listener not in key.listeners:
        raise InputError(f"{path}: listener {shown(listener)} was not invited to this test.")
    trials = {one.trial: one for one in key.trials}
    counts = Counter(one["trial"] for one in content["answers"])
    if counts != Counter([*trials]):
        raise InputError(
            f"{path} answers {len(counts.keys() & trials.keys())} of {len(trials)} trials in "
            f"{len(content['answers'])} answers: expected each trial once."
        )
    for one in content["answers"]:
        _check(path, key, trials[one["trial"]], one)
    what = "ratings" if key.mode == "mushra" else "answers"
    return Response(
        listener=listener,
        file=path.name,
        answers={one["trial"]: one[what] for one in content["answers"]},
        first={one["trial"]: one["order"][0] for one in content["answers"]},
        seconds=sum(one["seconds"] for one in content["answers"]),
    ), content


def _check(path: Path, key: Key, trial: Trial, one: Mapping[str, Any]) -> None:
    """Check one answer against its trial."""
    where = f"{path}: trial {trial.trial}"
    if sorted(one["order"]) != sorted(trial.clips) or len(one["plays"]) != len(one["order"]):
        raise InputError(f"{where} lists other clips than the test has.")
    if not math.isfinite(one["seconds"]) or not 0 <= one["seconds"] < 1e7 or min(one["plays"]) < 0:
        raise InputError(f"{where} has a negative or endless time or count.")
    if key.mode == "mushra":
        if one["ratings"].keys() != trial.clips.keys():
            raise InputError(f"{where} rates other clips than the test has.")
        if not all(0 <= value <= 100 for value in one["ratings"].values()):
            raise InputError(f"{where} has a rating outside 0 to 100.")
        return
    if one["answers"].keys() != key.questions.keys():
        raise InputError(f"{where} answers other questions than the test asks.")
    if not all(value in trial.clips for value in one["answers"].values()):
        raise InputError(f"{where} names a clip that is not in the trial.")
