"""The musical attributes that étude was trained on, with their ranges, poles and sampling.

All attributes are sampled independently, so no label (and no word in a caption) predicts another attribute.
`synth` turns attributes into sound, and `captions` turns them into words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

INSTRUMENTS = ("pluck", "organ", "strings", "bells")
MODES = ("minor", "major")
METERS = (3, 4)
TONICS = (0, 2)
"""C and D: neither is the tonic of the other's relative minor, so pitch content alone determines the mode."""


@dataclass(frozen=True)
class Range:
    """A continuous attribute: its limits, its scale, and the share of the range at each end that counts as a pole."""

    low: float
    high: float
    log: bool = False
    pole_share: float = 0.3

    def at(self, position: float) -> float:
        """The value at a `position` in [0, 1] along the range."""
        if self.log:
            return float(self.low * (self.high / self.low) ** position)
        return float(self.low + (self.high - self.low) * position)

    def position(self, value: float) -> float:
        """The position of `value` in the range, from 0 to 1: the inverse of `at`."""
        if self.log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return float((value - self.low) / (self.high - self.low))

    def level(self, value: float) -> str:
        """The level that a caption states for `value`: `"low"`, `"mid"` or `"high"`."""
        position = self.position(value)
        if position < self.pole_share:
            return "low"
        return "high" if position > 1 - self.pole_share else "mid"


RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "tempo_bpm": Range(60.0, 200.0, log=True),
        "centroid_hz": Range(500.0, 2200.0, log=True),
        "register_midi": Range(55.0, 79.0),
        "density": Range(0.6, 2.0),
        "loudness_dbfs": Range(-27.0, -18.0),
    }
)
CONCEPTS: Mapping[str, str] = MappingProxyType(
    {
        "tempo": "tempo_bpm",
        "timbre": "centroid_hz",
        "register": "register_midi",
        "density": "density",
        "loudness": "loudness_dbfs",
        "mode": "mode",
        "instrument": "instrument",
    }
)
"""Maps each concept, as named in prompts, to the attribute that it describes."""


@dataclass(frozen=True)
class Attributes:
    """The attributes that define the sound of one clip.

    Attributes:
        tempo_bpm: beats per minute; a kick drum marks every beat.
        centroid_hz: brightness, as the spectral centroid; it is set by the decay of the harmonics and a tilt filter.
        register_midi: the middle of the melody, as a MIDI note number.
        instrument: the instrument that plays the melody, one of `INSTRUMENTS`.
        mode: `"major"` or `"minor"`.
        density: melody notes per beat, 0.6 to 2.
        meter: beats per bar, 3 or 4; never named in captions.
        loudness_dbfs: root mean square of the clip, in dB relative to full scale.
        tonic: pitch class of the key, 0 = C; never named in captions.
    """

    tempo_bpm: float
    centroid_hz: float
    register_midi: float
    instrument: str
    mode: str
    density: float
    meter: int
    loudness_dbfs: float
    tonic: int

    @classmethod
    def draw(cls, rng: np.random.Generator, tonics: Sequence[int] = TONICS, **fixed: Any) -> Attributes:
        """Sample every attribute independently (continuous ones uniformly on their scale), except those in `fixed`.

        The key is drawn from `tonics`.
        """
        drawn: dict[str, Any] = {name: span.at(rng.random()) for name, span in RANGES.items()}
        for name, choices in (("instrument", INSTRUMENTS), ("mode", MODES), ("meter", METERS), ("tonic", tonics)):
            drawn[name] = choices[int(rng.integers(len(choices)))]
        return replace(cls(**drawn), **fixed)

    def level(self, concept: str) -> str:
        """The level of `concept` that a caption can name: "low", "mid", "high", or the category itself."""
        name = CONCEPTS[concept]
        value = getattr(self, name)
        return RANGES[name].level(value) if name in RANGES else str(value)

    def targets(self) -> Iterator[tuple[str, float]]:
        """Yield regression targets: each attribute that captions can name, as one or more numbers from about -1 to 1.

        The instrument has one target per instrument: 1 for the instrument that plays, and -1 for the others.
        """
        for name, span in RANGES.items():
            yield name, 2 * span.position(getattr(self, name)) - 1
        yield "mode", 1.0 if self.mode == "major" else -1.0
        for instrument in INSTRUMENTS:
            yield instrument, 1.0 if self.instrument == instrument else -1.0

    def as_dict(self) -> dict[str, Any]:
        """The attributes as plain values, for a table or JSON."""
        return asdict(self)
