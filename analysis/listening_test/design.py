"""What a listening test asks: its trials, the clips of each, and the key that says which clip is which.

A trial compares clips of one prompt and seed. The page knows a clip only by a random name. The key maps these names to
roles: "positive" and "negative" (steered towards either pole), "unsteered", and in ratings "reference" (the hidden
reference, an unsteered clip) and "anchor".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from audiolens.checks import shown
from audiolens.errors import DamagedError, InputError
from audiolens.files.integrity import read_json, sealed_json
from audiolens.files.json_shapes import refuse_other

KEY, PAGE, RESPONSES, SOUNDS = "key-do-not-publish.json", "page", "responses", "sounds"
"""The key, and the folders of the page, of the responses and of the page's sounds. Only the page is published."""
FORMAT = "audiolens.listening-test.1"

Mode = Literal["pairs", "mushra"]
Against = Literal["unsteered", "opposite", "both"]
COMPARED: Mapping[Against, tuple[tuple[str, str], ...]] = {
    "unsteered": (("positive", "unsteered"), ("negative", "unsteered")),
    "opposite": (("positive", "negative"),),
    "both": (("positive", "unsteered"), ("negative", "unsteered"), ("positive", "negative")),
}
"""The roles that are compared for every prompt. Answers count how often the first one was chosen."""
NO_CHECKS = "ratings are screened by the hidden reference and the anchor"
NEEDED: Mapping[str, tuple[Mode, str]] = {
    "against": ("pairs", "ratings are of the clips steered to both poles, next to the unsteered one"),
    "questions": ("pairs", "ratings are always of quality"),
    "checks": ("pairs", NO_CHECKS),
    "anchor_hz": ("mushra", "pairs have no anchor"),
}
"""Arguments that one mode alone needs, and why the other does not."""
RATED = ("reference", "positive", "negative", "anchor")
QUALITY = "quality"
CONCEPT = "concept"
_TRIAL = {
    "trial": str, "clips": {str: str}, "prompt": str, "seed": int, "open": (str, None), "right": {str: str},
}  # fmt: skip
_SHAPE = {
    "format": str, "test": str, "mode": str, "concept": str, "poles": [str, str], "model": str, "strength": float,
    "questions": {str: str}, "listeners": [str], "left_out": int,
    "trials": [_TRIAL],
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One screen of the page.

    Attributes:
        trial: a random name.
        clips: the role of each clip, by its random name.
        prompt, seed: where the clips come from.
        open: the name of the reference that a rating shows openly.
        right: for an attention check, the name of the right answer to each question that has one.
    """

    trial: str
    clips: Mapping[str, str]
    prompt: str
    seed: int
    open: str | None
    right: Mapping[str, str]


@dataclass(frozen=True)
class Key:
    """What the experimenter keeps: the meaning of every name on the page.

    `listeners` lists the codes of those who were invited; if it is empty, anybody may answer. `left_out` is the number
    of comparisons that a silent clip made impossible.
    """

    test: str
    mode: str
    concept: str
    poles: tuple[str, str]
    model: str
    strength: float
    questions: Mapping[str, str]
    trials: tuple[Trial, ...]
    listeners: tuple[str, ...]
    left_out: int

    def as_bytes(self) -> bytes:
        """Return the content of the key's file, with its hash."""
        return sealed_json({"format": FORMAT, **asdict(self)})

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """The compared roles, in the order of `COMPARED`."""
        there = {frozenset(one.clips.values()) for one in self.trials if not one.right}
        return tuple(pair for pair in COMPARED["both"] if frozenset(pair) in there)

    def label(self, role: str) -> str:
        """Return the readable name of a role."""
        steered = {"positive": f"steered to {self.poles[0]}", "negative": f"steered to {self.poles[1]}"}
        return {**steered, "reference": "hidden reference"}.get(role, role)


def unused(mode: str, given: Mapping[str, object]) -> str | None:
    """Return the first argument that was given (not None) and that the mode does not need."""
    return next((name for name, value in given.items() if value is not None and NEEDED[name][0] != mode), None)


def read_key(folder: Path) -> Key:
    """Read the key in the folder of a listening test.

    Raises:
        InputError: if the folder has no key.
        DamagedError: if the key is not what was written.
    """
    path = folder / KEY
    try:
        facts = read_json(path)
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {KEY}: expected the folder that `audiolens listen-test STUDY -o FOLDER` wrote."
        ) from None
    if facts.get("format") != FORMAT:
        raise DamagedError(f"{path} has the format {shown(facts.get('format'))}: expected {FORMAT}.")
    refuse_other(path, facts, _SHAPE)
    known: dict[str, Any] = {name: facts[name] for name in _SHAPE if name not in ("format", "trials")}
    lists = {name: tuple(facts[name]) for name in ("poles", "listeners")}
    key = Key(
        **{**known, **lists}, trials=tuple(Trial(**{name: one[name] for name in _TRIAL}) for one in facts["trials"])
    )
    if not _is_sound(key):
        raise DamagedError(f"{path} is damaged: its trials are not those of a listening test.")
    return key


def _is_sound(key: Key) -> bool:
    """Return whether names and roles fit together. The hash shows that nothing changed, but not who wrote the key."""
    names = [name for one in key.trials for name in (one.trial, *one.clips)]
    sets = {"mushra": [{*RATED}], "pairs": [{*pair} for pair in COMPARED["both"]]}.get(key.mode, [])
    roles = [{*one.clips.values()} for one in key.trials if not one.right]
    return (
        len({*names}) == len(names)
        and bool(roles)
        and all(one in sets for one in roles)
        and all(len({*one.clips.values()}) == len(one.clips) for one in key.trials)
        and all(one.right.keys() <= key.questions.keys() for one in key.trials)
        and (key.mode == "pairs" or not any(one.right for one in key.trials))
        and bool(key.questions)
    )
