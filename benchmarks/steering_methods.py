"""Compare every method of steering on étude: `python benchmarks/steering_methods.py --update`.

For each concept, all methods of `analysis.methods` steer neutral test prompts at the same place and doses, next to
prompts that name the pole, random directions and balanced shuffles. The tables go to docs/methods.md, and every number
of them to `docs/methods/`. Stopped runs resume, concept by concept; `--concepts` takes those that are finished. With
another `--model`, `--update` writes how well the areas agree with those on étude. `--quick` takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from pages import renewed
from scipy import stats

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
CONTROLS = {"random": "random directions", "balanced": "balanced shuffles"}
DISTANCES = {"frechet": "Fréchet", "clap": "CLAP", "lpaps": "LPAPS"}
FULL: dict[str, Any] = {"concepts": CONCEPTS, "ways": tuple(methods.METHODS), "test": 16, "controls": 1, "read": 48}
"""With 16 prompts, a difference can be significant after the correction for all tests."""
QUICK: dict[str, Any] = {
    "concepts": CONCEPTS[:3], "ways": (REFERENCE, "gated", "latent"), "test": 6, "controls": 3, "read": 24,
}  # fmt: skip
"""The sizes of a comparison that takes minutes. It has too few prompts for p-values, and no place in the docs."""


def main(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the clips (resumable) and tables [default: runs/methods].")
    ] = None,
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    quick: Annotated[bool, typer.Option(help="Few concepts, methods and prompts: minutes instead of hours.")] = False,
    concepts: Annotated[str | None, typer.Option(help="Concepts, separated by commas [default: all eight].")] = None,
    ways: Annotated[str | None, typer.Option("--methods", help="Methods, separated by commas [default: all].")] = None,
    test: Annotated[int | None, typer.Option(help="Neutral test prompts [default: 16].")] = None,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 1,
    doses: Annotated[str, typer.Option(help="Doses, separated by commas.")] = "-1,-0.5,0.5,1",
    controls: Annotated[
        int | None, typer.Option(help="Random directions, and as many balanced shuffles [default: 1].")
    ] = None,
    read: Annotated[int | None, typer.Option(help="Prompts per pole that are read [default: 48].")] = None,
    clap: Annotated[str | None, typer.Option(help="A CLAP model, which also compares the clips.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    jobs: Annotated[int | None, typer.Option(help="Processes; 0: this one [default: one per core].")] = None,
    update: Annotated[
        bool, typer.Option(help="Write the tables into docs/methods.md; with another model, into their own section.")
    ] = False,
) -> None:
    """Compare the methods, and write the tables."""
    if update and quick:
        raise typer.BadParameter("--update --quick: a quick comparison has no place in docs/methods.md.")
    share_cores()
    lens = AudioLens.from_pretrained(model)
    given = {"concepts": _listed(concepts), "ways": _listed(ways), "test": test, "controls": controls, "read": read}
    size = {name: (QUICK if quick else FULL)[name] if value is None else value for name, value in given.items()}
    replicate = model != "etude"
    if out is None:
        parts = ["methods", *(["quick"] if quick else []), *([Path(model).name] if replicate else [])]
        out = Path("runs") / "-".join(parts)
    found = methods.compare(
        lens, size["concepts"], methods=size["ways"],
        measured={name: Likeness(name) for name in size["concepts"] if name in INSTRUMENTS},
        doses=[float(one) for one in doses.split(",")], n_random=size["controls"], n_shuffled=size["controls"],
        prompts=size["test"], seeds=seeds, read_prompts=size["read"], seconds=seconds, out=out, n_jobs=jobs,
        clap=clap,
    )  # fmt: skip
    told = (
        f"{size['test']} test prompts x {seeds} seeds, clips of {seconds:g} s, doses {doses}, and at most "
        f"{size['read']} prompts per pole to read"
    )
    text = page(found, told, brief=quick)
    (out / "methods.md").write_text(text, "utf-8")
    folder = TABLES / Path(model).name if replicate else TABLES
    for place in [out, *([folder] if update else [])]:
        place.mkdir(exist_ok=True)
        for name in ("table", "conditions", "controls", "overall"):
            path = place / f"{'methods' if name == 'table' else name}.csv"
            getattr(found, name).to_csv(path, index=False, float_format="%.4g")
    if update:
        section = "methods-replicate" if replicate else "methods"
        if replicate:
            first = stability(found, pd.read_csv(TABLES / "methods.csv"))
            text = joined([*first, best(found, told), areas(found), over_all(found)])
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), section, text), "utf-8")
    if update and not replicate:
        found.plot().savefig(PAGE.with_suffix(".png"))
    typer.echo(text)


def _listed(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names.split(","))


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


def page(found: methods.MethodsResult, told: str, *, brief: bool = False) -> str:
    """The tables and what they say, in Markdown. A brief comparison is too small for a verdict."""
    parts = [*([] if brief else [verdict(found)]), best(found, told), areas(found), missing(found), over_all(found)]
    parts += [among(found), kept(found)]
    return joined(parts)


def joined(parts: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def verdict(found: methods.MethodsResult) -> list[str]:
    """Three sentences about the field's expectations, and what was found here."""
    n = len(found.concepts)
    asked = of_kind(found, "prompting")
    better, worse = (asked[(asked["p_holm"] <= LEVEL) & (sign * asked["difference"] > 0)] for sign in (1, -1))
    larger = int((asked["difference"] > 0).sum())
    wins = found.better().groupby("method", sort=False)["concept"].nunique()
    concepts = found.better()["concept"].nunique()
    if len(wins):
        most = wins.idxmax()
        told = f"the most successful, `{most}`, is so on {wins.max()}"
    else:
        told = "no method is, on any concept"
    aim = "which reaches" if concepts * 2 >= n else "which misses"
    if not decidable(found):
        aim = f"but {found.n_prompts} prompts are too few to decide"
    top = found.overall[found.overall["kind"] == "method"].set_index("method")["area"]
    leading = found.overall.set_index("method").loc[top.idxmax()]
    apart = f" (a difference of {ranged(leading, 'difference')}, p = {leading['p_holm']:.2g})"
    random = found.controls[found.controls["kind"] == "random"]
    beaten = int(((random["p_holm"] <= LEVEL) & (random["difference"] < 0)).sum())
    latent = of_method(found, "latent")
    if len(latent):
        fewer, more = int((latent["difference"] < 0).sum()), int((latent["difference"] > 0).sum())
        sparse = f"a latent of a sparse autoencoder a smaller one on {fewer} of {len(latent)} and a larger on {more}"
    else:
        sparse = "latents of sparse autoencoders are not compared"
    lines = [
        f"- In language models, prompting is better than the difference in means, which is better than sparse "
        f"autoencoders ([Wu et al. 2025](https://arxiv.org/abs/2501.17148)); here, prompting has the larger area on "
        f"{larger} of {n} concepts (significantly larger on {len(better)}, significantly smaller on {len(worse)}), and "
        f"{sparse}.",
        f"- At least one method is significantly better than the difference in means on {concepts} of {n} concepts, "
        f"{aim} our aim of half of them: {told}, and the largest mean area over concepts is "
        f"{top.max():.2f} (`{top.idxmax()}`), that of the difference in means {top[REFERENCE]:.2f}"
        f"{'' if leading.name == REFERENCE else apart}.",
    ]
    if len(random):
        lines.append(
            f"- A random direction of the same norm has a mean area of {random['area'].mean():.2f}, significantly less "
            f"than the difference in means on {beaten} of {n} concepts, and the smallest mean area of a method is "
            f"{top.min():.2f} (`{top.idxmin()}`)."
        )
    return lines


def decidable(found: methods.MethodsResult) -> bool:
    """Whether the smallest p-value of an exact paired test is at most `LEVEL` after the correction for all tests."""
    tests = int(found.table["p"].notna().sum() + found.controls["p"].notna().sum())
    return 2.0 ** (1 - found.n_prompts) * tests <= LEVEL


def best(found: methods.MethodsResult, told: str) -> list[str]:
    """The best method of every concept, next to the difference in means and prompting."""
    lines = [
        f"Measured on {found.model}: {told}. An area is the mean effect over drifts from that between two seeds of a "
        f"prompt ({found.seed_drift:.2f} nats per code) to {1 + found.limit:g} times as much, in standard deviations "
        f"of the unsteered clips' measure, averaged over both signs. Brackets show {COVERAGE} intervals over prompts. "
        f"`p` is the p-value of the paired difference from {FIRST}, after Holm's correction for all methods, kinds of "
        "control and concepts. The best of many methods looks better than it is; the last column is the share of "
        "resamples in which it is the best.",
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
            f"| {ranged(own.loc['prompting'], 'area') if 'prompting' in own.index else 'n/a'} "
            f"| {row['best_share']:.0%} |"
        )
    return lines


def areas(found: methods.MethodsResult) -> list[str]:
    """The areas of all methods and concepts."""
    lines = [
        f"The areas of all methods. Bold ones differ significantly from {FIRST} (p of at most {LEVEL:g}, corrected).",
        "",
        f"| method | {' | '.join(found.concepts)} |",
        "|---|" + "---|" * len(found.concepts),
    ]
    single = found.table[~found.table["kind"].isin(list(CONTROLS))]
    named = [*single.groupby("method", sort=False), *found.controls.groupby("kind", sort=False)]
    for name, mine in named:
        rows = mine.set_index("concept")
        cells = [_area(rows.loc[one]) if one in rows.index else "n/a" for one in found.concepts]
        label = f"`{name}`"
        if name in CONTROLS:
            draws = mine["draws"].max()
            label = (
                f"{draws} {CONTROLS[str(name)]} (mean)" if draws > 1 else f"1 {CONTROLS[str(name)].removesuffix('s')}"
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def over_all(found: methods.MethodsResult) -> list[str]:
    """The mean areas over all concepts, of the methods that steer all of them."""
    lines = [
        f"The mean areas over the {len(found.concepts)} concepts, of the methods that steer all of them. Every prompt "
        "has one mean over concepts, and prompts are resampled and flipped as before. `p` is corrected for the rows "
        "of this table.",
        "",
        f"| method | mean area | difference from {FIRST} | p |",
        "|---|---|---|---|",
    ]
    for row in found.overall.to_dict("records"):
        name, reference = str(row["method"]), row["method"] == REFERENCE
        label = CONTROLS.get(name, f"`{name}`")
        apart = "" if reference else ranged(row, "difference")
        lines.append(
            f"| {label} | {ranged(row, 'area')} | {apart} | {'' if reference else format(row['p_holm'], '.2g')} |"
        )
    return lines


def stability(found: methods.MethodsResult, there: pd.DataFrame) -> tuple[list[str], list[str]]:
    """How well the areas of the methods agree with those of étude, of which `there` is the table."""
    mine, theirs = (
        table[table["kind"].isin(["method", "prompting"])].pivot_table("area", "method", "concept")
        for table in (found.table, there)
    )
    concepts = [one for one in found.concepts if one in theirs]
    both = [name for name in mine.index if name in theirs.index]
    mine, theirs = mine.loc[both, concepts], theirs.loc[both, concepts]
    whole = mine.notna().all(axis=1) & theirs.notna().all(axis=1)
    mean: Any = stats.spearmanr(mine[whole].mean(axis=1), theirs[whole].mean(axis=1))
    lines = [
        f"The mean areas over {len(concepts)} concepts of the {whole.sum()} methods that steer all of them (prompting "
        f"included) have a rank correlation of {mean.statistic:.2f} with those on étude (p = {mean.pvalue:.2g}). "
        "`rank correlation` is that of the areas on one concept, and `étude's best` is the rank here of the method "
        "with the largest area on étude.",
    ]
    rows = ["| concept | methods | rank correlation | largest area here | largest on étude | étude's best |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for concept in concepts:
        pair = pd.DataFrame({"here": mine[concept], "there": theirs[concept]}).dropna()
        rho: Any = stats.spearmanr(pair["here"], pair["there"])
        first, other = pair["here"].idxmax(), pair["there"].idxmax()
        rank = int(pair["here"].rank(ascending=False, method="min")[other])
        rows.append(
            f"| {concept} | {len(pair)} | {rho.statistic:.2f} | `{first}` | `{other}` | {rank} of {len(pair)} |"
        )
    return lines, rows


def missing(found: methods.MethodsResult) -> list[str]:
    """Why cells of the table of areas are empty."""
    told = [f"`{name}` on {concept}: {why}" for (concept, name), why in found.left_out.items()]
    return [f"Left out: {' '.join(told)}"] if told else []


def among(found: methods.MethodsResult) -> list[str]:
    """Where the areas of the difference in means and of the best method lie among those of the controls."""
    if not len(found.controls):
        return []
    lines = [
        f"The areas of the controls: the mean over the draws of a kind with Student's {COVERAGE} interval over draws "
        "(none for a single draw), the range of the draws, and, for the difference in means and for the best method, "
        "the rank p-value (1 + controls with at least this area) / (1 + controls), which is not corrected.",
        "",
        f"| concept | controls | mean area | lowest to highest | {FIRST} | p | largest area | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best_of = found.best.set_index("concept")
    first = of_method(found, REFERENCE).set_index("concept")
    for row in found.controls.to_dict("records"):
        concept, ranks = row["concept"], f"p_{row['kind']}"
        mean = ranged(row, "area") if row["draws"] > 1 else f"{row['area']:.2f}"
        lines.append(
            f"| {concept} | {row['draws']} {CONTROLS[row['kind']]} | {mean} "
            f"| {row['lowest']:.2f} to {row['highest']:.2f} "
            f"| {first.loc[concept, 'area']:.2f} | {first.loc[concept, ranks]:.2g} "
            f"| `{best_of.loc[concept, 'method']}` {best_of.loc[concept, 'area']:.2f} "
            f"| {best_of.loc[concept, ranks]:.2g} |"
        )
    return lines


def kept(found: methods.MethodsResult) -> list[str]:
    """What the clips of every method keep, averaged over concepts."""
    other = found.conditions[found.conditions["kind"] == "other seeds"]
    far = {name: label for name, label in DISTANCES.items() if name in found.table}
    lines = [
        "What else happens, averaged over concepts. `drift` is at the outermost doses, as a multiple of that between "
        "two seeds of a prompt; prompted clips are scored under their own words. `loudness` is the mean absolute "
        "change of the level there. The Fréchet distance is that of the codec's quantised features from the unsteered "
        f"clips; clips of other seeds are at {other['frechet'].mean():.1f}. `selectivity` is the effect divided by the "
        "largest mean change of another measure (medians over concepts). `monotone` is the share of steps between "
        "neighbouring doses that go up (.5 by chance). `missed` is the mean distance from targets of half a standard "
        "deviation, at doses that were chosen on the other half of the prompts. `seconds` is the time that the "
        "direction took to compute, on a busy machine.",
        "",
        f"| method | drift | loudness | failed | {' | '.join(far.values())} | selectivity | monotone | missed | clips "
        "| seconds |",
        "|---" * (9 + len(far)) + "|",
    ]
    doses = found.conditions["dose"]
    ends = found.conditions.groupby(["concept", "method"])["dose"]
    outer = found.conditions[(doses == ends.transform("max")) | (doses == ends.transform("min"))]
    loud = outer["loudness_db"].abs().groupby(labels(outer)).mean()
    for name, mine in found.table.groupby(labels(found.table), sort=False):
        drift, seconds = mine[["drift_down", "drift_up"]].mean(axis=None), mine["seconds"].mean()
        lines.append(
            f"| {name} | {drift:.2f} | {loud[name]:.1f} dB | {mine['failed'].mean():.1%} "
            f"| {' | '.join(format(mine[name].mean(), '.3g') for name in far)} "
            f"| {mine['selectivity'].median():.2f} | {mine['monotone'].mean():.2f} "
            f"| {mine['calibration_error'].mean():.2f} | {mine['clips'].sum()} "
            f"| {'' if np.isnan(seconds) else f'{seconds:.0f}'} |"
        )
    return lines


def labels(table: pd.DataFrame) -> pd.Series:
    """What the rows of a table are called: the controls of a kind are one."""
    return table["kind"].map(CONTROLS).fillna("`" + table["method"] + "`")


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
