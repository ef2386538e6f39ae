"""Measure steering that looks at what it does: `python benchmarks/control.py`.

- **Targets**: `steer_to` on neutral test prompts, for several targets of two measures. A row can reach a target if some
  strength of a dense grid between the same limits brings the measure within the tolerance. What share of these rows
  does the search find, and with how many clips?
- **Gates**: the effect and the drift of steering towards either pole with a gate, and without one.
- **Cost**: processor time of gated over plain steering, in alternating runs of one process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pages
import typer

if TYPE_CHECKING:
    from audiolens import AudioLens, Directions

DOCS = Path(__file__).parents[1] / "docs" / "control.md"
TARGETS: dict[str, tuple[str, int, tuple[float, ...]]] = {
    "tempo": ("tempo_ioi", 3, (80.0, 100.0, 120.0, 150.0)),
    "timbre": ("brightness", 5, (700.0, 1000.0, 1500.0, 2000.0)),
}
"""Concepts, with the measure, the block that is steered, and the targets."""
LIMIT, GRID, TOLERANCE = 2.0, 41, 0.05
STRENGTHS, THRESHOLDS = (1.0, 2.0, 3.0), (0.5, 0.7, 0.9)
ROWS, REPEATS = 16, 5


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the numbers.")] = Path("runs/control.json"),
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    prompts: Annotated[int, typer.Option(help="Neutral test prompts, each with one seed.")] = 16,
    poles: Annotated[int, typer.Option(help="Prompts per pole from which directions are read.")] = 32,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    max_clips: Annotated[int, typer.Option(help="Largest number of clips per row and target.")] = 20,
    update: Annotated[bool, typer.Option(help="Write the tables into docs/control.md.")] = False,
) -> None:
    """Print and store what targets and gates reach, and what they cost."""
    from audiolens import AudioLens

    lens = AudioLens.from_pretrained(model)
    facts: dict[str, Any] = {
        "model": model, "prompts": prompts, "poles": poles, "seconds": seconds, "max_clips": max_clips,
        "targets": [], "gates": [],
    }  # fmt: skip
    for concept in TARGETS:
        read = directions(lens, concept, poles, shared=True)
        facts["targets"] += targets(lens, concept, read, prompts, seconds, max_clips)
        probe = directions(lens, concept, poles, shared=False)
        facts["gates"] += gates(lens, concept, read, probe, prompts, seconds)
        if concept == "tempo":
            facts["cost"] = cost(lens, read, probe)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(facts, indent=1))
    typer.echo(page(facts))
    if update:
        DOCS.write_text(pages.renewed(DOCS.read_text("utf-8"), "control", page(facts)), encoding="utf-8")


def directions(lens: AudioLens, concept: str, poles: int, *, shared: bool) -> Directions:
    """Read a concept's directions, over shared codes for steering or over their own for a probe."""
    from audiolens import difference_in_means
    from audiolens.prompts import load

    sets = load(concept, lens=lens)
    how: dict[str, Any] = {"codes": "shared", "neutral": sets.development} if shared else {}
    return difference_in_means(
        lens, sets.positive[:poles], sets.negative[:poles], label=concept, seconds=4.0, keep_samples=True, **how
    )


def targets(
    lens: AudioLens, concept: str, read: Directions, prompts: int, seconds: float, max_clips: int
) -> list[dict[str, Any]]:
    """Return, for each target, how many rows can reach it, how many do, and the number of clips."""
    from audiolens import steer, steer_to
    from audiolens.directions.calibrating import measured
    from audiolens.prompts import load

    measure, layer, wanted = TARGETS[concept]
    texts, seeds = list(load(concept, lens=lens).test[:prompts]), list(range(prompts))
    values = np.stack(
        [
            measured(
                lens.generate(
                    texts, seconds, seeds=seeds, engine="fast", batch_size=32,
                    interventions=steer(read, layer=layer, strength=float(strength)) if strength else (),
                ),
                measure,
            )
            for strength in np.linspace(-LIMIT, LIMIT, GRID)
        ]
    )  # fmt: skip
    lines = []
    for target in wanted:
        found = steer_to(
            lens, read, texts, measure, target, TOLERANCE, seeds, seconds, max_clips, (-LIMIT, LIMIT), layer=layer
        )
        can = (np.abs(values / target - 1) <= TOLERANCE).any(0)
        there = (np.abs(values[GRID // 2] / target - 1) <= TOLERANCE).sum()
        lines.append(
            {
                "measure": measure, "target": target, "rows": prompts, "unsteered": int(there), "can": int(can.sum()),
                "reached_of_these": int((found.reached & can).sum()), "reached": int(found.reached.sum()),
                "clips": found.n_clips, "median_clips": float(found.tried.groupby("row").size().median()),
            }
        )  # fmt: skip
    return lines


def gates(
    lens: AudioLens, concept: str, read: Directions, probe: Directions, prompts: int, seconds: float
) -> list[dict[str, Any]]:
    """Return effect, drift and failures of steering with and without a gate."""
    from audiolens import gate, measure, steer
    from audiolens.directions.calibrating import measured
    from audiolens.prompts import load

    name, layer, _ = TARGETS[concept]
    texts, seeds = list(load(concept, lens=lens).test[:prompts]), list(range(prompts))

    def nats(clips: Any) -> np.ndarray:
        return measure.code_nats(lens, clips.prompts, clips.codes).mean(dim=(1, 2)).numpy()

    def made(steps: Sequence[Any] = (), first: int = 0) -> Any:
        return lens.generate(texts, seconds, seeds=[first + seed for seed in seeds], engine="fast", interventions=steps)

    base = made()
    usual, before = nats(base), measured(base, name)
    between = float(np.abs(usual - nats(made(first=500))).mean())
    lines = []
    for strength in (sign * size for size in STRENGTHS for sign in (1, -1)):
        for threshold in (None, *THRESHOLDS):
            where: dict[str, Any] = {"layer": layer, "strength": strength}
            steps = steer(read, **where) if threshold is None else gate(read, probe, threshold, **where)
            clips = made(steps)
            failed = measure.failed(clips, base)
            effect = np.where(failed, 0.0, measured(clips, name) / before - 1)
            lines.append(
                {
                    "measure": name, "strength": strength, "threshold": threshold,
                    "effect": float(np.nanmedian(effect)), "failed": float(failed.mean()),
                    "drift": float(np.abs(nats(clips) - usual).mean()) / between,
                    "open": 1.0 if clips.gates is None else float(clips.gates.float().mean()),
                }
            )  # fmt: skip
    return lines


def cost(lens: AudioLens, read: Directions, probe: Directions) -> dict[str, float]:
    """Return the median processor time of gated over plain steering, for both engines."""
    from audiolens import gate, steer

    runs = {"plain": steer(read, layer=3), "gated": gate(read, probe, layer=3)}
    found = {}
    for engine in ("exact", "fast"):
        ratios = []
        for repeat in range(REPEATS + 1):
            taken = {}
            for name, steps in runs.items():
                started = time.process_time()
                lens.generate(
                    ["a little tune"] * ROWS, 2.0, seeds=range(ROWS), decode=False, engine=engine, interventions=steps
                )
                taken[name] = time.process_time() - started
            if repeat:
                ratios.append(taken["gated"] / taken["plain"])
        found[engine] = statistics.median(ratios)
    return found


def page(facts: dict[str, Any]) -> str:
    """Return the tables of docs/control.md."""
    share = sum(line["reached_of_these"] for line in facts["targets"]) / sum(line["can"] for line in facts["targets"])
    text = (
        f"Measured on {facts['model']} with {facts['prompts']} neutral test prompts, one clip of {facts['seconds']:g} "
        f"s each, and directions read over shared codes from {facts['poles']} prompts per pole.\n\n"
        f"**Targets.** At most {facts['max_clips']} clips per row, including the unsteered one. A row can reach a "
        f"target if one of {GRID} strengths between -{LIMIT:g} and {LIMIT:g} brings it within {TOLERANCE:.0%}. Of "
        f"these rows, `steer_to` found {share:.0%}.\n\n"
        "| measure | target | rows | near it unsteered | can reach it | of these, reached | reached | clips | "
        "clips per row (median) |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    for line in facts["targets"]:
        text += (
            f"| {line['measure']} | {line['target']:g} | {line['rows']} | {line['unsteered']} | {line['can']} | "
            f"{line['reached_of_these']} | {line['reached']} | {line['clips']} | {line['median_clips']:g} |\n"
        )
    text += (
        "\n**Gates.** The effect is the median of (steered / baseline - 1), with 0 for failed clips. Drift is the mean "
        "absolute change in nats per code under the unsteered model, relative to the difference between two seeds. "
        "`open` is the share of steps at which the gate was open.\n\n"
        "| measure | strength | threshold | effect | drift | open | failed |\n|---|---|---|---|---|---|---|\n"
    )
    for line in facts["gates"]:
        level = "no gate" if line["threshold"] is None else f"{line['threshold']:g}"
        text += (
            f"| {line['measure']} | {line['strength']:+g} | {level} | {line['effect']:+.0%} | {line['drift']:.2f} | "
            f"{line['open']:.0%} | {line['failed']:.0%} |\n"
        )
    ratios = " and ".join(f"{ratio:.2f} ({engine} engine)" for engine, ratio in facts["cost"].items())
    return text + (
        f"\n**Cost.** Processor time of gated over plain steering with {ROWS} rows, medians of {REPEATS} alternating "
        f"runs: {ratios}.\n"
    )


if __name__ == "__main__":
    typer.run(main)
