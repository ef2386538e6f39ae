"""Steer every bundled concept by one call: `python benchmarks/concepts.py --update`.

For each concept, `placement.place(lens, concept)` chooses place and strength, and `placed.steer(1)` and
`placed.steer(-1)` steer étude's neutral test prompts towards the two poles. The table in docs/placement.md shows the
effect on the concept's own measure, the side effects and the share of failed clips, next to the effect of naming the
pole in the prompt. Stopped runs resume.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from analysis.placement import Placement
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE, Condition
from analysis.sweep.response import unit_of_change
from analysis.workers import share_cores
from audiolens import AudioLens
from audiolens.prompts import concepts, load

PAGE = Path(__file__).parent.parent / "docs" / "placement.md"
MEASURES = tuple(dict.fromkeys(OWN.values()))
BASELINES = 32
"""Number of unsteered clips that a screen generates."""
SWEPT = 3_104
"""Number of clips in the brute-force sweep of one concept (`benchmarks/placement.py`)."""
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
    todo, found = [Condition(BASELINE, labels=_labels("", "", BASELINE))], dict[str, Placement]()
    for concept in only.split(",") if only else concepts():
        sets = load(concept, lens=lens)
        found[concept] = placed = placement.place(lens, sets, compute=())
        typer.echo(repr(placed))
        for amount, pole in zip((1.0, -1.0), sets.poles, strict=True):
            ask = partial(sets.prompted, pole=pole)
            todo.append(Condition(f"words {concept} {pole}", ask=ask, labels=_labels(concept, pole, "words")))
            if not placed.rejected:
                steps = tuple(placed.steer(amount))
                todo.append(Condition(f"steered {concept} {pole}", steps, labels=_labels(concept, pole, "steering")))
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


def page(table: pd.DataFrame, found: Mapping[str, Placement], clips: str) -> str:
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
        placed = found[row["concept"]]
        strength = "rejected" if placed.rejected else f"{placed.strength:.2g} ({placed.words_strength:.2g})"
        lines.append(
            f"| {row['concept']} | {placed.name} | {placed.chosen.alignment:.2f} | {strength} | {row['pole']} "
            f"| {row['way']} | {_own(row)} | {' | '.join(_cell(row, name) for name in SHOWN)} | {row['drift']:.1f} "
            f"| {row['failed']:.0%} |"
        )
    steered = table[table.way == "steering"]
    lines += ["", f"Over all concepts that were not rejected, {steered.failed.mean():.1%} of the steered clips failed; "
                  f"at most {steered.failed.max():.0%} did for any pole."]  # fmt: skip
    used = [int(placed.screened.clips.sum()) + BASELINES for placed in found.values() if placed.screened is not None]
    lines += ["", f"The screens generated {min(used)} to {max(used)} clips of 5 s per concept, "
                  f"{min(used) / SWEPT:.1%} to {max(used) / SWEPT:.1%} of the number in the brute-force sweep "
                  "below."]  # fmt: skip
    rejected = [placed.rejected for placed in found.values() if placed.rejected]
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
