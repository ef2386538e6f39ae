"""What steering does along the directions of every estimator, at the same place and norm.

`python benchmarks/estimators.py --update` estimates étude's tempo direction with each method of `al.estimate` at the
place of docs/evidence.md, gives all of them the norm of the difference in means, steers clips of neutral test
prompts along them, and writes the table in docs/directions.md. Stopped runs resume.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from pages import renewed
from selectivity import PLACES

import audiolens as al
from analysis import sweep
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE, Condition
from analysis.workers import share_cores
from audiolens.prompts import PromptSet, load

PAGE = Path(__file__).parent.parent / "docs" / "directions.md"
CONCEPT, MEASURED, OTHER = "tempo", "tempo_ioi", "brightness"
FIRST = "difference_in_means"
SAMPLED: tuple[Any, ...] = (FIRST, "principal_component", "probe", "ridge", "leace", "rfm")


def main(
    out: Annotated[Path, typer.Option(help="Folder for directions and clips (resumable).")] = Path("runs/estimators"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    test: Annotated[int, typer.Option(help="Neutral prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 2,
    poles: Annotated[int, typer.Option(help="Prompts per pole.")] = 48,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 4.0,
    jobs: Annotated[int | None, typer.Option(help="Processes; 0: this one [default: one per core].")] = None,
    update: Annotated[bool, typer.Option(help="Write the table into docs/directions.md.")] = False,
) -> None:
    """Compare the estimators by what steering along their directions does."""
    share_cores()
    lens = al.AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    sets = load(CONCEPT, lens=lens)
    found = directions(lens, out, sets, poles)
    played = sweep.play(
        lens, conditions(found), sweep.clips(sets.test[:test], seeds, TEST_SEED), seconds=seconds,
        measures=[MEASURED, OTHER], out=out / "clips", n_jobs=jobs, progress="estimators",
    )  # fmt: skip
    tables = {name: sweep.effects(played.table, name).set_index("condition") for name in (MEASURED, OTHER)}
    told = f"{test} test prompts x {seeds} seeds, clips of {seconds:g} s, {poles} prompts per pole"
    text = page(found, tables, told)
    (out / "estimators.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "estimators", text), "utf-8")
    typer.echo(text)


def directions(lens: al.AudioLens, out: Path, sets: PromptSet, poles: int) -> dict[str, al.Directions]:
    """The directions of every method at the block of the place, which are kept in files. The poles are read once."""
    layer = PLACES[CONCEPT].layer
    positive, negative = sets.positive[:poles], sets.negative[:poles]
    read: dict[str, Any] = {"layers": [layer], "label": CONCEPT, "progress": False}
    shared = {**read, "codes": "shared", "neutral": sets.development}
    samples: list[Any] = []

    def sampled() -> Any:
        if not samples:
            samples.append(al.difference_in_means(lens, positive, negative, keep_samples=True, **shared).samples)
        return samples[0]

    ways: Mapping[str, Any] = {
        **{name: lambda name=name: al.estimate(samples=sampled(), method=name) for name in SAMPLED},
        "mean_centred": lambda: al.estimate(lens, positive, method="mean_centred", **shared),
        "by_measure": lambda: al.estimate(
            lens, prompts=sets.development, method="by_measure", measure=MEASURED, clips_per_prompt=3, **read
        ),
        "gradient": lambda: al.estimate(lens, positive, negative, "gradient", **read),
    }
    found = {}
    for name, way in ways.items():
        file = out / f"{name}.safetensors"
        if not file.is_file():
            way().save(file)
        found[name] = al.Directions.load(file, lens=lens)
    return found


def conditions(found: Mapping[str, al.Directions]) -> list[Condition]:
    """The baseline, both signs of every direction at one norm, and LEACE's erasure."""
    place, first = PLACES[CONCEPT], found[FIRST]
    listed = [Condition(BASELINE)]
    for name, one in found.items():
        alike = one.with_norms_of(first)
        for sign in (1.0, -1.0):
            steps = tuple(al.steer(alike, **place.where, strength=sign * place.strength))
            listed.append(Condition(f"{name} {sign:+g}", steps))
    return [*listed, Condition("erase", (al.Erase(found["leace"]),))]


def page(found: Mapping[str, al.Directions], tables: Mapping[str, pd.DataFrame], told: str) -> str:
    """The table in Markdown."""
    first = found[FIRST]
    lines = [
        f"Measured on étude: {told}. Every direction was added at block {PLACES[CONCEPT].layer} with the norm of the "
        f"difference in means ({float(first.norms[0]):.1f}) and strength 1 or -1. The effect is the median of (steered "
        f"/ baseline - 1) over clips of the same prompt and seed, with {COVERAGE} intervals over prompts. Failed clips "
        "count as an effect of zero. `cosine` is the cosine similarity with the difference in means, and `norm` is "
        "the norm before rescaling.",
        "",
        "| method | cosine | norm | tempo, +1 | tempo, -1 | brightness, +1 | brightness, -1 | failed, +1 / -1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        rows = [f"{name} {sign}" for sign in ("+1", "-1")]
        cells = [_cell(tables[measure].loc[row]) for measure in (MEASURED, OTHER) for row in rows]
        failed = " / ".join(f"{float(np.asarray(tables[MEASURED].loc[row, 'failed'])):.0%}" for row in rows)
        lines.append(
            f"| `{name}` | {float(one.cosine(first)[0]):.2f} | {float(one.norms[0]):.1f} | {' | '.join(cells)} "
            f"| {failed} |"
        )
    erased = tables[MEASURED].loc["erase"]
    lines += [
        "",
        f"Erasing tempo with `al.Erase` at the same block changed the tempo by {_cell(erased)} (median), and failed in "
        f"{erased.to_dict()['failed']:.0%} of the clips.",
    ]
    return "\n".join(lines) + "\n"


def _cell(row: Any) -> str:
    return f"{row['effect']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}]"


if __name__ == "__main__":
    typer.run(main)
