"""Compare the patching engine with one full forward pass per cell: `python benchmarks/patching.py`.

Both sides alternate in one process, on the same model with random weights (width 512, 12 blocks), over 64 steps and 12
x 16 cells of block and time window, and score the same codes. The naive side also encodes the text only once, and
computes each cell by one forward pass of the decoder with a raw hook. Peak memory is measured in a separate process for
each side.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tracing import BLOCKS, _status_kib, random_lens

from analysis import patching
from audiolens import AudioLens
from audiolens.model.timeline import delay

STEPS, WINDOWS = 64, 16
CLEAN, CORRUPTED = "a fast song with drums", "a slow song with drums"
WITHIN = 1e-5
AIM, LEAST = 6.0, 4.0


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/patching.json"),
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 3,
    threads: Annotated[int, typer.Option(help="Torch threads (0: the default).")] = 0,
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print the ratio of the times, the largest difference between cells, and the peak memory of each side."""
    if threads:
        torch.set_num_threads(threads)
    sides: dict[str, Callable[[], np.ndarray]] = dict(zip(("naive", "engine"), grids(random_lens(BLOCKS)), strict=True))
    if memory_of:
        typer.echo(json.dumps(peak_mib(sides[memory_of])))
        return
    times: dict[str, list[float]] = {"naive": [], "engine": []}
    work: dict[str, list[float]] = {"naive": [], "engine": []}
    found: dict[str, np.ndarray] = {}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            begun, spent = time.perf_counter(), time.process_time()
            found[name] = side()
            if repeat:
                times[name].append(time.perf_counter() - begun)
                work[name].append(time.process_time() - spent)
    apart = float(np.max(np.abs(found["engine"] / found["naive"] - 1)))
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = [naive / engine for naive, engine in zip(times["naive"], times["engine"], strict=True)]
    ratio = statistics.median(ratios)
    # On a busy machine, processor time is more meaningful than elapsed time.
    spent = {name: statistics.median(taken) for name, taken in work.items()}
    memory = {}
    for name in sides:
        command = [sys.executable, __file__, "--memory-of", name, "--threads", str(torch.get_num_threads())]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[name] = json.loads(told.stdout.splitlines()[-1])
    typer.echo(f"{BLOCKS} blocks x {WINDOWS} windows, {STEPS} steps, {torch.get_num_threads()} threads")
    typer.echo(f"naive loop {seconds['naive']:.2f} s, engine {seconds['engine']:.2f} s: {ratio:.2f}x as fast "
               f"(single repeats {min(ratios):.2f} to {max(ratios):.2f}; at least {LEAST:g}, aim {AIM:g})")  # fmt: skip
    typer.echo(f"processor time: naive {spent['naive']:.2f} s, engine {spent['engine']:.2f} s: "
               f"{spent['naive'] / spent['engine']:.2f}x")  # fmt: skip
    typer.echo(f"cells differ by at most {apart:.1e} of their nats (bound {WITHIN:.0e})")
    typer.echo(f"peak memory above the model: naive {memory['naive']:.0f} MiB, engine {memory['engine']:.0f} MiB")
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"threads": torch.get_num_threads(), "seconds": seconds, "ratio": ratio, "ratios": ratios, "apart": apart}
    facts["processor_seconds"] = spent
    out.write_text(json.dumps({**facts, "memory_mib": memory}, indent=1))
    if apart > WITHIN:
        raise typer.Exit(1)


def grids(
    lens: AudioLens, steps: int = STEPS, windows: int = WINDOWS, memory_gib: float = 1.0
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Functions that compute the grid "layer window codebook" by a naive loop and by the engine."""
    config, device = lens.config, lens.device
    delays = config.delays
    frames = steps - max(delays)
    shape = (1, config.n_codebooks, frames)
    codes = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    columns = delay(codes, delays, config.pad_code)[0, :, :-1]
    bounds = np.linspace(0, steps, windows + 1).round().astype(int).tolist()
    layers = lens.model.decoder.model.decoder.layers
    whole = patching.LogLikelihood((0.0, frames / lens.config.frame_rate))

    def inputs(prompt: str) -> dict[str, Any]:
        words = lens.tokenizer([prompt], return_tensors="pt").to(device)
        with torch.no_grad():
            states = lens.model.text_encoder(**words).last_hidden_state
        return {"encoder_outputs": (states,), "attention_mask": words["attention_mask"]}

    def forward(given: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return lens.model(**given, decoder_input_ids=columns, use_cache=False).logits

    def score(logits: torch.Tensor) -> list[float]:
        table = logits.float().log_softmax(-1)
        return [
            float(table[k, shift : shift + frames].gather(-1, codes[0, k, :, None]).double().sum())
            for k, shift in enumerate(delays)
        ]

    def naive() -> np.ndarray:
        clean, corrupted = inputs(CLEAN), inputs(CORRUPTED)
        kept: list[torch.Tensor] = []
        handles = [layer.register_forward_hook(lambda _, __, out: kept.append(out)) for layer in layers]
        forward(clean)
        for handle in handles:
            handle.remove()
        grid = np.empty((config.n_layers, windows, config.n_codebooks))
        for row, layer in enumerate(layers):
            for column in range(windows):

                def put(_: Any, __: Any, output: torch.Tensor, row: int = row, column: int = column) -> torch.Tensor:
                    output[:, bounds[column] : bounds[column + 1]] = kept[row][:, bounds[column] : bounds[column + 1]]
                    return output

                handle = layer.register_forward_hook(put)
                grid[row, column] = score(forward(corrupted))
                handle.remove()
        return grid

    def engine() -> np.ndarray:
        given: dict[str, Any] = {"windows": windows, "memory_gib": memory_gib, "progress": False}
        result = patching.patch(lens, [CLEAN], [CORRUPTED], codes, whole, "resid_post", **given)
        return np.moveaxis(result.patched[0], 0, -1)

    return naive, engine


def peak_mib(side: Callable[[], Any]) -> float:
    """Peak memory while one side runs, above that before it, in MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    side()
    return (_status_kib("VmHWM") - before) / 1024


if __name__ == "__main__":
    typer.run(main)
