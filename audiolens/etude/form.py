"""The form of a clip: the chords of its bars, the notes of its melody, and its scene (drum kit and bass line).

`Music` sets what the synthesiser may choose. Its default is the music of the bundled étude: two keys, and chords and
melody drawn bar by bar. `form="aaba"` instead composes two phrases of two bars and arranges them as A A B A, so that
clips repeat themselves as music does. A scene is independent of every attribute and has no effect on any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from audiolens.etude.attributes import TONICS

SIX_TONICS = (0, 1, 2, 6, 7, 8)
"""C, C sharp, D, F sharp, G, G sharp. None is the tonic of another one's relative minor (9, 10, 11, 3, 4, 5), so pitch
content alone determines the mode."""
KITS = ("snare", "claps", "brushes")
BASSES = ("roots", "fifths")
PHRASE_BARS = 2
FORM = "AABA"
PROGRESSIONS = {"A": ((0, 3), (0, 4), (0, 0)), "B": ((3, 4), (3, 0), (4, 0))}
"""Scale degrees of the chords of each phrase. The tonic is the most frequent chord, because its third sets the mode,
and the sixth is excluded, because it is the tonic of the other mode."""
CHORD_TONES = (0, 2, 2, 4)


@dataclass(frozen=True)
class Music:
    """What the synthesiser may choose: the keys, the form, and whether scenes vary."""

    tonics: tuple[int, ...] = TONICS
    form: Literal["free", "aaba"] = "free"
    scenes: bool = False

    @property
    def own_streams(self) -> bool:
        """Whether attributes, sound and caption of a clip have separate random streams.

        With separate streams, a change to the captions does not change the sound. The bundled étude's clips have one
        stream for all three.
        """
        return self.form != "free"


@dataclass(frozen=True)
class Scene:
    """What a clip's attributes leave open: which drum answers the kick, and which notes the bass plays."""

    kit: str = "snare"
    bass: str = "roots"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Scene:
        """Draw each part independently."""
        return cls(KITS[rng.integers(len(KITS))], BASSES[rng.integers(len(BASSES))])


@dataclass(frozen=True)
class Note:
    """A melody note: its beat within the phrase (a half beat is off the beat), its scale degree, and its distance from
    the middle of the register in semitones."""

    beat: float
    degree: int
    shift: float


@dataclass(frozen=True)
class Phrase:
    """Two bars of music: the chord of each bar, and the notes of the melody in order."""

    chords: tuple[int, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Song:
    """The phrases of a clip by letter, and the bar of the form in which the clip begins."""

    phrases: dict[str, Phrase]
    first_bar: int
    meter: int

    def chord(self, bar: int) -> int:
        """The scale degree of the chord in a bar of the clip."""
        phrase, within = self._at(bar)
        return phrase.chords[within]

    def notes(self, bar: int) -> list[Note]:
        """The notes that begin in a bar of the clip, with their beats counted from the start of that bar."""
        phrase, within = self._at(bar)
        start = within * self.meter
        return [
            Note(note.beat - start, note.degree, note.shift)
            for note in phrase.notes
            if start <= note.beat < start + self.meter
        ]

    def _at(self, bar: int) -> tuple[Phrase, int]:
        place, within = divmod(bar + self.first_bar, PHRASE_BARS)
        return self.phrases[FORM[place % len(FORM)]], within


def compose(meter: int, density: float, rng: np.random.Generator) -> Song:
    """Compose the two phrases of a clip with `density` notes per beat, and draw the bar of the form to begin in."""
    first_bar = int(rng.integers(len(FORM) * PHRASE_BARS))
    return Song({letter: _phrase(letter, meter, density, rng) for letter in "AB"}, first_bar, meter)


def _phrase(letter: str, meter: int, density: float, rng: np.random.Generator) -> Phrase:
    chords = PROGRESSIONS[letter][rng.integers(len(PROGRESSIONS[letter]))]
    beats = meter * len(chords)
    on_beats = _places(beats, min(1.0, density), rng)
    off_beats = _places(beats, max(0.0, density - 1.0), rng)
    notes: list[Note] = []
    for beat in sorted([*on_beats.astype(float), *(off_beats + 0.5)]):
        chord = chords[int(beat) // meter]
        if beat == int(beat):
            degree = chord + int(rng.choice(CHORD_TONES))
        else:
            degree = (notes[-1].degree if notes else chord) + int(rng.choice((-1, 1)))
        notes.append(Note(float(beat), degree, float(rng.uniform(-3, 3))))
    return Phrase(chords, tuple(notes))


def _places(beats: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Beats to fill: their number is rounded at random, so that it is `share` of all beats on average."""
    count = int(share * beats + rng.random())
    return rng.permutation(beats)[:count]
