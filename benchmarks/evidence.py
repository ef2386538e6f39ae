"""Measure the numbers in docs/evidence.md and the model card: `make evidence`.

This measures étude's abilities on held-out captions, then studies tempo and timbre with 199 controls of each kind, and
writes one Markdown page of tables. With `--update` the tables also replace those in docs/evidence.md and the card.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from jaxtyping import Float
from matplotlib.figure import Figure
from pages import renewed

from analysis import statistics, sweep
from analysis import study as studies
from analysis.figures import spectrograms
from analysis.resampling import COVERAGE
from analysis.study.study_set import Several
from analysis.study.test_result import CROSSED
from analysis.sweep import BASELINE, Condition
from analysis.sweep.response import MEASURED, effects
from analysis.workers import share_cores
from audiolens import AudioLens, prompts, steer
from audiolens.etude.training import evaluate
from audiolens.etude.training.train import WEIGHTS
from audiolens.sound.soundfiles import compressed

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs/evidence.md", WEIGHTS / "README.md")


def main(
    out: Annotated[Path, typer.Option(help="Folder for tables and studies.")] = Path("runs/evidence"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    test: Annotated[int, typer.Option(help="Neutral test prompts, four seeds each.")] = 24,
    clips: Annotated[int, typer.Option(help="Clips of each caption that names a pole.")] = 2,
    controls: Annotated[int, typer.Option(help="Random directions, and as many balanced shuffles.")] = 199,
    scan: Annotated[bool, typer.Option(help="Choose the place by steering at every block, else by placement.")] = True,
    update: Annotated[bool, typer.Option(help="Write the tables into docs/evidence.md and the model card.")] = False,
) -> None:
    """Measure everything that docs/evidence.md and the model card claim."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    heard = evaluate.abilities(lens, clips, n_jobs=-1)
    tables = {"abilities": with_intervals(heard), "neutral": heard.neutral()}
    heard.clips.drop(columns="mfcc").to_parquet(out / "abilities.parquet")
    # The place is chosen by steering at every block; benchmarks/placement_rules.py compares placement with that.
    place = "scan" if scan else "evidence"
    settings = studies.Settings.full(test=test, n_random=controls, n_shuffled=controls, place_by=place)
    alone = [
        studies.run(
            lens, concept, out / concept, settings=settings, overwrite=True, tell=typer.echo,
            command="python benchmarks/evidence.py " + " ".join(sys.argv[1:]),
        )  # fmt: skip
        for concept in ("tempo", "timbre")
    ]  # fmt: skip
    # The page reports both poles of both concepts, so their p-values are corrected together.
    found = list(Several(tuple(alone)).studies)
    tables |= {
        "steering": pd.DataFrame(
            [{"concept": s.concept} | o.as_dict() | {"spearman": s.monotonicity.rho} for s in found for o in s.outcomes]
        ),
        "response": pd.concat([response_of(s) for s in found]),
        "cross": pd.concat([crossed(lens, s, [other for other in found if other is not s]) for s in found]),
    }
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    text = page(tables, found, clips)
    (out / "evidence.md").write_text(text, "utf-8")
    picture = pictured(found)
    picture.savefig(out / "steered.png", dpi=110)
    if update:
        picture.savefig(ROOT / "docs" / "steered.png", dpi=110)
        for name, sound in sounding(found).items():
            (ROOT / "docs" / "sounds" / name).write_bytes(sound)
    for path in PAGES if update else ():
        path.write_text(renewed(path.read_text("utf-8"), "evidence", text), "utf-8")
    typer.echo(text)


def with_intervals(heard: evaluate.Abilities) -> pd.DataFrame:
    """The abilities, with intervals over captions."""
    table = heard.to_frame()
    rows = []
    for concept, measure in zip(table.concept, table.measure, strict=True):
        if concept not in evaluate.POLES:
            rows.append((float("nan"), float("nan")))
            continue
        named = heard.clips[heard.clips.concept == concept]
        area = statistics.auc(named[measure], named.level == evaluate.POLES[concept][1], named.caption)
        rows.append((area.interval.low, area.interval.high))
    table[["auc_low", "auc_high"]] = rows
    return table


def first_clip(study: studies.Study) -> list[Float[np.ndarray, "channel sample"]]:
    """The first test clip steered towards the negative pole, unsteered, and steered towards the positive pole."""
    _, prompt, seed = next(iter(study.sounds))
    place = f"steered {study.choice.strategy} "
    names = (f"{place}{-study.choice.strength:+g}", BASELINE, f"{place}{study.choice.strength:+g}")
    return [study.sounds[name, prompt, seed] for name in names]


def pictured(found: list[studies.Study]) -> Figure:
    """Spectrograms of the first test clip of every study."""
    rows = [f"{study.concept}: {' / '.join(reversed(study.poles))}" for study in found]
    columns = ("steered to the negative pole", "the same seed, not steered", "steered to the positive pole")
    return spectrograms.paired([first_clip(study) for study in found], found[0].sample_rate, rows, columns)


def sounding(found: list[studies.Study]) -> dict[str, bytes]:
    """The same clips as sound files, named after their poles; the studies share the unsteered clip."""
    files = {}
    for study in found:
        for name, samples in zip((study.poles[1], "unsteered", study.poles[0]), first_clip(study), strict=True):
            files[f"{name}.ogg"] = compressed(samples, study.sample_rate)[0]
    return files


def response_of(study: studies.Study) -> pd.DataFrame:
    """The dose-response of the chosen steering and its references, without the rows of the controls."""
    kinds = ("baseline", "steered", "alternative", "prompted", "opposed")
    wanted = ["kind", "strategy", "layer", "strength", "pole", "median", "effect", "low", "high", "failed"]
    return study.response[study.response.kind.isin(kinds)][wanted].assign(concept=study.concept)


def crossed(lens: AudioLens, study: studies.Study, others: list[studies.Study]) -> pd.DataFrame:
    """The effect of the chosen steering on every measure of the test clips, with the whole direction and without its
    component along the other concepts' (`orthogonal_to`), at the same place and strength."""
    whole = study.directions
    freed = whole.orthogonal_to(*(other.directions for other in others))
    conditions = [Condition(BASELINE, labels={"kind": BASELINE, "direction": None, "strength": 0.0})]
    for name, directions in (("whole", whole), ("freed", freed)):
        for strength in (study.choice.strength, -study.choice.strength):
            steps = steer(directions, **study.choice.where, strength=strength, branch=study.settings.branch)
            labels = {"kind": "steered", "direction": name, "strength": strength}
            conditions.append(Condition(f"{name} {strength:+g}", tuple(steps), labels=labels))
    clips = study.settings.test_clips(prompts.load(study.concept, lens=lens))
    played = sweep.play(
        lens, conditions, clips, seconds=study.settings.seconds, **study.settings.drawing,
        progress=f"cross-effects of {study.concept}",
    )  # fmt: skip
    found = [effects(played.table, one).query("kind == 'steered'").assign(measure=one) for one in CROSSED]
    return pd.concat(found, ignore_index=True).assign(concept=study.concept, own=MEASURED[study.concept])


def page(tables: dict[str, pd.DataFrame], found: list[studies.Study], clips: int = 2) -> str:
    """The tables as Markdown, each with an explanation."""
    abilities = tables["abilities"]
    named = [
        f"| {row.concept} | {row.measure} | {_number(row.low_median)} | {_number(row.high_median)} "
        f"| {row.auc:.3f} {_interval(row.auc_low, row.auc_high)} | {row.ceiling:.3f} | {row.difference:+.3f} |"
        for row in abilities.itertuples()
    ]
    neutral = [
        f"| {row.measure} | {_number(row.p10)} | {_number(row.median)} | {_number(row.p90)} "
        f"| {row.share_above_reference:.0%} | {row.relative_spread:.2f} |"
        for row in tables["neutral"].itertuples()
    ]
    steered = [
        f"| {row.concept} | {row.pole} | {row.strength:+g} | {row.effect:+.1%} {_interval(row.low, row.high, '+.0%')} "
        f"| {row.failed:.0%} | {row.median:.0f} | {_ranked(row.p_random, row.n_random)} "
        f"| {_ranked(row.p_shuffled, row.n_shuffled)} | {row.p_corrected:.3f} ({row.n_controls}) "
        f"| {row.rivals or 'none'} of {row.n_other} | {row.prompted:+.1%} | {row.opposed:+.1%} | {row.spearman:.2f} |"
        for row in tables["steering"].itertuples()
    ]
    dose = [
        f"| {row.concept} | {row.kind} | {_place(row)} | {row.median:.0f} | {row.effect:+.1%} "
        f"{_interval(row.low, row.high, '+.0%')} | {row.failed:.0%} |"
        for row in tables["response"].itertuples()
    ]
    cross = [
        f"| {row.concept} | {row.strength:+g} | {row.measure} | {_change(row.whole)} | {_change(row.freed)} |"
        for row in _beside(tables["cross"])
    ]
    lines = [
        "**How well étude follows captions.** The clips were generated from 24 held-out captions per pole, with "
        f"{clips} clips per caption. The AUC shows how well the measure separates clips of the high pole from clips of "
        f"the low pole, with a {COVERAGE} interval over captions. The ceiling is the AUC of the same measure on the "
        "synthesiser's clips after encoding and decoding by the codec.",
        "",
        "| concept | measure | low, median | high, median | AUC | ceiling | difference |",
        "|---|---|---|---|---|---|---|",
        *named,
        "",
        "**How clips from neutral captions sound.** The table lists quantiles and the share of clips above the median "
        "of the synthesiser's clips. The relative range is the difference between the 90% and 10% quantiles, divided "
        "by the same difference for the synthesiser's clips.",
        "",
        "| measure | 10% | median | 90% | above the synthesiser's median | relative range |",
        "|---|---|---|---|---|---|",
        *neutral,
        "",
        "**What steering does.** The clips were generated from neutral test prompts, and the place and strength were "
        "chosen on development prompts. The effect is the median of (steered / baseline - 1), where each steered clip "
        f"is compared with the baseline clip of the same prompt and seed. Intervals are {COVERAGE} intervals over "
        "prompts. A failed clip counts as an effect of zero. p is computed from the rank of the effect among the "
        "effects of norm-matched random directions, or of balanced shuffles (the number of directions is in "
        "brackets). The corrected p is computed from the rank among all controls, with Holm's correction over all "
        "rows.",
        "",
        "| concept | towards | strength | effect | failed | median | p, random | p, shuffled | p, corrected "
        "| other concepts with as large an effect | prompted | steered against the prompt | Spearman |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *steered,
        "",
        *(f"- {study.finding} {study.qualification}" for study in found),
        "",
        "**Effect on other measures.** The clips were steered at the place and strength of the table above, along the "
        "whole direction and along the direction without its component along the other concept's direction "
        "(`orthogonal_to`).",
        "",
        "| steered along | strength | measure | whole direction | orthogonal to the other concept |",
        "|---|---|---|---|---|",
        *cross,
        "",
        "<details><summary>Every condition</summary>",
        "",
        "| concept | condition | place and strength, or word | median | effect | failed |",
        "|---|---|---|---|---|---|",
        *dose,
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def _beside(cross: pd.DataFrame) -> Iterator[SimpleNamespace]:
    """Cross-effects with both directions side by side: the concepts' own measures, the beat and loudness."""
    mine = cross[cross.measure.isin([*cross.own.unique(), "tempo", "loudness"])]
    for (concept, strength, measure), pair in mine.groupby(["concept", "strength", "measure"], sort=False):
        sides = {row.direction: row for row in pair.itertuples()}
        yield SimpleNamespace(concept=concept, strength=strength, measure=measure, **sides)


def _change(row: Any) -> str:
    if row.measure == "loudness":
        return f"{row.effect:+.1f} dB {_interval(row.low, row.high, '+.1f')}"
    return f"{row.effect:+.1%} {_interval(row.low, row.high, '+.0%')}, {row.failed:.0%} failed"


def _place(row: object) -> str:
    strategy, layer, strength, pole = (getattr(row, name) for name in ("strategy", "layer", "strength", "pole"))
    where = f"{strategy} {layer:.0f}, {strength:+g}" if isinstance(strategy, str) else ""
    return ", ".join(part for part in (where, pole if isinstance(pole, str) else "") if part)


def _ranked(p: float, controls: int) -> str:
    return f"{p:.3f} ({controls})" if controls else "(none)"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"


def _interval(low: float, high: float, form: str = ".3f") -> str:
    return "" if low != low else f"[{low:{form}}, {high:{form}}]"


if __name__ == "__main__":
    typer.run(main)
