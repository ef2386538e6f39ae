"""Kill a sweep (-9) at random moments and resume it each time: `python benchmarks/kills.py`.

A child process sweeps into a folder and is killed at a moment drawn uniformly from the duration of a whole sweep. The
next child resumes the sweep. Meanwhile this process opens the folder as often as it can. It must see only complete
batches, equal to those of an uninterrupted sweep. The final table must equal that sweep's, byte for byte. If a sweep
ends before all kills are used, the next sweep starts in a new folder.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd
import typer

from analysis import sweep
from analysis.sweep import ledger
from audiolens import AudioLens, Directions, difference_in_means
from audiolens.errors import InputError
from audiolens.prompts import load


def main(
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 2.0,
    prompts: Annotated[int, typer.Option(help="Neutral prompts.")] = 4,
    jobs: Annotated[int, typer.Option(help="Measuring worker processes.")] = 1,
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/kills.json"),
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Kill and resume; print when each kill happened, and whether the tables are equal."""
    if child is not None:
        _sweep(child, seconds, prompts, jobs, model)
        return
    with TemporaryDirectory() as place:
        work = Path(place)
        lens = AudioLens.from_pretrained(model)
        sets = load("tempo", lens=lens)
        read = difference_in_means(lens, sets.positive[:8], sets.negative[:8], seconds=1.0, label="tempo")
        read.save(work / "tempo.safetensors")
        del lens
        command = [sys.executable, __file__, "--seconds", str(seconds), "--prompts", str(prompts), "--jobs", str(jobs),
                   "--model", model, "--child"]  # fmt: skip
        start = time.perf_counter()
        subprocess.run([*command, str(work / "whole")], check=True, capture_output=True)
        takes = time.perf_counter() - start
        whole = sweep.load_folder(work / "whole").table
        n_batches = len(ledger.finished(work / "whole"))
        typer.echo(f"uninterrupted: {len(whole)} clips in {takes:.1f} s, {n_batches} batches")
        facts = _killed(command, work, whole, kills, takes, random.Random(seed))
    typer.echo(json.dumps({key: value for key, value in facts.items() if key != "moments"}))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"clips": len(whole), "whole_seconds": takes, **facts}, indent=1))
    if facts["unequal_tables"] or facts["orphans"]:
        raise typer.Exit(1)


def _killed(
    command: list[str], work: Path, whole: pd.DataFrame, kills: int, takes: float, rng: random.Random
) -> dict[str, Any]:
    moments: list[dict[str, Any]] = []
    looks, folders, unequal, orphans = 0, 0, 0, 0
    place = work / f"killed-{folders}"
    left = kills
    while left or not (place / ledger.TABLE).is_file():
        if (place / ledger.TABLE).is_file():
            unequal += not _equal(place, work / "whole")
            folders += 1
            place = work / f"killed-{folders}"
        running = subprocess.Popen([*command, str(place)], start_new_session=True, stderr=subprocess.PIPE)
        until = time.perf_counter() + (rng.uniform(0, takes) if left else 600)
        while running.poll() is None and time.perf_counter() < until:
            looks += _look(place, whole)
        if running.poll() is None:
            running.kill()
            left -= 1
            done = len(ledger.finished(place))
            moments.append({"folder": folders, "batches": done, "unfinished": len(list(place.rglob(".unfinished-*")))})
            typer.echo(f"killed with {done} batches finished ({kills - left} of {kills})")
        elif running.returncode:
            assert running.stderr is not None
            raise RuntimeError(running.stderr.read().decode()[-2000:])
        running.wait()
        orphans += _orphans(running.pid)
    unequal += not _equal(place, work / "whole")
    return {"kills": kills, "folders": folders + 1, "looks": looks, "unequal_tables": unequal, "orphans": orphans,
            "moments": moments}  # fmt: skip


def _look(place: Path, whole: pd.DataFrame) -> int:
    """Open the folder as any reader would; what it holds must be complete."""
    try:
        seen = sweep.load_folder(place).table
    except InputError as error:
        if "contains no sweep" not in str(error) and "no batch is finished" not in str(error):
            raise
        time.sleep(0.05)
        return 0
    keys = ["condition", "prompt", "seed"]
    there = whole.set_index(keys).loc[list(seen[keys].itertuples(index=False, name=None))].reset_index()
    pd.testing.assert_frame_equal(seen, there[list(seen)], check_dtype=False, check_exact=True)
    return 1


def _equal(place: Path, other: Path) -> bool:
    return (place / ledger.TABLE).read_bytes() == (other / ledger.TABLE).read_bytes()


def _orphans(session: int) -> int:
    """The number of processes in a killed child's session that still run a minute later."""
    for _ in range(120):
        alive = [entry for entry in os.listdir("/proc") if entry.isdigit() and _session(entry) == session]
        if not alive:
            return 0
        time.sleep(0.5)
    return len(alive)


def _session(pid: str) -> int:
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return -1
    return -1 if after[0] == "Z" else int(after[3])


def _sweep(place: Path, seconds: float, prompts: int, jobs: int, model: str) -> None:
    lens = AudioLens.from_pretrained(model)
    read = Directions.load(place.parent / "tempo.safetensors", lens=lens)
    sweep.run(
        lens,
        read,
        strengths=[-0.25, -0.125, 0.125, 0.25],
        layers=lens.config.n_layers // 2,
        prompts=load("tempo", lens=lens).development[:prompts],
        seeds=1,
        n_random=1,
        seconds=seconds,
        batch_size=8,
        out=place,
        sound="flac",
        n_jobs=jobs,
        progress=False,
    )


if __name__ == "__main__":
    typer.run(main)
