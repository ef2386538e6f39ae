"""What a visitor asks for, as the page sends it: checked for shape and size before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.placement.shifts import PLACED
from audiolens.characters import refuse_control
from audiolens.checks import checked_amount, checked_seed, checked_text, shown
from audiolens.directions.strategies import STRATEGIES, Strategy
from audiolens.errors import InputError
from audiolens.files.json_shapes import refuse_other

MOST_PROMPT = 500
"""Characters of a prompt."""
MOST_PUSHES = 12
MOST_POINTS = 129
MOST_GUIDANCE = 20.0
_SHAPE = {
    "prompt": str, "seed": int, "seconds": float, "guidance": float,
    "pushes": [{
        "concept": str, "share?": (float, None), "value?": (float, None), "strategy?": (str, None),
        "layer?": (int, None), "curve?": ([[float, float]], None),
    }],
}  # fmt: skip


@dataclass(frozen=True)
class Push:
    """How far the slider of one concept is moved.

    Attributes:
        concept: the key of its directions on the shelf.
        share: from -1 to 1, the share of the slider's largest strength; or
        value: the value in the unit of the calibration, such as 120 BPM.
        strategy, layer: a place that the visitor chose; `None` for the concept's own.
        curve: points (seconds, factor) that multiply the strength; empty for a constant 1.
    """

    concept: str
    share: float | None = None
    value: float | None = None
    strategy: Strategy | None = None
    layer: int | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def idle(self) -> bool:
        """Whether nothing is added."""
        still = bool(self.curve) and all(factor == 0 for _, factor in self.curve)
        return still or (self.value is None and self.share == 0)


@dataclass(frozen=True)
class Wish:
    """The clips that a visitor asks for. `pushes` contains only sliders that were moved."""

    prompt: str
    seed: int
    seconds: float
    guidance: float
    pushes: tuple[Push, ...]

    @classmethod
    def of(cls, asked: Any, longest: float) -> Wish:
        """Check what the page sent, for clips of at most `longest` seconds.

        Raises:
            InputError: if a part is missing, has another type, or is out of range; the message names it.
        """
        refuse_other("The request", asked, _SHAPE)
        prompt = checked_text("prompt", asked["prompt"]).strip()
        refuse_control("The prompt", prompt)
        if not prompt:
            raise InputError("The prompt is empty: describe some music, such as 'a little tune with drums'.")
        if len(prompt) > MOST_PROMPT:
            raise InputError(f"The prompt has {len(prompt)} characters: expected at most {MOST_PROMPT}.")
        seconds, guidance = asked["seconds"], asked["guidance"]
        if not 0 < seconds <= longest:
            raise InputError(f"length {seconds:g} s: expected more than 0 and at most {longest:g} seconds.")
        if not 1 <= guidance <= MOST_GUIDANCE:
            raise InputError(f"guidance {guidance:g}: expected 1 (none) to {MOST_GUIDANCE:g}.")
        if len(asked["pushes"]) > MOST_PUSHES:
            raise InputError(f"{len(asked['pushes'])} concepts at once: expected at most {MOST_PUSHES}.")
        pushes = tuple(_push(one) for one in asked["pushes"])
        if len({one.concept for one in pushes}) < len(pushes):
            raise InputError("A concept was given twice: expected one slider for each.")
        moved = tuple(one for one in pushes if not one.idle)
        return cls(prompt, checked_seed(asked["seed"]), float(seconds), float(guidance), moved)


def _push(asked: Mapping[str, Any]) -> Push:
    name, share, value = asked["concept"], asked.get("share"), asked.get("value")
    if (share is None) == (value is None):
        raise InputError(f"{shown(name)}: expected either a share of the slider or a value.")
    if share is not None and not -1 <= share <= 1:
        raise InputError(f"{shown(name)}: share {share:g}, expected -1 to 1.")
    if value is not None:
        checked_amount(f"{shown(name)}: value", value)
    strategy, layer = asked.get("strategy"), asked.get("layer")
    if strategy is not None and strategy not in PLACED:
        raise InputError(f"strategy {shown(strategy)}: expected one-to-one, one-to-all or all-to-all.")
    if strategy is not None and STRATEGIES[strategy].uses_one_layer == (layer is None):
        raise InputError(f"strategy {strategy}: give a block for one-to-one and one-to-all, and none for all-to-all.")
    if strategy is None and layer is not None:
        raise InputError(f"block {layer}: give a strategy as well.")
    points = asked.get("curve") or []
    if len(points) > MOST_POINTS:
        raise InputError(f"{shown(name)}: a curve of {len(points)} points, expected at most {MOST_POINTS}.")
    curve = tuple((checked_amount("seconds", time), checked_amount("factor", factor)) for time, factor in points)
    if any(not -1 <= factor <= 1 for _, factor in curve):
        raise InputError(f"{shown(name)}: the factors of a curve are from -1 to 1.")
    return Push(name, share, value, strategy, layer, curve)
