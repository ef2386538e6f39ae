"""Calibrate each measure against the synthesiser's labels, for `docs/measures.md`.

Clips of known tempo, brightness, register and so on are measured as synthesised, and again after they pass through a
model's codec. Differences that a measure loses in the codec cannot be detected in steering. With `--update` the table
replaces the one in the docs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from pages import renewed
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from audiolens import AudioLens, measure
from audiolens.etude import synth
from audiolens.etude.attributes import TONICS

PAGE = Path(__file__).parent.parent / "docs" / "measures.md"
SEED = 404
"""Seed of the clips; training uses others."""
ROWS = 32


@dataclass(frozen=True)
class Row:
    """One measure against its label: the share of clips with a value, and how well the values agree."""

    measure: str
    label: str
    told: float
    agreement: str


def main(
    model: Annotated[str, typer.Option(help="Model whose codec the clips go through.")] = "etude",
    clips: Annotated[int, typer.Option(help="Number of synthesised clips.")] = 400,
    jobs: Annotated[int, typer.Option(help="Measuring processes; -1 means one per core.")] = -1,
    update: Annotated[bool, typer.Option(help="Write the table into docs/measures.md.")] = False,
) -> None:
    """Calibrate every measure against known labels, before and after the codec."""
    lens = AudioLens.from_pretrained(model)
    drawn = list(synth.labelled_clips(clips, seed=SEED))
    labels = pd.DataFrame([clip.attributes.as_dict() for clip in drawn])
    raw = np.stack([clip.audio for clip in drawn])[:, None]
    coded = through_codec(lens, raw)
    before = calibrated(labels, measure.table(raw, synth.SAMPLE_RATE, n_jobs=jobs))
    after = calibrated(labels, measure.table(coded, lens.config.sample_rate, n_jobs=jobs))
    text = markdown(before, after, model, clips)
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "calibration", text), "utf-8")
    print(text)


def through_codec(lens: AudioLens, audio: np.ndarray) -> np.ndarray:
    """The same clips, encoded and decoded."""
    return np.concatenate(
        [
            lens.decode_codes(lens.encode_audio(part, synth.SAMPLE_RATE)).float().cpu().numpy()
            for part in np.split(audio, range(ROWS, len(audio), ROWS))
        ]
    )


def calibrated(labels: pd.DataFrame, heard: pd.DataFrame) -> list[Row]:
    """Every measure against the label that it should follow."""
    rows = [_tempo(labels, heard, name) for name in ("tempo", "tempo_ioi")]
    right = (heard["tempo"] / labels["tempo_bpm"] - 1).abs() < 0.04
    doubt = heard["tempo_ambiguity"]
    known = doubt.notna()
    rows.append(_row(heard, "tempo_ambiguity", "`tempo` is wrong", f"AUC {_auc(~right[known], doubt[known])}"))
    notes = labels["tempo_bpm"] * labels["density"] / 60
    rows += [
        _row(heard, "onset_rate", "melody notes per second", f"ρ {_rho(heard['onset_rate'], notes)}"),
        _row(heard, "pulse_clarity", "none", _spread(heard["pulse_clarity"])),
        _hz(heard, "brightness", labels["centroid_hz"], "centroid"),
        _hz(heard, "ltas_centroid", labels["centroid_hz"], "centroid"),
        _row(heard, "rolloff", "centroid", f"ρ {_rho(heard['rolloff'], labels['centroid_hz'])}"),
        _row(
            heard, "loudness", "level", f"median error {_median(heard['loudness'] - labels['loudness_dbfs']):.2f} dB, "
            f"ρ {_rho(heard['loudness'], labels['loudness_dbfs'])}",
        ),
        _hz(heard, "pitch", 440 * 2 ** ((labels["register_midi"] - 69) / 12), "middle of the melody"),
        _row(
            heard, "pitch_class", "tonic",
            f"{_share(heard['pitch_class'], labels['tonic']):.0%} right (one of {len(TONICS)} tonics)",
        ),
        _row(heard, "mode", "major or minor", f"AUC {_auc(labels['mode'] == 'major', heard['mode'])}"),
    ]  # fmt: skip
    return rows


def markdown(before: list[Row], after: list[Row], model: str, n: int) -> str:
    """The table in Markdown, with an explanation of its columns."""
    lines = [
        f"The measures were computed on {n} clips from the synthesiser, 5.12 s each, before and after encoding and "
        f"decoding by the codec of `{model}` (`python benchmarks/calibration.py --update`). "
        '"Measured" is the share of clips for which the measure has a value. ρ is Spearman\'s rank correlation between '
        "the measure and the label over these clips.",
        "",
        "| measure | label | measured | agreement | measured, after the codec | agreement, after the codec |",
        "|---|---|---|---|---|---|",
        *(
            f"| {a.measure} | {a.label} | {a.told:.0%} | {a.agreement} | {b.told:.0%} | {b.agreement} |"
            for a, b in zip(before, after, strict=True)
        ),
    ]
    return "\n".join(lines) + "\n"


def _tempo(labels: pd.DataFrame, heard: pd.DataFrame, name: str) -> Row:
    ratio = heard[name] / labels["tempo_bpm"]
    told = heard[name].notna()
    right = (ratio - 1).abs() < 0.04
    octave = pd.concat([(ratio / factor - 1).abs() < 0.04 for factor in (0.5, 2.0, 1 / 3, 3.0)], axis=1).any(axis=1)
    error = (heard[name] - labels["tempo_bpm"])[right]
    return _row(
        heard, name, "tempo",
        f"{right[told].mean():.0%} within 4% (median error {_median(error):.2f} BPM), {octave[told].mean():.0%} an "
        f"octave or twelfth off, ρ {_rho(heard[name], labels['tempo_bpm'])}",
    )  # fmt: skip


def _hz(heard: pd.DataFrame, name: str, label: pd.Series, what: str) -> Row:
    error = heard[name] - label
    return _row(
        heard, name, what, f"median error {_median(error):.0f} Hz ({_median(error / label):.1%}), "
        f"ρ {_rho(heard[name], label)}",
    )  # fmt: skip


def _row(heard: pd.DataFrame, name: str, label: str, agreement: str) -> Row:
    unit = measure.UNITS[name]
    return Row(f"`{name}`{f' [{unit}]' if unit else ''}", label, float(heard[name].notna().mean()), agreement)


def _median(error: pd.Series) -> float:
    return float(error.abs().median())


def _rho(values: pd.Series, label: pd.Series) -> str:
    known = values.notna()
    return f"{spearmanr(values[known], label[known])[0]:.3f}"


def _auc(positive: Any, values: pd.Series) -> str:
    known = values.notna()
    positive = positive[known]
    if positive.nunique() < 2:
        return "none (one kind only)"
    return f"{roc_auc_score(positive, values[known]):.3f}"


def _share(values: pd.Series, label: pd.Series) -> float:
    known = values.notna()
    return float((values[known] == label[known]).mean())


def _spread(values: pd.Series) -> str:
    low, middle, high = values.quantile([0.1, 0.5, 0.9])
    return f"median {middle:.2f} (10-90%: {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    typer.run(main)
