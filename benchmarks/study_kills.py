"""Kill a study (-9) at random moments and resume it each time: `python benchmarks/study_kills.py`.

A child process studies tempo with few prompts and short clips, and is killed at a moment drawn uniformly from the
duration of a whole study. The next child resumes the study. If a study ends before all kills are used, the next study
starts in a new folder. At the end, every table, clip and direction must equal that of an uninterrupted study, byte for
byte.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from kills import _orphans

from analysis import study
from analysis.study.settings import Settings
from audiolens import AudioLens

SIZES: dict[str, Any] = {
    "poles": 6, "reading_seconds": 1.0, "development": 2, "development_seeds": 1, "test": 2, "test_seeds": 2,
    "strengths": {"one-to-all": (0.125,)}, "n_random": 2, "n_shuffled": 1, "seconds": 2.0, "shown": 1, "pairs": 4,
    "batch_size": 8,
}  # fmt: skip


def main(
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    jobs: Annotated[int, typer.Option(help="Measuring worker processes.")] = 1,
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/study-kills.json"),
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Kill and resume; print when each kill happened, and whether the results are equal."""
    if child is not None:
        study.run(
            AudioLens.from_pretrained(model), "tempo", child, settings=Settings(**SIZES, n_jobs=jobs), progress=False,
            tell=typer.echo,
        )  # fmt: skip
        return
    with TemporaryDirectory() as place:
        work, rng = Path(place), random.Random(seed)
        command = [sys.executable, __file__, "--jobs", str(jobs), "--model", model, "--child"]
        started = time.perf_counter()
        subprocess.run([*command, str(work / "whole")], check=True, stdout=subprocess.DEVNULL)
        takes = time.perf_counter() - started
        typer.echo(f"uninterrupted: {takes:.1f} s")
        moments, unequal, orphans, folders = [], 0, 0, 0
        target, left = work / "killed-0", kills
        while left or not (target / "summary.json").is_file():
            if (target / "summary.json").is_file():
                unequal += len(_differing(target, work / "whole"))
                folders += 1
                target = work / f"killed-{folders}"
            running = subprocess.Popen([*command, str(target)], start_new_session=True, stdout=subprocess.PIPE)
            try:
                running.wait(rng.uniform(0, takes) if left else None)
            except subprocess.TimeoutExpired:
                running.kill()
                left -= 1
                assert running.stdout is not None
                told = running.stdout.read().decode().strip().splitlines()
                moments.append({"folder": folders, "during": told[-1] if told else "the start"})
                typer.echo(f"killed ({kills - left} of {kills}) during: {moments[-1]['during']}")
            if running.wait() not in (0, -9):
                raise RuntimeError(f"the study ended with {running.returncode}")
            orphans += _orphans(running.pid)
        unequal += len(_differing(target, work / "whole"))
    facts = {"kills": kills, "folders": folders + 1, "whole_seconds": takes, "unequal_files": unequal,
             "orphans": orphans, "moments": moments}  # fmt: skip
    typer.echo(json.dumps({key: value for key, value in facts.items() if key != "moments"}))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))
    if unequal or orphans:
        raise typer.Exit(1)


def _differing(one: Path, other: Path) -> list[str]:
    """The files that differ, except for those that record times."""
    sides = []
    for folder in (one, other):
        files = [path for part in ("tables", "audio", "stages") for path in (folder / part).rglob("*")]
        files += [folder / "clips.parquet", folder / "directions.safetensors"]
        kept = [path for path in files if path.is_file() and path.name != ".lock" and ".seconds." not in path.name]
        sides.append({str(path.relative_to(folder)): path.read_bytes() for path in kept})
    mine, theirs = sides
    return sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))


if __name__ == "__main__":
    typer.run(main)
