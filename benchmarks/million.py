"""Measure what a sweep of up to a million clips costs the store: `python benchmarks/million.py --update`.

Rows and codes are synthetic, and the code of a real sweep writes and reads them: no model runs. Each step is a separate
process on one thread, which reports its processor time and its largest memory. The plan has 962 conditions: 8 layers
with 6 strengths, each with 19 random controls, the baseline, and the baseline with other seeds.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

if TYPE_CHECKING:
    from analysis.sweep.conditions import Plan

HERE = Path(__file__).parents[1]
PAGE, RESULTS = HERE / "docs" / "scale.md", HERE / "runs" / "million.json"
SIZES = (10_000, 100_000, 1_000_000)
BATCH, CODEBOOKS, FRAMES = 64, 4, 250
LEFT = 8
"""The number of batches that the first process leaves to the one that resumes the sweep."""


def plan(rows: int) -> Plan:
    """Return a plan of at most this many rows."""
    import torch

    from analysis.sweep.conditions import clips, packed
    from analysis.sweep.factorial import Factors, conditions
    from audiolens.directions.directions import Directions
    from audiolens.model.provenance import Provenance

    factors = Factors(strengths=(-1, -0.5, -0.25, 0.25, 0.5, 1), n_random=19)
    meta = Provenance(model="synthetic", weights="0" * 64, n_layers=8, label="tempo")
    found = conditions({"tempo": Directions(torch.eye(8, 32), tuple(range(8)), torch.ones(8), meta)}, factors)
    n_clips = rows // len(found)
    prompts = [f"a neutral song number {n} with drums, bass and a piano" for n in range(-(-n_clips // 4))]
    return packed(found, clips(prompts, 4)[:n_clips], BATCH)


def columns() -> list[str]:
    """Return the measured columns of a sweep with all measures."""
    from analysis.sweep import response
    from audiolens import measure

    return [*measure.MEASURES, *response.LOST]


def facts(todo: Plan) -> dict[str, Any]:
    """Return a `plan.json` with the entries of a real one, apart from the hashes of interventions."""
    from analysis.sweep import runs
    from analysis.sweep.planned import SWEEP
    from audiolens import measure
    from audiolens.tracing.noise import NOISE

    sizes = [len(batch) for batch in todo.batches]
    return {
        "format": SWEEP.format,
        "noise": NOISE,
        "versions": {},
        "model": {"name": "synthetic", "weights": "0" * 64, "device": "cpu", "attention": "sdpa", "threads": 1},
        "settings": {"seconds": 5.0, "measures": list(measure.MEASURES), "also": [], "sound": None},
        "conditions": {one.name: "0" * 16 for one in todo.conditions},
        "clips": [list(clip) for clip in todo.clips],
        "batches": sizes,
        "runs": runs.first("cpu", len(sizes)),
        "sample_rate": 32_000,
        "rows": len(todo),
    }


def heard(todo: Plan, numbers: Sequence[int]) -> Iterator[tuple[int, Any, Any]]:
    """Yield batches as a sweep measures them, with random numbers as measures and codes."""
    import pandas as pd

    from analysis.heard import Heard
    from audiolens.measure.failure import Levels

    names = columns()
    for number in numbers:
        draw, n = np.random.default_rng(number), len(todo.batches[number])
        frame = pd.DataFrame(draw.lognormal(size=(n, len(names))), columns=names)
        frame["onsets"], frame["failed"] = draw.integers(0, 30, n), draw.random(n) < 0.05
        codes = draw.integers(0, 2048, (n, CODEBOOKS, FRAMES))
        levels = Levels(draw.random(n), draw.random(n))
        yield number, Heard(codes, frame, levels, frame["onsets"].to_numpy(), {}, 32_000), frame


def write(folder: Path, rows: int) -> dict[str, float]:
    """Begin the sweep, and write all but its last batches."""
    todo = plan(rows)
    return _clock(lambda: _stored(folder, todo, range(len(todo.batches) - LEFT)))


def load_part(folder: Path, _: int) -> dict[str, float]:
    """Load the unfinished sweep."""
    from analysis.sweep import load_folder

    return _clock(lambda: load_folder(folder))


def resume(folder: Path, rows: int) -> dict[str, float]:
    """Open the sweep to write the rest: every byte that is there is read and checked."""
    from analysis.sweep.ledger import ledger

    todo = plan(rows)

    def opened() -> None:
        with ledger(folder, facts(todo), todo.labels, columns()) as kept:
            if len(kept.done) != len(todo.batches) - LEFT:
                raise RuntimeError(
                    f"{len(kept.done)} batches are finished of {len(todo.batches)}, of which {LEFT} are left"
                )

    return _clock(opened)


def close(folder: Path, rows: int) -> dict[str, float]:
    """Write the rest, and the table of all rows."""
    todo = plan(rows)
    n = len(todo.batches)
    return _clock(lambda: _stored(folder, todo, range(n - LEFT, n), whole=True))


def load(folder: Path, _: int) -> dict[str, float]:
    """Load the finished sweep."""
    from analysis.sweep import load_folder

    return _clock(lambda: load_folder(folder))


def summarise(folder: Path, _: int) -> dict[str, float]:
    """Compute the dose-response of a loaded sweep, with intervals and controls."""
    from analysis.sweep import load_folder

    found = load_folder(folder)
    return _clock(lambda: found.dose_response("tempo"))


def compare(folder: Path, _: int) -> dict[str, float]:
    """Compare the codes of every condition of a loaded sweep with those of the baseline."""
    from analysis.sweep import load_folder

    found = load_folder(folder)
    return _clock(lambda: found.compared(lambda one, own: float((one != own).float().mean())))


def page(_: Path, rows: int) -> dict[str, float]:
    """Write the page of a planted study with this many clips."""
    from dataclasses import replace

    import pandas as pd

    sys.path.insert(0, str(HERE / "tests"))
    from plants import tables

    from analysis.report import writer

    found = tables.study()
    times = -(-rows // len(found.clips))
    parts = [found.clips.assign(seed=found.clips["seed"] + 1000 * n) for n in range(times)]
    large = replace(found, clips=pd.concat(parts, ignore_index=True).iloc[:rows])
    with tempfile.TemporaryDirectory() as place:
        measured = _clock(lambda: writer.write(large, Path(place)))
        return {**measured, "bytes": (Path(place) / "index.html").stat().st_size}


STEPS: dict[str, tuple[str, Callable[[Path, int], dict[str, float]]]] = {
    "write": ("write all but 8 batches", write),
    "load_part": ("load the unfinished sweep", load_part),
    "resume": ("open it to resume: check every byte", resume),
    "close": ("write the rest, and the whole table", close),
    "load": ("load the finished sweep", load),
    "summarise": ("dose-response with intervals and controls", summarise),
    "compare": ("`compared`: the codes of all conditions", compare),
    "page": ("the page of a study of as many clips", page),
}


def _stored(folder: Path, todo: Plan, numbers: range, whole: bool = False) -> None:
    """Write batches in an order in which workers might finish them."""
    from tqdm.auto import tqdm

    from analysis.sweep.ledger import ledger
    from analysis.sweep.storage import into_folder

    order = np.array(numbers)
    # Each is at most some batches late.
    order = order[np.argsort(order + np.random.default_rng(0).integers(0, 16, len(order)), kind="stable")]
    with ledger(folder, facts(todo), todo.labels, columns()) as kept:
        into_folder(kept, heard(todo, order.tolist()), todo, None, tqdm(disable=True), hand=lambda _: None)
        if whole:
            kept.close()


def _clock(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of processor time that some work takes, and those until it is done."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _run(step: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a step in a process of its own, which has the packages of this one."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with open(reading) as answer:
            found = answer.read()
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"the step {step} failed")
        return json.loads(found)
    status = 1
    try:
        measured = STEPS[step][1](folder, rows)
        # Linux gives it in kB.
        peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        assert peak is not None
        os.write(writing, json.dumps({**measured, "memory": 1024 * int(peak[1])}).encode())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def table(found: dict[int, dict[str, dict[str, float]]]) -> str:
    """Return the Markdown table of all steps and sizes."""
    head = "".join(f" {size:,} clips [s] | [GB] |" for size in found)
    lines = [f"| step |{head}", "|---|" + "---|---|" * len(found)]
    for step, (name, _) in STEPS.items():
        lines.append(f"| {name} |" + "".join(_cells(one.get(step)) for one in found.values()))
    for name, unit in (("files", ""), ("folder", " MB"), ("page", " MB")):
        values = (one["sizes"][name] / (1e6 if unit else 1) for one in found.values())
        lines.append(f"| {name} |" + "".join(f" {value:,.{1 if unit else 0}f}{unit} | |" for value in values))
    return "\n".join(lines) + "\n"


def _cells(measured: dict[str, float] | None) -> str:
    if measured is None:
        return " – | – |"
    return f" {measured['seconds']:.1f} | {measured['memory'] / 1e9:.2f} |"


def main(
    rows: Annotated[str, typer.Option(help="Numbers of clips, separated by commas.")] = ",".join(map(str, SIZES)),
    update: Annotated[bool, typer.Option(help=f"Write the table to {PAGE.name}.")] = False,
    out: Annotated[Path, typer.Option(help="JSON file for the figures, also of earlier numbers.")] = RESULTS,
    folder: Annotated[Path | None, typer.Option(help="Folder for the sweeps [default: a temporary one].")] = None,
) -> None:
    """Print a table of processor time and memory, with one row per step."""
    for name in ("analysis.sweep.ledger", "analysis.sweep.storage", "analysis.sweep.factorial", "audiolens.measure"):
        import_module(name)
    import_module("scipy.stats")
    known = json.loads(out.read_text("utf-8")) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for size in map(int, rows.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            sweep = Path(place) / "sweep"
            steps: dict[str, dict[str, float]] = {}
            for name in STEPS:
                steps[name] = _run(name, sweep, size)
                typer.echo(f"{size:,} {name}: {json.dumps(steps[name])}", err=True)
            files = [path.stat().st_size for path in sweep.rglob("*") if path.is_file()]
        steps["sizes"] = {"files": len(files), "folder": sum(files), "page": steps["page"]["bytes"]}
        known[str(size)] = steps
        out.write_text(json.dumps(known, indent=1), "utf-8")
    text = table({int(size): known[size] for size in sorted(known, key=int)})
    typer.echo(text)
    if update:
        from pages import renewed

        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "million", text), "utf-8")


if __name__ == "__main__":
    typer.run(main)
