"""Time the lens on a GPU, in under ten minutes: `python benchmarks/gpu.py` (`--tiny` tries it on a CPU in seconds).

Models of the published sizes get random weights, because the time per step depends on the sizes alone. In one process,
and alternating, the script times:

- steps per second at 1, 8, 32 and 64 rows, without the codec: the lens (both engines) against bare transformers, and
  with a vector added at every block against raw forward hooks, on a copy of the model that no lens has opened
- a sweep's batch of 64 clips, each under its own condition, against one clip at a time
- a patching grid against one forward pass per cell
- the peak memory of 64 rows against the estimate that error messages give

What does not begin within `--minutes` is left out, and listed. The JSON file states the card, the versions, and every
number.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from unittest.mock import patch

import checkpoints
import numpy as np
import torch
import typer
from checkpoint_times import random_model
from checkpoints import SIZES, Size
from patching import grids
from tqdm.auto import tqdm
from tracing import hooks

from analysis.sweep.conditions import BASELINE, Condition, packed
from analysis.sweep.playing import Making
from audiolens import Add, AudioLens
from audiolens.errors import AudioLensError, AudioLensWarning
from audiolens.etude.training.text import build_tokenizer
from audiolens.model.devices import chosen_device, chosen_dtype, described
from audiolens.model.memory import Need
from audiolens.model.provenance import versions

PROMPT = "a little tune with drums"
AIMS = {"lens / bare": 1.02, "steered / hooked": 1.05, "sweep / single": 30.0, "grid / naive": 20.0}
"""The lens may take this many times as long; a sweep and a grid should be this many times as fast."""
_SMALL_PARTS: dict[str, dict[str, int]] = {
    "TEXT": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4},
    "CODEC": {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1},
}
Case = dict[str, Any]


class Scale:
    """How much is run: the whole list, or everything once on a tiny model."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.rows = (1, 2) if tiny else (1, 8, 32, 64)
        self.steps, self.repeats = (8, 1) if tiny else (53, 3)
        self.clips, self.singles, self.seconds = (4, 1, 0.2) if tiny else (64, 4, 1.0)
        self.grid = (16, 2) if tiny else (64, 16)


def main(
    sizes: Annotated[str, typer.Option(help="Sizes, separated by commas.")] = "small,medium,large",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    minutes: Annotated[float, typer.Option(help="Time after which nothing more is begun.")] = 8.0,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/gpu.json"),
    tiny: Annotated[bool, typer.Option("--tiny", help="Run everything once on a tiny model.")] = False,
) -> None:
    """Print the rates and their ratios, and write them to a file."""
    place = chosen_device(device)
    assert place is not None
    name = str(chosen_dtype(dtype, place)).removeprefix("torch.")
    named = [one for size in sizes.split(",") for one in SIZES if one.name == f"facebook/musicgen-{size}"]
    todo, scale = [Size("tiny", 2, 64)] if tiny else named, Scale(tiny)
    typer.echo(f"{described(place)}, {name}: {', '.join(size.name for size in todo)}")
    begun, lines, late = time.perf_counter(), list[Case](), list[str]()
    for size in todo:
        for label, case in cases(size, str(place), name, scale):
            if time.perf_counter() - begun > 60 * minutes:
                late.append(f"{size.name}: {label}")
                continue
            try:
                found = case()
            except AudioLensError as error:
                found = {"error": str(error)}
            lines.append({"model": size.name, "case": label, **found})
            tqdm.write(f"{size.name}, {label}: {told(found)}")
        freed(place)
    spent = time.perf_counter() - begun
    facts = {"device": described(place), "dtype": name, "versions": versions(), "aims": AIMS, "seconds": spent}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**facts, "lines": lines, "left_out": late}, indent=1))
    if late:
        typer.echo(f"left out after {minutes:g} minutes: {', '.join(late)}")
    typer.echo(f"{spent:.0f} s; every number is in {out}")


def cases(size: Size, device: str, dtype: str, scale: Scale) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield the cases of one size. Its models exist only as long as they are needed."""
    with small_parts() if scale.tiny else ExitStack():
        bare = random_model(size, device, dtype)
    with warnings.catch_warnings():
        # étude's tokenizer knows fewer words than T5 has embeddings for.
        warnings.simplefilter("ignore", AudioLensWarning)
        lens = AudioLens(copy.deepcopy(bare), build_tokenizer(), name=size.name)
    # Random weights do not decode, and the codec is not what is timed.
    bare.audio_encoder.decode = lambda *_, **__: SimpleNamespace(audio_values=torch.zeros(1))
    for rows in scale.rows:
        yield f"{rows} rows", partial(steps_per_second, lens, bare, rows, scale)
    del bare
    yield "sweep", partial(sweep, lens, scale)
    yield "grid", partial(grid, lens, scale)
    yield "memory", partial(memory, lens, scale)


def steps_per_second(lens: AudioLens, bare: Any, rows: int, scale: Scale) -> Case:
    """Steps per second of every side, and the ratios of the times of the lens to those of the bare model."""
    prompts, seeds = [PROMPT] * rows, list(range(rows))
    vector = torch.full((lens.config.d_model,), 1e-3)
    steered = [Add(vector, layers=list(range(lens.config.n_layers)))]
    tokens = dict(lens.tokenizer(prompts, return_tensors="pt", padding=True).to(lens.device))
    own = vector.to(lens.device, lens.dtype)
    asked: dict[str, Any] = {"max_new_tokens": scale.steps, "guidance_scale": 3.0}
    ours = {**asked, "seeds": seeds, "decode": False}

    def raw() -> Any:
        return bare.generate(**tokens, **asked, do_sample=True, top_k=250)

    def hooked() -> None:
        with hooks(bare, lambda _, __, value: value + own):
            raw()

    sides: dict[str, Callable[[], Any]] = {
        "bare": raw,
        "lens": lambda: lens.generate(prompts, **ours),
        "hooked": hooked,
        "steered": lambda: lens.generate(prompts, **ours, interventions=steered),
        "fast": lambda: lens.generate(prompts, **ours, engine="fast"),
        "fast steered": lambda: lens.generate(prompts, **ours, engine="fast", interventions=steered),
    }
    taken, errors = alternating(sides, scale.repeats, lens.device)
    rates = {f"{side} [steps/s]": scale.steps / seconds for side, seconds in taken.items()}
    pairs = (("lens", "bare"), ("steered", "hooked"), ("fast", "bare"), ("fast steered", "hooked"))
    ratios = {f"{one} / {other}": taken[one] / taken[other] for one, other in pairs if {one, other} <= taken.keys()}
    return {**rates, **ratios, **errors}


def sweep(lens: AudioLens, scale: Scale) -> Case:
    """How many times as fast clips are generated in one batch, each under its own condition, as one at a time."""
    directions = torch.randn(scale.clips, lens.config.d_model, generator=torch.Generator().manual_seed(0)) * 1e-3
    layer = lens.config.n_layers // 2
    todo = [Condition(BASELINE), *(Condition(f"{n}", (Add(one, layers=[layer]),)) for n, one in enumerate(directions))]
    plan = packed(todo, [(PROMPT, 0)], scale.clips)
    found: Case = {}
    for engine in ("exact", "fast"):
        making = Making(seconds=scale.seconds, engine=engine)
        sides = {
            "batch": lambda making=making: making.generate(lens, plan, plan.batches[-1]),
            "single": lambda making=making: [
                making.generate(lens, plan, [row]) for row in plan.batches[-1][: scale.singles]
            ],
        }
        taken, errors = alternating(sides, 1, lens.device)
        if not errors:
            rates = {"batch": scale.clips / taken["batch"], "single": scale.singles / taken["single"]}
            found |= {f"{engine} {side} [clips/s]": rate for side, rate in rates.items()}
            found[f"{engine} sweep / single"] = rates["batch"] / rates["single"]
        found |= errors
    return found


def grid(lens: AudioLens, scale: Scale) -> Case:
    """How many times as fast a patching grid is as one forward pass per cell, and how far their scores differ."""
    memory_gib = 1.0 if lens.device.type == "cpu" else 16.0
    naive, engine = grids(lens, *scale.grid, memory_gib=memory_gib)
    scores: dict[str, np.ndarray] = {}
    sides = {"naive": lambda: scores.update(naive=naive()), "engine": lambda: scores.update(engine=engine())}
    taken, errors = alternating(sides, 1, lens.device)
    if errors:
        return errors
    apart = float(np.abs(scores["engine"] / scores["naive"] - 1).max())
    return {"naive [s]": taken["naive"], "grid [s]": taken["engine"], "grid / naive": taken["naive"] / taken["engine"],
            "largest relative difference": apart}  # fmt: skip


def memory(lens: AudioLens, scale: Scale) -> Case:
    """The peak memory while a batch is generated, and its estimate, in GiB."""
    seconds, steps = 5 * scale.seconds, lens.timeline(round(5 * scale.seconds * lens.config.frame_rate)).steps
    need = Need.of(lens.model, lens.config, positions=steps, branches=2, tokens=8)
    estimated = need.weights + scale.clips * (need.kept + need.passing)
    if lens.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(lens.device)
    lens.generate([PROMPT] * scale.clips, seconds, seeds=0, decode=False)
    peak = torch.cuda.max_memory_allocated(lens.device) / 2**30 if lens.device.type == "cuda" else None
    return {"estimated [GiB]": estimated / 2**30, "peak [GiB]": peak}


def alternating(
    sides: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each side, from alternating runs after a warm-up, and the errors of sides that were refused."""
    taken: dict[str, list[float]] = {side: [] for side in sides}
    errors: dict[str, str] = {}
    for repeat in range(repeats + 1):
        for side, function in sides.items():
            if side in errors:
                continue
            settled(device)
            start = time.perf_counter()
            try:
                function()
            except AudioLensError as error:
                errors[side] = str(error)
                continue
            settled(device)
            if repeat:
                taken[side].append(time.perf_counter() - start)
    return {side: statistics.median(times) for side, times in taken.items() if times}, errors


def settled(device: torch.device) -> None:
    """Wait until the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def freed(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def small_parts() -> Iterator[None]:
    """Within this block, models have a tiny text encoder and codec."""
    with ExitStack() as stack:
        for part, changes in _SMALL_PARTS.items():
            stack.enter_context(patch.dict(getattr(checkpoints, part), changes))
        yield


def told(case: Case) -> str:
    """The numbers of a case in one line."""
    return "; ".join(f"{key} {one:.4g}" if isinstance(one, float) else f"{key} {one}" for key, one in case.items())


if __name__ == "__main__":
    typer.run(main)
