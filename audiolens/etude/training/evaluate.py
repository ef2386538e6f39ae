"""Evaluate whether étude plays what a prompt asks for, and what it plays when the prompt is neutral.

`python -m audiolens.etude.training.evaluate` prints an AUC for every concept. The AUC measures how well a measurement
separates clips of the two poles, generated from held-out wordings that never occur in training. The table also has a
ceiling, which is the same AUC on the synthesiser's own clips after the codec. An AUC shows only that the poles differ,
not that the clips sound good.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from jaxtyping import Float

from audiolens.etude.attributes import INSTRUMENTS
from audiolens.etude.captions import ADJECTIVES, ENDINGS, NEUTRAL_ADJECTIVES, NOUNS
from audiolens.etude.training import instruments
from audiolens.files.atomic import written
from audiolens.ranking import auc

if TYPE_CHECKING:
    import pandas as pd

    from audiolens.lens import AudioLens

POLES = {
    "tempo": ("low", "high"),
    "timbre": ("low", "high"),
    "register": ("low", "high"),
    "density": ("low", "high"),
    "loudness": ("low", "high"),
    "mode": ("minor", "major"),
}
MEASURED_BY = {
    "tempo": ("tempo", "tempo_ioi"),
    "timbre": ("brightness",),
    "register": ("pitch",),
    "density": ("onsets_per_beat", "onset_rate"),
    "loudness": ("loudness",),
    "mode": ("mode",),
}
FRAMES = (
    "{} music for a rainy afternoon", "some {} sounds from far away", "i would like something {} please",
    "can you make it {} tonight", "background music , {} , under a podcast", "nothing but {} music",
    "an evening of {} improvisation", "compose something {} about my sister", "these people perform something {}",
    "a {} soundtrack about rivers", "one {} jam session", "an improvisation , {} as ever",
    "what about a {} tune tonight", "it should sound {}", "we want it {} today", "imagine a {} dance",
    "{} music under an old movie",
    "let us hear it {} again", "my neighbour hums a {} melody", "a {} piece , nothing fancy", "try a {} one",
    "something {} while cooking", "that {} song everybody hums", "{} as can be",
)  # fmt: skip
"""Held-out wordings. Each contains words outside the grammar, so it cannot be a training caption."""


def held_out_captions(concept: str, level: str, n: int = len(FRAMES)) -> list[str]:
    """`n` captions (at most one per frame) that name only `concept`, cycling through its words."""
    words = islice(cycle(ADJECTIVES[concept][level]), n)
    return [frame.format(word) for frame, word in zip(FRAMES, words, strict=False)]


def neutral_captions(n: int, seed: int = 0) -> list[str]:
    """`n` different captions that do not name an attribute."""
    rng = np.random.default_rng([14, seed])
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[f"a {rng.choice(NEUTRAL_ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(ENDINGS)}"] = None
    return list(texts)


@dataclass(frozen=True)
class Abilities:
    """Measurements of étude's clips and of reference clips.

    Attributes:
        clips: one row per generated clip: concept, level, caption, seed and every measure.
        reference: one row per clip of the synthesiser after the codec: `label_<concept>` and every measure.
    """

    clips: pd.DataFrame
    reference: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The AUC between the high and the low pole for each concept and measure: étude's, the ceiling, and the
        difference."""
        import pandas as pd

        rows = []
        for concept, measures in MEASURED_BY.items():
            low, high = POLES[concept]
            named = self.clips[self.clips.concept == concept]
            for measure in measures:
                played = pole_auc(named[measure], named.level == high)
                poles = self.reference[self.reference[f"label_{concept}"].isin((low, high))]
                ceiling = pole_auc(poles[measure], poles[f"label_{concept}"] == high)
                medians = [named[named.level == level][measure].median() for level in (low, high)]
                rows.append((concept, measure, *medians, played, ceiling, played - ceiling))
        instrument = self.clips[self.clips.concept == "instrument"]
        played = self._instrument_auc(instrument, "level")
        ceiling = self._instrument_auc(self._tested(), "label_instrument")
        rows.append(("instrument", "classifier", np.nan, np.nan, played, ceiling, played - ceiling))
        columns = ["concept", "measure", "low_median", "high_median", "auc", "ceiling", "difference"]
        return pd.DataFrame(rows, columns=columns)

    def neutral(self) -> pd.DataFrame:
        """The distribution of clips with neutral captions: quantiles, share above the reference's median, relative
        spread."""
        import pandas as pd

        neutral = self.clips[self.clips.concept == "neutral"]
        rows = []
        for measures in MEASURED_BY.values():
            for measure in measures:
                neutral_values, drawn = neutral[measure].dropna(), self.reference[measure].dropna()
                spread = np.ptp(np.quantile(neutral_values, (0.1, 0.9))) / np.ptp(np.quantile(drawn, (0.1, 0.9)))
                above = float((neutral_values > drawn.median()).mean())
                rows.append((measure, *np.quantile(neutral_values, (0.1, 0.5, 0.9)), above, spread))
        columns = ["measure", "p10", "median", "p90", "share_above_reference", "relative_spread"]
        return pd.DataFrame(rows, columns=columns)

    def _tested(self) -> pd.DataFrame:
        return self.reference[len(self.reference) // 2 :]

    def _instrument_auc(self, clips: pd.DataFrame, label: str) -> float:
        """The mean one-vs-rest AUC of a classifier that was fitted on the first half of the reference."""
        fitted = self.reference[: len(self.reference) // 2]
        classifier = instruments.Instruments.fitted(np.stack(list(fitted.mfcc)), list(fitted.label_instrument))
        return classifier.auc(np.stack(list(clips.mfcc)), list(clips[label]))


def abilities(
    lens: AudioLens,
    n_seeds: int = 2,
    n_neutral: int = 48,
    n_reference: int = 480,
    seconds: float = 5.0,
    n_jobs: int = 1,
) -> Abilities:
    """Generate and measure clips for neutral and for held-out captions of every concept, and measure the reference.

    Every clip of a pole has its own seed, which it shares with its paired clip of the other pole.
    """
    import pandas as pd

    plan = [
        {"concept": concept, "level": level, "caption": caption, "seed": frame * n_seeds + draw}
        for concept, levels in {**POLES, "instrument": INSTRUMENTS}.items()
        for level in levels
        for frame, caption in enumerate(held_out_captions(concept, level))
        for draw in range(n_seeds)
    ]
    neutral = enumerate(neutral_captions(n_neutral))
    plan += [{"concept": "neutral", "level": "", "caption": caption, "seed": seed} for seed, caption in neutral]
    captions, seeds = [clip["caption"] for clip in plan], [clip["seed"] for clip in plan]
    out = lens.generate(captions, seconds, seeds=seeds, batch_size=instruments.ROWS, decode=False, progress=True)
    clips = pd.concat(
        [pd.DataFrame(plan), measures_of(instruments.decoded(lens, out.codes), lens.config.sample_rate, n_jobs)], axis=1
    )
    drawn, coded = instruments.synthesised(lens, n_reference, seconds)
    labels = pd.DataFrame([{f"label_{c}": d.attributes.level(c) for c in (*POLES, "instrument")} for d in drawn])
    return Abilities(clips, pd.concat([labels, measures_of(coded, lens.config.sample_rate, n_jobs)], axis=1))


def measures_of(audio: Float[np.ndarray, "row channel sample"], sample_rate: int, n_jobs: int = 1) -> pd.DataFrame:
    """Every measure of every clip, with onsets per beat, and the mean and spread of the MFCCs (for the instrument)."""
    import pandas as pd

    from audiolens import measure

    frame = measure.table(audio, sample_rate, n_jobs=n_jobs)
    frame["onsets_per_beat"] = frame.onset_rate * 60 / frame.tempo
    frame["mfcc"] = pd.Series(list(instruments.cepstra(audio, sample_rate)))
    return frame


def pole_auc(scores: pd.Series, positive: pd.Series) -> float:
    """The probability that a positive clip scores higher than a negative one; a clip without a score counts half."""
    return float(auc(scores[positive].to_numpy(), scores[~positive].to_numpy()))


def main(
    model: Annotated[str, typer.Option(help="étude, or a folder that `train` wrote.")] = "etude",
    seeds: Annotated[int, typer.Option(help="Clips per caption.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Measure whether étude plays what prompts ask for, compared with the ceiling set by its codec."""
    from audiolens.lens import AudioLens

    result = abilities(AudioLens.from_pretrained(model), seeds)
    typer.echo(result.to_frame().round(3).to_string(index=False))
    typer.echo(result.neutral().round(2).to_string(index=False))
    if out:
        frames = {"abilities": result.to_frame(), "neutral": result.neutral()}
        tables = {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()}
        with written(out) as whole:
            whole.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    typer.run(main)
