"""Sound files give the same measures as their samples; damaged files and other formats are rejected with the reason."""

import os
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from signals import RATE, drums

from audiolens import measure
from audiolens.errors import AudioLensError, InputError, MissingPackageError
from audiolens.measure import beats

NAMES = ["tempo", "onset_rate", "brightness", "loudness"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 8, 16, 44.1 and 192 kHz, mono and stereo, in four formats; and files with something wrong."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, rate in (
        ("8k.wav", 8_000),
        ("16k.flac", RATE),
        ("44k.ogg", 44_100),
        ("44k.mp3", 44_100),
        ("192k.wav", 192_000),
    ):
        soundfile.write(folder / name, drums(132, seed=2, rate=rate), rate)
    left = drums(90, seed=1)
    soundfile.write(folder / "stereo.wav", np.stack([left, 0.5 * left], axis=1), RATE)
    soundfile.write(folder / "six.wav", np.zeros((RATE, 6)), RATE)
    soundfile.write(folder / "nothing.wav", np.zeros(0), RATE)
    soundfile.write(folder / "short.wav", np.zeros(100), RATE)
    soundfile.write(folder / "broken.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not a sound " * 100)
    (folder / "page.mp3").write_text("<html>404</html>" * 100)
    for name in ("16k.flac", "44k.mp3"):
        whole = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
    for name, kind in (("cut.wav", "WAV"), ("cut.aiff", "AIFF")):
        soundfile.write(folder / name, drums(132), RATE, format=kind)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    whole = bytearray((folder / "8k.wav").read_bytes())
    # As a program writes that pipes a sound of unknown length.
    whole[4:8] = whole[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (folder / "streamed.wav").write_bytes(whole)
    _silent_hour(folder / "hour.wav")
    return folder


def _silent_hour(path: Path, rate: int = 44_100, seconds: int = 3_600) -> None:
    """Stereo, 16 bits; the samples are a hole in the file and take no disk."""
    size = seconds * rate * 4
    riff = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, rate, rate * 4, 4, 16)
    with path.open("wb") as file:
        file.write(riff + form + struct.pack("<4sI", b"data", size))
        file.truncate(44 + size)


@pytest.mark.parametrize("name", ["8k.wav", "16k.flac", "44k.ogg", "44k.mp3", "192k.wav", "streamed.wav"])
def test_every_rate_and_format_is_heard_alike(folder: Path, name: str):
    assert measure.tempo(folder / name) == pytest.approx(132, rel=0.01)
    assert measure.tempo(str(folder / name), method="ioi") == pytest.approx(132, rel=0.01)
    assert measure.loudness(folder / name) == pytest.approx(measure.loudness(drums(132, seed=2), RATE), abs=1)


def test_a_file_is_measured_as_its_samples_are(folder: Path):
    samples, rate = soundfile.read(folder / "stereo.wav", dtype="float32")
    expected = measure.table(samples.T, rate)
    np.testing.assert_array_equal(measure.table(folder / "stereo.wav"), expected)
    np.testing.assert_array_equal(measure.table([folder / "stereo.wav"]), expected)
    np.testing.assert_array_equal(measure.brightness([folder / "stereo.wav"]), expected["brightness"])
    out = types.SimpleNamespace(audio=samples.T[None], sample_rate=rate)
    assert measure.brightness(out).tolist() == expected["brightness"].tolist()


REFUSED = {
    "none.wav": "no such file",
    "": "give the sound files in it",
    "empty.wav": "is empty",
    "text.wav": "not a sound file",
    "page.mp3": "not a sound file",
    "nothing.wav": "contains no samples",
    "short.wav": "at least 0.1 s",
    "broken.wav": "NaN",
    "six.wav": "6 channels: expected one or two",
    "cut.wav": "cut short",
    "cut.aiff": "cut short",
    "cut-16k.flac": "or is incomplete",
    "cut-44k.mp3": "cut short",
    "hour.wav": "60 minutes are too long",
}


def test_each_bad_file_is_named_with_its_reason_and_the_others_are_measured(folder: Path):
    paths = [folder / name for name in ("stereo.wav", *REFUSED, "16k.flac")]
    frame, refused = measure.table_of_files(paths, NAMES)
    assert frame["file"].tolist() == [str(folder / "stereo.wav"), str(folder / "16k.flac")]
    np.testing.assert_array_equal(frame[NAMES], measure.table([paths[0], paths[-1]], measures=NAMES))
    np.testing.assert_allclose(frame["seconds"], 5.12)
    assert list(refused) == [str(folder / name) for name in REFUSED]
    for name, reason in REFUSED.items():
        why = refused[str(folder / name)]
        assert reason in why
        assert why.startswith(str(folder / name))
        with pytest.raises(InputError, match="."):
            measure.tempo(folder / name)


def test_files_are_measured_in_processes_alike(folder: Path):
    paths = [folder / name for name in ("stereo.wav", "16k.flac", "six.wav")]
    alone, together = (measure.table_of_files(paths, ["loudness"], n_jobs=n) for n in (1, 2))
    assert alone[0].equals(together[0])
    assert alone[1] == together[1]
    with pytest.raises(InputError, match="6 channels"):
        measure.table(paths, measures=["loudness"], n_jobs=2)


def test_a_span_is_measured_as_the_samples_in_it_are(folder: Path):
    samples, rate = soundfile.read(folder / "stereo.wav", dtype="float32")
    frame, _ = measure.table_of_files([folder / "stereo.wav"], NAMES, seconds=(1, 3.5))
    np.testing.assert_array_equal(frame[NAMES], measure.table(samples[rate : round(3.5 * rate)].T, rate, NAMES))
    assert frame["seconds"].tolist() == [2.5]
    _, refused = measure.table_of_files([folder / "stereo.wav"], NAMES, seconds=(4, 9))
    assert "lasts 5.1 s" in refused[str(folder / "stereo.wav")]
    for span in ((2, 1), (-1, 2), (0, float("nan")), ("a", 2), 3):
        with pytest.raises(AudioLensError, match="seconds="):
            measure.table_of_files([folder / "stereo.wav"], NAMES, seconds=span)  # type: ignore[arg-type]


def test_an_hour_is_refused_from_its_header_and_measured_in_parts(folder: Path):
    """In a process of its own, whose largest memory is then known: the hour itself would take 1.3 GB."""
    code = (
        "import resource, sys; from audiolens import measure\n"
        "measure.table_of_files([sys.argv[1]], ['loudness'], seconds=(0, 10))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "frame, refused = measure.table_of_files([sys.argv[1]], ['loudness'])\n"
        "assert refused and frame.empty\n"
        "frame, refused = measure.table_of_files([sys.argv[1]], ['loudness'], seconds=(3590, 3600))\n"
        "assert not refused and len(frame) == 1\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "hour.wav"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(measure.__file__).parents[2])},
    )  # fmt: skip
    assert int(done.stdout) < 100_000, "kilobytes"


class _Tracker:
    """Stands for Beat This: says what it was given, and finds a beat every 0.4 s."""

    made: list[tuple[str, str, bool]] = []
    heard: list[tuple[tuple[int, ...], int]] = []

    def __init__(self, checkpoint_path: str, device: str, dbn: bool) -> None:
        self.made.append((checkpoint_path, device, dbn))

    def __call__(self, signal: np.ndarray, sr: int) -> tuple[np.ndarray, np.ndarray]:
        self.heard.append((signal.shape, sr))
        found = np.arange(0.1, len(signal) / sr, 0.4)
        return found, found[::4]


@pytest.fixture
def beat_this(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Tracker]]:
    package, inference = types.ModuleType("beat_this"), types.ModuleType("beat_this.inference")
    inference.Audio2Beats = _Tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "beat_this", package)
    monkeypatch.setitem(sys.modules, "beat_this.inference", inference)
    beats._tracker.cache_clear()
    _Tracker.made.clear()
    _Tracker.heard.clear()
    yield _Tracker
    beats._tracker.cache_clear()


def test_beat_this_is_a_method_of_tempo_loaded_once(beat_this: type[_Tracker], folder: Path):
    audio = drums(100)
    assert measure.tempo(audio, RATE, method="beat_this") == pytest.approx(150)
    found = measure.tempo(np.stack([audio[None], 0 * audio[None], audio[None]]), RATE, method="beat_this")
    np.testing.assert_allclose(found, [150, np.nan, 150])
    assert np.isnan(measure.tempo(audio[: 5 * RATE // 4], RATE, method="beat_this")), "three beats are no tempo"
    assert beat_this.made == [("final0", "cpu", False)]
    assert beat_this.heard[0] == (audio.shape, RATE)
    assert len(beat_this.heard) == 4, "silence is not asked about"
    frame = measure.table(folder / "stereo.wav", measures=["tempo", "tempo_beat_this"])
    assert frame["tempo_beat_this"].tolist() == pytest.approx([150])


def test_without_beat_this_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "beat_this", None)
    beats._tracker.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install 'audiolens\[beats\]'"):
        measure.tempo(drums(100), RATE, method="beat_this")


def test_weights_that_cannot_be_fetched_are_told(beat_this: type[_Tracker], monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise ValueError("Could not load the checkpoint given the provided name", "final0")

    monkeypatch.setattr(beat_this, "__init__", refused)
    with pytest.raises(InputError, match="network connection"):
        measure.tempo(drums(100), RATE, method="beat_this")
