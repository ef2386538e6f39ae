"""The classifier of instruments names clips it was not fitted on, and a mix moves by the share that changed."""

from typing import Any

import numpy as np
import pytest

import audiolens as al
from audiolens.etude.attributes import INSTRUMENTS
from audiolens.etude.training import instruments
from audiolens.etude.training.instruments import Instruments, cepstra, mix_moved, synthesised


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (["organ", "bells"], ["bells", "organ"], 0.0),
        (["organ"] * 4, ["bells"] * 4, 1.0),
        (["organ", "organ", "bells", "bells"], ["organ", "bells", "bells", "bells"], 0.25),
        (["organ"] * 2, ["organ", "bells", "pluck", "strings"], 0.75),
    ],
)
def test_the_mix_moves_by_the_share_of_clips_that_change_their_instrument(
    before: list[str], after: list[str], moved: float
) -> None:
    assert mix_moved(before, after) == pytest.approx(moved)
    assert mix_moved(after, before) == pytest.approx(moved)


def test_the_classifier_names_planted_features_and_only_those() -> None:
    rng = np.random.default_rng(0)
    labels = [str(name) for name in rng.choice(INSTRUMENTS, 120)]
    features = np.stack([np.eye(4)[INSTRUMENTS.index(name)] for name in labels]) + 0.1 * rng.standard_normal((120, 4))
    fitted = Instruments.fitted(features[:60], labels[:60])
    assert fitted.named(features[60:]) == labels[60:]
    assert fitted.auc(features[60:], labels[60:]) == 1.0
    assert fitted.auc(np.zeros((60, 4)), labels[60:]) == pytest.approx(0.5)


@pytest.mark.slow
def test_the_synthesisers_clips_are_named_after_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    lens: Any = al.AudioLens.from_pretrained("etude")
    clips, audio = synthesised(lens, 72, 1.5)
    assert audio.shape[:2] == (72, 1)
    monkeypatch.setattr(instruments, "synthesised", lambda *_: (clips[:48], audio[:48]))
    labels = [clip.attributes.instrument for clip in clips[48:]]
    assert Instruments.of(lens).auc(cepstra(audio[48:], lens.config.sample_rate), labels) > 0.8
