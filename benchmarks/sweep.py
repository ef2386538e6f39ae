"""Compare a sweep in full batches with one clip at a time: `python benchmarks/sweep.py`.

Both sides alternate in one process with the same measuring worker, and run 9 strengths (including 0, the baseline) x 8
neutral prompts x 2 seeds on étude. The result is the ratio of the median clips per second. An untimed run first checks
that the sampling noise of every clip is bit-identical on both sides.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from analysis import sweep
from analysis.listening import Listener
from analysis.sweep.factorial import Factors, conditions
from analysis.workers import share_cores
from audiolens import AudioLens, difference_in_means
from audiolens.prompts import load
from audiolens.tracing.noise import RowNoise

AIM = 3.0


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/sweep.json"),
    strengths: Annotated[int, typer.Option(help="Number of strengths, evenly spaced, including 0.")] = 9,
    prompts: Annotated[int, typer.Option(help="Neutral prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Seeds per prompt.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Rows of a full batch.")] = 64,
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 3,
    poles: Annotated[int, typer.Option(help="Prompts per pole that the direction is read from.")] = 16,
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
) -> None:
    """Print the clips per second of a packed sweep and of one clip at a time."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    todo, clips = swept(lens, strengths, prompts, seeds, poles)
    typer.echo(f"{len(todo)} strengths x {len(clips)} clips of {seconds:g} s, {torch.get_num_threads()} thread(s)")
    checked = same_noise(lens, todo, clips, min(1.0, seconds), batch_size)
    typer.echo(f"noise: {checked['rows']} rows of {checked['draws']} steps each, all equal on both sides")
    rates: dict[int, list[float]] = {batch_size: [], 1: []}
    played: dict[int, sweep.SweepResult] = {}
    with Listener(lens, ("tempo_ioi", "brightness")) as ear:
        for _ in range(repeats):
            for size, found in rates.items():
                start = time.perf_counter()
                played[size] = sweep.play(lens, todo, clips, seconds=seconds, batch_size=size, listener=ear)
                found.append(len(played[size].table) / (time.perf_counter() - start))
                typer.echo(f"batches of {size}: {found[-1]:.2f} clips per second")
    packed, single = (statistics.median(rates[size]) for size in (batch_size, 1))
    flips = differing(played[batch_size], played[1], [one.name for one in todo])
    facts = {
        "clips": len(todo) * len(clips),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "packed_clips_per_second": packed,
        "single_clips_per_second": single,
        "ratio": packed / single,
        "aim": AIM,
        "rates": rates,
        "clips_with_a_differing_code": flips,
        **checked,
    }
    typer.echo(f"{packed / single:.2f}x (aim {AIM:g}x); {flips} of {facts['clips']} clips have a differing code")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))


def swept(lens: AudioLens, strengths: int, prompts: int, seeds: int, poles: int) -> tuple[list[Any], list[Any]]:
    """The conditions (the baseline and one per strength) and the clips."""
    sets = load("tempo", lens=lens)
    read = difference_in_means(lens, sets.positive[:poles], sets.negative[:poles], seconds=1.0, label="tempo")
    amounts = [float(amount) for amount in np.linspace(-0.25, 0.25, strengths)]
    factors = Factors(strengths=amounts, layers=lens.config.n_layers // 2, n_random=0)
    todo = [one for one in conditions({"tempo": read}, factors) if one.labels["kind"] in (sweep.BASELINE, "steered")]
    return todo, sweep.clips(sets.development[:prompts], seeds)


def same_noise(lens: AudioLens, todo: Any, clips: Any, seconds: float, batch_size: int) -> dict[str, int]:
    """Generate everything in full batches and one clip at a time, and check that each seed has the same noise."""
    sides = []
    for size in (batch_size, 1):
        with recorded() as rows:
            sweep.play(lens, todo, clips, seconds=seconds, batch_size=size, measures=("loudness",), n_jobs=0)
        sides.append(rows)
    packed, single = ({seed: set(found) for seed, found in side.items()} for side in sides)
    counts = [sum(map(len, side.values())) for side in sides]
    if packed != single or any(len(found) > 1 for found in packed.values()) or len(set(counts)) > 1:
        raise RuntimeError(f"the noise depends on the batch: {packed} in full batches, {single} one at a time")
    draws = {count for found in packed.values() for _, count in found}
    return {"rows": counts[0], "draws": draws.pop(), "seeds": len(packed)}


@contextmanager
def recorded() -> Iterator[dict[int, list[tuple[str, int]]]]:
    """Record, during the block: seed -> digest and number of steps of the noise of each row sampled with it."""
    found: dict[int, list[tuple[str, int]]] = {}
    rows: list[tuple[int, Any, list[int]]] = []
    begin, at = RowNoise.__init__, RowNoise.at

    def begun(self: Any, seeds: Any, *sizes: int) -> None:
        begin(self, seeds, *sizes)
        self.rows = [(int(seed), hashlib.sha256(), [0]) for seed in seeds]
        rows.extend(self.rows)

    def drawn(self: Any, step: int, device: Any) -> Any:
        noise = at(self, step, device)
        for (_, digest, count), row in zip(self.rows, noise, strict=True):
            digest.update(row.cpu().numpy().tobytes())
            count[0] += 1
        return noise

    RowNoise.__init__, RowNoise.at = begun, drawn
    try:
        yield found
    finally:
        RowNoise.__init__, RowNoise.at = begin, at
        for seed, digest, count in rows:
            found.setdefault(seed, []).append((digest.hexdigest(), count[0]))


def differing(packed: sweep.SweepResult, single: sweep.SweepResult, names: list[str]) -> int:
    """The number of clips with a differing code: kernels for other shapes change last bits, which may flip a sample."""
    return sum(int((packed.codes(name) != single.codes(name)).flatten(1).any(1).sum()) for name in names)


if __name__ == "__main__":
    typer.run(main)
