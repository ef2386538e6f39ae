"""Placement against the truth of a brute-force sweep, and beside simpler rules: `python benchmarks/placement.py`.

For every concept each block is steered at, by both strategies, at several strengths of either sign, on neutral
development prompts. A place's effect is its widest span between the two signs among strengths that fail in at most a
tenth of the clips. The best of many tries looks better than it is, so strengths (and the best place) are chosen on one
half of the clips, by seed, and read on the other, both ways round; the figures are means of the two, and may pass 100%.
Placement reads other development prompts than the sweep steers. With `--update` the table replaces that in
docs/placement.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from scipy.stats import spearmanr

from analysis import placement, sweep
from analysis.listening import Listener, share_cores
from analysis.placement.shifts import place_name
from analysis.resampling import interval_of, resampled
from analysis.statistics import MOST_FAILED
from analysis.study import scan
from analysis.sweep.response import MEASURED, effects
from audiolens import AudioLens, difference_in_means
from audiolens.prompts import load
from audiolens.steering import Strategy

STRENGTHS: Mapping[Strategy, tuple[float, ...]] = {
    "one-to-one": (0.25, 0.5, 1.0),
    "one-to-all": (0.03125, 0.0625, 0.125),
}
AIM_SHARE, AIM_COST = 0.9, 0.1
READ = 48
PAGE = Path(__file__).parent.parent / "docs" / "placement.md"


def main(
    concepts: Annotated[list[str] | None, typer.Argument(help="Which (default: all that have a measure).")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the sweeps (resumable) and tables.")] = Path("runs/placement"),
    model: Annotated[str, typer.Option(help="étude, or another.")] = "etude",
    prompts: Annotated[int, typer.Option(help="Development prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Seeds of each, an even number.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    update: Annotated[bool, typer.Option(help="Put the table into docs/placement.md.")] = False,
) -> None:
    """Print what placement and the rules reach, as a share of the best place's effect."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    rows, facts = [], {}
    for concept in concepts or list(MEASURED):
        told, fact = compared(lens, concept, out, prompts, seeds, seconds)
        rows.append(told)
        facts[concept] = fact
        typer.echo(told.to_string(index=False))
    table = pd.concat(rows, ignore_index=True)
    table.to_csv(out / "placement.csv", index=False)
    (out / "placement.json").write_text(json.dumps(facts, indent=1))
    text = page(table, facts)
    typer.echo(text)
    (out / "placement.md").write_text(text, "utf-8")
    if update:
        marks = r"(<!-- placement:begin -->\n).*(<!-- placement:end -->)"
        page_text = PAGE.read_text("utf-8")
        PAGE.write_text(re.sub(marks, lambda match: match[1] + text + match[2], page_text, flags=re.DOTALL), "utf-8")


def compared(
    lens: AudioLens, concept: str, out: Path, n_prompts: int, n_seeds: int, seconds: float
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row per rule: the place it names and the share of the best effect that it reaches."""
    sets, measured = load(concept, lens=lens), MEASURED[concept]
    directions = difference_in_means(lens, sets.positive[:READ], sets.negative[:READ], seeds=list(range(READ)))
    # Placed before anything is steered, on prompts that the sweep does not use.
    others = sets.development[n_prompts : 2 * n_prompts]
    placed = placement.place(lens, sets, directions, prompts=others)
    typer.echo(repr(placed))
    conditions = scan.conditions(directions, STRENGTHS)
    clips = sweep.clips(sets.development[:n_prompts], n_seeds)
    with Listener(lens, ("tempo_ioi", "brightness", "onset_rate", "pitch")) as ear:
        swept = sweep.play(
            lens, conditions, clips, seconds=seconds, listener=ear, out=out / concept, progress=f"sweeping {concept}"
        )
    halves = [swept.table.seed % 2 == half for half in (0, 1)]
    spans = [spans_of(swept.table[half], measured) for half in halves]
    whole = best_strengths(spans_of(swept.table, measured))
    rules = {"placement": [placed.name]} | named_by_rules(placed)
    rules["a random place"] = list(whole.index)
    rows = []
    for rule, names in rules.items():
        shares = [
            held_out(spans[half], spans[1 - half], name) / held_out(spans[half], spans[1 - half], None)
            for half in (0, 1)
            for name in names
        ]
        effect = float(np.mean([whole.get(name, np.nan) for name in names]))
        rows.append((concept, rule, names[0] if len(names) == 1 else "any", float(np.mean(shares)), effect))
    best = str(whole.idxmax())
    low, high = interval(swept.table, measured, spans_of(swept.table, measured), placed.name, best)
    candidates = placed.candidates.assign(name=_names(placed.candidates)).set_index("name")
    joined = pd.concat([candidates.alignment, whole.rename("span")], axis=1).dropna()
    joined.to_csv(out / f"{concept}.csv")
    steps = len(conditions) * len(clips) * 2 * (round(seconds * lens.config.frame_rate) + max(lens.config.delays))
    rho: dict[str, float] = {}
    for strategy in STRENGTHS:
        mine = joined[joined.index.str.startswith(strategy)]
        ranked: Any = spearmanr(mine.alignment, mine["span"])
        rho[strategy] = float(ranked.statistic)
    fact = {"row_steps": placed.row_steps, "sweep_row_steps": steps, "cost": placed.row_steps / steps, "rho": rho,
            "best": best, "interval": [low, high], "certainty": placed.certainty}  # fmt: skip
    return pd.DataFrame(rows, columns=["concept", "rule", "place", "share", "span"]), fact


def named_by_rules(placed: placement.Placement) -> dict[str, list[str]]:
    """What simpler rules name, by both strategies: the middle, and where a length or other evidence is largest."""
    blocks = {"middle block": placed.directions.meta.n_layers // 2}
    for one in placed.evidence.evidence:
        blocks[f"largest {one.name}"] = one.layers[int(np.nanargmax(one.values))]
    return {f"{rule}, {strategy}": [f"{strategy} {layer}"] for rule, layer in blocks.items() for strategy in STRENGTHS}


def interval(table: pd.DataFrame, measured: str, spans: pd.DataFrame, place: str, best: str) -> tuple[float, float]:
    """Of the share of the best place's span that a place reaches, over prompts; strengths as chosen on all clips."""
    keys = ["prompt", "seed"]
    baseline = table[table.condition == sweep.BASELINE].set_index(keys)[measured]
    changes: dict[tuple[str, int], np.ndarray] = {}
    for name in (place, best):
        mine = spans[(spans.place == name) & (spans.failed <= MOST_FAILED)]
        strength = float(mine.strength.iloc[int(mine.span.argmax())])
        for sign in (1, -1):
            rows: Any = table[table.condition == f"{name} {sign * strength:+g}"].set_index(keys).loc[baseline.index]
            ratio = rows[measured] / baseline
            changes[name, sign] = ratio.where(~rows.failed & ratio.notna(), 1.0).to_numpy()

    def span(name: str, rows: np.ndarray) -> float:
        return float(np.log(np.median(changes[name, 1][rows]) / np.median(changes[name, -1][rows])))

    prompts = baseline.index.get_level_values("prompt")
    shares = [span(place, rows) / span(best, rows) for rows in resampled(prompts, 1000)]
    found = interval_of(np.array(shares), len(set(prompts)))
    return found.low, found.high


def spans_of(table: pd.DataFrame, measured: str) -> pd.DataFrame:
    """Place, strength, log of the span between its signs, and the larger share of failed clips."""
    found: Any = effects(table, measured, n_bootstrap=0).dropna(subset="strategy")
    rows = []
    for (strategy, layer, strength), pair in found.groupby(["strategy", "layer", found.strength.abs()]):
        up, down = (pair[pair.strength * sign > 0].iloc[0] for sign in (1, -1))
        span = np.log((1 + up.effect) / max(1 + down.effect, 1e-6))
        rows.append((f"{strategy} {layer:.0f}", strength, span, max(up.failed, down.failed)))
    return pd.DataFrame(rows, columns=["place", "strength", "span", "failed"])


def best_strengths(spans: pd.DataFrame) -> pd.Series:
    """The widest span of every place within the bound of loss; 0 where every strength fails too often."""
    within = spans.assign(span=spans.span.where(spans.failed <= MOST_FAILED, 0.0))
    return within.groupby("place").span.max()


def held_out(chosen_on: pd.DataFrame, read_on: pd.DataFrame, place: str | None) -> float:
    """The span on one half of the clips at the strength (and the place, if none is given) chosen on the other."""
    mine = chosen_on if place is None else chosen_on[chosen_on.place == place]
    within = mine[mine.failed <= MOST_FAILED]
    if within.empty:
        return 0.0
    best = within.iloc[int(within.span.argmax())]
    there = read_on[(read_on.place == best.place) & (read_on.strength == best.strength)]
    return float(there.span.iloc[0])


def page(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The shares as Markdown, a column a concept."""
    wide: Any = table.pivot_table(index="rule", columns="concept", values="share", sort=False)
    places: Any = table.pivot_table(index="rule", columns="concept", values="place", aggfunc="first", sort=False)
    concepts = list(wide.columns)
    lines = [f"| rule | {' | '.join(concepts)} | mean |", "|---|" + "---|" * (len(concepts) + 1)]
    for rule in wide.index:
        cells = [f"{wide.loc[rule, name]:.0%} ({places.loc[rule, name]})" for name in concepts]
        lines.append(f"| {rule} | {' | '.join(cells)} | {wide.loc[rule].mean():.0%} |")
    lines += [
        "",
        "Placement's share of the best place's span, 95% intervals over prompts, at the strengths best on all clips:",
        "",
    ]
    for concept, fact in facts.items():
        rho = ", ".join(f"{name} {value:.2f}" for name, value in fact["rho"].items())
        low, high = fact["interval"]
        lines.append(
            f"- {concept}: [{low:.0%}, {high:.0%}] of {fact['best']}; rank correlation of alignment with effect: "
            f"{rho}; placement took {fact['cost']:.1%} of the sweep's row-steps (aim {AIM_COST:.0%})."
        )
    return "\n".join(lines) + "\n"


def _names(candidates: pd.DataFrame) -> list[str]:
    return [place_name(str(row.strategy), row.layer) for row in candidates.itertuples()]


if __name__ == "__main__":
    typer.run(main)
