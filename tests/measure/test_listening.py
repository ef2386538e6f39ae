"""A batch is measured and checked for failure from one reading of its clips, with the same results as separately."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis import listening
from audiolens import measure
from audiolens.measure import clips as clips_of

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


def test_a_batch_is_measured_as_its_clips_are_alone_with_one_envelope_each(monkeypatch: pytest.MonkeyPatch) -> None:
    names, config = list(measure.MEASURES), SimpleNamespace(sample_rate=RATE)
    (own_codes, own), (codes, audio) = batch(0), batch(1)
    baseline = listening._hear(own_codes, own, None, names, config)
    computed: list[int] = []
    envelope = clips_of.envelope
    monkeypatch.setattr(clips_of, "envelope", lambda *given: computed.append(1) or envelope(*given))
    found = listening._hear(codes, audio, baseline, names, config)
    # Nothing of the silent clips, of which one was not finite, is computed.
    assert len(computed) == 4

    finite = np.where(np.isfinite(audio).all(axis=(1, 2), keepdims=True), audio, 0.0).astype(np.float32)
    alone = SimpleNamespace(audio=finite, codes=codes, sample_rate=RATE)
    expected = pd.concat(
        [measure.table(finite, RATE, measures=names), measure.failures(alone, baseline)], axis=1
    )  # fmt: skip
    pd.testing.assert_frame_equal(found.frame, expected, check_exact=True)
    assert found.frame["failed"].any()
    assert not found.frame["failed"].all()
