"""Classify which of the synthesiser's instruments plays a clip, with a classifier of cepstra fitted on labelled clips.

The labelled clips first pass through the model's codec, so that the classifier is trained on sound with the same codec
artefacts. The classifier always predicts one of these instruments, whatever the clip sounds like, so a changed
prediction does not show that a clip sounds worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from audiolens.etude import synth
from audiolens.etude.form import Music

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from audiolens.lens import AudioLens

ROWS = 48
SEED = 99
"""The seed of the labelled clips. Étude was not trained on any of them."""


@dataclass(frozen=True)
class Instruments:
    """A fitted instrument classifier."""

    classifier: Any

    @classmethod
    def fitted(cls, features: Float[np.ndarray, "row feature"], labels: Sequence[str]) -> Instruments:
        """Fit a logistic regression on the `cepstra` of labelled clips."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        return cls(classifier.fit(features, list(labels)))

    @classmethod
    def of(cls, lens: AudioLens, n: int = 240, seconds: float = 5.0, music: Music = synth.BUNDLED) -> Instruments:
        """Fit a classifier on `n` clips from the synthesiser that have passed through the codec of `lens`."""
        clips, audio = synthesised(lens, n, seconds, music)
        return cls.fitted(cepstra(audio, lens.config.sample_rate), [clip.attributes.instrument for clip in clips])

    def named(self, features: Float[np.ndarray, "row feature"]) -> list[str]:
        """Return the most likely instrument of each clip."""
        return [str(name) for name in self.classifier.predict(features)]

    def auc(self, features: Float[np.ndarray, "row feature"], labels: Sequence[str]) -> float:
        """Return the mean one-vs-rest AUC on labelled clips."""
        from sklearn.metrics import roc_auc_score

        scores = self.classifier.predict_proba(features)
        names = list(self.classifier.classes_)
        return float(roc_auc_score(list(labels), scores, multi_class="ovr", labels=names))


def cepstra(audio: Float[np.ndarray, "row channel sample"], sample_rate: int) -> Float[np.ndarray, "row feature"]:
    """Return the mean and spread over time of the first 20 MFCCs of every clip."""
    import librosa

    found = (librosa.feature.mfcc(y=clip.mean(0), sr=sample_rate, n_mfcc=20) for clip in audio)
    return np.stack([np.concatenate([one.mean(1), one.std(1)]) for one in found])


def mix_moved(before: Sequence[str], after: Sequence[str]) -> float:
    """Return the total variation distance (0 to 1) between two distributions of instruments.

    This is the smallest share of clips whose instrument would have to change to make the distributions equal. Two
    samples from the same distribution also differ, so compare this distance with the one between clips generated with
    different seeds.
    """
    names = sorted({*before, *after})
    shares = [np.array([list(clips).count(name) / len(clips) for name in names]) for clips in (before, after)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def synthesised(
    lens: AudioLens, n: int, seconds: float, music: Music = synth.BUNDLED
) -> tuple[list[synth.LabelledClip], Float[np.ndarray, "row channel sample"]]:
    """Return `n` labelled clips from the synthesiser, and their sound after passing through the codec of `lens`."""
    clips = list(synth.labelled_clips(n, seed=SEED, seconds=seconds, music=music))
    raw = np.stack([clip.audio for clip in clips])[:, None]
    parts = np.split(raw, range(ROWS, len(raw), ROWS))
    return clips, np.concatenate([decoded(lens, lens.encode_audio(rows, synth.SAMPLE_RATE)) for rows in parts])


def decoded(lens: AudioLens, codes: Int[Tensor, "row codebook frame"]) -> Float[np.ndarray, "row channel sample"]:
    """Return the sound of the codes, decoded a few clips at a time."""
    return np.concatenate([lens.decode_codes(part).float().cpu().numpy() for part in codes.split(ROWS)])
