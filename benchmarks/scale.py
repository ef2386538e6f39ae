"""Simulate a sweep of a million clips of MusicGen-large on 1 to 1,000 GPUs: `python benchmarks/scale.py --update`.

The costs on the CPU are measured on this machine: decoding, measuring, compressing and storing. The cost on a GPU is
computed from the model's sizes and published figures, and was not measured. The simulation is a queue of events: GPUs
generate the batches of a plan, listeners (one CPU core each) measure them, and the driver alone stores them.
"""

from __future__ import annotations

import heapq
import io
import math
import random
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

HERE = Path(__file__).parents[1]
PAGE = HERE / "docs" / "scale.md"
DAY = 86_400.0
CLIPS, SECONDS, BATCH, MODEL = 1_000_000, 30.0, 32, "facebook/musicgen-large"
# NVIDIA's data sheet of the H100 SXM.
GPU_BYTES_PER_SECOND, GPU_BYTES = 3.35e12, 80e9
# Not measured: the share of that bandwidth that is reached, and the time to decode a clip on the GPU.
EFFICIENCY, DECODE_SECONDS = 0.6, 0.02
# Not measured: a worker's start, the spread of the durations of batches, and how long a write to a disk takes.
START_SECONDS, SPREAD = 120.0, 0.05
SYNC_SECONDS = {"local disk": 0.002, "network disk": 0.02}


@dataclass(frozen=True)
class Costs:
    """What one batch costs.

    Attributes:
        generate: seconds of a GPU.
        listen: seconds of one CPU core.
        store: seconds of the driver.
        start: seconds until a new GPU worker is ready.
    """

    generate: float
    listen: float = 0.0
    store: float = 0.0
    start: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """The machines.

    Attributes:
        gpus, listeners: number of workers of each kind.
        failures_per_day: failures per GPU and day of work. The batch is generated again, by the next free GPU.
        spread: standard deviation of the logarithm of a batch's duration.
        ahead: batches per GPU that may be begun but not stored.
        in_order: whether batches are stored in the order of the plan.
    """

    gpus: int
    listeners: int
    failures_per_day: float = 0.0
    spread: float = 0.0
    ahead: int = 4
    in_order: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation.

    Attributes:
        seconds: time until the last batch is stored.
        gpus, listeners, driver: share of this time during which they work, without work that is lost.
        failures: number of failed workers, each of which lost the batch that it was generating.
        tail: seconds from the moment at which no batch is left to begin until the end.
    """

    seconds: float
    gpus: float
    listeners: float
    driver: float
    failures: int
    tail: float


def simulated(n_batches: int, costs: Costs, cluster: Cluster) -> Outcome:
    """Return how a sweep of equal batches goes. The same arguments give the same outcome."""
    return _Simulation(n_batches, costs, cluster).run()


@dataclass
class _Simulation:
    n_batches: int
    costs: Costs
    cluster: Cluster
    now: float = 0.0
    begun: int = 0
    stored: int = 0
    failures: int = 0
    worked: float = 0.0
    storing: bool = False
    last_begun: float = 0.0
    events: list[tuple[float, int, str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw, self.number = random.Random(self.cluster.seed), count()
        self.todo, self.idle, self.queue = deque(range(self.n_batches)), deque[int](), deque[int]()
        self.listeners, self.heard = self.cluster.listeners, list[int]()
        # The seconds of work until each GPU fails.
        self.left = [self._lifetime() for _ in range(self.cluster.gpus)]

    def run(self) -> Outcome:
        for gpu in range(self.cluster.gpus):
            self._after(self.costs.start, "ready", gpu)
        while self.stored < self.n_batches:
            self.now, _, kind, worker, batch = heapq.heappop(self.events)
            getattr(self, f"_{kind}")(worker, batch)
            self._begin()
        total, costs = self.now, self.costs
        return Outcome(
            total,
            gpus=self.worked / (total * self.cluster.gpus),
            listeners=self.n_batches * costs.listen / (total * self.cluster.listeners),
            driver=self.n_batches * costs.store / total,
            failures=self.failures,
            tail=total - self.last_begun,
        )

    def _begin(self) -> None:
        while self.idle and self.todo and self.begun - self.stored < self.cluster.ahead * self.cluster.gpus:
            gpu, batch = self.idle.popleft(), self.todo.popleft()
            self.begun, self.last_begun = self.begun + 1, self.now
            spread = self.cluster.spread
            # The mean of the factor is 1.
            factor = math.exp(self.draw.gauss(-(spread**2) / 2, spread)) if spread else 1.0
            seconds = self.costs.generate * factor
            if self.left[gpu] < seconds:
                self._after(self.left[gpu], "failed", gpu, batch)
            else:
                self.left[gpu] -= seconds
                self.worked += seconds
                self._after(seconds, "generated", gpu, batch)

    def _ready(self, gpu: int, _: int) -> None:
        self.idle.append(gpu)

    def _failed(self, gpu: int, batch: int) -> None:
        self.failures, self.begun = self.failures + 1, self.begun - 1
        self.todo.appendleft(batch)
        self.left[gpu] = self._lifetime()
        self._after(self.costs.start, "ready", gpu)

    def _generated(self, gpu: int, batch: int) -> None:
        self.idle.append(gpu)
        self.queue.append(batch)
        self._listen()

    def _measured(self, _: int, batch: int) -> None:
        self.listeners += 1
        heapq.heappush(self.heard, batch)
        self._listen()
        self._store()

    def _stored(self, _: int, __: int) -> None:
        self.stored, self.storing = self.stored + 1, False
        self._store()

    def _listen(self) -> None:
        while self.queue and self.listeners:
            self.listeners -= 1
            self._after(self.costs.listen, "measured", batch=self.queue.popleft())

    def _store(self) -> None:
        if self.heard and not self.storing and (not self.cluster.in_order or self.heard[0] == self.stored):
            self.storing = True
            self._after(self.costs.store, "stored", batch=heapq.heappop(self.heard))

    def _after(self, seconds: float, kind: str, worker: int = -1, batch: int = -1) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.number), kind, worker, batch))

    def _lifetime(self) -> float:
        rate = self.cluster.failures_per_day / DAY
        return self.draw.expovariate(rate) if rate else math.inf


@dataclass(frozen=True)
class Measured:
    """Seconds of processor time on this machine: of a clip, or of the driver for a batch, with the bytes it writes."""

    decode: float
    listen: float
    compress: float
    store: float
    batch_bytes: float
    sound_bytes: float


def measured() -> Measured:
    """Measure on one thread what a clip costs on the CPU."""
    import torch
    import transformers
    from checkpoints import CODEC

    from analysis.heard import Wanted, hear, one_thread
    from audiolens import measure
    from audiolens.sound import soundfiles

    rate = CODEC["sampling_rate"]
    at = np.arange(round(SECONDS * rate)) / rate
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 440 * at) * np.exp(-9 * (at % 0.4)) + 0.05 * rng.normal(size=len(at))
    audio, codes = tone[None, None].astype(np.float32), rng.integers(0, 2048, (1, 4, round(SECONDS * 50)))
    wanted = Wanted(tuple(measure.MEASURES))
    with one_thread():
        hear(codes, audio[..., :rate], rate, wanted)
        listen = _timed(lambda: hear(codes, audio, rate, wanted))
        sound = io.BytesIO()
        compress = _timed(lambda: soundfiles.write(sound, audio[0], rate, "FLAC"))
        codec = transformers.EncodecModel(transformers.EncodecConfig(**CODEC)).eval()
        with torch.no_grad():
            decode = _timed(lambda: codec.decode(torch.from_numpy(codes)[None], [None]))
    store, written = _stored()
    return Measured(decode, listen, compress, store, written, len(sound.getvalue()))


def _stored() -> tuple[float, float]:
    """Return the driver's time per batch, and the bytes that it writes per batch."""
    import pandas as pd

    from analysis.sweep.batch_files import BATCHES, MOST_CLIPS
    from analysis.sweep.batches import Batches
    from audiolens import measure

    # So many that most of them are merged into packs, as those of a large sweep.
    n, rng = 5 * MOST_CLIPS // BATCH, np.random.default_rng(0)
    columns = [*measure.MEASURES, "rms_ratio", "onsets", "entropy_ratio", "strength"]
    frame = pd.DataFrame(rng.random((BATCH, len(columns))), columns=columns)
    frame["condition"], frame["prompt"], frame["failed"] = "tempo one-to-all 12 x 1", "a song", False
    frame["seed"] = range(BATCH)
    codes = rng.integers(0, 2048, (BATCH, 4, round(SECONDS * 50)))
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / BATCHES).mkdir()
        kept = Batches(Path(place), (BATCH,) * n, "0" * 64)
        seconds = _timed(lambda: [kept.keep(number, frame, codes, {}) for number in range(n)])
        size = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
    return seconds / n, size / n


def _timed(work: object) -> float:
    assert callable(work)
    started = time.process_time()
    work()
    return time.process_time() - started


def generate_seconds() -> tuple[float, float]:
    """Return the seconds in which a GPU generates a batch, and the bytes of memory that it needs for it.

    Every step reads all weights of the decoder, and the keys and values of all steps before it. At these sizes, this
    takes longer than the arithmetic.
    """
    from checkpoints import RATE, SIZES, TOKENS, cache_bytes, parameters, shell

    size = next(one for one in SIZES if one.name == MODEL)
    model = shell(size)
    weights, steps = 2 * parameters(model.decoder), round(SECONDS * RATE) + size.codebooks - 1
    whole = BATCH * cache_bytes(size, steps, TOKENS)
    per_step = (weights + whole / 2) / (GPU_BYTES_PER_SECOND * EFFICIENCY)
    return steps * per_step + BATCH * DECODE_SECONDS, 2 * parameters(model) + whole


def table(costs: Costs, listeners_per_gpu: float, failures: float = 1.0) -> str:
    """Return the Markdown table of a sweep on several numbers of GPUs."""
    lines = [
        "| GPUs | listeners | time | GPU hours | GPUs at work | driver at work | failures | last batches [s] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for gpus in (1, 8, 100, 1000):
        listeners = math.ceil(gpus * listeners_per_gpu)
        found = simulated(-(-CLIPS // BATCH), costs, Cluster(gpus, listeners, failures, SPREAD))
        lines.append(
            f"| {gpus:,} | {listeners:,} | {_spoken(found.seconds)} | {found.seconds * gpus / 3600:,.0f} | "
            f"{found.gpus:.0%} | {found.driver:.1%} | {found.failures:,} | {found.tail:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def variants(costs: Costs, listeners: int, compress: float) -> str:
    """Return the Markdown table of what changes the time of a sweep on 1,000 GPUs."""
    n, base = -(-CLIPS // BATCH), Cluster(1000, listeners, 1.0, SPREAD)
    half = replace(costs, generate=costs.generate / 2, listen=costs.listen / 2)
    ways = {
        "as above": (n, costs, base),
        "no failures": (n, costs, replace(base, failures_per_day=0.0)),
        "a failure per GPU and hour": (n, costs, replace(base, failures_per_day=24.0)),
        "batches stored in the order of the plan, 2 per GPU": (n, costs, replace(base, ahead=2, in_order=True)),
        "durations of batches spread by 30%": (n, costs, replace(base, spread=0.3)),
        "half as many listeners": (n, costs, replace(base, listeners=listeners // 2)),
        "half as large batches, at the same speed per clip": (2 * n, half, base),
        "the driver writes to a network disk": (n, replace(costs, store=costs.store + _sync("network disk")), base),
        "the driver compresses the sound": (n, replace(costs, store=costs.store + BATCH * compress), base),
    }
    lines = ["| 1,000 GPUs | time | GPUs at work | driver at work |", "|---|---|---|---|"]
    for name, given in ways.items():
        found = simulated(*given)
        lines.append(f"| {name} | {_spoken(found.seconds)} | {found.gpus:.0%} | {found.driver:.0%} |")
    return "\n".join(lines) + "\n"


def _sync(disk: str) -> float:
    """Return the seconds per batch in which the driver waits for the disk: a file of codes and one of rows."""
    return 2 * SYNC_SECONDS[disk]


def _spoken(seconds: float) -> str:
    for size, name in ((DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def main(update: Annotated[bool, typer.Option(help=f"Write the tables to {PAGE.name}.")] = False) -> None:
    """Print the measured costs, and the tables of the simulation."""
    cpu, (generate, memory) = measured(), generate_seconds()
    store = cpu.store + _sync("local disk")
    costs = Costs(generate, BATCH * cpu.listen, store, START_SECONDS)
    # A tenth more than the mean need, because batches do not come evenly.
    listeners = 1.1 * costs.listen / costs.generate
    inputs = (
        f"| a batch of {BATCH} clips of {SECONDS:g} s | seconds | |\n|---|---|---|\n"
        f"| generate and decode, on one GPU ({memory / 1e9:.0f} GB of its {GPU_BYTES / 1e9:.0f} GB) | {generate:.1f} | "
        f"computed |\n"
        f"| measure, on one core | {BATCH * cpu.listen:.1f} | measured |\n"
        f"| decode, on one core instead of the GPU | {BATCH * cpu.decode:.0f} | measured |\n"
        f"| compress as FLAC, on one core ({BATCH * cpu.sound_bytes / 1e6:.0f} MB) | {BATCH * cpu.compress:.1f} | "
        f"measured |\n"
        f"| store and merge codes and rows, in the driver ({cpu.batch_bytes / 1e6:.1f} MB) | {cpu.store:.3f} | "
        f"measured |\n"
        f"| wait for a local disk, in the driver | {_sync('local disk'):.3f} | assumed |\n"
        f"| wait for a network disk, in the driver | {_sync('network disk'):.3f} | assumed |\n"
    )
    limits = (
        f"| the driver is busy all the time with | GPUs |\n|---|---|\n"
        f"| codes and rows, on a local disk | {generate / store:,.0f} |\n"
        f"| codes and rows, on a network disk | {generate / (cpu.store + _sync('network disk')):,.0f} |\n"
        f"| also sound, which it compresses itself | {generate / (store + BATCH * cpu.compress):,.0f} |\n"
        f"| also sound, which the listeners compress, at 1 GB/s | "
        f"{generate / (store + BATCH * cpu.sound_bytes / 1e9):,.0f} |\n"
    )
    whole = math.ceil(1000 * listeners)
    text = "\n".join([inputs, table(costs, listeners), limits, variants(costs, whole, cpu.compress)])
    typer.echo(text)
    if update:
        from pages import renewed

        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "scale", text), "utf-8")


if __name__ == "__main__":
    typer.run(main)
