"""Count how often clips depend on their batch: `python benchmarks/flips.py`.

A clip should depend only on its prompt and seed. A hundred clips are generated alone, in batches of 7 and 32, and in
another order. With `exact=True` the codes must be identical. Without it, kernels for other shapes change the last bits
of the logits, and occasionally another code is sampled (a *flip*). The clips with a flip are counted, and the step of
each flip is reported.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from audiolens import AudioLens

CLIPS = 100
BATCHES = (7, 32)


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the counts.")] = Path("runs/flips.json"),
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    n_clips: Annotated[int, typer.Option("--clips", help="Number of clips.")] = CLIPS,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 1.0,
) -> None:
    """Print how many clips differ from the same clip generated alone, and fail if an exact one does."""
    from audiolens import AudioLens
    from audiolens.prompts import load

    lens = AudioLens.from_pretrained(model)
    sets = load("tempo")
    words = [*sets.positive, *sets.negative, *sets.test]
    clips = [(words[index % len(words)], index) for index in range(n_clips)]
    lines = counted(lens, clips, seconds)
    for line in lines:
        first = "" if line["earliest_s"] is None else f", the earliest at {line['earliest_s']:.2f} s"
        typer.echo(
            f"{line['drawn']:34} exact={line['exact']!s:5}  {line['flipped']:3} of {n_clips} clips flipped{first}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": model, "clips": n_clips, "seconds": seconds, "threads": torch.get_num_threads()}
    out.write_text(json.dumps({**facts, "lines": lines}, indent=1))
    if any(line["flipped"] for line in lines if line["exact"]):
        raise typer.Exit(1)


def counted(lens: AudioLens, clips: list[tuple[str, int]], seconds: float) -> list[dict[str, Any]]:
    """The number of clips that differ from the same clip generated alone, for each way of batching."""
    shuffled = random.Random(0).sample(clips, len(clips))
    ways = {**{f"in batches of {size}": (clips, size) for size in BATCHES},
            f"in batches of {BATCHES[0]}, in another order": (shuffled, BATCHES[0])}  # fmt: skip
    lines = []
    for exact in (True, False):
        alone = drawn(lens, clips, seconds, 1, exact)
        for way, (ordered, size) in ways.items():
            found = drawn(lens, ordered, seconds, size, exact)
            frames = [turned(alone[clip], found[clip]) for clip in clips]
            flips = [frame for frame in frames if frame is not None]
            earliest = min(flips) / lens.config.frame_rate if flips else None
            lines.append({"drawn": way, "exact": exact, "flipped": len(flips), "earliest_s": earliest})
    return lines


def drawn(
    lens: AudioLens, clips: list[tuple[str, int]], seconds: float, size: int, exact: bool
) -> dict[tuple[str, int], torch.Tensor]:
    """The codes of each clip, generated `size` at a time."""
    codes = {}
    calls = [clips[first : first + size] for first in range(0, len(clips), size)]
    for call in tqdm(calls, desc=f"{size} at a time{', exactly' if exact else ''}", leave=False):
        prompts, seeds = zip(*call, strict=True)
        made = lens.generate(prompts, seconds, seeds=seeds, exact=exact, decode=False)
        codes.update(zip(call, made.codes, strict=True))
    return codes


def turned(one: torch.Tensor, other: torch.Tensor) -> int | None:
    """The first frame at which two clips "codebook frame" differ; `None` if they do not."""
    different = (one != other).any(0).nonzero()
    return int(different[0]) if len(different) else None


if __name__ == "__main__":
    typer.run(main)
