"""What steering changes apart from the concept, for directions computed on own and on shared codes.

`python benchmarks/selectivity.py --update` reads each concept's direction in both ways, gives them the same norm, adds
them at the same place and strength to étude's neutral test prompts, and measures every clip: the concept's own effect,
the effect on other measures, the mix of instruments, drift, and failed clips. The rows of words
and of other seeds show what to compare these with. Stopped runs resume.

`benchmarks/claims.py` compares more readings in the same way, on every étude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from pages import renewed

from analysis import sweep
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE, Condition
from analysis.sweep.response import effects, unit_of_change
from analysis.workers import share_cores
from audiolens import AudioLens, Directions, difference_in_means, measure, steer
from audiolens.directions.pole_reader import CodesSource, Position
from audiolens.directions.strategies import Strategy
from audiolens.etude.training.instruments import Instruments, cepstra, decoded, mix_moved
from audiolens.prompts import PromptSet, load

PAGE = Path(__file__).parent.parent / "docs" / "selectivity.md"
OWN = {"tempo": "tempo_ioi", "timbre": "brightness"}


@dataclass(frozen=True)
class Place:
    """Where and how strongly a concept is steered. A strategy that uses every block's own vector has no single norm."""

    strategy: Strategy
    layer: int
    strength: float

    @property
    def where(self) -> dict[str, Any]:
        """The arguments for `al.steer`, without the strength."""
        return {"strategy": self.strategy, "layer": self.layer}


PLACES: Mapping[str, Place] = {
    "tempo": Place("one-to-one", 3, 1.0),
    "timbre": Place("one-to-all", 7, 0.0625),
}
"""The places and strengths that were chosen on development prompts when the evidence read directions on own codes."""
OTHERS = ("tempo", "timbre", "density", "register", "loudness", "mode", "pluck", "organ", "strings", "bells")
"""The concepts whose shared directions are removed in the reading "shared, orthogonal"."""
MEASURES = ("tempo_ioi", "brightness", "ltas_centroid", "pitch", "pulse_clarity", "loudness")
READINGS: Mapping[str, tuple[CodesSource, Position]] = {
    "own": ("own", "mean"), "shared": ("shared", "mean"), "first": ("shared", "first"), "last": ("shared", "last"),
    "eos": ("shared", "eos"),
}  # fmt: skip
"""The codes and the position of each reading. Only models whose text stands in the decoder's own sequence have "eos".
"""
OTHER_SEEDS = 500_000
"""Added to the seeds of the clips that are not steered either."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for the clips (resumable) and tables.")] = Path("runs/selectivity"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    test: Annotated[int, typer.Option(help="Neutral prompts.")] = 24,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 4,
    poles: Annotated[int, typer.Option(help="Prompts per pole from which directions are read.")] = 100,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    readings: Annotated[str, typer.Option(help="Readings, separated by semicolons.")] = "own;shared",
    scale: Annotated[str, typer.Option(help="Multiples of the strengths, separated by commas.")] = "1",
    jobs: Annotated[int | None, typer.Option(help="Processes that measure; 0: this one [default: half].")] = None,
    development: Annotated[bool, typer.Option(help="Use development prompts, for choosing.")] = False,
    update: Annotated[bool, typer.Option(help="Write the table into docs/selectivity.md.")] = False,
) -> None:
    """Compare the readings at the same place, norm and strength."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    todo, cosines, prompts = baselines(), [], set[tuple[str, ...]]()
    for concept in OWN:
        sets = load(concept, lens=lens)
        prompts.add((sets.development if development else sets.test)[:test])
        read = {name: reading(lens, out, sets, name, poles) for name in readings.split(";")}
        cosines.append(alike(concept, read))
        todo += conditions(sets, read, PLACES[concept], [float(one) for one in scale.split(",")])
    if len(prompts) > 1:
        raise typer.BadParameter("the concepts have different neutral prompts, so they share no baseline.")
    clips = sweep.clips(prompts.pop(), seeds, 0 if development else TEST_SEED)
    played = sweep.play(
        lens, todo, clips, seconds=seconds, measures=MEASURES, out=out / "clips", n_jobs=jobs,
        progress="selectivity",
    )  # fmt: skip
    table = tabled(scores(lens, played, out / "scores.parquet"), played)
    table.to_csv(out / "selectivity.csv", index=False)
    split = "development" if development else "test"
    told = f"{test} {split} prompts x {seeds} seeds. The directions were read from {poles} prompts per pole"
    text = page(table, told, cosines)
    (out / "selectivity.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "selectivity", text), "utf-8")
    typer.echo(text)


def reading(lens: AudioLens, out: Path, sets: PromptSet, name: str, poles: int) -> Directions:
    """The direction of a concept in one of the `READINGS`; "orthogonal" removes the other concepts'."""
    way, *further = (part.strip() for part in name.split(","))
    found = read_one(lens, out, sets, way, poles)
    if "orthogonal" in further:
        others = [load(other, lens=lens) for other in OTHERS if other != sets.concept]
        found = found.orthogonal_to(*(read_one(lens, out, other, way, poles) for other in others))
    return found


def read_one(lens: AudioLens, out: Path, sets: PromptSet, way: str, poles: int) -> Directions:
    """The difference in means of a concept's poles, which is kept in a file."""
    file = out / f"{sets.concept}-{way}-{poles}.safetensors"
    if file.is_file():
        return Directions.load(file, lens=lens)
    codes, position = READINGS[way]
    n = min(poles, len(sets.positive), len(sets.negative))
    found = difference_in_means(
        lens, sets.positive[:n], sets.negative[:n], codes=codes, position=position,
        neutral=sets.development if codes == "shared" else None, seeds=list(range(n)), label=sets.concept,
    )  # fmt: skip
    found.save(file)
    return found


def baselines() -> list[Condition]:
    """The clips without steering, and the same prompts at other seeds."""
    return [
        Condition(BASELINE, labels=_labels("", "", BASELINE, 0.0)),
        Condition("other seeds", labels=_labels("", "", "other seeds", 0.0), reseed=OTHER_SEEDS),
    ]


def conditions(
    sets: PromptSet, read: Mapping[str, Directions], place: Place, scales: Sequence[float] = (1.0,)
) -> list[Condition]:
    """Both poles of a concept in words, and along every direction at the norm of the first."""
    concept, listed = sets.concept, []
    first = next(iter(read.values()))[place.layer]
    for sign, pole in ((1.0, sets.poles[0]), (-1.0, sets.poles[1])):
        ask = partial(sets.prompted, pole=pole)
        listed.append(Condition(f"words {pole}", ask=ask, labels=_labels(concept, pole, "words", sign)))
        for name, directions in read.items():
            # At that layer, all directions get the length that the first was read with.
            alike = directions * float(first.norm() / directions[place.layer].norm())
            for scale in scales:
                amount = sign * place.strength * scale
                way = name if len(scales) == 1 else f"{name} x {scale:g}"
                steps = tuple(steer(alike, **place.where, strength=amount))
                listed.append(Condition(f"{way} {pole}", steps, labels=_labels(concept, pole, way, amount)))
    return listed


def _labels(concept: str, pole: str, way: str, strength: float) -> dict[str, Any]:
    return {"concept": concept, "pole": pole, "way": way, "strength": strength}


def scores(
    lens: AudioLens,
    played: sweep.SweepResult,
    kept: Path,
    fitted: Callable[[AudioLens], Instruments] = Instruments.of,
) -> pd.DataFrame:
    """The instrument of every clip, and its nats per code under the unsteered model. Finished conditions are kept."""
    done = pd.read_parquet(kept) if kept.is_file() else pd.DataFrame({"condition": []})
    parts = [done] if len(done) else []
    todo = [name for name in dict.fromkeys(played.table["condition"]) if name not in set(done["condition"])]
    instruments = fitted(lens) if todo else None
    for condition in todo:
        assert instruments is not None
        mine, codes = played.table[played.table["condition"] == condition], played.codes(condition)
        named = instruments.named(cepstra(decoded(lens, codes), lens.config.sample_rate))
        nats = measure.code_nats(lens, list(mine["asked"]), codes, guidance_scale=3.0).mean(dim=(1, 2))
        parts.append(mine[["condition", "prompt", "seed"]].assign(instrument=named, nats=nats.double().numpy()))
        pd.concat(parts, ignore_index=True).to_parquet(kept)
    return pd.concat(parts, ignore_index=True)


def tabled(scored: pd.DataFrame, played: sweep.SweepResult) -> pd.DataFrame:
    """One row per condition: effects on every measure, instrument mix moved, drift and failed clips."""
    own, rows = unsteered(scored), []
    for row, mine in by_condition(scored, played, MEASURES):
        row["instruments"] = mix_moved(list(own.instrument), list(mine.instrument))
        row["changed"] = float((own.instrument != mine.instrument).mean())
        row["drift"] = float((mine.nats - own.nats).abs().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def unsteered(scored: pd.DataFrame) -> pd.DataFrame:
    """The scores of the baseline's clips."""
    return scored[scored.condition == BASELINE].reset_index(drop=True)


def by_condition(
    scored: pd.DataFrame, played: sweep.SweepResult, measures: Sequence[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Every condition's labels and effects on the measures, and the scores of its clips."""
    labels = ["concept", "pole", "way"]
    found = {name: effects(played.table, name).set_index(labels) for name in measures}
    for condition in dict.fromkeys(played.table["condition"]):
        place = tuple(played.table.loc[played.table.condition == condition, labels].iloc[0])
        mine = scored[scored.condition == condition].reset_index(drop=True)
        row: dict[str, Any] = dict(zip(labels, place, strict=True))
        for name, table in found.items():
            one: Any = table.loc[place]
            row |= {name: one.effect, f"{name}_low": one.low, f"{name}_high": one.high, "failed": one.failed}
        yield row, mine


@dataclass(frozen=True)
class Alike:
    """How two readings of a concept compare at the place where it is steered."""

    concept: str
    norms: Mapping[str, float]
    cosine: float


def alike(concept: str, read: Mapping[str, Directions]) -> Alike:
    """Compare the first two readings at the layer of the concept's place."""
    layer, (first, *others) = PLACES[concept].layer, list(read.values())
    cosine = float(first.cosine(others[0])[first.layers.index(layer)]) if others else 1.0
    return Alike(concept, {name: float(one[layer].norm()) for name, one in read.items()}, cosine)


def page(table: pd.DataFrame, told: str, cosines: Sequence[Alike]) -> str:
    """The table in Markdown."""
    heads = ("tempo_ioi", "brightness", "ltas_centroid", "pitch", "pulse_clarity", "loudness")
    lines = [
        f'The effects were measured on {told}. In the "other seeds" row, only the seeds differ from the '
        'baseline. In the "words" rows, the prompt names the pole and the clips are not steered. In the "own" and '
        '"shared" rows, the clips are steered along the direction computed on own or shared codes. Both directions '
        "have the norm of the one computed on own codes, and are added at the place and strength of "
        "an earlier evidence. The effect is the median of (steered / baseline - 1), where each steered clip is "
        "compared with the baseline clip of the same prompt and seed. For loudness, it is the median difference in dB. "
        f"Brackets show {COVERAGE} confidence intervals, computed by bootstrapping over prompts. A failed clip counts "
        "as an effect of zero. The effect on the concept's own measure is in bold. "
        '"Instruments moved" is the total variation distance between the distributions of classified instruments in '
        "these clips and in the baseline clips. "
        '"Drift" is the mean absolute difference in log-likelihood from the baseline clip, in nats per code under the '
        "unsteered model, where each clip is scored under its own prompt.",
        "",
        f"| concept | towards | by | {' | '.join(heads)} | instruments moved | drift | failed |",
        "|---|---|---|" + "---|" * (len(heads) + 3),
    ]
    for row in table[table.way != BASELINE].to_dict("records"):
        cells = [f"**{_cell(row, name)}**" if OWN.get(row["concept"]) == name else _cell(row, name) for name in heads]
        lines.append(
            f"| {row['concept']} | {row['pole']} | {row['way']} | {' | '.join(cells)} | {row['instruments']:.0%} "
            f"| {row['drift']:.2f} | {row['failed']:.0%} |"
        )
    for one in cosines:
        norms = " and ".join(f"{norm:.1f} ({name})" for name, norm in one.norms.items())
        two = "the two" if len(one.norms) == 2 else "the first two"
        lines += ["", f"Before rescaling, the norms of the {one.concept} directions at layer "
                  f"{PLACES[one.concept].layer} are {norms}. The cosine similarity between {two} is "
                  f"{one.cosine:.2f}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[Any, Any], name: str) -> str:
    effect, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if not np.isfinite(effect):
        return "none measured"
    if unit_of_change(name) == "ratio":
        return f"{effect:+.0%} [{low:+.0%}, {high:+.0%}]"
    return f"{effect:+.1f} dB [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    typer.run(main)
