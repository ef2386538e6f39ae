"""Measures recover the known values of test signals, and return NaN where undefined."""

import librosa
import numpy as np
import pytest
import torch
from scipy import signal, stats
from signals import RATE, SECONDS, TIME, drums, noise

from audiolens import measure

BPM = (50, 60, 75, 90, 110, 128, 140, 160, 175, 190)


def chord_progression(mode: str, tonic: int, seed: int) -> np.ndarray:
    """Eight chords and a scale melody in one key, in sines with three harmonics."""
    rng = np.random.default_rng(seed)
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if mode == "major" else [0, 2, 3, 5, 7, 8, 10]) + tonic
    chords = [0, 3, 4, 0, *rng.choice([0, 3, 4], 3), 0]
    seconds = np.arange(round(SECONDS * RATE / 8)) / RATE

    def tone(midi: float) -> np.ndarray:
        hz = 440 * 2 ** ((midi - 69) / 12)
        partials = sum(np.sin(2 * np.pi * hz * h * seconds) / h**2 for h in (1, 2, 3))
        return partials * np.exp(-seconds / 0.4)

    bars = [
        sum(tone(48 + scale[(degree + step) % 7]) for step in (0, 2, 4))
        + tone(60 + scale[(degree + int(rng.choice([0, 2, 4]))) % 7])
        for degree in chords
    ]
    return (0.05 * np.concatenate(bars)).astype(np.float32)


def clicks(times: np.ndarray) -> np.ndarray:
    sound = np.zeros(len(TIME), dtype=np.float32)
    for time in times:
        sound[round(time * RATE) : round(time * RATE) + 40] = 0.5
    return sound


@pytest.mark.parametrize("method", ["beat", "ioi"])
def test_tempo_of_drums_is_their_bpm(method):
    heard = measure.tempo(np.stack([drums(bpm, seed=bpm)[None] for bpm in BPM]), RATE, method=method)
    np.testing.assert_allclose(heard, BPM, rtol=0.01)


def test_tempo_by_beat_ignores_soft_notes_between_the_beats():
    for bpm in BPM:
        assert measure.tempo(drums(bpm, seed=bpm, offbeat=1.0), RATE) == pytest.approx(bpm, rel=0.02)


def test_tempo_by_ioi_counts_accents_not_notes():
    for bpm in BPM:
        assert measure.tempo(drums(bpm, seed=bpm, offbeat=1.0), RATE, method="ioi") == pytest.approx(bpm, rel=0.02)


def test_onset_rate_counts_notes_that_tempo_ignores():
    sparse, dense = (measure.onset_rate(drums(100, seed=3, offbeat=share), RATE) for share in (0.0, 1.0))
    assert sparse == pytest.approx(100 / 60, abs=0.25)
    assert dense == pytest.approx(200 / 60, abs=0.45)


def test_beat_tempo_agrees_with_librosa_up_to_its_resolution():
    agreed = []
    for bpm in BPM:
        audio = drums(bpm, seed=bpm + 7)
        oracle = librosa.feature.tempo(y=audio, sr=RATE, hop_length=128, prior=stats.uniform(40, 200))[0]
        agreed.append(measure.tempo(audio, RATE) == pytest.approx(oracle, rel=0.04))
    assert np.mean(agreed) >= 0.9


def test_tempo_candidates_show_the_octave():
    candidates = measure.tempo_candidates(drums(120), RATE)
    assert candidates[0][0] == pytest.approx(120, rel=0.01)
    assert any(bpm == pytest.approx(60, rel=0.02) for bpm, _ in candidates[1:])
    assert [clarity for _, clarity in candidates] == sorted((c for _, c in candidates), reverse=True)
    with pytest.raises(ValueError, match="one clip"):
        measure.tempo_candidates(np.zeros((2, 1, RATE), np.float32), RATE)


@pytest.mark.parametrize("bpm", [100, 120, 128, 140])
@pytest.mark.parametrize("seconds", [5, 20])
def test_the_tempo_of_bare_clicks_or_its_octave_is_the_label(bpm: int, seconds: int):
    sound = np.zeros(seconds * RATE, np.float32)
    for start in np.arange(0, seconds, 60 / bpm):
        sound[round(start * RATE) : round(start * RATE) + 40] = 0.5
    row = measure.table(sound, RATE).iloc[0]
    assert any(row[name] == pytest.approx(bpm, rel=0.01) for name in ("tempo", "tempo_octave"))
    assert row["tempo_ambiguity"] > 0.6
    pulse = dict(measure.tempo_candidates(sound, RATE, n=9))
    assert row["tempo_ambiguity"] == pytest.approx(pulse[row["tempo_octave"]] / pulse[row["tempo"]])
    assert measure.tempo_octave(sound, RATE) == row["tempo_octave"]


@pytest.mark.parametrize("offset", [0.2, -0.05])
def test_a_constant_offset_is_not_heard(offset: float):
    tone = 0.3 * np.sin(2 * np.pi * 488 * TIME) * (np.sin(2 * np.pi * 2 * TIME) > 0)
    for sound in (tone, drums(120), chord_progression("minor", 2, 0), 0.02 * noise()):
        centred = (sound - sound.mean()).astype(np.float32)
        expected, row = measure.table(centred, RATE).iloc[0], measure.table(centred + np.float32(offset), RATE).iloc[0]
        np.testing.assert_allclose(row, expected, rtol=2e-3)
    assert measure.brightness(0.3 * np.sin(2 * np.pi * 488 * TIME) + offset, RATE) == pytest.approx(488, rel=0.01)
    assert measure.loudness(np.full(RATE, offset), RATE) == -np.inf


def test_a_clip_without_an_offset_is_measured_as_it_is():
    half = drums(120)[: RATE * 2]
    sound = np.concatenate([half, -half])
    assert sound.mean(dtype=np.float64) == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(measure.clips.read(sound, RATE)[0][0].samples, sound)


def test_an_octave_that_could_be_heard_either_way_is_reported():
    """A beat whose every second stroke is softer: the softer, the likelier half the tempo."""
    beat = drums(140, seed=1)
    plain = measure.tempo_ambiguity(beat, RATE)
    strokes = 60 / 140
    told = []
    for soft in (0.9, 0.6, 0.3):
        first = np.random.default_rng(1).random() * strokes
        number = np.floor((TIME - first + 0.01) / strokes).astype(int)
        told.append(measure.tempo_ambiguity(np.where(number % 2 == 1, soft, 1.0) * beat, RATE))
    assert plain < told[1] < told[2]
    assert all(0 <= value <= 1 for value in (plain, *told))
    (bpm, height), *others = measure.tempo_candidates(beat, RATE, n=20)
    rivals = [h for b, h in others if min(abs(b / bpm / r - 1) for r in (0.5, 2, 3, 1 / 3)) < 0.04]
    assert plain == pytest.approx(max(rivals) / height)


def test_pulse_clarity_tells_a_beat_from_clicks_at_random_moments():
    rng = np.random.default_rng(0)
    random = [measure.pulse_clarity(clicks(np.sort(rng.uniform(0, 5, 14))), RATE) for _ in range(40)]
    regular = [measure.pulse_clarity(drums(bpm, seed=bpm), RATE) for bpm in BPM]
    assert max(random) < min(regular)


@pytest.mark.parametrize("centre_hz", [300, 600, 1200, 2400, 4800])
def test_brightness_of_a_sine_is_its_frequency(centre_hz):
    sine = 0.2 * np.sin(2 * np.pi * centre_hz * TIME)
    assert measure.brightness(sine, RATE) == pytest.approx(centre_hz, rel=0.05)


def test_brightness_of_filtered_noise_is_the_middle_of_the_band():
    for low, high in ((500, 1500), (2000, 4000), (1000, 6000)):
        band = signal.sosfilt(signal.butter(10, (low, high), "bandpass", fs=RATE, output="sos"), noise())
        assert measure.brightness(band, RATE) == pytest.approx((low + high) / 2, rel=0.05)
    assert measure.brightness(noise(), RATE) == pytest.approx(RATE / 4, rel=0.02)


def test_brightness_leaves_pauses_out():
    band = signal.sosfilt(signal.butter(8, 1000, fs=RATE, output="sos"), noise())
    paused = band * np.clip(10 * np.sin(2 * np.pi * TIME), 0, 1) + 1e-4 * noise(1)
    assert measure.brightness(paused, RATE) == pytest.approx(measure.brightness(band, RATE), rel=0.05)


def test_brightness_agrees_with_librosa_on_steady_sound():
    band = signal.sosfilt(signal.butter(4, (300, 3000), "bandpass", fs=RATE, output="sos"), noise(2))
    oracle = librosa.feature.spectral_centroid(y=band, sr=RATE, n_fft=1024, hop_length=512, center=False).mean()
    assert measure.brightness(band, RATE) == pytest.approx(oracle, rel=1e-3)


def test_ltas_centroid_agrees_with_scipy_and_with_brightness_on_steady_sound():
    band = signal.sosfilt(signal.butter(4, (300, 3000), "bandpass", fs=RATE, output="sos"), noise(2))
    hz, power = signal.welch(band, RATE, nperseg=1024, noverlap=512, detrend=False)
    # scipy's spectrum is one-sided: it doubles every bin but the first and the last.
    power[1:-1] /= 2
    assert measure.ltas_centroid(band, RATE) == pytest.approx(hz @ np.sqrt(power) / np.sqrt(power).sum(), rel=1e-3)
    assert measure.ltas_centroid(band, RATE) == pytest.approx(measure.brightness(band, RATE), rel=0.05)
    assert measure.ltas_centroid(noise(), RATE) == pytest.approx(RATE / 4, rel=0.01)
    assert np.isnan(measure.ltas_centroid(np.zeros(RATE), RATE))


def test_a_quiet_dark_tail_lowers_brightness_but_hardly_the_long_term_average():
    seconds = np.arange(RATE) / RATE
    loud = np.where(seconds < 0.5, np.sin(2 * np.pi * 3000 * seconds), 0)
    tail = np.where(seconds >= 0.5, 0.02 * np.sin(2 * np.pi * 300 * seconds), 0)
    assert measure.brightness(loud + tail, RATE) == pytest.approx((3000 + 300) / 2, rel=0.1)
    assert measure.ltas_centroid(loud + tail, RATE) > 2700
    assert measure.ltas_centroid(loud + tail, RATE) == pytest.approx(measure.ltas_centroid(0.1 * (loud + tail), RATE))


@pytest.mark.parametrize("seed", [0, 3])
def test_rolloff_agrees_with_librosa_on_steady_sound_and_is_85_percent_of_white_noise(seed):
    band = signal.sosfilt(signal.butter(4, (300, 3000), "bandpass", fs=RATE, output="sos"), noise(seed))
    oracle = librosa.feature.spectral_rolloff(y=band, sr=RATE, n_fft=1024, hop_length=512, center=False).mean()
    assert measure.rolloff(band, RATE) == pytest.approx(oracle, rel=1e-3)
    assert measure.rolloff(noise(seed), RATE) == pytest.approx(0.85 * RATE / 2, rel=0.01)


def test_loudness_is_the_rms_in_dbfs():
    assert measure.loudness(np.sin(2 * np.pi * 440 * TIME), RATE) == pytest.approx(-3.01, abs=0.01)
    assert measure.loudness(np.resize([0.1, -0.1], RATE), RATE) == pytest.approx(-20, abs=1e-3)


@pytest.mark.parametrize("melody_hz", [175, 262, 392, 587, 880])
def test_pitch_is_the_melody_over_a_bass(melody_hz):
    bass = 0.3 * sum(np.sin(2 * np.pi * 65 * h * TIME) / h**2 for h in (1, 2, 3))
    melody = 0.15 * sum(np.sin(2 * np.pi * melody_hz * h * TIME) / h for h in (1, 2, 3, 4))
    assert measure.pitch(bass + melody, RATE) == pytest.approx(melody_hz, rel=0.01)


def test_mode_is_positive_in_major_and_negative_in_minor():
    scores = {
        mode: np.array([measure.mode(chord_progression(mode, tonic, tonic), RATE) for tonic in range(12)])
        for mode in ("major", "minor")
    }
    right = np.concatenate([scores["major"] > 0, scores["minor"] < 0])
    assert right.mean() >= 0.9
    assert scores["major"].mean() > 0.1 > -0.1 > scores["minor"].mean()


def test_the_harmonics_of_a_bass_do_not_hide_a_minor_key():
    # The fifth harmonic of the tonic is its major third. Counted up to 1000 Hz, half of these clips would be major.
    scores = []
    for tonic in range(12):
        music = chord_progression("minor", tonic, tonic)
        seconds = np.arange(len(music)) / RATE
        hz = 440 * 2 ** ((36 + tonic - 69) / 12)
        bass = 0.02 * sum(np.sin(2 * np.pi * hz * h * seconds) / h**0.5 for h in range(1, 17))
        scores.append(measure.mode(music + bass, RATE))
    assert np.mean(np.array(scores) < 0) >= 0.8


def test_pitch_class_is_the_tonic_in_either_mode():
    found = {
        (mode, tonic): measure.pitch_class(chord_progression(mode, tonic, tonic), RATE)
        for mode in ("major", "minor")
        for tonic in range(12)
    }
    told = {key: value for key, value in found.items() if not np.isnan(value)}
    right = np.mean([value == tonic for (_, tonic), value in told.items()])
    print(f"{len(told)} of 24 progressions have a key, {right:.0%} of these the right one")
    assert len(told) >= 18
    assert right >= 0.8


@pytest.mark.parametrize(("hz", "expected"), [(261.63, 0), (440.0, 9), (493.88, 11)])
def test_pitch_class_of_one_note_is_that_note(hz, expected):
    assert measure.pitch_class(0.2 * np.sin(2 * np.pi * hz * TIME), RATE) == expected


NO_BEAT = {"tempo", "tempo_ioi", "tempo_ambiguity", "tempo_octave"}


def beeps(hz: list[float], rate: int) -> np.ndarray:
    """Two notes a second of 50 ms, whose sudden ends sound at every pitch a little."""
    time = np.arange(5 * rate) / rate
    which, since = (time // 0.5).astype(int), time % 0.5 - 0.0131
    notes = 0.3 * np.sin(2 * np.pi * np.asarray(hz)[which % len(hz)] * time)
    return np.where((since >= 0) & (since < 0.05), notes, 0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(("hz", "expected"), [([440.0], 9), ([523.25], 0), ([330.0], 4), ([440.0, 660.0], np.nan)])
def test_the_clicks_of_short_notes_are_no_pitch_classes(rate: int, hz: list[float], expected: float):
    sound = beeps(hz, rate)
    np.testing.assert_equal(measure.pitch_class(sound, rate), expected)
    assert np.isnan(measure.mode(sound, rate))


NO_PITCH = {"pitch", "pitch_class", "mode"}
NOWHERE = NO_BEAT | NO_PITCH | {"onset_rate", "pulse_clarity", "brightness", "ltas_centroid", "rolloff"}


@pytest.mark.parametrize(
    ("sound", "absent"),
    [
        (np.zeros(RATE), NOWHERE),
        (1e-5 * noise(), NOWHERE),
        (noise(), NO_BEAT | NO_PITCH),
        (np.cumsum(noise()) * 0.01, NO_BEAT | NO_PITCH),
        (clicks(np.array([1.0])), NO_BEAT | NO_PITCH),
        (clicks(np.arange(0.1, 5, 0.5)), NO_PITCH),
        (0.3 * np.sin(2 * np.pi * 440 * TIME), NO_BEAT | {"mode"}),
        (np.full(RATE, 0.3), NOWHERE),
    ],
    ids=["silence", "near silence", "white noise", "brown noise", "one click", "clicks", "sine", "constant"],
)
def test_what_means_nothing_is_nan_and_the_rest_is_not(sound, absent):
    row = measure.table(sound, RATE).iloc[0]
    assert set(row.index[row.isna()]) == absent


def test_digital_silence_is_infinitely_quiet():
    assert measure.loudness(np.zeros(RATE), RATE) == -np.inf


def test_noise_and_tones_have_no_onsets():
    for sound in (*(noise(seed) for seed in range(8)), 0.3 * np.sin(2 * np.pi * 440 * TIME)):
        assert measure.onset_rate(sound, RATE) == 0
        assert measure.pulse_clarity(sound, RATE) == 0


def test_layouts_and_types_give_the_same_numbers():
    audio = drums(100, offbeat=0.5)
    row = measure.table(audio, RATE).iloc[0]
    expected = row.to_numpy()
    layouts = {
        "tensor": torch.from_numpy(audio),
        "gradient": torch.from_numpy(audio).requires_grad_(),
        "stereo": np.stack([audio, audio]),
        "row": audio[None, None],
        "float64": audio.astype(np.float64),
        "list": [audio],
    }
    for name, layout in layouts.items():
        np.testing.assert_allclose(measure.table(layout, RATE).iloc[0], expected, rtol=1e-5, err_msg=name)
    pcm = measure.table((audio * 32768).astype(np.int16), RATE).iloc[0]
    robust = ["tempo", "brightness", "loudness"]
    np.testing.assert_allclose(pcm[robust], row[robust], rtol=0.02)
    half = measure.tempo(torch.from_numpy(audio).bfloat16(), RATE)
    assert half == pytest.approx(expected[0], rel=0.01)


def test_rows_come_back_as_an_array_and_clips_as_a_number():
    audio = np.stack([drums(80), drums(160)])
    rows = measure.tempo(audio[:, None], RATE)
    assert isinstance(rows, np.ndarray)
    assert rows.shape == (2,)
    assert isinstance(measure.tempo(audio, RATE), float)


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000])
def test_tempo_does_not_depend_on_the_sample_rate(rate):
    assert measure.tempo(drums(132, rate=rate), rate) == pytest.approx(132, rel=0.01)
    assert measure.tempo(drums(132, rate=rate), rate, method="ioi") == pytest.approx(132, rel=0.01)


@pytest.mark.parametrize(
    ("audio", "rate", "error", "message"),
    [
        (np.zeros(100, np.float32), RATE, ValueError, "at least 0.1 s"),
        (np.zeros(0, np.float32), RATE, ValueError, "0 samples"),
        (np.zeros((0, 1, RATE), np.float32), RATE, ValueError, "no rows"),
        (np.full(RATE, np.nan, np.float32), RATE, ValueError, "NaN"),
        (np.stack([np.zeros((1, RATE)), np.full((1, RATE), np.inf)]), RATE, ValueError, r"rows \[1\]"),
        (np.zeros((RATE, 2), np.float32), RATE, ValueError, "transpose"),
        (np.zeros((1, 1, 1, RATE), np.float32), RATE, ValueError, r"\[row, channel, sample\]"),
        (np.zeros(RATE, np.float32), 0, ValueError, "sample_rate is 0"),
        (np.zeros(RATE, np.float32), -16_000, ValueError, "sample_rate"),
        (np.zeros(RATE, np.float32), "16000", TypeError, "sample_rate"),
        (np.zeros(RATE, np.int64), RATE, TypeError, "int16"),
        (np.zeros(RATE, np.complex64), RATE, TypeError, "complex64"),
        (np.zeros((6, RATE), np.float32), RATE, ValueError, "mix more channels down"),
        (np.zeros((1, 1, 5_000 * 601), np.float32), 5_000, ValueError, "10 minutes"),
        (np.zeros(RATE, np.float32), None, ValueError, "give sample_rate"),
        ([], RATE, ValueError, "no rows"),
        ("clip.wav", RATE, ValueError, "its own sample rate"),
        (7, RATE, TypeError, "int"),
    ],
)
def test_audio_that_cannot_be_measured_is_refused_with_the_reason(audio, rate, error, message):
    with pytest.raises(error, match=message):
        measure.tempo(audio, rate)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'ioi' or 'beat_this'"):
        measure.tempo(noise(), RATE, method="guess")


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1.0])
def test_short_clips_are_measured_or_nan_never_an_error(seconds):
    row = measure.table((drums(120) + noise(level=0.01))[: round(seconds * RATE)], RATE).iloc[0]
    assert np.isnan(row["tempo"])
    assert np.isfinite(row["brightness"])
