"""The measure in which the effect of each concept is reported, and the unit of a change in a measure.

This module imports neither torch nor scipy, so that the command line can refuse a concept or a measure at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from audiolens.checks import shown
from audiolens.errors import InputError, nearest, shortened
from audiolens.measure.table import EXTRA_MEASURES, MEASURES, UNITS, known_measure
from audiolens.prompts import PromptSet, concepts

MEASURED: Mapping[str, str] = {
    "tempo": "tempo_ioi",
    "timbre": "brightness",
    "density": "onset_rate",
    "register": "pitch",
}
"""The measure in which the effect of each concept is reported."""
_RATIOS = ("BPM", "Hz", "onsets/s")
FEWEST_PROMPTS = 2
"""Minimum number of prompts per pole. A single prompt has no spread, so separation could not be assessed."""


def is_ratio(measured: str) -> bool:
    """Return whether a measure has a true zero, so that its change is a ratio. Otherwise its change is a difference."""
    return UNITS.get(measured, "") in _RATIOS or measured == "pulse_clarity"


def unit_of_change(measured: str) -> str:
    """Return the unit of `effects`: either "ratio" or the measure's own unit (dB for dBFS)."""
    if is_ratio(measured):
        return "ratio"
    return {"dBFS": "dB"}.get(unit := UNITS.get(measured, ""), unit)


def refuse_unknown(concept: object, measured: str | None = None) -> None:
    """Raise an error unless a study can find the concept's bundled prompts.

    Raises:
        InputError: if the concept is unknown. The error names the nearest known one.
    """
    if concept not in concepts(None):
        known = [name for name in concepts(None) if measured or name in MEASURED]
        raise InputError(
            f"unknown concept {shown(concept)}.{nearest(str(concept), known)} Known: {shortened(known)}; or a "
            ".csv, .json or .toml file of prompts."
        )


def measure_of(concept: str, measured: str | None = None, measured_by: Mapping[str, str] | None = None) -> str:
    """Return the measure in which a study reports its effects on a concept.

    `measured` names the measure, and `measured_by` maps concepts to measures. If neither names one, the measure is the
    concept's entry in `MEASURED`.

    Raises:
        InputError: if the concept has no measure, or if its measure has no true zero, because ratios would be
            meaningless.
    """
    known = [name for name in (*MEASURES, *EXTRA_MEASURES) if is_ratio(name)]
    name = measured or (measured_by or {}).get(concept) or MEASURED.get(concept)
    if name is None:
        raise InputError(
            f"{shown(concept)} has no measure, so a study could not report an effect. Concepts with a measure are "
            f"{', '.join(MEASURED)}; for any other, choose one (--measure, measured=) of {', '.join(known)}."
        )
    if known_measure("measure", name, [*MEASURES, *EXTRA_MEASURES]) not in known:
        raise InputError(
            f"measure {shown(name)}: expected one whose change is a ratio. Choose from: {', '.join(known)}."
        )
    return name


def refuse_too_few(sets: PromptSet) -> None:
    """Check that both poles have enough prompts for a study.

    Raises:
        InputError: if a pole has too few prompts. The error names the pole.
    """
    for pole, side in zip(sets.poles, (sets.positive, sets.negative), strict=True):
        if len(side) < FEWEST_PROMPTS:
            raise InputError(
                f"{shown(sets.concept)} has {len(side)} prompt for the pole {shown(pole)}: a study needs at least "
                f"{FEWEST_PROMPTS} per pole, and about 25 for a stable direction."
            )
