"""Compare the speed of attribution patching with one forward pass per cell: `python benchmarks/attribution.py`.

Both sides compute the same layer x time grid of `resid_post`, alternating in one process, on the same model with random
weights (width 512, 12 blocks). The naive side patches each cell with a forward hook on the bare model and encodes the
text once. The other side is `attribution.attribute` without its check, which would repeat the naive side. The rank
correlation between the two grids is printed with the speed ratio, to show that the fast results are right.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats
from tqdm.auto import tqdm

from analysis import attribution
from analysis.likelihood import Window
from analysis.site_grid import spans
from audiolens import AudioLens
from audiolens.model.timeline import delay

CLEAN, CORRUPTED = "a fast song with drums", "a slow song with drums"
AIM = 30.0


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/attribution.json"),
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of the clip, all of it scored.")] = 2.44,
    windows: Annotated[int, typer.Option(help="Time windows of the grid.")] = 16,
    blocks: Annotated[int, typer.Option(help="Blocks of the model.")] = 12,
) -> None:
    """Print both times, their ratio, and the agreement of the two grids."""
    tracing = _beside("tracing")
    lens = tracing.random_lens(blocks)
    louder(lens)
    frames = round(seconds * lens.config.frame_rate)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(lens.config.vocab_size, (1, lens.config.n_codebooks, frames), generator=generator)
    span = (0.0, frames / lens.config.frame_rate)

    def ours() -> np.ndarray:
        found = attribution.attribute(lens, CLEAN, CORRUPTED, codes, sites="resid_post", seconds=span, check=0)
        steps = found.of("resid_post")
        return np.stack([steps[:, a:b].sum(1) for a, b in spans(steps.shape[1], windows)], axis=1)

    def theirs() -> np.ndarray:
        return naive(lens, codes, Window.of(lens, codes, span), windows)

    times: dict[str, list[float]] = {"naive": [], "ours": []}
    # On a busy machine, the ratio of processor times is more stable.
    worked: dict[str, list[float]] = {"naive": [], "ours": []}
    grids: dict[str, Any] = {}
    for repeat in tqdm(range(repeats + 1), desc="timing"):
        for name, function in (("naive", theirs), ("ours", ours)):
            if name == "naive" and not repeat:
                # Warming up takes a few cells, not the whole grid.
                naive(lens, codes, Window.of(lens, codes, span), windows, most=4)
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            grids[name] = function()
            if repeat:
                times[name].append(time.perf_counter() - wall)
                worked[name].append(time.process_time() - cpu)
    slow, fast = (statistics.median(times[name]) for name in ("naive", "ours"))
    much, little = (statistics.median(worked[name]) for name in ("naive", "ours"))
    agreement: Any = stats.spearmanr(grids["naive"].ravel(), grids["ours"].ravel())
    rho = float(agreement.statistic)
    steps = frames + max(lens.config.delays)
    told = f"{blocks} x {windows} cells, width {lens.config.d_model}, {steps} steps, {torch.get_num_threads()} threads"
    typer.echo(f"{told}: naive {slow:.2f} s, attribution {fast:.3f} s: {slow / fast:.1f}x (aim {AIM:g}x)")
    typer.echo(f"processor seconds: {much:.2f} against {little:.3f}: {much / little:.1f}x")
    typer.echo(f"rank correlation of the two grids: {rho:.3f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"case": told, "naive_s": slow, "ours_s": fast, "ratio": slow / fast, "aim": AIM, "spearman": rho}
    facts |= {"naive_processor_s": much, "ours_processor_s": little, "processor_ratio": much / little}
    out.write_text(json.dumps(facts, indent=1))


def naive(lens: AudioLens, codes: torch.Tensor, window: Window, windows: int, most: int | None = None) -> np.ndarray:
    """One forward pass of the bare model per cell, patched by a hook: array "layer window" in nats."""
    model = lens.model
    blocks = model.decoder.model.decoder.layers
    columns = delay(codes, lens.config.delays, lens.config.pad_code)[..., :-1].flatten(0, 1)
    with torch.no_grad():
        told = []
        for prompt in (CLEAN, CORRUPTED):
            tokens = lens.tokenizer(prompt, return_tensors="pt")
            states = model.text_encoder(**tokens).last_hidden_state
            told.append({"encoder_outputs": (states,), "attention_mask": tokens["attention_mask"]})

        def metric(given: dict[str, Any]) -> float:
            logits = model(**given, decoder_input_ids=columns, use_cache=False).logits
            return float(window(logits.unflatten(0, (1, -1)), codes).sum())

        kept: list[torch.Tensor] = []
        handles = [block.register_forward_hook(lambda _, __, value: kept.append(value)) for block in blocks]
        metric(told[0])
        for handle in handles:
            handle.remove()
        base = metric(told[1])
        cuts = spans(columns.shape[-1], windows)
        grid = np.zeros((len(blocks), len(cuts)))
        for cell, (layer, cut) in enumerate(np.ndindex(grid.shape)):
            if cell == most:
                break

            def patch(_: Any, __: Any, value: torch.Tensor, layer: int = layer, cut: int = cut) -> torch.Tensor:
                start, stop = cuts[cut]
                value = value.clone()
                value[:, start:stop] = kept[layer][:, start:stop]
                return value

            handle = blocks[layer].register_forward_hook(patch)
            grid[layer, cut] = metric(told[1]) - base
            handle.remove()
    return grid


def louder(lens: AudioLens) -> None:
    """Scale up the random weights: otherwise logits are nearly flat and codes do not depend on the text."""
    with torch.no_grad():
        for parameter in lens.model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)


def _beside(name: str) -> ModuleType:
    """Import another script of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    typer.run(main)
