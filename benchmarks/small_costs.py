"""Compare the CPU time of small tasks with that of an earlier version (`benchmarks/small_costs.py --against DIR`).

DIR is a checkout of the earlier version (`git worktree add DIR COMMIT`). Every measurement is a separate process on one
thread, and the two versions alternate. The time is the process's own CPU time, so other jobs on the machine matter
little. The script prints a Markdown table of medians, which `docs/speed.md` contains.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

HERE = Path(__file__).parents[1]
CLIPS_PER_CONDITION, ROWS = 16, 64
COMMANDS = {
    "models": "models",
    "measure": "measure a.wav --measures loudness",
    "report": "report nowhere",
    "study": "study tempi",
    "sweep": "sweep tempo -o full",
    "patch": "patch tempo --by ear",
    "place": "place tempo --by ear",
    "probe": "probe tempi",
    "directions": "directions tempo --branch some",
    "generate": "generate song --guidance 0",
}
"""Commands that need no model: the first two succeed, and the others refuse an argument."""


def compared(clips: int) -> float:
    """Compare all conditions of a stored sweep by their codes."""
    import pandas as pd

    from analysis.sweep.batch_files import BATCHES
    from analysis.sweep.batches import Batches
    from analysis.sweep.result import SweepResult

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / BATCHES).mkdir()
        stored = Batches(folder, (ROWS,) * (clips // ROWS), "0" * 64)
        columns = [f"measure{n}" for n in range(9)]
        for batch in range(clips // ROWS):
            rows = np.arange(batch * ROWS, (batch + 1) * ROWS)
            frame = pd.DataFrame(rng.random((ROWS, len(columns))), columns=columns)
            number = rows // CLIPS_PER_CONDITION
            frame["condition"] = [f"condition {one}" if one else "baseline" for one in number]
            frame["prompt"], frame["seed"], frame["failed"] = "a song", rows % CLIPS_PER_CONDITION, False
            stored.keep(batch, frame, rng.integers(0, 256, (ROWS, 4, 250)), {})
        table, done = stored.table()
        found = SweepResult(table, ("measure0",), {}, 16_000, folder=folder, _batches=stored, _done=done)
        started = time.process_time()
        found.compared(lambda one, other: float((one[0, 0, 0] - other[0, 0, 0]).float()))
        return time.process_time() - started


def command(name: str) -> float:
    """Run the command line once in a process of its own."""
    import soundfile

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "full").mkdir()
        (Path(place) / "full" / "file").write_text("something else")
        soundfile.write(Path(place) / "a.wav", 0.1 * np.sin(np.arange(80_000) / 8), 16_000)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "analysis.cli", *COMMANDS[name].split()], cwd=place, capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in (0, 2):
            raise RuntimeError(done.stderr.decode())
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def hashed(times: int) -> float:
    """Hash the weights of étude as often as a study does."""
    from audiolens import AudioLens
    from audiolens.model.weight_hash import content_hash

    model = AudioLens.from_pretrained("etude").model
    started = time.process_time()
    if len({content_hash(model) for _ in range(times)}) != 1:
        raise RuntimeError("the hash of the same weights changed")
    return time.process_time() - started


def page(clips: int) -> float:
    """Write the page of a study with this many kept clips of two seconds."""
    sys.path.insert(0, str(HERE / "tests"))
    from plants import tables

    from analysis.report import writer

    found = tables.study()
    tested = found.clips[found.clips["split"] == "test"]
    conditions = list(dict.fromkeys(condition for condition, *_ in found.sounds))
    pairs = list(dict.fromkeys(zip(tested["prompt"], tested["seed"], strict=True)))
    keys = [(one, prompt, int(seed)) for prompt, seed in pairs for one in conditions]
    fade = np.exp(-(np.arange(32_000) % 8000) / 3000)
    sounds = {
        key: (0.3 * fade * np.sin(np.arange(32_000) * (0.05 + 0.001 * n)))[None].astype(np.float32)
        for n, key in enumerate(keys[: clips // len(conditions) * len(conditions)])
    }
    if len(sounds) < clips - len(conditions):
        raise RuntimeError(f"the planted study has only {len(keys)} clips")
    with tempfile.TemporaryDirectory() as place:
        started = time.process_time()
        writer.write(replace(found, sounds=sounds), Path(place))
        return time.process_time() - started


def attributed(check: int) -> float:
    """Attribute eight pairs on étude, with this many checked cells per site."""
    import torch

    from analysis import attribution
    from audiolens import AudioLens

    lens = AudioLens.from_pretrained("etude")
    given = ["a fast song with drums"] * 8, ["a slow song with drums"] * 8
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(lens.config.vocab_size, (8, lens.config.n_codebooks, 100), generator=draw)
    attribution.attribute(lens, *given, codes, check=0)
    started = time.process_time()
    attribution.attribute(lens, *given, codes, check=check)
    return time.process_time() - started


def heard(clips: int) -> float:
    """Measure clips of five seconds in all measures and check them for failure, as a sweep does."""
    rng = np.random.default_rng(0)
    seconds = np.arange(80_000) / 16_000
    rows = [
        np.sin(2 * np.pi * rng.uniform(200, 900) * seconds) * np.exp(-9 * (seconds % rng.uniform(0.2, 0.6)))
        for _ in range(clips)
    ]
    audio, codes = np.stack(rows)[:, None].astype(np.float32), rng.integers(0, 256, (clips, 4, 250))
    hear = _hearing()
    hear(codes[:1], audio[:1])
    started = time.process_time()
    hear(codes, audio)
    return time.process_time() - started


def _hearing() -> Callable[[np.ndarray, np.ndarray], object]:
    """Return the function that measures a batch and compares it with itself as its own baseline."""
    from audiolens import measure

    names, rate = tuple(measure.MEASURES), 16_000
    if find_spec("analysis.heard") is None:
        # Before several processes generated, `listening` measured a batch and compared it in one call.
        earlier: Any = import_module("analysis.listening")
        config = SimpleNamespace(sample_rate=rate)
        return lambda codes, audio: earlier._hear(codes, audio, None, list(names), config)
    from analysis.heard import Wanted, hear
    from audiolens.measure.failure import criteria

    def now(codes: np.ndarray, audio: np.ndarray) -> object:
        found = hear(codes, audio, rate, Wanted(names))
        assert found.onsets is not None
        return found.frame, criteria(found.levels, found.levels, found.onsets)

    return now


def placed() -> float:
    """Compare the shifts of a direction at every block of étude with those of the words, over eight clips of 2 s."""
    import torch

    from analysis.placement import shifts
    from audiolens import AudioLens, Directions, prompts
    from audiolens.model.provenance import Provenance
    from audiolens.model.weight_hash import weights_hash

    lens = AudioLens.from_pretrained("etude")
    config, draw = lens.config, torch.Generator().manual_seed(0)
    sets = prompts.load("tempo", lens=lens)
    meta = Provenance(model=lens.name, weights=weights_hash(lens.model), n_layers=config.n_layers, label="tempo")
    vectors = torch.randn(config.n_layers, config.d_model, generator=draw)
    read = Directions(vectors, tuple(range(config.n_layers)), torch.ones(config.n_layers), meta)
    neutral = list(sets.development[:8])
    codes = torch.randint(config.vocab_size, (8, config.n_codebooks, round(2 * config.frame_rate)), generator=draw)
    given = lens, neutral, shifts.asked_in_words(lens, sets, neutral), codes
    places = shifts.candidates(read, ("one-to-one",), None)
    shifts.shifts_of(*given, places[:1], batch_size=16)
    started = time.process_time()
    shifts.shifts_of(*given, places, batch_size=16)
    return time.process_time() - started


TASKS: dict[str, tuple[str, Callable[[], float]]] = {
    "compared": ("`SweepResult.compared`, 800 conditions x 16 clips", lambda: compared(12_800)),
    "hash": ("exact hash of étude's weights, five times", lambda: hashed(5)),
    "page": ("a study's page, 84 kept clips of 2 s", lambda: page(84)),
    "attribute": ("`attribution.attribute` with its default check", lambda: attributed(16)),
    "unchecked": ("`attribution.attribute` without its check", lambda: attributed(0)),
    "placed": ("placement's comparison of all one-to-one candidates", placed),
    "hear": ("measures and failures of 32 clips", lambda: heard(32)),
    **{name: (f"`audiolens {line}`", lambda name=name: command(name)) for name, line in COMMANDS.items()},
}


def main(
    against: Annotated[Path | None, typer.Option(help="A checkout of the version to compare with.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of every task in each version.")] = 3,
    only: Annotated[str | None, typer.Option(help="Tasks to run, such as hash,page [default: all].")] = None,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/small_costs.json"),
    task: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a table with one row per task."""
    if task is not None:
        typer.echo(json.dumps(TASKS[task][1]()))
        return
    versions = {"now": HERE} if against is None else {"before": against.resolve(), "now": HERE}
    names = list(TASKS) if only is None else only.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise typer.BadParameter(f"{unknown[0]}: expected some of {', '.join(TASKS)}")
    typer.echo("| task | " + " | ".join(f"{version} [s]" for version in versions) + " | factor |")
    typer.echo("|---|" + "---|" * (len(versions) + 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {}
    for name in names:
        times: dict[str, list[float]] = {version: [] for version in versions}
        for _ in range(repeats):
            for version, root in versions.items():
                times[version].append(_measured(name, root))
        found[name] = times
        out.write_text(json.dumps({"machine": platform.machine(), "repeats": repeats, "seconds": found}, indent=1))
        medians = [statistics.median(one) for one in times.values()]
        factor = f"{medians[0] / medians[-1]:.1f}" if len(medians) > 1 else ""
        typer.echo(f"| {TASKS[name][0]} | " + " | ".join(f"{one:.2f}" for one in medians) + f" | {factor} |")


def _measured(name: str, root: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # The script itself is the same in both versions; its own folder comes after the version's packages.
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--task", name], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    typer.run(main)
