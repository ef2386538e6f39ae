"""The synthesiser that étude was trained on: it makes short labelled clips from musical attributes and a seed.

It is also the project's labelled data set: `labelled_clips(n, seed)` yields sound, attributes (exact labels for probing
and for calibrating measures) and a caption, in the style of SynTheory (Wei et al., ISMIR 2024).

A clip consists of drums (a kick with a click on every beat, a snare on the weak beats), bass, chords and a melody.
Notes are read from one-period wavetables. Brightness sets the decay of the harmonics. The whole mix is then tilted
until it has the requested spectral centroid, so that brightness means the same for every instrument, register and
tempo. Kick and bass have the same energy per second at every tempo. Otherwise fast music would contain more of both. A
model asked for fast music would then also generate darker music, because guidance amplifies correlated attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from audiolens.errors import InputError
from audiolens.etude.attributes import RANGES, Attributes
from audiolens.etude.captions import PLAIN, Caption, Wording, caption
from audiolens.etude.form import CHORD_TONES, Music, Scene, compose

SAMPLE_RATE = 16_000
CLIP_SECONDS = 5.12
SHORTEST_SECONDS = 0.1
"""A shorter clip has no spectrum, from which its brightness could be set."""
TABLE_SIZE = 2048
MELODY_LEVEL = 2.2
KIT_SEED = 7
"""The seed of the drum noise. It is fixed, as in a recorded drum kit, so that all strokes on one drum sound the
same."""

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
BUNDLED = Music()
"""The music of the bundled étude."""
CHORD_DEGREES = (0, 0, 0, 3, 4)
"""Scale degrees of the chords: mostly the tonic, because its third sets the mode. The sixth is excluded, because it is
the tonic of the other mode."""
PAD_LEVEL = 0.25
PAD_MIDI = 62
"""The pitch of the chords: high enough for the codec to distinguish major and minor thirds, but below most melodies."""
EVEN_BEAT_SECONDS = 0.5
"""The beat length at which a kick has unit level; kicks on longer beats are louder, to keep energy per second equal."""
BASS_DECAY_BEATS = 0.4
NOISE_SLOPE = 0.4
"""The spectral slope of drum noise relative to that of the notes' harmonics: drums are only slightly brighter than
notes."""
BELL_PARTIALS = ((1.0, 1.0), (2.76, 0.6), (5.40, 0.35), (8.93, 0.2))
"""(frequency ratio, amplitude) of the modes of a struck bar (Fletcher and Rossing, The Physics of Musical
Instruments)."""

Waveform = Float[np.ndarray, " sample"]


@dataclass(frozen=True)
class Label:
    """What is known about a clip before it sounds, and the random generator with which `render` continues."""

    attributes: Attributes
    scene: Scene
    caption: Caption
    rng: np.random.Generator


@dataclass(frozen=True)
class LabelledClip:
    """One clip with its exact labels, and a caption that names some of them."""

    audio: Waveform
    sample_rate: int
    attributes: Attributes
    caption: Caption
    seed: int


def labelled_clips(
    n: int,
    seed: int = 0,
    seconds: float = CLIP_SECONDS,
    music: Music = BUNDLED,
    wording: Wording = PLAIN,
    **fixed: object,
) -> Iterator[LabelledClip]:
    """Yield `n` labelled clips; clip i depends only on (`seed`, i). Attributes in `fixed` are not sampled."""
    for index in range(n):
        yield labelled_clip(index, seed, seconds, music, wording, **fixed)


def labelled_clip(
    index: int,
    seed: int = 0,
    seconds: float = CLIP_SECONDS,
    music: Music = BUNDLED,
    wording: Wording = PLAIN,
    **fixed: object,
) -> LabelledClip:
    """Clip number `index` of the set with this seed, identical to the one that `labelled_clips` yields."""
    drawn = draw(index, seed, music, wording, **fixed)
    audio = render(drawn.attributes, drawn.rng, seconds, music, drawn.scene)
    return LabelledClip(audio, SAMPLE_RATE, drawn.attributes, drawn.caption, index)


def label(index: int, seed: int = 0, **fixed: Any) -> tuple[Attributes, Caption, np.random.Generator]:
    """The attributes and the caption of a clip without its sound, and the random generator with which `render`
    continues."""
    drawn = draw(index, seed, **fixed)
    return drawn.attributes, drawn.caption, drawn.rng


def draw(index: int, seed: int = 0, music: Music = BUNDLED, wording: Wording = PLAIN, **fixed: object) -> Label:
    """Everything about a clip except its sound."""
    rng = np.random.default_rng([seed, index])
    attributes = Attributes.draw(rng, music.tonics, **fixed)
    scene = Scene.draw(rng) if music.scenes else Scene()
    sound, words = (np.random.default_rng([seed, index, part]) for part in (1, 2)) if music.own_streams else (rng, rng)
    return Label(attributes, scene, caption(attributes, words, wording=wording, scene=scene), sound)


def render(
    attributes: Attributes,
    seed: int | np.random.Generator,
    seconds: float = CLIP_SECONDS,
    music: Music = BUNDLED,
    scene: Scene = Scene(),  # noqa: B008 (frozen)
) -> Waveform:
    """Render `attributes` as mono sound at `SAMPLE_RATE`; the same seed gives the same sound.

    The clip starts at a random point in a bar. Its root mean square is exactly `loudness_dbfs`, unless a peak would
    clip.
    """
    if seconds < SHORTEST_SECONDS:
        raise InputError(f"seconds={seconds:g}: a synthesised clip lasts at least {SHORTEST_SECONDS:g} s.")
    rng = np.random.default_rng(seed)
    n_samples = round(seconds * SAMPLE_RATE)
    score = _Score(attributes, rng, seconds, music, scene)
    mix = score.melody(n_samples) + score.accompaniment(n_samples) + score.drums(n_samples)
    mix = _compress(_tilt_to(_compress(mix), attributes.centroid_hz))
    gain = 10 ** (attributes.loudness_dbfs / 20) / np.sqrt(np.mean(mix**2))
    return (mix * min(gain, 0.99 / np.abs(mix).max())).astype(np.float32)


def bar_start(attributes: Attributes, rng: np.random.Generator) -> float:
    """The time in seconds from the start of the first bar to the start of the clip, which `render` samples first."""
    return rng.random() * attributes.meter * 60 / attributes.tempo_bpm


class _Score:
    """The score of one clip: its beat times, chords and melody."""

    def __init__(
        self, attributes: Attributes, rng: np.random.Generator, seconds: float, music: Music, scene: Scene
    ) -> None:
        self.a, self.rng, self.scene = attributes, rng, scene
        self.beat_seconds = 60 / attributes.tempo_bpm
        start = bar_start(attributes, rng)
        n_beats = int((seconds + start) / self.beat_seconds) + 2
        self.beats = np.arange(n_beats) * self.beat_seconds - start
        n_bars = n_beats // attributes.meter + 2
        self.song = compose(attributes.meter, attributes.density, rng) if music.form == "aaba" else None
        if self.song is None:
            self.chords = [0, *rng.choice(CHORD_DEGREES, n_bars)]
        else:
            self.chords = [self.song.chord(bar) for bar in range(n_bars + 1)]
        self.kick_level = np.sqrt(self.beat_seconds / EVEN_BEAT_SECONDS)
        self.rolloff = 1.6 - 0.9 * RANGES["centroid_hz"].position(attributes.centroid_hz)

    def pitch(self, degree: int, near_midi: float) -> float:
        """The MIDI note of a scale `degree` (0 = tonic), in the octave nearest to `near_midi`."""
        octave, step = divmod(int(degree), 7)
        midi = self.a.tonic + 12 * octave + SCALES[self.a.mode][step]
        return midi + 12 * round((near_midi - midi) / 12)

    def melody(self, n_samples: int) -> Waveform:
        sound = np.zeros(n_samples)
        notes = self._improvised() if self.song is None else self._composed()
        # A short clip can have no note, and has only the accompaniment then.
        ends = [*(onset for onset, _, _ in notes), self.beats[-1] + self.beat_seconds][1:]
        for (onset, degree, shift), end in zip(notes, ends, strict=True):
            near = self.a.register_midi + (self.rng.uniform(-3, 3) if shift is None else shift)
            note = _note(self.a.instrument, self.pitch(degree, near), min(end - onset, 1.6), self.rolloff)
            _mix_in(sound, MELODY_LEVEL * note, onset)
        return sound

    def _composed(self) -> list[tuple[float, int, float | None]]:
        """The song's notes: onset in seconds, scale degree, and distance from the middle of the register."""
        assert self.song is not None
        return [
            (self.beats[0] + (bar * self.a.meter + note.beat) * self.beat_seconds, note.degree, note.shift)
            for bar in range(-(-len(self.beats) // self.a.meter))
            for note in self.song.notes(bar)
            if bar * self.a.meter + note.beat < len(self.beats)
        ]

    def _improvised(self) -> list[tuple[float, int, float | None]]:
        """Notes drawn beat by beat, as onset in seconds and scale degree; `melody` draws their register."""
        on_beat = min(1.0, self.a.density)
        off_beat = max(0.0, self.a.density - 1.0)
        onsets, degrees = [], []
        position = int(self.rng.choice((0, 2, 4)))
        for index, beat in enumerate(self.beats):
            chord = self.chords[index // self.a.meter]
            if self.rng.random() < on_beat:
                onsets.append(beat)
                degrees.append(chord + int(self.rng.choice(CHORD_TONES)))
            if self.rng.random() < off_beat:
                position = (chord if not degrees else degrees[-1]) + int(self.rng.choice((-1, 1)))
                onsets.append(beat + self.beat_seconds / 2)
                degrees.append(position)
        return [(onset, degree, None) for onset, degree in zip(onsets, degrees, strict=True)]

    def accompaniment(self, n_samples: int) -> Waveform:
        sound = np.zeros(n_samples)
        bar_seconds = self.a.meter * self.beat_seconds
        for index in range(0, len(self.beats), self.a.meter):
            chord = self.chords[index // self.a.meter]
            for interval in (0, 2, 4):
                pad = _note("pad", self.pitch(chord + interval, PAD_MIDI), min(bar_seconds, 6.0), self.rolloff)
                _mix_in(sound, PAD_LEVEL * pad, self.beats[index])
        for index, beat in enumerate(self.beats):
            chord = self.chords[index // self.a.meter]
            strong = index % self.a.meter == 0
            fifth = 4 if self.scene.bass == "fifths" and not strong else 0
            bass = _note("bass", self.pitch(chord + fifth, 38), self.beat_seconds, self.rolloff, self.beat_seconds)
            _mix_in(sound, (0.8 if strong else 0.45) * bass, beat)
        return sound

    def drums(self, n_samples: int) -> Waveform:
        seconds = np.arange(int(0.14 * SAMPLE_RATE)) / SAMPLE_RATE
        phase = 2 * np.pi * (48 * seconds + 70 * 0.03 * (1 - np.exp(-seconds / 0.03)))
        kick = np.sin(phase) * np.exp(-seconds / 0.05)
        kit = np.random.default_rng(KIT_SEED)
        click, snare = (
            _noise(kit, length, decay, level, NOISE_SLOPE * self.rolloff)
            for length, decay, level in ((0.06, 0.012, 1.0), (0.14, 0.04, 0.5))
        )
        if self.scene.kit != "snare":
            snare = _BACKBEATS[self.scene.kit](kit, NOISE_SLOPE * self.rolloff)
        sound = np.zeros(n_samples)
        for index, beat in enumerate(self.beats):
            strong = index % self.a.meter == 0
            _mix_in(sound, self.kick_level * (1.3 if strong else 1.0) * kick, beat)
            _mix_in(sound, click, beat)
            if not strong:
                _mix_in(sound, snare, beat)
        return sound


def _mix_in(sound: Waveform, note: Float[np.ndarray, " note"], onset_seconds: float) -> None:
    start = round(onset_seconds * SAMPLE_RATE)
    first, last = max(start, 0), min(start + len(note), len(sound))
    if first < last:
        sound[first:last] += note[first - start : last - start]


def _noise(rng: np.random.Generator, seconds: float, decay_seconds: float, level: float, rolloff: float) -> Waveform:
    """A decaying burst of noise whose spectrum is shaped by `_slope`."""
    n = int(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(n)) * _slope(n, -rolloff)
    noise = np.fft.irfft(spectrum, n)
    return level * noise / noise.std() * np.exp(-np.arange(n) / (decay_seconds * SAMPLE_RATE))


def _claps(kit: np.random.Generator, rolloff: float) -> Waveform:
    """Several hands that clap within 25 ms."""
    sound = np.zeros(int(0.12 * SAMPLE_RATE))
    for delay_seconds, decay_seconds in ((0.0, 0.004), (0.011, 0.004), (0.023, 0.022)):
        _mix_in(sound, _noise(kit, 0.09, decay_seconds, 0.6, rolloff), delay_seconds)
    return sound


def _brushes(kit: np.random.Generator, rolloff: float) -> Waveform:
    """A brush swept over a drum head: noise with a soft start."""
    stroke = _noise(kit, 0.22, 0.07, 0.45, rolloff)
    return stroke * np.minimum(np.arange(len(stroke)) / (0.025 * SAMPLE_RATE), 1.0)


_BACKBEATS = {"claps": _claps, "brushes": _brushes}


def _slope(n: int, exponent: float) -> Float[np.ndarray, " bin"]:
    """The gain (1 + f / 500 Hz) ** `exponent` at the frequencies of a real Fourier transform of `n` samples."""
    return (1 + np.fft.rfftfreq(n, 1 / SAMPLE_RATE) / 500) ** exponent


def _compress(sound: Waveform, crest: float = 4.0) -> Waveform:
    """Round off peaks above `crest` times the root mean square, so that loud clips need no limiter."""
    ceiling = crest * np.sqrt(np.mean(sound**2))
    return ceiling * np.tanh(sound / ceiling)


def _tilt_to(sound: Waveform, centroid_hz: float) -> Waveform:
    """Apply the zero-phase filter (1 + f / 500 Hz) ** k, with k chosen so that the mean centroid is `centroid_hz`."""
    n_fft = 1024
    frames = np.lib.stride_tricks.sliding_window_view(sound, n_fft)[:: n_fft // 2]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=-1)) + 1e-9
    bins_hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)

    def excess_hz(exponent: float) -> float:
        gain = _slope(n_fft, exponent)
        return float(np.mean(magnitude @ (gain * bins_hz) / (magnitude @ gain))) - centroid_hz

    exponent: Any = brentq(excess_hz, -8.0, 4.0, xtol=1e-3)
    return np.fft.irfft(np.fft.rfft(sound) * _slope(len(sound), exponent), len(sound))


# For each instrument: attack, decay (0 = sustained) and release in seconds (the bass decays in beats), vibrato in cents
_ENVELOPES = {
    "pluck": (0.004, 0.22, 0.02, 0.0),
    "organ": (0.012, 0.0, 0.03, 0.0),
    "strings": (0.06, 0.0, 0.06, 22.0),
    "bells": (0.002, 0.5, 0.02, 0.0),
    "pad": (0.05, 0.0, 0.08, 0.0),
    "bass": (0.006, BASS_DECAY_BEATS, 0.03, 0.0),
}


def _note(instrument: str, midi: float, seconds: float, rolloff: float, decay_unit_seconds: float = 1.0) -> Waveform:
    frequency_hz = 440 * 2 ** ((midi - 69) / 12)
    attack, decay, release, vibrato_cents = _ENVELOPES[instrument]
    n = max(int(seconds * SAMPLE_RATE), 64)
    time = np.arange(n) / SAMPLE_RATE
    phase = frequency_hz * time
    if vibrato_cents:
        depth = frequency_hz * (2 ** (vibrato_cents / 1200) - 1) / (2 * np.pi * 5.5)
        phase = phase + depth * (1 - np.cos(2 * np.pi * 5.5 * time))
    if instrument == "bells":
        partials = ((r, w) for r, w in BELL_PARTIALS if r * frequency_hz < 0.47 * SAMPLE_RATE)
        sound = sum(w * np.sin(2 * np.pi * r * phase) * np.exp(-time * (r - 1) / 0.8) for r, w in partials)
    else:
        table = _wavetable(instrument, frequency_hz, rolloff)
        sound = table[(phase * TABLE_SIZE).astype(np.int64) % TABLE_SIZE]
    envelope = np.minimum(time / attack, 1.0) * np.minimum((n / SAMPLE_RATE - time) / release, 1.0)
    if decay:
        envelope *= np.exp(-time / (decay * decay_unit_seconds))
    return sound * envelope


def _wavetable(instrument: str, frequency_hz: float, rolloff: float) -> Float[np.ndarray, " phase"]:
    """One period of a tone with the instrument's harmonics below 0.47 of the sample rate, scaled to unit power."""
    h = np.arange(1, min(int(0.47 * SAMPLE_RATE / frequency_hz), 60) + 1)
    amplitude = 1.0 / h**rolloff
    if instrument == "organ":
        amplitude = np.where(np.isin(h, (1, 2, 3, 4, 6, 8, 12, 16)), amplitude * h**0.3, 0.0)
    elif instrument == "pad":
        amplitude = np.where(h <= 2, amplitude / h, 0.0)
    elif instrument == "bass":
        amplitude = amplitude / h**0.6
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=complex)
    # Quadratic phases (Schroeder) keep the crest factor low, so that the codec gets a tone rather than a pulse train.
    spectrum[1 : len(h) + 1] = amplitude * np.exp(-1j * np.pi * h * (h - 1) / len(h))
    table = np.fft.irfft(spectrum, TABLE_SIZE)
    return table / np.sqrt(2 * np.mean(table**2))
