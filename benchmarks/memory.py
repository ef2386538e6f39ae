"""Measure the peak memory of `difference_in_means` at 64 and 1,024 prompts (Linux): `python benchmarks/memory.py`.

Means are accumulated batch by batch, so the peak should not depend on the number of prompts. Each size runs in a
separate process, because the larger peak would hide the smaller.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

SIZES = (64, 1024)
LIMIT = 0.05
"""The largest allowed difference between the peaks, as a share of the smaller."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/memory.json"),
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    small: Annotated[int, typer.Option(help="Prompts of the small reading, over both poles.")] = SIZES[0],
    large: Annotated[int, typer.Option(help="Prompts of the large reading.")] = SIZES[1],
    seconds: Annotated[float, typer.Option(help="Length of the generated clips.")] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Rows per batch.")] = 32,
    memory_of: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Print the peak memory of both sizes, and fail if they differ by more than 5%."""
    if memory_of:
        typer.echo(json.dumps(peak(model, memory_of, seconds, batch_size)))
        return
    found = {}
    for size in (small, large):
        typer.echo(f"reading {size} prompts, {seconds:g} s each, {batch_size} at a time ...", err=True)
        options = ["--model", model, "--seconds", str(seconds), "--batch-size", str(batch_size)]
        told = subprocess.run(
            [sys.executable, __file__, "--memory-of", str(size), *options],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[size] = json.loads(told.stdout.splitlines()[-1])
        one = found[size]
        typer.echo(f"{size:5} prompts: peak {one['peak_mib']:.0f} MiB, {one['above_mib']:.0f} MiB above the loaded "
                   f"model, {one['seconds']:.0f} s")  # fmt: skip
    peaks = [one["peak_mib"] for one in found.values()]
    apart = max(peaks) / min(peaks) - 1
    typer.echo(f"difference {apart:.1%} (aim: at most {LIMIT:.0%})")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"model": model, "batch_size": batch_size, "sizes": found, "apart": apart}, indent=1))
    if apart > LIMIT:
        raise typer.Exit(1)


def peak(model: str, size: int, seconds: float, batch_size: int) -> dict[str, float]:
    """Peak memory of reading `size` prompts, in MiB: of the whole process, and above the loaded model."""
    from audiolens import AudioLens, difference_in_means
    from audiolens.etude.training import prompt_sets

    lens = AudioLens.from_pretrained(model)
    matched = prompt_sets.pairs("tempo", size // 2)
    positive, negative = [pair[0] for pair in matched], [pair[1] for pair in matched]
    read = {"seconds": seconds, "batch_size": batch_size}
    loaded = _status_kib("VmRSS")
    # Memory allocated on first use (kernel workspaces, nnsight's caches) belongs to neither size.
    half = max(batch_size // 2, 1)
    difference_in_means(lens, positive[:half], negative[:half], progress=False, **read)
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    difference_in_means(lens, positive, negative, **read)
    most = _status_kib("VmHWM")
    taken = time.perf_counter() - started
    return {"peak_mib": most / 1024, "above_mib": (most - loaded) / 1024, "seconds": taken}


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    typer.run(main)
