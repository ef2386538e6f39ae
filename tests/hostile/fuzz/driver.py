"""The driver: workers run cases of every loader, and a parent process counts results and kills workers that hang."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile.fuzz import corpus, watch
from hostile.fuzz.cases import Bench, case_of, prepare, run
from hostile.fuzz.loaders import LOADERS, Loader

_STUCK_SECONDS = 15.0
"""A case, tried at most three times, that takes longer than this is stuck in code that cannot be interrupted."""
_COLUMNS = ("cases", "refused", "read", "faults", "seconds")


@dataclass
class Tally:
    """Counts per loader and column, and a description of every fault."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, loader: str, counts: dict[str, Any]) -> None:
        self.counts.setdefault(loader, Counter()).update(counts)

    @property
    def cases(self) -> int:
        return sum(one["cases"] for one in self.counts.values())

    @property
    def n_faults(self) -> int:
        return sum(one["faults"] for one in self.counts.values())

    def table(self, seconds: float) -> str:
        """A table with one line per loader and the totals."""
        lines = [f"{'loader':24}" + "".join(f"{name:>10}" for name in _COLUMNS)]
        total: Counter[str] = Counter()
        for name, counts in self.counts.items():
            total.update(counts)
            lines.append(f"{name:24}" + "".join(f"{counts[column]:>10,.0f}" for column in _COLUMNS))
        lines.append(f"{'all':24}" + "".join(f"{total[column]:>10,.0f}" for column in _COLUMNS))
        return "\n".join([*lines, f"{self.cases:,} cases in {seconds:,.0f} s: {self.cases / seconds:,.0f} a second"])


def place() -> str | None:
    """The folder for the many small files of a run: in memory, if possible."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def made(root: Path, loaders: Sequence[Loader]) -> None:
    """Make the valid files of each loader in its own folder; loaders with the same maker share copies."""
    before: dict[Any, Path] = {}
    for loader in loaders:
        place = root / loader.name
        if loader.make in before:
            shutil.copytree(before[loader.make], place)
            continue
        place.mkdir()
        loader.make(place)
        before[loader.make] = place


def numbers(loaders: Sequence[Loader], part: int, parts: int) -> Iterator[tuple[Loader, int]]:
    """Yield (loader, number) forever, in proportion to each loader's share; every worker gets different numbers."""
    done = dict.fromkeys((loader.name for loader in loaders), 0)
    while True:
        # The loader that is furthest behind its share; at the start, every loader gets one turn.
        loader = min(loaders, key=lambda one: (done[one.name] + 0.5) / one.share)
        number = parts * done[loader.name] + part
        done[loader.name] += 1
        yield loader, number


def benches(root: Path, work: Path, loaders: Sequence[Loader]) -> dict[str, Bench]:
    """The bench of each loader, prepared in this process."""
    tempfile.tempdir = str(work / "temp")
    (work / "temp").mkdir(parents=True)
    return {loader.name: prepare(loader, root / loader.name, work) for loader in loaders}


def counted(bench: Bench, seed: int, number: int) -> tuple[dict[str, Any], list[str]]:
    """Run one case; return its counts, and its faults with the command that repeats it."""
    case = case_of(bench, seed, number)
    seen = run(bench, case)
    again = f"--loader '{bench.loader.name}' --seed {seed} --case {number}"
    faults = [f"{fault}\n    {again}  ({case.told:.300})" for fault in seen.faults]
    refused = int(seen.error is not None)
    counts = {"cases": 1, "refused": refused, "read": 1 - refused, "faults": len(faults)}
    return {**counts, "seconds": seen.seconds}, faults


def _work(root: str, names: Sequence[str], seed: int, part: int, parts: int, skip: int, now: Any, told: Any) -> None:
    """Run cases in a worker process; `now` holds the current case, so that the parent knows which one killed it."""
    corpus.quiet()
    sys.dont_write_bytecode = True
    loaders = [loader for loader in LOADERS if loader.name in names]
    work = Path(root) / f"worker-{part}-{skip}"
    ready = benches(Path(root), work, loaders)
    # libsndfile's decoders print to the terminal.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    watch.install()
    told.put((part, "ready", None))
    tally, last = Tally(), time.monotonic()
    for place, (loader, number) in enumerate(numbers(loaders, part, parts)):
        if place < skip:
            continue
        now[2 * part], now[2 * part + 1] = place, int(time.monotonic())
        try:
            counts, faults = counted(ready[loader.name], seed, number)
        except Exception:
            told.put((part, "broken", traceback.format_exc()))
            raise
        tally.add(loader.name, counts)
        tally.faults += faults
        if faults or time.monotonic() - last > 0.5:
            told.put((part, "tally", tally))
            tally, last = Tally(), time.monotonic()


def drive(loaders: Sequence[Loader], seconds: float, seed: int, workers: int, tell: Any = print) -> Tally:
    """Run cases for `seconds` in `workers` processes; a process that dies or hangs counts as a fault of its case."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=place()))
    context, total = multiprocessing.get_context("spawn"), Tally()
    names = [loader.name for loader in loaders]
    for name in names:
        total.add(name, {})
    now, told = context.Array("q", 2 * workers, lock=False), context.Queue()
    processes: dict[int, Any] = {}

    def start(part: int, skip: int = 0) -> None:
        arguments = (str(root), names, seed, part, workers, skip, now, told)
        processes[part] = context.Process(target=_work, args=arguments, daemon=True)
        processes[part].start()

    try:
        corpus.quiet()
        made(root, loaders)
        waiting, until = set(range(workers)), float("inf")
        for part in range(workers):
            start(part)
        while time.monotonic() < until:
            try:
                part, kind, tally = told.get(timeout=0.5)
            except queue.Empty:
                kind, tally, part = "", None, -1
            if kind == "ready":
                now[2 * part + 1] = int(time.monotonic())
                waiting.discard(part)
                if not waiting and until == float("inf"):
                    until = time.monotonic() + seconds
            elif kind == "broken":
                raise RuntimeError(f"the driver itself failed:\n{tally}")
            elif tally is not None:
                for name, counts in tally.counts.items():
                    total.add(name, dict(counts))
                total.faults += tally.faults
                for fault in tally.faults:
                    tell(fault, flush=True)
            for part in range(workers):
                ended = not processes[part].is_alive()
                stuck = part not in waiting and time.monotonic() - now[2 * part + 1] > _STUCK_SECONDS
                if ended and part in waiting:
                    raise RuntimeError("a worker could not begin.")
                if ended or stuck:
                    _lost(total, loaders, seed, part, workers, now[2 * part], processes[part], tell)
                    waiting.add(part)
                    start(part, now[2 * part] + 1)
    finally:
        for process in processes.values():
            process.kill()
            process.join()
        corpus.tidy()
        shutil.rmtree(root, ignore_errors=True)
    return total


def _lost(
    total: Tally, loaders: Sequence[Loader], seed: int, part: int, parts: int, place: int, process: Any, tell: Any
) -> None:
    """Count the case on which a worker died or hung, and kill the worker."""
    process.kill()
    process.join()
    loader, number = next(one for at, one in enumerate(numbers(loaders, part, parts)) if at == place)
    ended = f"the process ended with {process.exitcode}"
    fault = f"died: {ended}\n    --loader '{loader.name}' --seed {seed} --case {number}"
    total.add(loader.name, {"cases": 1, "faults": 1})
    total.faults.append(fault)
    tell(fault, flush=True)
