"""The clips that both audiolens and the models of `hear.py` measure, as WAV files with one table.

- "generated": neutral test prompts, unsteered, steered towards both poles of each concept, and with the poles asked for
  in words, all at the same seeds.
- "synthesised" and "codec": clips of the synthesiser with known labels, before and after the model's codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from analysis import sweep
from analysis.study import Settings
from analysis.sweep import BASELINE, Condition
from audiolens import AudioLens, Directions, difference_in_means, measure, steer
from audiolens.directions.strategies import Strategy
from audiolens.errors import InputError
from audiolens.etude import synth
from audiolens.prompts import PromptSet, load
from audiolens.sound import soundfiles

SEED = 505
"""Seed of the synthesiser's clips; training and calibration use others."""
ROWS = 32
Codes = Literal["own", "shared"]
"""Over whose codes directions are read: each pole's own, or those of neutral prompts."""
PROMPTED = ("tempo", "timbre", "density", "register", "mode")
"""The concepts whose poles are asked for in words, by default."""


@dataclass(frozen=True)
class Place:
    """Where and how strongly a concept is steered."""

    strategy: Strategy
    layer: int
    strength: float

    def __str__(self) -> str:
        return f"{self.strategy} {self.layer}, ±{self.strength:g}"

    @classmethod
    def read(cls, text: str) -> tuple[str, Place]:
        """A concept and its place, from text such as "tempo=one-to-one:3:1".

        Raises:
            InputError: if the text has another form.
        """
        try:
            concept, place = text.split("=")
            named, layer, strength = place.split(":")
            strategy: Strategy | None = next((one for one in get_args(Strategy) if one == named), None)
            if strategy is None:
                raise ValueError(f"strategy {named!r}")
            return concept, cls(strategy, int(layer), float(strength))
        except ValueError as error:
            raise InputError(
                f"place {text!r}: expected CONCEPT=STRATEGY:LAYER:STRENGTH, such as tempo=one-to-one:3:1 ({error})."
            ) from None


PLACES: Mapping[str, Place] = {
    "tempo": Place("one-to-one", 3, 1.0),
    "timbre": Place("one-to-all", 7, 0.5),
    "mode": Place("one-to-one", 7, 0.86),
}
"""The places and strengths of docs/evidence.md for tempo and timbre. For mode, those of docs/placement.md."""


def generated(
    lens: AudioLens,
    folder: Path,
    places: Mapping[str, Place],
    prompted: Sequence[str],
    codes: Codes,
    n_prompts: int,
    n_seeds: int,
    seconds: float,
) -> pd.DataFrame:
    """Generate and measure the clips of every condition into `folder`, where a stopped run continues."""
    settings = Settings.full(test=n_prompts, test_seeds=n_seeds)
    sets = {concept: load(concept, lens=lens) for concept in dict.fromkeys((*places, *prompted))}
    clips = settings.test_clips(next(iter(sets.values())))
    conditions = [
        Condition(BASELINE),
        *(one for concept, place in places.items() for one in steered(lens, folder, sets[concept], place, codes)),
        *(one for concept in prompted for one in asked(sets[concept])),
    ]
    played = sweep.play(
        lens, conditions, clips, seconds=seconds, **settings.drawing, n_jobs=0, out=folder / "clips", sound="wav",
        progress="generating",
    )  # fmt: skip
    table = played.table
    # Measured anew from the files: a finished sweep returns its stored measures, although a measure may have changed.
    measured = measure.table([str(folder / "clips" / file) for file in table["file"]])
    table = with_beats(table.drop(columns=list(measured.columns), errors="ignore").join(measured))
    return table.assign(set="generated", file=f"{folder.name}/clips/" + table["file"])


def steered(lens: AudioLens, folder: Path, sets: PromptSet, place: Place, codes: Codes) -> list[Condition]:
    """One condition for each pole of a concept; its directions are read once, into `folder`."""
    path = folder / f"{sets.concept}-{codes}.safetensors"
    if path.exists():
        directions = Directions.load(path, lens=lens)
    else:
        poles = Settings.full().poles
        high, low = sets.positive[:poles], sets.negative[:poles]
        options: dict[str, Any] = {"codes": codes, "neutral": sets.development} if codes == "shared" else {}
        directions = difference_in_means(lens, high, low, label=sets.concept, **options)
        folder.mkdir(parents=True, exist_ok=True)
        directions.save(path)
    found = []
    for pole, sign in zip(sets.poles, (1, -1), strict=True):
        strength = sign * place.strength
        steps = steer(directions, strategy=place.strategy, layer=place.layer, strength=strength)
        found.append(Condition(f"steered {pole}", tuple(steps)))
    return found


def asked(sets: PromptSet) -> list[Condition]:
    """One condition for each pole of a concept, asked for in words."""
    return [
        Condition(f"prompted {pole}", ask=lambda prompt, pole=pole: sets.prompted(prompt, pole)) for pole in sets.poles
    ]


def labelled(lens: AudioLens, folder: Path, n: int) -> pd.DataFrame:
    """Write `n` clips of the synthesiser, before and after the codec, and measure them. `prompt` numbers the clip."""
    drawn = list(synth.labelled_clips(n, seed=SEED))
    labels = pd.DataFrame([clip.attributes.as_dict() for clip in drawn])
    # A kick marks every beat, so only the notes between beats add onsets.
    truths = pd.DataFrame(
        {
            "label_tempo_bpm": labels["tempo_bpm"],
            "label_onset_rate": labels["tempo_bpm"] / 60 * labels["density"].clip(lower=1.0),
            "label_density": labels["density"],
            "label_register_hz": 440 * 2 ** ((labels["register_midi"] - 69) / 12),
            "label_centroid_hz": labels["centroid_hz"],
            "label_major": (labels["mode"] == "major").astype(float),
            "label_tonic": labels["tonic"],
        }
    )
    raw = np.stack([clip.audio for clip in drawn])[:, None]
    sounds = {
        "synthesised": (raw, synth.SAMPLE_RATE),
        "codec": (through_codec(lens, raw, synth.SAMPLE_RATE), lens.config.sample_rate),
    }
    tables = []
    for name, (audio, sample_rate) in sounds.items():
        files = [f"{name}/{number:05d}.wav" for number in range(n)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, clip in zip(files, audio, strict=True):
            soundfiles.write(folder / file, clip, sample_rate)
        heard = with_beats(measure.table(audio, sample_rate))
        facts = {"set": name, "file": files, "prompt": [f"clip {number}" for number in range(n)], "failed": False}
        tables.append(pd.concat([pd.DataFrame(facts), truths, heard], axis=1))
    return pd.concat(tables, ignore_index=True)


def through_codec(lens: AudioLens, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The same clips [row, channel, sample], encoded and decoded."""
    parts: Sequence[np.ndarray] = np.split(audio, range(ROWS, len(audio), ROWS))
    return np.concatenate(
        [lens.decode_codes(lens.encode_audio(part, sample_rate)).float().cpu().numpy() for part in parts]
    )


def with_beats(table: pd.DataFrame) -> pd.DataFrame:
    """Add `onsets_per_beat`: onsets per second over beats per second."""
    return table.assign(onsets_per_beat=60 * table["onset_rate"] / table["tempo"])
