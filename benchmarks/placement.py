"""Compare placement with a brute-force sweep and with simpler rules: `python benchmarks/placement.py`.

For every concept, each block is steered with both strategies at several strengths of both signs, on neutral development
prompts. A place whose largest strength fails in at most a tenth of the clips is also tried at twice that strength. The
effect of a place is its widest span between the two signs among strengths that fail in at most a tenth of the clips.
The best of many candidates looks better than it is. Strengths (and the best place) are therefore chosen on one half of
each prompt's seeds and evaluated on the other, and the reverse, over many random halvings. A share may exceed 100%.
Placement does not read the development prompts that are steered, but others. The same clips are also generated from
prompts with the poles' words. With `--update` the table replaces the one in docs/placement.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from jaxtyping import Bool, Float, Int
from pages import renewed
from scipy.stats import spearmanr

from analysis import placement, sweep
from analysis.listening import Listener
from analysis.placement.shifts import place_name
from analysis.resampling import COVERAGE, interval_of, resampled
from analysis.statistics import MOST_FAILED
from analysis.study import scan
from analysis.sweep.response import KEYS, MEASURED, is_ratio
from analysis.workers import share_cores
from audiolens import AudioLens, difference_in_means
from audiolens.directions.directions import Directions
from audiolens.directions.strategies import Strategy
from audiolens.measure.failure import LEAST_ENTROPY_RATIO
from audiolens.measure.rhythm import FEWEST_ONSETS
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
HALVINGS = 20
DRAWS = 500
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
    asked = Asked(lens, out, prompts, seeds, seconds)
    rows, facts = [], {}
    for concept in concepts or list(HEARD):
        told, fact = compared(asked, concept)
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


@dataclass(frozen=True)
class Asked:
    """The settings of the sweeps of every concept."""

    lens: AudioLens
    out: Path
    n_prompts: int
    n_seeds: int
    seconds: float

    def directions(self, concept: str) -> Directions:
        sets = load(concept, lens=self.lens)
        return difference_in_means(self.lens, sets.positive[:READ], sets.negative[:READ], seeds=list(range(READ)))

    def play(self, concept: str, name: str, conditions: Sequence[sweep.Condition]) -> pd.DataFrame:
        """Run the conditions on a concept's clips, in a folder of the given name."""
        measures = [*MEASURED.values(), *(["loudness"] if concept == "loudness" else [])]
        clips = sweep.clips(load(concept, lens=self.lens).development[: self.n_prompts], self.n_seeds)
        with Listener(self.lens, measures) as ear:
            swept = sweep.play(
                self.lens, conditions, clips, seconds=self.seconds, listener=ear, out=self.out / name, progress=name
            )
        table = swept.table
        varied = (table.entropy_ratio >= LEAST_ENTROPY_RATIO) & (table.onsets >= FEWEST_ONSETS)
        return table.assign(onsets_per_beat=60 * table.onset_rate / table.tempo_ioi, spoilt=~varied)

    def steered(self, concept: str, directions: Directions) -> pd.DataFrame:
        """Run every place at every strength, and at twice the largest if few clips fail there."""
        table = self.play(concept, concept, scan.conditions(directions, STRENGTHS))
        lost = table[table.strength.abs() == table.strategy.map({name: max(of) for name, of in STRENGTHS.items()})]
        _, failed = next(iter(HEARD[concept].values()))
        lost = lost.groupby(["strategy", "layer", "strength"])[failed].mean().groupby(["strategy", "layer"]).max()
        whole: Any = lost[lost <= MOST_FAILED].index
        places = [{"strategy": strategy, "layer": int(layer)} for strategy, layer in whole]
        if not places:
            return table
        doubled: dict[Strategy, tuple[float, ...]] = {name: (2 * max(of),) for name, of in STRENGTHS.items()}
        more = self.play(concept, f"{concept}-doubled", scan.at(directions, places, doubled))
        return pd.concat([table, more[more.condition != sweep.BASELINE]], ignore_index=True)

    def prompted(self, concept: str) -> pd.DataFrame:
        """Run the same clips prompted with the poles' words."""
        sets = load(concept, lens=self.lens)
        poles = [
            sweep.Condition(pole, ask=lambda prompt, pole=pole: sets.prompted(prompt, pole), labels={"strength": sign})
            for pole, sign in (("positive", 1.0), ("negative", -1.0))
        ]
        baseline = sweep.Condition(sweep.BASELINE, labels={"strength": 0.0})
        return self.play(concept, f"{concept}-asked", [baseline, *poles]).assign(strategy="words", layer=0)


@dataclass(frozen=True, eq=False)
class Truth:
    """The effect of every place on a measure at every strength, clip by clip.

    Attributes:
        tried: table of place and strength.
        change: change of the measure from the unsteered clip, as a log ratio or (loudness) in dB; 0 for failed clips.
        lost: mask of the failed clips.
        prompts, seeds: prompt and seed of each clip.
    """

    tried: pd.DataFrame
    change: Float[np.ndarray, "sign tried clip"]
    lost: Bool[np.ndarray, "sign tried clip"]
    prompts: np.ndarray
    seeds: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, measured: str, failed: str = "failed") -> Truth:
        own = table[table.condition == sweep.BASELINE].set_index(KEYS)[measured]
        own = own[own.notna()]
        shares = is_ratio(measured) or measured == "onsets_per_beat"
        tried, changes, losts = [], [], []
        steered = table[table.condition != sweep.BASELINE]
        for (strategy, layer, strength), pair in steered.groupby(["strategy", "layer", steered.strength.abs()]):
            tried.append((place_name(strategy, int(layer)), float(strength)))
            for sign in (1, -1):
                rows: Any = pair[pair.strength * sign > 0].set_index(KEYS).loc[own.index]
                change = np.log(rows[measured] / own) if shares else rows[measured] - own
                gone = rows[failed].to_numpy() | ~np.isfinite(change.to_numpy())
                changes.append(np.where(gone, 0.0, change))
                losts.append(gone)
        change, lost = (np.array(values).reshape(-1, 2, len(own)).swapaxes(0, 1) for values in (changes, losts))
        return cls(
            pd.DataFrame(tried, columns=["place", "strength"]),
            change,
            lost,
            own.index.get_level_values("prompt").to_numpy(),
            own.index.get_level_values("seed").to_numpy(),
        )

    def spans(self, rows: Int[np.ndarray, " clip"] | slice = slice(None)) -> pd.DataFrame:
        """Table of place, strength, span between the signs (from medians), and the larger share of failed clips."""
        up, down = np.median(self.change[:, :, rows], axis=2)
        return self.tried.assign(span=up - down, failed=self.lost[:, :, rows].mean(2).max(0))

    def halvings(self, n: int, among: Int[np.ndarray, " clip"] | None = None, seed: int = 0) -> Iterator[list[Any]]:
        """Random halvings of some clips by seed: no seed is in both halves, each prompt is."""
        rng = np.random.default_rng(seed)
        rows = np.arange(len(self.seeds)) if among is None else among
        for _ in range(n):
            first = np.concatenate([
                rng.permutation(np.unique(own))[: len(np.unique(own)) // 2]
                for own in (self.seeds[self.prompts == prompt] for prompt in np.unique(self.prompts))
            ])  # fmt: skip
            side = np.isin(self.seeds[rows], first)
            yield [rows[side], rows[~side]]

    def shares(self, names: Sequence[str], n: int, among: Int[np.ndarray, " clip"] | None = None, seed: int = 0) -> Any:
        """The span of each named place as a share of the best place's."""
        there, best = np.zeros(len(names)), 0.0
        for halves in self.halvings(n, among, seed):
            spans = [self.spans(rows) for rows in halves]
            for chosen_on, read_on in (spans, spans[::-1]):
                there += [held_out(chosen_on, read_on, name) for name in names]
                best += held_out(chosen_on, read_on, None)
        return there / best

    def interval(self, name: str) -> tuple[float, float]:
        """The interval of one place's share, over prompts."""
        draws = resampled(self.prompts, DRAWS)
        shares = [self.shares([name], HALVINGS // 2, rows, seed)[0] for seed, rows in enumerate(draws)]
        found = interval_of(np.array(shares), len(np.unique(self.prompts)))
        return found.low, found.high

    @property
    def reliability(self) -> float:
        """Rank correlation, between halves of the clips, of the places' effects at their best strengths."""
        at = self.tried.reset_index().merge(chosen_strengths(self.spans()).reset_index(), on=["place", "strength"])[
            "index"
        ]
        pairs = [[self.spans(rows).span[at] for rows in halves] for halves in self.halvings(HALVINGS)]
        ranked: Any = [spearmanr(*pair) for pair in pairs]
        return float(np.mean([one.statistic for one in ranked]))


def compared(asked: Asked, concept: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row per rule and measure: the place it names and its share of the best effect."""
    lens, sets, directions = asked.lens, load(concept, lens=asked.lens), asked.directions(concept)
    # Placement runs before anything is steered, on prompts that the sweep does not use.
    others = sets.development[asked.n_prompts : 2 * asked.n_prompts]
    placed = placement.place(lens, sets, directions, prompts=others, screen_seconds=0)
    typer.echo(repr(placed))
    steered, prompted = asked.steered(concept, directions), asked.prompted(concept)
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


def chosen_strengths(spans: pd.DataFrame) -> pd.DataFrame:
    """The strength with the widest span within the loss bound, per place; a span of 0 if there is none."""
    within = spans[spans.failed <= MOST_FAILED]
    best = within.loc[within.groupby("place").span.idxmax()].set_index("place")
    return best.reindex(spans.place.unique()).fillna({"span": 0.0})


def held_out(chosen_on: pd.DataFrame, read_on: pd.DataFrame, place: str | None) -> float:
    """The span on one half of the clips, at the strength (and place, if none is given) chosen on the other."""
    within = chosen_on.failed <= MOST_FAILED
    if place is not None:
        within &= chosen_on.place == place
    if not within.any():
        return 0.0
    # Both tables have the same places and strengths, row by row.
    return float(read_on.span[chosen_on.span[within].idxmax()])


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
