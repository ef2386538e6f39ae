"""Compare sweeps in one process, in several, and on a Ray cluster of this machine: `python benchmarks/distributed.py`.

Every run sweeps the same clips on étude, in the same batches and with one thread per process. Every file that a run
stores must be identical to that of the first. Times include the start of the workers; speed-ups are ratios to the first
run of the same session. Then a sweep on Ray is repeated while one of its workers is killed (-9) at random moments, and
again while the process that started it is, which is then started again. Their files must be identical too.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import torch
import typer
from jobs import direction, swept

from analysis import sweep
from analysis.distributed import Ray
from analysis.sweep import ledger
from audiolens import AudioLens, Directions

PATIENCE = 3600
DIRECTION = "direction.safetensors"
MEASURES = ("loudness", "brightness", "onset_rate")


def main(
    strengths: Annotated[int, typer.Option(help="Number of strengths, evenly spaced, including 0.")] = 16,
    prompts: Annotated[int, typer.Option(help="Neutral prompts.")] = 16,
    seeds: Annotated[int, typer.Option(help="Seeds per prompt.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Maximum number of rows per batch.")] = 32,
    workers: Annotated[int, typer.Option(help="Number of processes, and of workers on Ray.")] = 2,
    worker_kills: Annotated[int, typer.Option(help="How often a worker is killed.")] = 20,
    driver_kills: Annotated[int, typer.Option(help="How often the process that started the sweep is killed.")] = 10,
    kills_only: Annotated[bool, typer.Option("--kills-only", help="Time only one process and Ray.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/distributed.json"),
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
    place: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print how long each run took compared with one process, and what became of the runs that were killed."""
    torch.set_num_threads(1)
    asked = {"strengths": strengths, "prompts": prompts, "seeds": seeds, "seconds": seconds, "batch_size": batch_size}
    if child is not None and place is not None:
        run(place, model, asked, json.loads(child))
        return
    ways = {
        "one process": {"n_jobs": 0},
        f"{workers} processes": {"n_jobs": workers},
        f"Ray, {workers} workers": {"ray": workers},
        f"Ray, {workers} workers and one that measures": {"ray": workers, "listeners": 1},
    }
    options = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    rng = random.Random(seed)
    with TemporaryDirectory() as work:
        direction(AudioLens.from_pretrained(model)).save(Path(work) / DIRECTION)

        def start(way: dict[str, int], folder: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, *options, "--model", model, "--child", json.dumps(way), "--place"]
            return subprocess.Popen([*command, str(folder)], stderr=subprocess.PIPE, start_new_session=True)

        took: dict[str, float] = {}
        whole: dict[str, bytes] = {}
        for name, way in ways.items():
            if kills_only and name not in ("one process", f"Ray, {workers} workers"):
                continue
            folder = Path(work) / name.replace(" ", "-")
            finished(start(way, folder))
            took[name] = float((folder.parent / f"{folder.name}.seconds").read_text())
            whole = whole or contents(folder)
            same = contents(folder) == whole
            first = took["one process"]
            typer.echo(
                f"{name}: {took[name]:.1f} s, {first / took[name]:.2f}x one process; "
                f"{'the same bytes' if same else 'OTHER BYTES'} (load {os.getloadavg()[0]:.1f})"
            )
            if not same:
                raise typer.Exit(1)
        facts: dict[str, Any] = {
            "clips": strengths * prompts * seeds,
            **asked,
            "cores": os.cpu_count(),
            "seconds": took,
        }
        facts["speedups"] = {name: took["one process"] / value for name, value in took.items()}
        on_ray, length = ways[f"Ray, {workers} workers"], took[f"Ray, {workers} workers"]
        for who, kills, killing in (("worker", worker_kills, workers_killed), ("driver", driver_kills, drivers_killed)):
            runs = list(killing(lambda folder: start(on_ray, folder), Path(work) / who, kills, length, rng))
            unequal = sum(contents(folder) != whole for folder in runs)
            facts[f"{who}_kills"] = {"kills": kills, "sweeps": len(runs), "unequal": unequal}
            typer.echo(f"{who} killed {kills} times in {len(runs)} sweeps: {unequal} of them have other bytes")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))
    if facts["worker_kills"]["unequal"] or facts["driver_kills"]["unequal"]:
        raise typer.Exit(1)


def run(place: Path, model: str, asked: dict[str, Any], way: dict[str, int]) -> None:
    """Sweep into a folder, and write next to it how many seconds that took."""
    lens = AudioLens.from_pretrained(model)
    read = Directions.load(place.parent / DIRECTION, lens=lens)
    todo, clips = swept(lens, *(asked.pop(name) for name in ("strengths", "prompts", "seeds")), read)
    named = Ray("local", way["ray"], listeners=way.get("listeners")) if "ray" in way else None
    started = time.perf_counter()
    sweep.play(
        lens, todo, clips, **asked, measures=MEASURES, engine="fast", out=place, sound="flac",
        n_jobs=way.get("n_jobs"), ray=named,
    )  # fmt: skip
    place.with_name(f"{place.name}.seconds").write_text(str(time.perf_counter() - started))


def workers_killed(
    start: Callable[[Path], subprocess.Popen[bytes]], place: Path, kills: int, length: float, rng: random.Random
) -> Iterator[Path]:
    """Kill a worker of a sweep at random moments, again and again; the folders of the sweeps.

    A sweep whose workers died too often stops, keeps what is finished and is started again.
    """
    left, number = kills, 0
    while left or not (place.with_name(f"{place.name}-{number - 1}") / ledger.TABLE).is_file():
        if not number or (place.with_name(f"{place.name}-{number - 1}") / ledger.TABLE).is_file():
            number += 1
        folder = place.with_name(f"{place.name}-{number - 1}")
        running = start(folder)
        while running.poll() is None:
            until = time.monotonic() + rng.uniform(0, length / 3)
            while running.poll() is None and (time.monotonic() < until or not workers_of(running.pid)):
                time.sleep(0.02)
            if left and (alive := workers_of(running.pid)):
                with suppress(psutil.NoSuchProcess):
                    rng.choice(alive).kill()
                    left -= 1
                    done = len(ledger.finished(folder))
                    typer.echo(f"killed a worker with {done} batches finished ({kills - left} of {kills})")
        if finished(running, stopped=True):
            yield folder
        else:
            typer.echo("the sweep stopped, because its workers died too often; it is resumed")


def drivers_killed(
    start: Callable[[Path], subprocess.Popen[bytes]], place: Path, kills: int, length: float, rng: random.Random
) -> Iterator[Path]:
    """Kill the process that started a sweep at random moments, and start it again; the folders of the sweeps."""
    left, number = kills, 0
    folder = place.with_name(f"{place.name}-{number}")
    while left:
        running = start(folder)
        with suppress(subprocess.TimeoutExpired):
            running.wait(rng.uniform(0, 1.5 * length))
        if running.poll() is None:
            cluster = psutil.Process(running.pid).children(recursive=True)
            running.kill()
            running.wait()
            left -= 1
            done = len(ledger.finished(folder))
            typer.echo(f"killed the driver with {done} batches finished ({kills - left} of {kills})")
            _, orphans = psutil.wait_procs(cluster, timeout=60)
            if orphans:
                raise RuntimeError(f"{len(orphans)} processes of the cluster still run: {orphans}")
        finished(running, killed=True)
        if (folder / ledger.TABLE).is_file():
            yield folder
            number += 1
            folder = place.with_name(f"{place.name}-{number}")
    if folder.exists():
        finished(start(folder))
        yield folder


def workers_of(process: int) -> list[psutil.Process]:
    """The workers of a sweep on Ray, which are children of Ray's own processes."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process).children(recursive=True):
            with suppress(psutil.NoSuchProcess, IndexError):
                if one.cmdline()[0].startswith("ray::Worker"):
                    found.append(one)
    return found


def finished(running: subprocess.Popen[bytes], killed: bool = False, stopped: bool = False) -> bool:
    """Wait for a sweep, raise an error if it failed, and return whether it is finished.

    `killed` and `stopped` state how else it may have ended: by a signal, or because its workers died.
    """
    said = running.communicate(timeout=PATIENCE)[1]
    expected = (killed and running.returncode < 0) or (stopped and b"StoppedError" in said)
    if running.returncode and not expected:
        raise RuntimeError(said.decode()[-2000:])
    return not running.returncode


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every stored file by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


if __name__ == "__main__":
    typer.run(main)
