"""Compare sweeps in one process, in several, and on a Ray cluster of this machine: `python benchmarks/distributed.py`.

Every run sweeps the same clips on étude, in the same batches and with one thread per process. Every file that a run
stores must be identical to that of the first. Then a sweep on Ray is repeated while one of its workers is killed (-9)
at random moments, and again while the process that started it is, which is then started again. Their files must be
identical too, no batch that is stored may be generated again, and the other batches that were generated again are
counted.

Times include the start of the workers. Speed-ups are ratios of medians to one process, and are given only if other
programs took at most a twentieth of the cores before each run.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import torch
import typer
from jobs import direction, swept
from pages import renewed

from analysis import sweep
from analysis.distributed import Ray
from analysis.sweep import ledger
from audiolens import AudioLens, Directions

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
MARK = "distributed"
PROMPTS, SEEDS = 16, 2
MOST_OTHERS = 0.05
"""The share of the cores that other programs may take while speeds are compared."""
PATIENCE = 3600
ENDING_SECONDS = 180
"""Time within which all processes of a cluster must have ended. Ray's two agents take a minute to end."""
DIRECTION = "direction.safetensors"
MEASURES = ("loudness", "brightness", "onset_rate")


def main(
    clips: Annotated[int, typer.Option(help="Number of clips: a multiple of 32, for 16 prompts and 2 seeds.")] = 512,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    kills: Annotated[
        int, typer.Option(help="How often a worker is killed; the process that started the sweep is half as often.")
    ] = 20,
    batch_size: Annotated[int, typer.Option(help="Maximum number of rows per batch.")] = 32,
    workers: Annotated[int, typer.Option(help="Number of processes, and of workers on Ray.")] = 2,
    kills_only: Annotated[
        bool, typer.Option("--kills-only", help="Run only one process and Ray without kills.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each way, of which the median is reported.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/distributed.json"),
    update: Annotated[bool, typer.Option("--update", help="Write the table in docs/scale.md.")] = False,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
    place: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print which runs have the same bytes and, on an idle machine, how long each took compared with one process."""
    torch.set_num_threads(1)
    if clips % (PROMPTS * SEEDS):
        raise typer.BadParameter(f"--clips {clips}: expected a multiple of {PROMPTS * SEEDS}.")
    asked = {"seconds": seconds, "batch_size": batch_size}
    if child is not None and place is not None:
        run(place, model, clips, asked, json.loads(child))
        return
    on_ray = f"Ray, {workers} workers"
    ways: dict[str, dict[str, int]] = {
        "one process": {"n_jobs": 0},
        f"{workers} processes": {"n_jobs": workers},
        on_ray: {"ray": workers},
        f"Ray, {workers} workers and one that measures": {"ray": workers, "listeners": 1},
    }
    if kills_only:
        ways = {name: ways[name] for name in ("one process", on_ray)}
    options = [part for name, value in {"clips": clips, **asked}.items()
               for part in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    rng = random.Random(seed)
    facts: dict[str, Any] = {"clips": clips, **asked, "cores": os.cpu_count(), "others": 0.0}
    with TemporaryDirectory() as work, ended() as started:
        direction(AudioLens.from_pretrained(model)).save(Path(work) / DIRECTION)

        def start(way: dict[str, int], folder: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, *options, "--model", model, "--child", json.dumps(way), "--place"]
            # Ctrl-C must not reach the processes that are to be killed.
            started.append(subprocess.Popen([*command, str(folder)], stderr=subprocess.PIPE, start_new_session=True))
            return started[-1]

        times: dict[str, list[float]] = {name: [] for name in ways}
        whole: dict[str, bytes] = {}
        for repeat in range(repeats):
            for name, way in ways.items():
                facts["others"] = max(facts["others"], psutil.cpu_percent(2) / 100)
                folder = Path(work) / f"{name.replace(' ', '-')}-{repeat}"
                finished(start(way, folder))
                times[name].append(float(folder.with_name(f"{folder.name}.seconds").read_text()))
                whole = whole or contents(folder)
                same = contents(folder) == whole
                typer.echo(f"{name}: {times[name][-1]:.1f} s; {'the same bytes' if same else 'OTHER BYTES'}")
                if not same:
                    raise typer.Exit(1)
        medians = {name: statistics.median(one) for name, one in times.items()}
        facts |= {"times": times, "kills": {}}
        for who, count, killing in (("worker", kills, workers_killed), ("driver", kills // 2, drivers_killed)):
            if not count:
                continue
            found = [*killing(partial(start, ways[on_ray]), Path(work) / who, count, medians[on_ray], rng)]
            facts["kills"][who] = {
                "kills": count,
                "sweeps": len(found),
                "unequal": sum(contents(one.folder) != whole for one in found),
                "batches": sum(len(ledger.finished(one.folder)) for one in found),
                "again": sum(one.again for one in found),
                "stored again": sum(one.stored_again for one in found),
            }
            typer.echo(f"{who}: {facts['kills'][who]}")
    typer.echo(table := tabled(facts, medians))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))
    if any(one["unequal"] or one["stored again"] for one in facts["kills"].values()):
        raise typer.Exit(1)
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), MARK, f"{table}\n"), "utf-8")


@contextmanager
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield a list of processes, and kill those that still run at the end."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def tabled(facts: dict[str, Any], medians: dict[str, float]) -> str:
    """The table of the page."""
    idle = facts["others"] <= MOST_OTHERS
    rows = [
        f"| {facts['clips']} clips of {facts['seconds']:g} s, in batches of {facts['batch_size']} | bytes | batches "
        "generated again | speed |",
        "|---|---|---|---|",
    ]
    for name, median in medians.items():
        speed = f"{medians['one process'] / median:.2f}x" if idle else "not measured"
        rows.append(f"| {name} | {'as one process' if len(rows) > 2 else ''} | | {speed} |")
    for who, one in facts["kills"].items():
        what = f"the {who} killed {one['kills']} times in {one['sweeps']} sweeps"
        same = "as one process" if not one["unequal"] else f"OTHERS IN {one['unequal']} SWEEPS"
        rows.append(f"| Ray, {what} | {same} | {one['again']} of {one['batches']} | |")
    return "\n".join(rows)


def run(place: Path, model: str, clips: int, asked: dict[str, Any], way: dict[str, int]) -> None:
    """Sweep into a folder, and write next to it how many seconds that took."""
    from analysis.distributed import ray_backend

    lens = AudioLens.from_pretrained(model)
    read = Directions.load(place.parent / DIRECTION, lens=lens)
    todo, pairs = swept(lens, clips // (PROMPTS * SEEDS), PROMPTS, SEEDS, read)
    named = Ray("local", way["ray"], listeners=way.get("listeners")) if "ray" in way else None
    for name in ("played", "generated"):
        setattr(ray_backend, name, partial(noted, getattr(ray_backend, name), str(log_of(place))))
    started = time.perf_counter()
    sweep.play(
        lens, todo, pairs, **asked, measures=MEASURES, engine="fast", out=place, sound="flac",
        n_jobs=way.get("n_jobs"), ray=named,
    )  # fmt: skip
    place.with_name(f"{place.name}.seconds").write_text(str(time.perf_counter() - started))


def noted(function: Callable[..., Any], log: str, lens: Any, work: Any, number: int, wanted: Any) -> Any:
    """Note in a worker which batch it begins, and generate it."""
    with open(log, "a") as file:
        file.write(f"{number}\n")
    return function(lens, work, number, wanted)


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.begun")


def begun(folder: Path) -> list[int]:
    """The batches that workers have begun to generate, in this order."""
    log = log_of(folder)
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@dataclass
class Swept:
    """A sweep that was started as often as needed.

    Attributes:
        stored_again: number of batches that were generated again although they were stored.
    """

    folder: Path
    stored_again: int = 0

    @property
    def again(self) -> int:
        """How often a batch was generated that had been begun before."""
        numbers = begun(self.folder)
        return len(numbers) - len({*numbers})

    @property
    def done(self) -> bool:
        return (self.folder / ledger.TABLE).is_file()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the batches that a run generates again although they were stored before it."""
        stored, before = ledger.finished(self.folder), len(begun(self.folder))
        yield
        self.stored_again += len(stored.intersection(begun(self.folder)[before:]))


def workers_killed(
    start: Callable[[Path], subprocess.Popen[bytes]], place: Path, kills: int, length: float, rng: random.Random
) -> Iterator[Swept]:
    """Kill a worker of a sweep at random moments, again and again; the sweeps.

    A sweep whose workers died too often stops, keeps what is finished and is started again.
    """
    left, number = kills, 0
    while left:
        one = Swept(place.with_name(f"{place.name}-{number}"))
        while not one.done:
            with one.counting():
                running = start(one.folder)
                while running.poll() is None:
                    until = time.monotonic() + rng.uniform(0, length / 3)
                    while running.poll() is None and (time.monotonic() < until or not workers_of(running.pid)):
                        time.sleep(0.02)
                    if left and (alive := workers_of(running.pid)):
                        with suppress(psutil.NoSuchProcess):
                            rng.choice(alive).kill()
                            left -= 1
                            done = len(ledger.finished(one.folder))
                            typer.echo(f"killed a worker with {done} batches finished ({kills - left} of {kills})")
                if not finished(running, stopped=True):
                    typer.echo("the sweep stopped, because its workers died too often; it is resumed")
        yield one
        number += 1


def drivers_killed(
    start: Callable[[Path], subprocess.Popen[bytes]], place: Path, kills: int, length: float, rng: random.Random
) -> Iterator[Swept]:
    """Kill the process that started a sweep at random moments, and start it again; the sweeps."""
    left, number = kills, 0
    while left:
        one = Swept(place.with_name(f"{place.name}-{number}"))
        while not one.done:
            with one.counting():
                running = start(one.folder)
                with suppress(subprocess.TimeoutExpired):
                    running.wait(rng.uniform(0, 1.5 * length) if left else PATIENCE)
                if running.poll() is None:
                    cluster = psutil.Process(running.pid).children(recursive=True)
                    running.kill()
                    running.wait()
                    left -= 1
                    _, orphans = psutil.wait_procs(cluster, timeout=ENDING_SECONDS)
                    if orphans:
                        raise RuntimeError(f"{len(orphans)} processes of the cluster still run: {orphans}")
                    done = len(ledger.finished(one.folder))
                    typer.echo(f"killed the driver with {done} batches finished ({kills - left} of {kills})")
                finished(running, killed=True)
        yield one
        number += 1


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
