"""Targets of measures: their units, their ranges, and how far from a target is near enough."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from audiolens.checks import checked_amount, shown
from audiolens.errors import InputError
from audiolens.measure.pitch import HIGHEST_HZ, LOWEST_HZ
from audiolens.measure.rhythm import FASTEST_BPM, SLOWEST_BPM
from audiolens.measure.table import UNITS, known_measure

_AMOUNT = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)?\s*")
_OTHER_UNITS = {"kHz": ("Hz", 1000.0), "dB": ("dBFS", 1.0)}
_EXAMPLES = {"BPM": "120 BPM", "Hz": "1500 Hz", "dBFS": "-20 dBFS", "onsets/s": "4 onsets/s"}
_RELATIVE = ("BPM", "Hz", "onsets/s")
_TOLERANCES: Mapping[str, float] = {"dBFS": 1.0}
_BEATS, _SPECTRUM = (SLOWEST_BPM, FASTEST_BPM), (20.0, 20_000.0)
RANGES: Mapping[str, tuple[float, float]] = {
    "tempo": _BEATS, "tempo_ioi": (20.0, 600.0), "tempo_octave": _BEATS, "tempo_ambiguity": (0.0, 1.0),
    "onset_rate": (0.1, 50.0), "pulse_clarity": (0.0, 1.0), "brightness": _SPECTRUM, "ltas_centroid": _SPECTRUM,
    "rolloff": _SPECTRUM, "loudness": (-100.0, 0.0), "pitch": (LOWEST_HZ, HIGHEST_HZ), "mode": (-1.0, 1.0),
}  # fmt: skip
"""The values that a measure can be steered to. `pitch_class` is missing, because it is a circle."""


def is_relative(measure: str) -> bool:
    """Whether deviations of a measure are shares of the target."""
    return UNITS[measure] in _RELATIVE


def default_tolerance(measure: str) -> float:
    """Return the deviation from a target that is accepted by default: 5% or .05, and 1 dB for loudness."""
    return _TOLERANCES.get(UNITS[measure], 0.05)


def in_range(measure: str, target: Any) -> float:
    """Return a target in the unit of a measure.

    Raises:
        InputTypeError: if it is neither a number nor text.
        InputError: if it has another unit or is out of the measure's range, or the measure has no order.
    """
    refuse_unordered(measure)
    unit = UNITS[measure]
    wanted = amount(target, unit, "target")
    low, high = RANGES[measure]
    if not low <= wanted <= high:
        raise InputError(
            f"target={shown(target)}: {measure} takes values from {low:g} to {high:g} {unit}".rstrip() + "."
        )
    return wanted


def deviation(measure: str, value: float, target: float) -> float:
    """Return how far a value is above a target: the logarithm of their ratio, or their difference; NaN if undefined."""
    if not is_relative(measure):
        return value - target
    return math.log(value / target) if value > 0 else math.nan


def is_near(measure: str, value: float, target: float, tolerance: float) -> bool:
    """Whether a value is within a tolerance of a target."""
    return abs(value - target) <= tolerance * (abs(target) if is_relative(measure) else 1.0)


def refuse_unordered(measure: str) -> None:
    """Raise an error if there is no such measure, or its values have no order."""
    known_measure("measure", measure)
    if measure not in RANGES:
        raise InputError(f"measure={shown(measure)} has no target: its values lie on a circle.")


def with_unit(measure: str, value: float) -> str:
    """Return a value of a measure as text with its unit, such as "120 BPM"."""
    return f"{value:.4g} {UNITS[measure]}".strip()


def amount(given: Any, unit: str, name: str) -> float:
    """Return a number, given as a number or as text with a unit, in the unit `unit`.

    Raises:
        InputTypeError: if it is neither a number nor text.
        InputError: if the text is no number with a unit, or the unit is another one.
    """
    if not isinstance(given, str):
        return checked_amount(name, given)
    parsed = _AMOUNT.fullmatch(given)
    if parsed is None:
        raise InputError(f"{name}={shown(given)}: expected a number with its unit, such as '{_example(unit)}'.")
    number, stated = float(parsed[1]), parsed[2] or ""
    # The unit of mode is a description.
    unit = "" if " " in unit else unit
    scale = 1.0
    if _OTHER_UNITS.get(stated, ("", 0))[0] == unit:
        scale, stated = _OTHER_UNITS[stated][1], unit
    if stated.casefold() not in ("", unit.casefold()) or not stated and unit:
        raise InputError(
            f"{name}={shown(given)}: expected {f'the unit {unit}' if unit else 'no unit'}, such as '{_example(unit)}'."
        )
    return checked_amount(name, number * scale)


def _example(unit: str) -> str:
    return _EXAMPLES.get(unit, "0.5")
