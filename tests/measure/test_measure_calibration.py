"""Measures track the synthesiser's labels while everything else varies."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from audiolens import measure
from audiolens.etude.synth import SAMPLE_RATE, labelled_clips

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labels_and_measures() -> tuple[pd.DataFrame, pd.DataFrame]:
    clips = list(labelled_clips(150, seed=404))
    labels = pd.DataFrame([clip.attributes.as_dict() for clip in clips])
    return labels, measure.table([clip.audio for clip in clips], SAMPLE_RATE)


# A note between the beats is an onset too: where the melody is dense, the usual interval is half a beat.
@pytest.mark.parametrize(("method", "least"), [("tempo", 0.92), ("tempo_ioi", 0.85)])
def test_tempo(labels_and_measures, method, least):
    labels, heard = labels_and_measures
    ratio = heard[method] / labels["tempo_bpm"]
    right = (ratio - 1).abs() < 0.04
    extremes = (labels["tempo_bpm"] > 130) | (labels["tempo_bpm"] < 75)
    area = roc_auc_score(labels["tempo_bpm"][extremes] > 130, heard[method][extremes])
    error_bpm = (heard[method] - labels["tempo_bpm"]).abs()[right].median()
    print(f"{method}: {right.mean():.1%} within 4%, median error of those {error_bpm:.2f} BPM, AUC {area:.4f}")
    assert heard[method].notna().all()
    assert right.mean() >= least
    assert error_bpm < 0.2
    assert area >= 0.98


def test_a_beat_is_not_a_count_of_notes(labels_and_measures):
    labels, heard = labels_and_measures
    octave_error = np.log2(heard["tempo"] / labels["tempo_bpm"])
    assert abs(spearmanr(octave_error, labels["density"]).statistic) < 0.25
    notes_a_beat = 60 * heard["onset_rate"] / labels["tempo_bpm"]
    rho = spearmanr(notes_a_beat, labels["density"]).statistic
    print(f"notes a beat against density: rho {rho:.3f}")
    assert rho >= 0.75


@pytest.mark.parametrize(
    ("name", "label", "least"), [("brightness", "centroid_hz", 0.99), ("pitch", "register_midi", 0.92)]
)
def test_rank_correlation(labels_and_measures, name, label, least):
    labels, heard = labels_and_measures
    rho = spearmanr(heard[name], labels[label]).statistic
    print(f"{name} against {label}: rho {rho:.3f}")
    assert rho >= least


def test_pitch_does_not_hear_brightness(labels_and_measures):
    labels, heard = labels_and_measures
    assert abs(spearmanr(heard["pitch"], labels["centroid_hz"]).statistic) < 0.2


def test_mode(labels_and_measures):
    labels, heard = labels_and_measures
    told = heard["mode"].notna()
    # a clip that is not told lies between the modes: leaving it out would flatter the measure
    area = roc_auc_score(labels["mode"] == "major", heard["mode"].fillna(0.0))
    print(f"mode: told of {told.mean():.1%}, AUC {area:.3f}")
    assert told.mean() >= 0.95
    assert area >= 0.96
