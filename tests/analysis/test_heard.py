"""A batch is measured and checked for failure from one reading of its clips, with the same results as separately."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.heard import Wanted, hear
from audiolens import measure
from audiolens.measure import clips as clips_of
from audiolens.measure.failure import criteria

RATE = 16_000


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and clips of decaying tones, each at its own pace. The first clip is not finite, and the last is silent."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(3 * RATE) / RATE
    rows = [
        np.sin(2 * np.pi * rng.uniform(200, 900) * seconds) * np.exp(-20 * (seconds % rng.uniform(0.2, 0.6)))
        for _ in range(5)
    ]
    audio = np.stack([*rows, np.zeros_like(seconds)])[:, None].astype(np.float32)
    audio[0, 0, 5] = np.nan
    return rng.integers(0, 32, (6, 4, 30)), audio


def finite(audio: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(audio).all(axis=(1, 2), keepdims=True), audio, 0.0).astype(np.float32)


def test_a_batch_is_measured_as_its_clips_are_alone_with_one_envelope_each(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(measure.MEASURES)
    (own_codes, own), (codes, audio) = batch(0), batch(1)
    baseline = hear(own_codes, own, RATE, Wanted())
    computed: list[int] = []
    envelope = clips_of.envelope
    monkeypatch.setattr(clips_of, "envelope", lambda *given: computed.append(1) or envelope(*given))
    found = hear(codes, audio, RATE, Wanted(names, sound=(2,)))
    # Nothing is computed for the two silent clips, one of which was not finite.
    assert len(computed) == 4

    alone: Any
    theirs: Any
    alone, theirs = (
        SimpleNamespace(audio=finite(sound), codes=tokens, sample_rate=RATE)
        for sound, tokens in ((audio, codes), (own, own_codes))
    )
    pd.testing.assert_frame_equal(found.frame, measure.table(alone.audio, RATE, measures=names), check_exact=True)
    assert found.onsets is not None
    lost = criteria(found.levels, baseline.levels, found.onsets)
    pd.testing.assert_frame_equal(lost, measure.failures(alone, theirs), check_exact=True)
    assert lost["failed"].any()
    assert not lost["failed"].all()
    assert list(found.audio) == [2]
    np.testing.assert_array_equal(found.audio[2], alone.audio[2])


def test_codes_and_levels_alone_need_no_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, audio = batch(0)
    monkeypatch.setattr(clips_of, "envelope", lambda *_: pytest.fail("an envelope was computed"))
    found = hear(codes, audio, RATE, Wanted())
    assert found.onsets is None
    assert found.frame.empty
    np.testing.assert_array_equal(found.levels.entropy, measure.code_entropy(codes))
