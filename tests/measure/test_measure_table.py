"""The table of measures over many clips, and the detection of failed clips."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from signals import RATE, drums, noise

from audiolens import measure


def test_table_holds_what_the_single_measures_say():
    audio = np.stack([drums(bpm, seed=bpm)[None] for bpm in (60, 100, 150)])
    frame = measure.table(audio, RATE)
    assert list(frame.columns) == list(measure.MEASURES)
    assert {*measure.MEASURES, *measure.EXTRA_MEASURES} == set(measure.UNITS)
    for name in set(measure.MEASURES) - {"tempo", "tempo_ioi"}:
        np.testing.assert_array_equal(frame[name], getattr(measure, name)(audio, RATE))
    np.testing.assert_array_equal(frame["tempo"], measure.tempo(audio, RATE))
    np.testing.assert_array_equal(frame["tempo_ioi"], measure.tempo(audio, RATE, method="ioi"))


def test_a_measure_that_is_named_twice_is_measured_once() -> None:
    twice = measure.table([drums(132)], RATE, measures=["loudness", "brightness", "loudness"])
    assert list(twice.columns) == ["loudness", "brightness"]


def test_table_does_not_depend_on_the_number_of_processes():
    clips = [drums(60 + 10 * i, seed=i)[: 40_000 + 1000 * i] for i in range(6)]
    names = ["tempo", "onset_rate", "brightness"]
    alone, together = (measure.table(clips, RATE, names, n_jobs=n) for n in (1, 2))
    assert list(together.columns) == names
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(
    ("measures", "message"), [(["tempo", "swing"], "pulse_clarity"), ("tempo", "expected a list of names, such as")]
)
def test_table_refuses_unknown_measures_and_says_which_there_are(measures, message):
    with pytest.raises(ValueError, match=message):
        measure.table(noise(), RATE, measures)


def generated(audio: list[np.ndarray], codes: np.ndarray | None = None) -> SimpleNamespace:
    if codes is None:
        codes = np.random.default_rng(0).integers(0, 256, (len(audio), 4, 128))
    rows = torch.from_numpy(np.stack(audio)[:, None].astype(np.float32))
    return SimpleNamespace(audio=rows, codes=torch.from_numpy(codes), sample_rate=RATE)


def test_a_clip_fails_by_level_by_onsets_or_by_its_codes():
    clip = drums(120)
    rng = np.random.default_rng(1)
    codes = np.stack([rng.integers(0, 256, (4, 128))] * 7)
    codes[6] = rng.integers(0, 2, (4, 128))
    quieter, louder, silent, beatless = 0.3 * clip, 3.2 * clip, 0 * clip, noise(level=np.sqrt(np.mean(clip**2)))
    steered = generated([clip, 0.4 * clip, quieter, louder, silent, beatless, clip], codes)
    baseline = generated([clip] * 7, np.stack([codes[0]] * 7))
    assert measure.failed(steered, baseline).tolist() == [False, False, True, True, True, True, True]
    grounds = measure.failures(steered, baseline)
    assert grounds.loc[2, "rms_ratio"] == pytest.approx(0.3, rel=1e-3)
    assert grounds.loc[5, "onsets"] == 0
    assert grounds.loc[6, "entropy_ratio"] < 0.5


def test_a_silent_baseline_fails_rather_than_passes():
    assert measure.failed(generated([drums(120)]), generated([0 * drums(120)])).all()


def test_code_entropy_of_constant_and_uniform_codes():
    constant = np.full((1, 4, 256), 7)
    uniform = np.tile(np.arange(256), (1, 4, 1))
    assert measure.code_entropy(constant) == 0
    np.testing.assert_allclose(measure.code_entropy(torch.from_numpy(uniform)), 8.0)


def test_failed_refuses_rows_that_do_not_pair_and_results_without_codes():
    clip = drums(120)
    with pytest.raises(ValueError, match="same prompts and seeds"):
        measure.failed(generated([clip, clip]), generated([clip]))
    with pytest.raises(TypeError, match="codes"):
        measure.failed(SimpleNamespace(audio=clip, sample_rate=RATE), generated([clip]))
    with pytest.raises(ValueError, match="row, codebook, frame"):
        measure.code_entropy(np.zeros((4, 128), int))


def clips_of(prompts: Any, seeds: Any, frames: int = 128, **more: Any) -> Any:
    codes = np.random.default_rng(0).integers(0, 256, (len(prompts), 4, frames))
    made = generated([drums(120)] * len(prompts), codes)
    given = {"prompts": tuple(prompts), "seeds": None if seeds is None else tuple(seeds), "settings": {"model": "a"}}
    return SimpleNamespace(**{**vars(made), **given, **more})


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (clips_of(["one", "three"], [0, 1]), "row 1: the prompt of steered is 'two', that of baseline 'three'"),
        (clips_of(["two", "one"], [1, 0]), "row 0: the prompt"),
        (clips_of(["one", "two"], [0, 2]), "row 1: the seed of steered is 1, that of baseline 2"),
        (clips_of(["one", "two"], None), "row 0: the seed of steered is 0, that of baseline None"),
        (clips_of(["one", "two"], [0, 1], frames=64), "steered has frames 128, baseline 64"),
        (clips_of(["one", "two"], [0, 1], sample_rate=RATE // 2), "sample rate"),
        (clips_of(["one", "two"], [0, 1], settings={"model": "b"}), "steered has model a, baseline b"),
    ],
)
def test_a_baseline_belongs_to_its_clips(baseline: Any, message: str) -> None:
    steered = clips_of(["one", "two"], [0, 1])
    assert not measure.failed(steered, clips_of(["one", "two"], [0, 1])).any()
    with pytest.raises(ValueError, match=message):
        measure.failed(steered, baseline)


def test_a_baseline_is_unsteered_and_drawn_alike() -> None:
    drawn = {"model": "a", "guidance_scale": 3.0, "temperature": 1.0, "top_k": 250}
    steered = clips_of(["one"], [0], settings={**drawn, "interventions": ["Add"]})
    assert not measure.failed(steered, clips_of(["one"], [0], settings=drawn)).any()
    with pytest.raises(ValueError, match="baseline was steered itself"):
        measure.failed(steered, steered)
    for name, other in (("guidance_scale", 1.0), ("temperature", 0.5), ("top_k", 20)):
        with pytest.raises(ValueError, match=f"steered was generated with {name}=.*, baseline with {other}"):
            measure.failed(steered, clips_of(["one"], [0], settings={**drawn, name: other}))


def test_measures_read_any_layout_of_the_same_samples_and_no_mask() -> None:
    clip = drums(120).astype(np.float32)
    expected = measure.brightness(clip, RATE)
    rate: Any = torch.tensor(RATE)
    frozen = clip.copy()
    frozen.flags.writeable = False
    for same in (clip.astype(">f4"), clip[::-1].copy()[::-1], np.repeat(clip, 2)[::2], frozen, torch.from_numpy(clip)):
        assert measure.brightness(same, np.int64(RATE)) == expected
        assert measure.loudness(same, rate) == measure.loudness(clip, RATE)
    pcm = (clip * 32767).astype(np.int16)
    assert measure.brightness(pcm.astype(">i2"), RATE) == measure.brightness(pcm, RATE)
    with pytest.raises(TypeError, match="mask would be ignored"):
        measure.brightness(np.ma.masked_array(clip, mask=clip > 0.1), RATE)
