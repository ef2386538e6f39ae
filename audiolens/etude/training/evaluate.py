"""Evaluate whether étude plays what a prompt asks for, and what it plays when the prompt is neutral.

`python -m audiolens.etude.training.evaluate` prints an AUC for every concept. The AUC measures how well a measurement
separates clips of the two poles, generated from held-out wordings that never occur in training. The table also has a
ceiling, which is the same AUC on the synthesiser's own clips after the codec. An AUC shows only that the poles differ,
not that the clips sound good.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from jaxtyping import Float

from audiolens.errors import InputError
from audiolens.etude import synth
from audiolens.etude.attributes import INSTRUMENTS
from audiolens.etude.captions import PLAIN, Grammar, Wording
from audiolens.etude.form import Music
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


def held_out_captions(concept: str, level: str, n: int = len(FRAMES), words: Grammar = PLAIN.adjectives) -> list[str]:
    """`n` captions (at most one per frame) that name only `concept`, cycling through its words."""
    return [caption for caption, _ in _named(concept, level, n, words)]


def _named(concept: str, level: str, n: int, words: Grammar) -> list[tuple[str, str]]:
    """Captions in held-out wordings, and the word that names the concept in each."""
    turns = islice(cycle(words[concept][level]), n)
    return [(frame.format(word), word) for frame, word in zip(FRAMES, turns, strict=False)]


def neutral_captions(n: int, seed: int = 0, wording: Wording = PLAIN) -> list[str]:
    """`n` different captions that do not name an attribute. If the wording has words for scenes, half name one."""
    rng = np.random.default_rng([14, seed])
    scenes = [text for values in wording.scenes.values() for texts in values.values() for text in texts]
    texts: dict[str, None] = {}
    while len(texts) < n:
        ends = scenes if scenes and rng.random() < 0.5 else wording.endings
        texts[f"a {rng.choice(wording.neutral)} {rng.choice(wording.nouns)} {rng.choice(ends)}"] = None
    return list(texts)


@dataclass(frozen=True)
class Abilities:
    """Measurements of étude's clips and of reference clips.

    Attributes:
        clips: one row per generated clip: concept, level, caption, seed and every measure.
        reference: one row per clip of the synthesiser after the codec: `label_<concept>` and every measure.
        unseen: as `clips`, for captions that name a concept by a synonym that no training caption contained; `word` is
            the synonym. `None` if the wording has no such synonyms.
    """

    clips: pd.DataFrame
    reference: pd.DataFrame
    unseen: pd.DataFrame | None = None

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
                if neutral_values.empty or drawn.empty:
                    rows.append((measure, *[np.nan] * 5))
                    continue
                spread = np.ptp(np.quantile(neutral_values, (0.1, 0.9))) / np.ptp(np.quantile(drawn, (0.1, 0.9)))
                above = float((neutral_values > drawn.median()).mean())
                rows.append((measure, *np.quantile(neutral_values, (0.1, 0.5, 0.9)), above, spread))
        columns = ["measure", "p10", "median", "p90", "share_above_reference", "relative_spread"]
        return pd.DataFrame(rows, columns=columns)

    def synonyms(self) -> pd.DataFrame:
        """The AUC of synonyms that were never trained, for each concept and measure, next to that of trained words.

        `by_word` has the AUC of each synonym's clips against all clips of the opposite pole.
        """
        import pandas as pd

        if self.unseen is None:
            raise InputError("no clips of held-out synonyms: this étude's wording has none.")
        trained = {(row["concept"], row["measure"]): (row["auc"], row["ceiling"])
                   for row in self.to_frame().to_dict("records")}  # fmt: skip
        rows = []
        for concept, measures in MEASURED_BY.items():
            low, high = POLES[concept]
            named = self.unseen[self.unseen.concept == concept]
            for measure in measures:
                words = []
                for word, own in named.groupby("word", sort=False):
                    level = own.level.iloc[0]
                    other = named[named.level == (low if level == high else high)]
                    scores = pd.concat([own, other])
                    value = pole_auc(scores[measure], scores.level == high)
                    words.append(f"{word} {value:.2f}")
                found = pole_auc(named[measure], named.level == high)
                rows.append((concept, measure, found, *trained[concept, measure], ", ".join(words)))
        instrument = self.unseen[self.unseen.concept == "instrument"]
        found = self._instrument_auc(instrument, "level")
        rows.append(("instrument", "classifier", found, *trained["instrument", "classifier"], ""))
        return pd.DataFrame(rows, columns=["concept", "measure", "held_out", "trained", "ceiling", "by_word"])

    def leaks(self) -> pd.DataFrame:
        """How far the words for one concept change the measures of the others: AUCs of the high over the low pole.

        One row per concept that the captions name, one column per measure. A measure on which the words have no effect
        has an AUC of .5.
        """
        import pandas as pd

        rows = {}
        for concept, (_, high) in POLES.items():
            named = self.clips[self.clips.concept == concept]
            rows[concept] = {
                measure: pole_auc(named[measure], named.level == high)
                for measures in MEASURED_BY.values()
                for measure in measures
            }
        return pd.DataFrame(rows).T.rename_axis("concept").reset_index()

    def acceptance(self) -> pd.DataFrame:
        """What an étude must reach: an AUC of .95 for tempo and .98 for timbre, no AUC more than .05 below its ceiling,
        and clips from neutral captions that are above the synthesiser's median in 43% to 57%."""
        import pandas as pd

        least = {"tempo": 0.95, "timbre": 0.98}
        rows = []
        for row in self.to_frame().to_dict("records"):
            needed = least.get(row["concept"], row["ceiling"] - 0.05)
            rows.append((f"AUC, {row['concept']} by {row['measure']}", row["auc"], f"at least {needed:.3f}",
                         row["auc"] >= needed))  # fmt: skip
        for row in self.neutral().to_dict("records"):
            share = row["share_above_reference"]
            rows.append((f"neutral captions, {row['measure']} above the median", share, "0.430 to 0.570",
                         0.43 <= share <= 0.57))  # fmt: skip
        return pd.DataFrame(rows, columns=["criterion", "value", "needed", "met"])

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
    music: Music = synth.BUNDLED,
    wording: Wording = PLAIN,
) -> Abilities:
    """Generate and measure clips for neutral and for held-out captions of every concept, and measure the reference.

    Every clip of a pole has its own seed, which it shares with its paired clip of the other pole.
    """
    import pandas as pd

    def planned(words: Grammar) -> list[dict[str, Any]]:
        return [
            {"concept": concept, "level": level, "caption": caption, "word": word, "seed": frame * n_seeds + draw}
            for concept, levels in {**POLES, "instrument": INSTRUMENTS}.items()
            for level in levels
            for frame, (caption, word) in enumerate(_named(concept, level, len(FRAMES), words))
            for draw in range(n_seeds)
        ]

    def played(plan: list[dict[str, Any]]) -> pd.DataFrame:
        captions, seeds = [clip["caption"] for clip in plan], [clip["seed"] for clip in plan]
        out = lens.generate(captions, seconds, seeds=seeds, batch_size=instruments.ROWS, decode=False, progress=True)
        measured = measures_of(instruments.decoded(lens, out.codes), lens.config.sample_rate, n_jobs)
        return pd.concat([pd.DataFrame(plan), measured], axis=1)

    neutral = [
        {"concept": "neutral", "level": "", "caption": caption, "word": "", "seed": seed}
        for seed, caption in enumerate(neutral_captions(n_neutral, wording=wording))
    ]
    clips = played(planned(wording.adjectives) + neutral)
    unseen = played(planned(wording.held_out)) if wording.held_out else None
    drawn, coded = instruments.synthesised(lens, n_reference, seconds, music)
    labels = pd.DataFrame([{f"label_{c}": d.attributes.level(c) for c in (*POLES, "instrument")} for d in drawn])
    reference = pd.concat([labels, measures_of(coded, lens.config.sample_rate, n_jobs)], axis=1)
    return Abilities(clips, reference, unseen)


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
    out: Annotated[Path | None, typer.Option(help="Also write the tables as JSON.")] = None,
    recipe: Annotated[str, typer.Option(help="The recipe that the model was trained by.")] = "etude-0",
) -> None:
    """Measure whether étude plays what prompts ask for, compared with the ceiling set by its codec."""
    from audiolens.etude.training import recipes
    from audiolens.etude.training.codec_quality import codec_quality
    from audiolens.lens import AudioLens

    made = recipes.named(recipe)
    music, wording = made.material.music, made.reading.wording
    lens = AudioLens.from_pretrained(model)
    result = abilities(lens, seeds, seconds=float(int(made.material.seconds)), music=music, wording=wording)
    tables = {"abilities": result.to_frame(), "neutral": result.neutral(), "leaks": result.leaks()}
    if result.unseen is not None:
        tables["synonyms"] = result.synonyms()
    tables["acceptance"] = result.acceptance()
    for frame in tables.values():
        typer.echo(frame.round(3).to_string(index=False))
    quality = codec_quality(lens.model.audio_encoder, music, made.material.seconds)
    typer.echo(f"codec: SI-SDR {quality.si_sdr_db:.2f} dB, mel distance {quality.mel_db:.2f} dB, {quality.n} clips")
    if out:
        stored = {name: json.loads(frame.to_json(orient="records")) for name, frame in tables.items()}
        with written(out) as whole:
            whole.write_text(json.dumps(stored | {"codec": asdict(quality)}, indent=1))


if __name__ == "__main__":
    typer.run(main)
