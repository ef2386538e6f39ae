"""What packing a sweep into full batches saves, beside one clip at a time: `python benchmarks/sweep.py`.

Both sides run in one process, in turn, with the same worker that measures: 9 strengths (0, the baseline, is one of
them) x 8 neutral prompts x 2 seeds on étude. A figure is the ratio of the median clips a second. Before that, in a run
that is not timed, the noise that every clip is drawn with is compared to the bit.
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
from analysis.listening import Listener, share_cores
from analysis.sweep.factorial import Factors, conditions
from audiolens import AudioLens, difference_in_means
from audiolens.prompts import load
from audiolens.tracing.sampling import RowStreams

AIM = 3.0


def main(
    out: Annotated[Path, typer.Option(help="Where the figures are also written, as JSON.")] = Path("runs/sweep.json"),
    strengths: Annotated[int, typer.Option(help="How many, evenly spaced, 0 among them.")] = 9,
    prompts: Annotated[int, typer.Option(help="Neutral prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Seeds of each.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Most rows of a full batch.")] = 64,
    repeats: Annotated[int, typer.Option(help="Times that each side is run.")] = 3,
    poles: Annotated[int, typer.Option(help="Prompts of each pole that the direction is read from.")] = 16,
    model: Annotated[str, typer.Option(help="étude, or another.")] = "etude",
) -> None:
    """Print clips a second of a packed sweep and of one clip at a time."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    todo, clips = swept(lens, strengths, prompts, seeds, poles)
    typer.echo(f"{len(todo)} strengths x {len(clips)} clips of {seconds:g} s, {torch.get_num_threads()} thread(s)")
    checked = same_noise(lens, todo, clips, min(1.0, seconds), batch_size)
    typer.echo(f"noise: {checked['streams']} streams of {checked['draws']} draws each, all equal on both sides")
    rates: dict[int, list[float]] = {batch_size: [], 1: []}
    played: dict[int, sweep.SweepResult] = {}
    with Listener(lens, ("tempo_ioi", "brightness")) as ear:
        for _ in range(repeats):
            for size, found in rates.items():
                start = time.perf_counter()
                played[size] = sweep.play(lens, todo, clips, seconds=seconds, batch_size=size, listener=ear)
                found.append(len(played[size].table) / (time.perf_counter() - start))
                typer.echo(f"batches of {size}: {found[-1]:.2f} clips a second")
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
    typer.echo(f"{packed / single:.2f}x (aim {AIM:g}x); {flips} of {facts['clips']} clips have a code that differs")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))


def swept(lens: AudioLens, strengths: int, prompts: int, seeds: int, poles: int) -> tuple[list[Any], list[Any]]:
    """The conditions, a strength each and the baseline, and the clips."""
    sets = load("tempo", lens=lens)
    read = difference_in_means(lens, sets.positive[:poles], sets.negative[:poles], seconds=1.0, label="tempo")
    amounts = [float(amount) for amount in np.linspace(-0.25, 0.25, strengths)]
    factors = Factors(strengths=amounts, layers=lens.config.n_layers // 2, n_random=0)
    todo = [one for one in conditions({"tempo": read}, factors) if one.labels["kind"] in (sweep.BASELINE, "steered")]
    return todo, sweep.clips(sets.development[:prompts], seeds)


def same_noise(lens: AudioLens, todo: Any, clips: Any, seconds: float, batch_size: int) -> dict[str, int]:
    """Draw everything in full batches, and again one clip at a time; every seed's noise must be one stream."""
    sides = []
    for size in (batch_size, 1):
        with recorded() as streams:
            sweep.play(lens, todo, clips, seconds=seconds, batch_size=size, measures=("loudness",), n_jobs=0)
        sides.append(streams)
    packed, single = ({seed: set(found) for seed, found in side.items()} for side in sides)
    counts = [sum(map(len, side.values())) for side in sides]
    if packed != single or any(len(found) > 1 for found in packed.values()) or len(set(counts)) > 1:
        raise RuntimeError(f"the noise depends on the batch: {packed} in full batches, {single} one at a time")
    draws = {count for found in packed.values() for _, count in found}
    return {"streams": counts[0], "draws": draws.pop(), "seeds": len(packed)}


@contextmanager
def recorded() -> Iterator[dict[int, list[tuple[str, int]]]]:
    """While it is open: seed -> a digest and the number of draws of each row that was drawn with it."""
    found: dict[int, list[tuple[str, int]]] = {}
    rows: list[tuple[int, Any, list[int]]] = []
    begin, draw = RowStreams.__init__, RowStreams.draw

    def begun(self: Any, seeds: Any, *sizes: int) -> None:
        begin(self, seeds, *sizes)
        self.rows = [(int(seed), hashlib.sha256(), [0]) for seed in seeds]
        rows.extend(self.rows)

    def drawn(self: Any) -> Any:
        noise = draw(self)
        for (_, digest, count), row in zip(self.rows, noise, strict=True):
            digest.update(row.numpy().tobytes())
            count[0] += 1
        return noise

    RowStreams.__init__, RowStreams.draw = begun, drawn
    try:
        yield found
    finally:
        RowStreams.__init__, RowStreams.draw = begin, draw
        for seed, digest, count in rows:
            found.setdefault(seed, []).append((digest.hexdigest(), count[0]))


def differing(packed: sweep.SweepResult, single: sweep.SweepResult, names: list[str]) -> int:
    """Clips with a code that differs: kernels of another shape end in other last bits, and a draw may flip."""
    return sum(int((packed.codes(name) != single.codes(name)).flatten(1).any(1).sum()) for name in names)


if __name__ == "__main__":
    typer.run(main)
