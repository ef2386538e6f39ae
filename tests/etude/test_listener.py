"""The targets of the decoder's auxiliary head agree with the rendered clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audiolens.etude import synth
from audiolens.etude.training import listener, text
from audiolens.etude.training.codec import FRAME_RATE
from audiolens.measure.clips import read
from audiolens.measure.rhythm import onsets_seconds

N_CLIPS, N_FRAMES = 12, 125


@pytest.fixture(scope="module")
def labels() -> listener.Labels:
    return listener.Labels.of(N_CLIPS, seed=3)


def test_the_beat_is_where_the_kick_sounds(labels: listener.Labels) -> None:
    """Onsets lie on the targets' beats, or half-way between two."""
    everything = np.arange(N_CLIPS)
    targets = labels.targets(everything, np.zeros(N_CLIPS, dtype=int), N_FRAMES).numpy()
    turn = np.arctan2(targets[..., 1], targets[..., 0]) / (2 * np.pi) % 1
    for clip in everything:
        audio = synth.labelled_clip(int(clip), seed=3).audio
        onsets = onsets_seconds(read(audio, synth.SAMPLE_RATE)[0][0])
        beat = labels.beat_seconds[clip]
        frames = np.clip((onsets * FRAME_RATE).astype(int), 0, N_FRAMES - 1)
        distance = np.abs(turn[clip, frames] * 2 - np.round(turn[clip, frames] * 2)) / 2 * beat
        assert np.median(distance) < 1.5 / FRAME_RATE


def test_targets_of_a_crop_are_those_of_the_clip_there(labels: listener.Labels) -> None:
    clips = np.array([4, 9])
    whole = labels.targets(clips, np.array([0, 0]), N_FRAMES)
    cut = labels.targets(clips, np.array([30, 7]), 40)
    assert torch.equal(cut[0], whole[0, 30:70])
    assert torch.equal(cut[1], whole[1, 7:47])


def test_attributes_and_captions_are_the_clips_own(labels: listener.Labels) -> None:
    clip = synth.labelled_clip(5, seed=3)
    assert labels.captions[5] == clip.caption.text
    told = labels.targets(np.array([5]), np.array([0]), 3)[0, :, listener.BEAT_TARGETS :]
    expected = torch.tensor([value for _, value in clip.attributes.targets()])
    assert torch.allclose(told, expected.expand(3, -1))
    assert listener.build_head(8).out_features == listener.BEAT_TARGETS + len(text.TARGETS)


def test_a_bar_holds_its_beats(labels: listener.Labels) -> None:
    meters = labels.bar_seconds / labels.beat_seconds
    assert set(np.round(meters, 9)) <= {3.0, 4.0}
    assert ((labels.bar_start >= 0) & (labels.bar_start < labels.bar_seconds)).all()


def test_a_head_that_knows_nothing_leaves_everything_unheard_and_one_that_knows_all_nothing(
    labels: listener.Labels,
) -> None:
    clips = np.arange(N_CLIPS)
    targets = labels.targets(clips, np.zeros(N_CLIPS, dtype=int), N_FRAMES)
    nothing = listener.unheard(torch.zeros_like(targets), targets)
    assert nothing.beat.item() == pytest.approx(1, abs=0.1)
    assert nothing.mode.item() == pytest.approx(1)
    assert all(part.item() == 0 for part in listener.unheard(targets.clone(), targets))


def test_mode_weighs_more_than_another_attribute(labels: listener.Labels) -> None:
    targets = labels.targets(np.arange(N_CLIPS), np.zeros(N_CLIPS, dtype=int), N_FRAMES)

    def lost(name: str) -> float:
        said = targets.clone()
        said[..., listener.BEAT_TARGETS + text.TARGETS.index(name)] += 1.0
        return listener.unheard(said, targets).attributes.item()

    assert lost("mode") == pytest.approx(listener.MODE_WEIGHT * lost("loudness_dbfs"))
