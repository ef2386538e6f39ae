"""Compare placement with a brute-force sweep and with simpler rules: `python benchmarks/placement.py`.

For every concept, each block is steered with both strategies at several strengths of both signs, on neutral development
prompts. A place whose largest strength fails in at most a tenth of the clips is also tried at twice that strength.
`brute_force.py` defines the effect of a place, and compares it with the best place's. Placement does not read the
development prompts that are steered, but others. The same clips are also generated from prompts with the poles' words.
With `--update` the table replaces the one in docs/placement.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from brute_force import HALVINGS, Sweeps, Truth, chosen_strengths
from pages import renewed
from scipy.stats import spearmanr

from analysis import placement
from analysis.placement.rules import place_name
from analysis.resampling import COVERAGE
from analysis.sweep.response import MEASURED
from analysis.workers import share_cores
from audiolens import AudioLens, difference_in_means
from audiolens.directions.strategies import Strategy
from audiolens.prompts import load

STRENGTHS: Mapping[Strategy, tuple[float, ...]] = {
    "one-to-one": (0.25, 0.5, 1.0),
    "one-to-all": (0.03125, 0.0625, 0.125),
}
HEARD: Mapping[str, Mapping[str, tuple[str, str]]] = {
    **{concept: {concept: (measured, "failed")} for concept, measured in MEASURED.items()},
    "density": {"density": (MEASURED["density"], "failed"), "density per beat": ("onsets_per_beat", "failed")},
    "loudness": {"loudness": ("loudness", "spoilt"), "loudness, level as failure": ("loudness", "failed")},
}
"""Concept -> its measure, and the column of lost clips; the first entry counts, a second is reported as well.

A level far from the unsteered clip's counts as failure, but for loudness it is the intended effect: "spoilt" uses
onsets and entropy alone.
"""
RULES = {
    "probe": "highest probe score",
    "patching": "largest patching effect",
    "attribution": "largest attributed effect",
}
AIM_SHARE, AIM_COST = 0.9, 0.1
READ = 48
WIDEST_INTERVAL = 5.0
PAGE = Path(__file__).parent.parent / "docs" / "placement.md"


def main(
    concepts: Annotated[list[str] | None, typer.Argument(help=f"Concepts (default: {', '.join(HEARD)}).")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the sweeps (resumable) and tables.")] = Path("runs/placement"),
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    prompts: Annotated[int, typer.Option(help="Development prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Seeds per prompt, an even number.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    update: Annotated[bool, typer.Option(help="Write the table into docs/placement.md.")] = False,
) -> None:
    """Print the effect of placement and of the rules, as a share of the best place's effect."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    rows, facts = [], {}
    for concept in concepts or list(HEARD):
        told, fact = compared(sweeps(lens, out, concept, prompts, seeds, seconds), concept)
        rows.append(told)
        facts |= fact
        typer.echo(told.to_string(index=False))
    table = pd.concat(rows, ignore_index=True)
    table.to_csv(out / "placement.csv", index=False)
    (out / "placement.json").write_text(json.dumps(facts, indent=1))
    text = page(table, facts)
    typer.echo(text)
    (out / "placement.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "placement", text), "utf-8")


def sweeps(lens: AudioLens, out: Path, concept: str, prompts: int, seeds: int, seconds: float) -> Sweeps:
    """The sweeps of a concept."""
    measures = [*MEASURED.values(), *(["loudness"] if concept == "loudness" else [])]
    return Sweeps(lens, out, prompts, seeds, seconds, STRENGTHS, measures)


def with_notes(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the number of notes per beat."""
    return table.assign(onsets_per_beat=60 * table.onset_rate / table.tempo_ioi)


def compared(asked: Sweeps, concept: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row per rule and measure: the place it names and its share of the best effect."""
    lens, sets = asked.lens, load(concept, lens=asked.lens)
    directions = difference_in_means(lens, sets.positive[:READ], sets.negative[:READ], seeds=list(range(READ)))
    # Placement runs before anything is steered, on prompts that the sweep does not use.
    others = sets.development[asked.n_prompts : 2 * asked.n_prompts]
    placed = placement.place(lens, sets, directions, prompts=others, screen_seconds=0)
    typer.echo(repr(placed))
    _, failed = next(iter(HEARD[concept].values()))
    steered = with_notes(asked.steered(concept, directions, failed))
    prompted = with_notes(asked.prompted(concept))
    candidates = placed.candidates.assign(name=_names(placed.candidates)).set_index("name")
    rules = {"placement": placed.name} | named_by_rules(placed)
    frames = round(asked.seconds * lens.config.frame_rate) + max(lens.config.delays)
    rows, facts = [], {}
    for label, (measured, failed) in HEARD[concept].items():
        truth = Truth.of(steered, measured, failed)
        chosen = chosen_strengths(truth.spans())
        spans = chosen.span.clip(lower=0)
        shares = pd.Series(truth.shares(list(spans.index), HALVINGS), spans.index)
        rows += [(label, rule, name, shares.get(name, np.nan)) for rule, name in rules.items()]
        rows.append((label, "a random place", "any", shares.mean()))
        joined = pd.concat([candidates.alignment, chosen, shares.rename("share")], axis=1)
        joined.to_csv(asked.out / f"{label}.csv")
        rho: dict[str, float] = {}
        for strategy in STRENGTHS:
            mine = joined[joined.index.str.startswith(strategy)].dropna()
            ranked: Any = spearmanr(mine.alignment, mine["span"])
            rho[strategy] = float(ranked.statistic)
        words = Truth.of(prompted, measured, failed).spans()
        furthest = truth.tried.groupby("place").strength.max()
        facts[label] = {
            "row_steps": placed.row_steps, "sweep_row_steps": len(steered) * 2 * frames,
            "cost": placed.row_steps / (len(steered) * 2 * frames), "rho": rho, "reliability": truth.reliability,
            "place": placed.name, "best": str(spans.idxmax()), "interval": truth.interval(placed.name),
            "span": float(spans[placed.name]), "best_span": float(spans.max()), "words_span": float(words.span.iloc[0]),
            "at_the_end": int((chosen.strength == furthest).sum()), "places": len(spans), "clips": len(truth.seeds),
            "certainty": placed.certainty, "unit": "dB" if measured == "loudness" else "",
        }  # fmt: skip
    return pd.DataFrame(rows, columns=["concept", "rule", "place", "share"]), facts


def named_by_rules(placed: placement.Placement) -> dict[str, str]:
    """The places that simpler rules name, for both strategies: the middle block, and the maximum of each evidence."""
    blocks = {"middle block": placed.directions.meta.n_layers // 2}
    for one in placed.evidence.evidence:
        blocks[RULES.get(one.name, f"largest {one.name}")] = one.layers[int(np.nanargmax(one.values))]
    return {f"{rule}, {strategy}": f"{strategy} {layer}" for rule, layer in blocks.items() for strategy in STRENGTHS}


def page(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The shares as Markdown, one column per concept and measure; the mean is over the entries that count."""
    wide: Any = table.pivot_table(index="rule", columns="concept", values="share", sort=False)
    places: Any = table.pivot_table(index="rule", columns="concept", values="place", aggfunc="first", sort=False)
    counted = [name for name in wide.columns if name in HEARD]
    lines = [f"| rule | {' | '.join(wide.columns)} | mean{'' if len(counted) == len(wide.columns) else '*'} |"]
    lines.append("|---|" + "---|" * (len(wide.columns) + 1))
    for rule in wide.index:
        cells = [f"{wide.loc[rule, name]:.0%} ({places.loc[rule, name]})" for name in wide.columns]
        lines.append(f"| {rule} | {' | '.join(cells)} | {wide.loc[rule, counted].mean():.0%} |")
    if len(counted) < len(wide.columns):
        lines += ["", f"\\* The mean is over {', '.join(counted)}."]
    lines += [
        "",
        f"| concept | placement's score, {COVERAGE} interval over prompts | span at the chosen place | widest span | "
        "span with words | place of the widest span | places with the widest span at the largest strength | "
        "agreement of halves | rank correlation of alignment, one-to-one | rank correlation of alignment, one-to-all | "
        "cost |",
        "|---|" + "---|" * 10,
    ]
    for label, fact in facts.items():
        low, high = fact["interval"]
        spans = (fact[name] for name in ("span", "best_span", "words_span"))
        told = [f"{span:.1f} dB" if fact["unit"] == "dB" else f"x{np.exp(span):.2f}" for span in spans]
        rho = [f"{fact['rho'][strategy]:.2f}" for strategy in STRENGTHS]
        # If nothing moves the measure, a share of the widest span is meaningless.
        share = f"[{low:.0%}, {high:.0%}]" if high - low < WIDEST_INTERVAL else "undetermined"
        cells = [share, *told, fact["best"], f"{fact['at_the_end']} of {fact['places']}",
                 f"{fact['reliability']:.2f}", *rho, f"{fact['cost']:.1%}"]  # fmt: skip
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _names(candidates: pd.DataFrame) -> list[str]:
    return [place_name(str(row.strategy), row.layer) for row in candidates.itertuples()]


if __name__ == "__main__":
    typer.run(main)
