"""Steer every bundled concept by one call: `python benchmarks/concepts.py --update`.

For each concept, `placement.place(lens, concept)` chooses place and strength, and `placed.steer(1)` and
`placed.steer(-1)` steer étude's neutral test prompts towards the two poles. The table in docs/placement.md shows the
effect on the concept's own measure, the side effects and the share of failed clips, next to the effect of naming the
pole in the prompt. Stopped runs resume. `benchmarks/claims.py` does the same on every étude.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from brute_force import OWN
from pages import renewed
from selectivity import by_condition, scores, unsteered

from analysis import placement, sweep
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE, Condition
from analysis.sweep.response import unit_of_change
from analysis.workers import share_cores
from audiolens import AudioLens, Directions, steer
from audiolens.errors import InputError
from audiolens.files.atomic import put
from audiolens.files.bounded import read_object
from audiolens.prompts import PromptSet, concepts, load

PAGE = Path(__file__).parent.parent / "docs" / "placement.md"
MEASURES = tuple(dict.fromkeys(OWN.values()))
BASELINES = 32
"""Number of unsteered clips that a screen generates."""
SWEPT = 3_104
"""Number of clips in a brute-force sweep of one concept: 8 blocks, 2 strategies, 3 strengths of each sign, and none, on
8 prompts x 4 seeds."""
SHOWN = ("tempo_ioi", "brightness", "pitch", "loudness")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the clips (resumable) and tables.")] = Path("runs/concepts"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    test: Annotated[int, typer.Option(help="Neutral test prompts.")] = 16,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    only: Annotated[str, typer.Option(help="Concepts, separated by commas [default: all].")] = "",
    jobs: Annotated[int | None, typer.Option(help="Processes that measure; 0: this one [default: half].")] = None,
    update: Annotated[bool, typer.Option(help="Write the table into docs/placement.md.")] = False,
) -> None:
    """Place and steer every concept, and tabulate effects, side effects and failures."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    todo, found = [baseline()], dict[str, Place]()
    for concept in only.split(",") if only else concepts():
        sets = load(concept, lens=lens)
        found[concept], directions = placed(lens, sets, out / "places")
        typer.echo(found[concept].told)
        todo += conditions(sets, found[concept], directions)
    clips = sweep.clips(load("tempo", lens=lens).test[:test], seeds, TEST_SEED)
    played = sweep.play(
        lens, todo, clips, seconds=seconds, measures=MEASURES, out=out / "clips", n_jobs=jobs, progress="concepts"
    )
    table = tabled(scores(lens, played, out / "scores.parquet"), played)
    table.to_csv(out / "concepts.csv", index=False)
    text = page(table, found, f"{test} neutral test prompts x {seeds} seeds, {seconds:g} s each")
    (out / "concepts.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "concepts", text), "utf-8")
    typer.echo(text)


@dataclass(frozen=True)
class Place:
    """What `placement.place` chose for a concept. `screened` is the number of steered clips that its screen generated.

    A place that is `rejected` (for the reason given there) has no strength, and the concept is not steered.
    """

    concept: str
    name: str
    strategy: Any
    layer: int | None
    alignment: float
    words_strength: float
    strength: float
    rejected: str
    screened: int | None
    told: str


def placed(lens: AudioLens, sets: PromptSet, folder: Path, **asked: Any) -> tuple[Place, Directions | None]:
    """Place a concept, and return the place and its directions, which are kept in files. `asked` goes to `place`.

    A concept for which the model cannot be placed at all is rejected, and has no directions.
    """
    facts, file = folder / f"{sets.concept}.json", folder / f"{sets.concept}.safetensors"
    if facts.is_file():
        # JSON has no NaN.
        known: dict[str, Any] = {name: np.nan for name in _NUMBERS}
        known |= {name: value for name, value in read_object(facts).items() if value is not None or name not in known}
        return Place(**known), Directions.load(file, lens=lens) if file.is_file() else None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = placement.place(lens, sets, compute=(), **asked)
    except InputError as error:
        place = Place(sets.concept, "none", None, None, np.nan, np.nan, np.nan, str(error), None, str(error))
    else:
        place = Place(
            sets.concept, found.name, found.strategy, found.layer, float(found.chosen.alignment), found.words_strength,
            np.nan if found.rejected else found.strength, found.rejected,
            None if found.screened is None else int(found.screened.clips.sum()), repr(found),
        )  # fmt: skip
        found.directions.save(file)
    kept = {name: None if value != value else value for name, value in asdict(place).items()}
    put(facts, json.dumps(kept).encode())
    return place, None if place.name == "none" else Directions.load(file, lens=lens)


_NUMBERS = ("alignment", "words_strength", "strength")


def baseline() -> Condition:
    """The clips without words and without steering."""
    return Condition(BASELINE, labels=_labels("", "", BASELINE))


def conditions(sets: PromptSet, place: Place, directions: Directions | None) -> list[Condition]:
    """Both poles of a concept, in words and by steering at its place, unless that was rejected."""
    listed, concept = [], sets.concept
    for sign, pole in zip((1.0, -1.0), sets.poles, strict=True):
        ask = partial(sets.prompted, pole=pole)
        listed.append(Condition(f"words {concept} {pole}", ask=ask, labels=_labels(concept, pole, "words")))
        if directions is not None and not place.rejected:
            steps = steer(directions, place.strategy, place.layer, strength=sign * place.strength)
            name = f"steered {concept} {pole}"
            listed.append(Condition(name, tuple(steps), labels=_labels(concept, pole, "steering")))
    return listed


def _labels(concept: str, pole: str, way: str) -> dict[str, Any]:
    return {"concept": concept, "pole": pole, "way": way}


def tabled(scored: pd.DataFrame, played: sweep.SweepResult) -> pd.DataFrame:
    """One row per condition: effects on every measure, shares of instruments, drift and failed clips."""
    own, rows = unsteered(scored), []
    between = own.groupby("prompt").nats.agg(lambda nats: nats.max() - nats.min()).mean()
    for row, mine in by_condition(scored, played, MEASURES):
        # A measure that is undefined for a clip is no failure of that clip.
        row["failed"] = float(played.table.loc[played.table.condition == mine.condition.iloc[0], "failed"].mean())
        row["before"], row["share"] = ((part.instrument == row["concept"]).mean() for part in (own, mine))
        row["drift"] = float((mine.nats - own.nats).abs().mean() / between)
        rows.append(row)
    return pd.DataFrame(rows)


def page(table: pd.DataFrame, found: Mapping[str, Place], clips: str) -> str:
    """The table in Markdown."""
    lines = [
        f"Measured on {clips}. Effects are medians of (steered / baseline - 1), or of the difference, over clips with "
        f"the same prompt and seed, with {COVERAGE} intervals over prompts. A failed clip counts as no effect. For an "
        "instrument, the effect is the share of clips that a classifier assigns to this instrument, without and with "
        "the words or the steering. Drift is relative to the difference between two seeds of one prompt.",
        "",
        "| concept | place | alignment | strength (`words_strength`) | towards | by | own effect | "
        + " | ".join(SHOWN)
        + " | drift | failed |",
        "|---|---|---|---|---|---|---|" + "---|" * (len(SHOWN) + 2),
    ]
    for row in table[table.way != BASELINE].to_dict("records"):
        place = found[row["concept"]]
        strength = "rejected" if place.rejected else f"{place.strength:.2g} ({place.words_strength:.2g})"
        lines.append(
            f"| {row['concept']} | {place.name} | {place.alignment:.2f} | {strength} | {row['pole']} "
            f"| {row['way']} | {_own(row)} | {' | '.join(_cell(row, name) for name in SHOWN)} | {row['drift']:.1f} "
            f"| {row['failed']:.0%} |"
        )
    steered = table[table.way == "steering"]
    lines += ["", f"Over all concepts that were not rejected, {steered.failed.mean():.1%} of the steered clips failed; "
                  f"at most {steered.failed.max():.0%} did for any pole."]  # fmt: skip
    used = [place.screened + BASELINES for place in found.values() if place.screened is not None]
    lines += ["", f"The screens generated {min(used)} to {max(used)} clips of 5 s per concept, "
                  f"{min(used) / SWEPT:.1%} to {max(used) / SWEPT:.1%} of the number in a brute-force "
                  "sweep."]  # fmt: skip
    rejected = [place.rejected for place in found.values() if place.rejected]
    return "\n".join(lines + [f"\n{one}" for one in rejected]) + "\n"


def _own(row: Mapping[Any, Any]) -> str:
    if row["concept"] not in OWN:
        return f"{row['before']:.0%} to {row['share']:.0%} of clips"
    return _cell(row, OWN[row["concept"]])


def _cell(row: Mapping[Any, Any], name: str) -> str:
    effect, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if not np.isfinite(effect):
        return "none measured"
    unit = unit_of_change(name)
    if unit == "ratio":
        return f"{effect:+.0%} [{low:+.0%}, {high:+.0%}]"
    return f"{effect:+.2g} {unit} [{low:+.2g}, {high:+.2g}]"


if __name__ == "__main__":
    typer.run(main)
