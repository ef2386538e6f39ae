"""Compare every method of steering on étude: `python benchmarks/steering_methods.py --update`.

For each concept, all methods of `analysis.methods` steer neutral test prompts at the same place and doses, next to
prompts that name the pole, random directions and balanced shuffles. The tables go to docs/methods.md, and every number
of them to `docs/methods/`. Stopped runs resume, concept by concept; `--concepts` takes those that are finished.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from pages import renewed

from analysis import methods
from analysis.methods.table import REFERENCE
from analysis.resampling import COVERAGE
from analysis.statistics import LEVEL
from analysis.workers import share_cores
from audiolens import AudioLens, Generation
from audiolens.etude.training.instruments import Instruments, cepstra, decoded

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
TABLES = PAGE.with_suffix("")
CONCEPTS = ("tempo", "timbre", "register", "loudness", "density", "mode", "bells", "strings")
INSTRUMENTS = ("bells", "organ", "pluck", "strings")
FIRST = "`difference_in_means`"


def main(
    out: Annotated[Path, typer.Option(help="Folder for the clips (resumable) and tables.")] = Path("runs/methods"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    concepts: Annotated[str, typer.Option(help="Concepts, separated by commas.")] = ",".join(CONCEPTS),
    test: Annotated[int, typer.Option(help="Neutral test prompts.")] = 12,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 1,
    doses: Annotated[str, typer.Option(help="Doses, separated by commas.")] = "-1,-0.5,0.5,1",
    controls: Annotated[int, typer.Option(help="Random directions, and balanced shuffles.")] = 1,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    jobs: Annotated[int | None, typer.Option(help="Processes; 0: this one [default: one per core].")] = None,
    update: Annotated[bool, typer.Option(help="Write the tables into docs/methods.md.")] = False,
) -> None:
    """Compare the methods, and write the tables."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    names = concepts.split(",")
    found = methods.compare(
        lens, names, measured={name: Likeness(name) for name in names if name in INSTRUMENTS},
        doses=[float(one) for one in doses.split(",")], n_random=controls, n_shuffled=controls, prompts=test,
        seeds=seeds, seconds=seconds, out=out, n_jobs=jobs,
    )  # fmt: skip
    text = page(found, f"{test} test prompts x {seeds} seeds, clips of {seconds:g} s, doses {doses}")
    (out / "methods.md").write_text(text, "utf-8")
    for folder in [out, *([TABLES] if update else [])]:
        folder.mkdir(exist_ok=True)
        found.table.to_csv(folder / "methods.csv", index=False, float_format="%.4g")
        found.conditions.to_csv(folder / "conditions.csv", index=False, float_format="%.4g")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "methods", text), "utf-8")
        found.plot().savefig(PAGE.with_suffix(".png"))
    typer.echo(text)


class Likeness:
    """How much clips sound like an instrument: the log odds of a classifier that was fitted on labelled clips."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, lens: AudioLens, clips: Generation) -> np.ndarray:
        classifier = _classifier(lens).classifier
        features = cepstra(decoded(lens, clips.codes), lens.config.sample_rate)
        chances = classifier.predict_log_proba(features)
        own = list(classifier.classes_).index(self.name)
        return chances[:, own] - np.logaddexp.reduce(np.delete(chances, own, axis=1), axis=1)


@cache
def _classifier(lens: AudioLens) -> Instruments:
    return Instruments.of(lens)


def page(found: methods.MethodsResult, told: str) -> str:
    """The tables and what they say, in Markdown."""
    return "\n".join([*verdict(found), "", *best(found, told), "", *areas(found), "", *kept(found)]) + "\n"


def verdict(found: methods.MethodsResult) -> list[str]:
    """Three sentences about the field's expectations, and what was found here."""
    n = len(found.concepts)
    asked, first = of_kind(found, "prompting"), of_method(found, REFERENCE)
    better, worse = (asked[(asked["p_holm"] <= LEVEL) & (sign * asked["difference"] > 0)] for sign in (1, -1))
    larger = int((asked["difference"] > 0).sum())
    wins = found.better().groupby("method", sort=False)["concept"].nunique()
    concepts = found.better()["concept"].nunique()
    if len(wins):
        most = wins.idxmax()
        told = f"the most successful, `{most}`, is so on {wins.max()}"
    else:
        told = "none is on any concept"
    aim = "reaches" if concepts * 2 >= n else "misses"
    means = of_kind(found, "method").groupby("method")["area"].agg(["mean", "count"])
    top = means[means["count"] == n]["mean"]
    random = of_kind(found, "random")
    beaten = int(((random["p_holm"] <= LEVEL) & (random["difference"] < 0)).sum())
    return [
        f"- In language models, prompting is better than the difference in means, which is better than sparse "
        f"autoencoders ([Wu et al. 2025](https://arxiv.org/abs/2501.17148)); here, prompting has the larger area on "
        f"{larger} of {n} concepts (significantly larger on {len(better)}, significantly smaller on {len(worse)}), and "
        "latents of sparse autoencoders are not compared.",
        f"- At least one method is significantly better than the difference in means on {concepts} of {n} concepts, "
        f"which {aim} our aim of half of them: {told}, and the largest mean area over concepts is "
        f"{top.max():.2f} (`{top.idxmax()}`), that of the difference in means {first['area'].mean():.2f}.",
        f"- A random direction of the same norm has a mean area of {random['area'].mean():.2f}, significantly less "
        f"than the difference in means on {beaten} of {n} concepts, and the smallest mean area of an estimator is "
        f"{top.min():.2f} (`{top.idxmin()}`).",
    ]


def best(found: methods.MethodsResult, told: str) -> list[str]:
    """The best method of every concept, next to the difference in means and prompting."""
    lines = [
        f"Measured on {found.model}: {told}. An area is the mean effect over drifts from that between two seeds of a "
        f"prompt ({found.seed_drift:.2f} nats per code) to {1 + found.limit:g} times as much, in standard deviations "
        f"of the unsteered clips' measure, averaged over both signs. Brackets show {COVERAGE} intervals over prompts. "
        f"`p` is the p-value of the paired difference from {FIRST}, after Holm's correction for all methods, controls "
        "and concepts. The best of many methods looks better than it is; the last column is the share of resamples in "
        "which it is the best.",
        "",
        f"| concept | measure | place | largest area | {FIRST} | difference | p | prompting | best in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found.best.to_dict("records"):
        concept, place = row["concept"], found.places[row["concept"]]
        own = found.table[found.table["concept"] == concept].set_index("method")
        where = place.strategy + ("" if place.layer is None else f" {place.layer}")
        itself = row["method"] == REFERENCE
        lines.append(
            f"| {concept} | {found.measured[concept]} | {where} | `{row['method']}` {ranged(row, 'area')} "
            f"| {ranged(own.loc[REFERENCE], 'area')} | {'' if itself else ranged(row, 'difference')} "
            f"| {'' if itself else format(row['p_holm'], '.2g')} "
            f"| {ranged(own.loc['prompting'], 'area')} | {row['best_share']:.0%} |"
        )
    return lines


def areas(found: methods.MethodsResult) -> list[str]:
    """The areas of all methods and concepts."""
    lines = [
        f"The areas of all methods. Bold ones differ significantly from {FIRST} (p of at most {LEVEL:g}, corrected).",
        "",
        f"| method | {' | '.join(found.concepts)} | mean |",
        "|---|" + "---|" * (len(found.concepts) + 1),
    ]
    for name, mine in found.table.groupby("method", sort=False):
        rows = mine.set_index("concept")
        cells = [_area(rows.loc[one]) if one in rows.index else "n/a" for one in found.concepts]
        whole = f"{mine['area'].mean():.2f}" if len(mine) == len(found.concepts) else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | {whole} |")
    return lines


def kept(found: methods.MethodsResult) -> list[str]:
    """What the clips of every method keep, averaged over concepts."""
    other = found.conditions[found.conditions["kind"] == "other seeds"]
    lines = [
        "What else happens, averaged over concepts. `drift` is at doses of 1 and -1, as a multiple of that between two "
        "seeds of a prompt. `loudness` is the mean absolute change of the level there. The Fréchet distance is that of "
        "the codec's quantised features from the unsteered clips; clips of other seeds are at "
        f"{other['frechet'].mean():.1f}. `selectivity` is the effect divided by the largest mean change of another "
        "measure (medians over concepts). `monotone` is the share of steps between neighbouring doses that go up (.5 "
        "by chance). `missed` is the mean distance from targets of half a standard deviation, at doses that were "
        "chosen on the other half of the prompts. `seconds` is the time that the direction took to compute, on a busy "
        "machine.",
        "",
        "| method | drift | loudness | failed | Fréchet | selectivity | monotone | missed | clips | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    outer = found.conditions[found.conditions["dose"].abs() == found.conditions["dose"].abs().max()]
    loud = outer.assign(loud=outer["loudness_db"].abs()).groupby("method")["loud"].mean()
    for name, mine in found.table.groupby("method", sort=False):
        drift, seconds = mine[["drift_down", "drift_up"]].mean(axis=None), mine["seconds"].mean()
        lines.append(
            f"| `{name}` | {drift:.2f} | {loud[name]:.1f} dB | {mine['failed'].mean():.1%} "
            f"| {mine['frechet'].mean():.1f} | {mine['selectivity'].median():.2f} | {mine['monotone'].mean():.2f} "
            f"| {mine['calibration_error'].mean():.2f} | {mine['clips'].sum()} "
            f"| {'' if np.isnan(seconds) else f'{seconds:.0f}'} |"
        )
    return lines


def of_kind(found: methods.MethodsResult, kind: str) -> pd.DataFrame:
    return found.table[found.table["kind"] == kind]


def of_method(found: methods.MethodsResult, name: str) -> pd.DataFrame:
    return found.table[found.table["method"] == name]


def ranged(row: Any, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _area(row: Any) -> str:
    text = f"{row['area']:.2f}"
    return f"**{text}**" if row["p_holm"] <= LEVEL else text


if __name__ == "__main__":
    typer.run(main)
