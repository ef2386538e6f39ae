"""The synthesiser's clips match their labels, and no label predicts another."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from audiolens import measure
from audiolens.etude import captions, synth
from audiolens.etude.attributes import CONCEPTS, INSTRUMENTS, RANGES, Attributes

N_LABELS = 2000


@pytest.fixture(scope="module")
def clips() -> list[synth.LabelledClip]:
    return list(synth.labelled_clips(48, seed=3))


@pytest.fixture(scope="module")
def labels() -> list[tuple[Attributes, captions.Caption]]:
    return [synth.label(index, seed=5)[:2] for index in range(N_LABELS)]


def test_a_clip_depends_on_set_and_index_alone(clips: list[synth.LabelledClip]) -> None:
    again = synth.labelled_clip(7, seed=3)
    assert np.array_equal(again.audio, clips[7].audio)
    assert again.caption == clips[7].caption
    assert not np.array_equal(synth.labelled_clip(7, seed=4).audio, clips[7].audio)


def test_a_label_drawn_alone_is_the_clips_own(clips: list[synth.LabelledClip]) -> None:
    attributes, caption, _ = synth.label(11, seed=3)
    assert (attributes, caption) == (clips[11].attributes, clips[11].caption)


def test_loudness_and_brightness_are_what_the_label_says(clips: list[synth.LabelledClip]) -> None:
    heard = measure.table(np.stack([clip.audio for clip in clips])[:, None], synth.SAMPLE_RATE)
    loudness = np.array([clip.attributes.loudness_dbfs for clip in clips])
    centroid = np.array([clip.attributes.centroid_hz for clip in clips])
    # The label counts a kick's constant part, which the measure takes away first.
    constant = np.array([clip.audio.mean() for clip in clips])
    assert np.allclose(heard.loudness, 10 * np.log10(10 ** (loudness / 10) - constant**2), atol=0.01)
    # rounding off the last peaks moves the centroid of a few clips
    assert np.median(np.abs(heard.brightness / centroid - 1)) < 0.03
    assert spearmanr(heard.brightness, centroid).statistic > 0.99
    assert all(np.abs(clip.audio).max() < 1 for clip in clips)


def test_fixed_attributes_are_held_and_the_rest_is_drawn() -> None:
    drawn = [synth.label(index, tempo_bpm=90.0)[0] for index in range(20)]
    assert {a.tempo_bpm for a in drawn} == {90.0}
    assert len({a.centroid_hz for a in drawn}) == 20


def test_attributes_are_independent(labels: list[tuple[Attributes, captions.Caption]]) -> None:
    columns = np.array([[value for _, value in attributes.targets()] for attributes, _ in labels])
    correlation = np.corrcoef(columns.T)
    names = [name for name, _ in labels[0][0].targets()]
    apart = [i for i, name in enumerate(names) if name not in INSTRUMENTS]
    others = correlation[np.ix_(apart, apart)][~np.eye(len(apart), dtype=bool)]
    # four standard errors of a correlation of independent draws
    assert np.abs(others).max() < 4 / np.sqrt(N_LABELS)


def test_density_spans_twofold_within_every_tempo(labels: list[tuple[Attributes, captions.Caption]]) -> None:
    drawn = [attributes for attributes, _ in labels]
    for low, high in ((60, 85), (85, 130), (130, 200)):
        density = [a.density for a in drawn if low <= a.tempo_bpm < high]
        assert max(density) / min(density) > 2


def test_naming_never_depends_on_the_value(labels: list[tuple[Attributes, captions.Caption]]) -> None:
    for concept, attribute in CONCEPTS.items():
        if attribute not in RANGES:
            continue
        named = [getattr(a, attribute) for a, c in labels if concept in c.named]
        silent = [getattr(a, attribute) for a, c in labels if concept not in c.named]
        assert abs(len(named) / N_LABELS - captions.NAMED_SHARE) < 0.05
        pooled = np.std(named + silent) * np.sqrt(1 / len(named) + 1 / len(silent))
        assert abs(np.mean(named) - np.mean(silent)) < 4 * pooled


def test_a_caption_uses_words_of_what_it_names_only(labels: list[tuple[Attributes, captions.Caption]]) -> None:
    wordings = {
        concept: {
            text: level
            for grammar in (captions.ADJECTIVES, captions.PHRASES)
            for level, texts in grammar[concept].items()
            for text in texts
        }
        for concept in CONCEPTS
    }
    phrases = [text for levels in captions.PHRASES.values() for texts in levels.values() for text in texts]
    shared = {word for phrase in phrases for word in phrase.split()}
    for attributes, caption in labels[:300]:
        padded = f" {caption.text} "
        for concept, texts in wordings.items():
            heard = {level for text, level in texts.items() if f" {text} " in padded}
            if concept in caption.named:
                assert attributes.level(concept) in heard
            else:
                own = {text: level for text, level in texts.items() if text not in shared}
                assert not {text for text in own if f" {text} " in padded}


def test_every_word_is_in_the_vocabulary(labels: list[tuple[Attributes, captions.Caption]]) -> None:
    words = set(captions.vocabulary())
    assert all(set(caption.text.split()) <= words for _, caption in labels)
