"""A calibration: which strength of a direction gives which value of a measure. Strengths can then be musical units.

`Directions.calibrate` (`calibrating.py`) measures it, the file of the directions stores it, and
`steer(d, strength="120 BPM")` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from audiolens.checks import checked_amount, shown, whole_number, whole_numbers
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.measure.targets import amount
from audiolens.model.sites import counted, layers_once, listed_layers
from audiolens.model.timeline import Real

SHAPE = {
    "measure": str, "measured_in": str, "strengths": [float], "values": [float], "low": [(float, None)],
    "high": [(float, None)], "failed": [float], "place": {
        "strategy": str, "layer?": int, "layers?": [int], "band?": [int, int], "unit?": str, "branch?": str,
        "operator?": str, "heads?": (int, [[int, int]]),
    },
    "clips": int, "seconds": float, "guidance_scale": float, "vectors_hash?": str,
}  # fmt: skip
"""The shape of a `Calibration` as JSON."""
PLACE = {
    "strategy": "one-to-one", "layer": None, "layers": None, "band": None, "unit": "raw", "branch": "both",
    "operator": "add", "heads": None,
}  # fmt: skip
"""The arguments of `steer` that a calibration fixes, with their defaults."""


@guarded
@dataclass(frozen=True, eq=False)
class Calibration:
    """The dose-response of a direction at one place.

    Attributes:
        measure: the name of the measure, as in `measure.MEASURES`.
        measured_in: its unit, such as "BPM".
        strengths: the strengths that were tried, in ascending order.
        values: the median of the measure at each strength, made monotone (isotonic regression).
        low, high: the quartiles of the measure over clips at each strength; `None` if no clip could be measured.
        failed: the share of failed clips at each strength.
        place: the arguments with which `steer` places the direction.
        clips: the smallest number of clips at a strength whose measure the median is taken over.
        seconds, guidance_scale: how the clips were generated.
        vectors_hash: the hash of the vectors that were added, so that directions with other vectors refuse this
            calibration; empty in files written by earlier versions.
    """

    measure: str
    measured_in: str
    strengths: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    failed: tuple[float, ...]
    place: Mapping[str, Any]
    clips: int
    seconds: float
    guidance_scale: float
    vectors_hash: str = ""

    def __post_init__(self) -> None:
        for name in ("strengths", "values", "low", "high", "failed"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "place", {name: own for name, own in self.place.items() if own is not None})
        size, steps = len(self.strengths), np.diff(self.values)
        if size < 2 or {len(self.values), len(self.low), len(self.high), len(self.failed)} != {size}:
            raise InputError(f"a calibration of {size} strengths: expected at least two, with one value for each.")
        if not all(map(math.isfinite, (*self.strengths, *self.values))) or not (np.diff(self.strengths) > 0).all():
            raise InputError("a calibration needs finite values, at strengths in ascending order.")
        if not ((steps >= 0).all() or (steps <= 0).all()):
            raise InputError("the values of a calibration must rise or fall with the strength.")

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that the calibration reaches."""
        return min(self.values), max(self.values)

    def at(self, strength: Real) -> float:
        """Return the expected value at a strength, interpolated linearly."""
        return float(np.interp(checked_amount("strength", strength), self.strengths, self.values))

    def strength(self, target: Real | str) -> float:
        """Return the strength at which the median clip has a value. Of several, return the one closest to 0.

        Args:
            target: a number in the unit of the measure, or text such as "120 BPM" or "2.5 kHz".

        Raises:
            InputError: if the value is outside the range of the calibration, or has another unit.
        """
        wanted = amount(target, self.measured_in, "target")
        low, high = self.range
        if not low <= wanted <= high:
            raise InputError(
                f"{shown(target)}: between strengths of {self.strengths[0]:g} and {self.strengths[-1]:g}, the median "
                f"{self.measure} is between {self._text(low)} and {self._text(high)}."
            )
        found = []
        for (a, x), (b, y) in pairwise(zip(self.strengths, self.values, strict=True)):
            if min(x, y) <= wanted <= max(x, y):
                found += [a, b] if x == y else [a + (wanted - x) / (y - x) * (b - a)]
                if x == y and a < 0 < b:
                    found.append(0.0)
        return min(found, key=abs)

    def _text(self, value: float) -> str:
        return f"{value:.4g} {self.measured_in}".strip()

    def as_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration that `as_dict` wrote, whose shape was checked (`SHAPE`)."""
        place = {name: tuple(value) if name == "band" else value for name, value in values["place"].items()}
        if "heads" in place:
            place["heads"] = _heads(place["heads"], None)
        return cls(**{**values, "place": place})

    def __repr__(self) -> str:
        low, high = map(self._text, self.range)
        return f"Calibration({self.measure} from {low} to {high}, {self.clips} clips per strength)"


def normal_place(stated: Mapping[str, Any], layers: Sequence[int], n_layers: int) -> dict[str, Any]:
    """Return the whole place that `steer` takes for these arguments: blocks counted from the first, and all defaults.

    `layers` are those of the directions. What `steer` would refuse is left as it is.
    """
    place = {**PLACE, **{name: value for name, value in stated.items() if value is not None}}
    one, several = place["layer"], place["layers"]
    if place["strategy"] == "one-to-one" and several is not None and one is None and place["band"] is None:
        named = layers_once(several)
        one, several = (named[0] if isinstance(named, list) and len(named) == 1 else named), None
    if one is None and place["strategy"] not in ("all-to-all", "heads") and len(layers) == 1:
        one = layers[0]
    if several is not None:
        several = sorted(counted(layer, n_layers) for layer in listed_layers(several))
    band = place["band"]
    with suppress(TypeError):
        one = one if one is None else counted(whole_number(one), n_layers)
        band = band if band is None else tuple(counted(layer, n_layers) for layer in whole_numbers(list(band)))
    return {**place, "layer": one, "layers": several, "band": band, "heads": _heads(place["heads"], n_layers)}


def _heads(heads: Any, n_layers: int | None) -> Any:
    """Return a number of heads as it is, and pairs (layer, head) as sorted tuples, because their order changes nothing.

    Layers are counted from the first if the number of layers is known.
    """
    with suppress(TypeError):
        return whole_number(heads)
    with suppress(TypeError, ValueError):
        pairs = [(layer, head) for layer, head in (whole_numbers(list(pair)) for pair in heads)]
        return tuple(sorted((layer if n_layers is None else counted(layer, n_layers), head) for layer, head in pairs))
    return heads


def placed(calibration: Calibration | None, target: str, place: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `steer` for a strength in a musical unit, given the whole place that was asked for.

    Raises:
        InputTypeError: if there is no calibration.
        InputError: if an argument that is not a default differs from the place of the calibration, or if the target is
            not reached.
    """
    if calibration is None:
        raise InputTypeError(
            f"strength={shown(target)}: these directions are not calibrated. Give a number, or use "
            "d.calibrate(lens, measure=..., layer=...) or `audiolens directions calibrate`."
        )
    refuse_elsewhere(calibration, {name: value for name, value in place.items() if value != PLACE[name]})
    return {**calibration.place, "strength": calibration.strength(target)}


def refuse_elsewhere(calibration: Calibration, stated: Mapping[str, Any]) -> None:
    """Raise an error if a stated argument differs from the place of a calibration."""
    for name, value in stated.items():
        own = calibration.place.get(name, PLACE[name])
        if value != own:
            raise InputError(
                f"{name}={shown(value)}: the directions were calibrated with {name}={shown(own)}; leave it out, or "
                "calibrate them at the other place."
            )
