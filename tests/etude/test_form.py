"""Music in the form A A B A: phrases repeat, keys and parts are balanced, and scenes leave every attribute alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from audiolens import measure
from audiolens.etude import form, synth
from audiolens.etude.attributes import Attributes
from audiolens.etude.training.recipes import BASE

MUSIC = BASE.material.music
N = 3000


@pytest.fixture(scope="module")
def drawn() -> list[synth.Label]:
    return [synth.draw(index, 7, MUSIC) for index in range(N)]


def test_keys_modes_and_parts_of_the_scene_are_balanced_and_independent(drawn: list[synth.Label]) -> None:
    columns = {
        "tonic": [label.attributes.tonic for label in drawn],
        "mode": [label.attributes.mode for label in drawn],
        "kit": [label.scene.kit for label in drawn],
        "bass": [label.scene.bass for label in drawn],
        "meter": [label.attributes.meter for label in drawn],
    }
    assert set(columns["tonic"]) == set(form.SIX_TONICS)
    names = list(columns)
    for name in names:
        counts = Counter(columns[name])
        share = 1 / len(counts)
        assert all(abs(count / N - share) < 4 * np.sqrt(share * (1 - share) / N) for count in counts.values())
    for first in names:
        for second in names[names.index(first) + 1 :]:
            pairs = Counter(zip(columns[first], columns[second], strict=True))
            share = 1 / (len(set(columns[first])) * len(set(columns[second])))
            assert all(abs(count / N - share) < 4.5 * np.sqrt(share / N) for count in pairs.values())


def test_no_two_keys_have_the_same_notes() -> None:
    pitches = {
        (tonic, mode): frozenset((tonic + step) % 12 for step in scale)
        for tonic in form.SIX_TONICS
        for mode, scale in synth.SCALES.items()
    }
    assert len(set(pitches.values())) == 2 * len(form.SIX_TONICS)


@pytest.mark.parametrize("meter", [3, 4])
def test_the_form_is_two_phrases_a_then_b_then_a(meter: int) -> None:
    song = replace(form.compose(meter, 1.3, np.random.default_rng(5)), first_bar=0)
    bars = [(song.chord(bar), song.notes(bar)) for bar in range(16)]
    first, second, third, fourth = (bars[start : start + 2] for start in (0, 2, 4, 6))
    assert first == second == fourth
    assert first != third
    assert bars[8:] == bars[:8]
    assert [notes for _, notes in bars[:2]] != [[], []]
    assert all(0 <= note.beat < meter for _, notes in bars for note in notes)
    begun = replace(song, first_bar=5)
    assert [begun.chord(bar) for bar in range(8)] == [song.chord(bar + 5) for bar in range(8)]


def test_chords_follow_the_progressions() -> None:
    for seed in range(40):
        song = form.compose(4, 1.0, np.random.default_rng(seed))
        for letter, phrase in song.phrases.items():
            assert phrase.chords in form.PROGRESSIONS[letter]


@pytest.mark.parametrize("density", [0.6, 1.0, 1.37, 2.0])
def test_a_song_has_as_many_notes_as_its_density_says(density: float) -> None:
    counts = [
        len(phrase.notes) / 8
        for seed in range(300)
        for phrase in form.compose(4, density, np.random.default_rng(seed)).phrases.values()
    ]
    assert np.mean(counts) == pytest.approx(density, abs=0.01)
    assert np.ptp(counts) <= 1 / 8 + 1e-9


def test_the_sound_of_a_clip_does_not_depend_on_its_caption() -> None:
    clip = synth.labelled_clip(4, 7, 1.0, MUSIC)
    other = synth.labelled_clip(4, 7, 1.0, MUSIC, BASE.reading.wording)
    assert np.array_equal(clip.audio, other.audio)
    assert clip.caption != other.caption


def test_the_scene_changes_the_sound_but_no_attribute() -> None:
    attributes = [Attributes.draw(np.random.default_rng([8, index]), MUSIC.tonics) for index in range(8)]

    def measured(scene: form.Scene) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        sound = np.stack([synth.render(a, index, 5.0, MUSIC, scene) for index, a in enumerate(attributes)])[:, None]
        names = ["brightness", "loudness", "onset_rate", "pitch"]
        return sound, {name: column.to_numpy() for name, column in measure.table(sound, 16_000, names).items()}

    plain, values = measured(form.Scene())
    for scene in (form.Scene(kit="claps"), form.Scene(kit="brushes"), form.Scene(bass="fifths")):
        sound, others = measured(scene)
        assert np.abs(sound - plain).max() > 0.01
        assert np.abs(others["loudness"] - values["loudness"]).max() < 0.1
        for name in ("brightness", "onset_rate", "pitch"):
            assert abs(np.median(others[name] / values[name]) - 1) < 0.02, (scene, name)
