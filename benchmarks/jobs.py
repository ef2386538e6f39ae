"""Compare sweeps with different numbers of worker processes: `python benchmarks/jobs.py`.

Every number of jobs sweeps the same clips on étude, in batches that are packed in the same way and with one thread per
process, and the runs alternate. "generation" measures only loudness, and "whole" all measures. Times do not include the
start of the workers, which is printed by itself. "busiest" is the largest CPU time of a worker, which is how long the
sweep would take if other programs took no time. The stored table of every run must be identical to the first.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from joblib import cpu_count

from analysis import sweep
from analysis.listening import Listener
from analysis.sweep import ledger
from analysis.sweep.factorial import Factors, conditions
from audiolens import AudioLens, Directions, difference_in_means, measure
from audiolens.prompts import load

AIM = 1.7
PARTS = {"generation": ("loudness",), "whole": tuple(measure.MEASURES)}


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/jobs.json"),
    jobs: Annotated[str, typer.Option(help="Numbers of processes to compare; the first is the reference.")] = "1,2",
    strengths: Annotated[int, typer.Option(help="Number of strengths, evenly spaced, including 0.")] = 16,
    prompts: Annotated[int, typer.Option(help="Neutral prompts.")] = 16,
    seeds: Annotated[int, typer.Option(help="Seeds per prompt.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Maximum number of rows per batch.")] = 64,
    repeats: Annotated[int, typer.Option(help="Runs of each number of processes.")] = 3,
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
) -> None:
    """Print how long each sweep takes, and how many times as fast it is as with the first number of processes."""
    torch.set_num_threads(1)
    lens = AudioLens.from_pretrained(model)
    todo, clips = swept(lens, strengths, prompts, seeds)
    asked = {"seconds": seconds, "batch_size": batch_size}
    counts = [int(count) for count in jobs.split(",")]
    typer.echo(f"{len(todo)} x {len(clips)} clips of {seconds:g} s on {cpu_count()} cores")
    facts: dict[str, Any] = {"clips": len(todo) * len(clips), **asked, "cores": cpu_count(), "aim": AIM}
    with TemporaryDirectory() as place:
        for part, measures in PARTS.items():
            times: dict[int, list[float]] = {count: [] for count in counts}
            busiest: dict[int, list[float]] = {count: [] for count in counts}
            tables: set[bytes] = set()
            for repeat in range(repeats):
                for count in counts:
                    folder = Path(place) / f"{part}-{repeat}-{count}"
                    with Listener(lens, measures, count) as ear:
                        started = time.perf_counter()
                        before = cpu_seconds(ear)
                        opening = time.perf_counter() - started
                        started = time.perf_counter()
                        sweep.play(lens, todo, clips, **asked, listener=ear, out=folder)
                        times[count].append(time.perf_counter() - started)
                        busiest[count].append(max(used - before[one] for one, used in cpu_seconds(ear).items()))
                    tables.add((folder / ledger.TABLE).read_bytes())
                    typer.echo(
                        f"{part}, {count} process(es): {times[count][-1]:.1f} s, busiest {busiest[count][-1]:.1f} s, "
                        f"after {opening:.1f} s to start (load {os.getloadavg()[0]:.1f})"
                    )
            if len(tables) > 1:
                raise RuntimeError(f"{part}: {len(tables)} different tables")
            facts[part] = {"measures": list(measures), "times": times, "busiest": busiest}
            for name, found in (("times", times), ("busiest", busiest)):
                medians = {count: statistics.median(found[count]) for count in counts}
                speedups = {count: medians[counts[0]] / median for count, median in medians.items()}
                facts[part][f"speedups by {name}"] = speedups
                told = ", ".join(f"{count}: {medians[count]:.1f} s ({speedups[count]:.2f}x)" for count in counts)
                typer.echo(f"{part}, median {name} by number of processes: {told} (aim {AIM:g}x); tables equal")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))


def direction(lens: AudioLens) -> Directions:
    """A direction to steer along."""
    sets = load("tempo", lens=lens)
    return difference_in_means(lens, sets.positive[:16], sets.negative[:16], seconds=1.0, label="tempo")


def swept(
    lens: AudioLens, strengths: int, prompts: int, seeds: int, read: Directions | None = None
) -> tuple[list[Any], list[Any]]:
    """The conditions (the baseline and one per strength) and the clips."""
    sets = load("tempo", lens=lens)
    read = read or direction(lens)
    amounts = [round(float(one), 6) for one in torch.linspace(-0.25, 0.25, strengths + 1 - strengths % 2)]
    factors = Factors(strengths=amounts, layers=lens.config.n_layers // 2, n_random=0)
    todo = [one for one in conditions({"tempo": read}, factors) if one.labels["kind"] in (sweep.BASELINE, "steered")]
    return todo[:strengths], sweep.clips(sets.development[:prompts], seeds)


def cpu_seconds(ear: Listener) -> dict[int, float]:
    """Wait until all workers have opened the model and are idle; the CPU time of each by process number."""
    # Each answer takes long enough that every worker gives one.
    asked = [ear._pool.submit(answered, 3) for _ in range(ear.n_jobs)]
    found = dict(one.result() for one in asked)
    if len(found) != ear.n_jobs:
        raise RuntimeError(f"{len(found)} of {ear.n_jobs} workers answered: the machine is too busy to measure")
    return found


def answered(pause: float) -> tuple[int, float]:
    """Wait, then return the number and the CPU time of this process."""
    time.sleep(pause)
    return os.getpid(), time.process_time()


if __name__ == "__main__":
    typer.run(main)
