"""Measure the seams of clips that are generated in windows: `python benchmarks/windows.py`.

Each window continues the last seconds of the one before, and does not know what came earlier. At a seam, where the next
window begins to draw, the music could therefore break off or change. Clips are measured around their seams and, for
comparison, halfway between them:

- nats: the loss of the codes of the next half second under the model, given as much earlier music as fits in a window
  (more than the window itself had read).
- pulse: the pulse clarity of four seconds with the seam in the middle.

Clips of the same prompts and seeds that are generated at once, beyond the length of the training clips, are measured at
the same times. Intervals are bootstrapped over prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.tracing.generation import Generation

AFTER, AROUND = 0.5, 4.0
"""Seconds after a place whose codes are scored, and seconds around it whose pulse is measured."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the numbers.")] = Path("runs/windows.json"),
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    prompts: Annotated[int, typer.Option(help="Number of neutral prompts, each with one seed.")] = 16,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 20.0,
    window: Annotated[float, typer.Option(help="Length of a window.")] = 5.0,
    overlap: Annotated[float, typer.Option(help="Seconds that a window reads of the one before.")] = 2.0,
) -> None:
    """Print the loss and the pulse clarity at seams, between seams, and in clips without seams."""
    from audiolens import AudioLens
    from audiolens.prompts import load

    lens = AudioLens.from_pretrained(model)
    texts = load("tempo", lens=lens).test[:prompts]
    seams = [float(place) for place in np.arange(window, seconds - AROUND / 2, window - overlap)]
    between = [place + (window - overlap) / 2 for place in seams if place + (window - overlap + AROUND) / 2 <= seconds]
    asked: dict[str, Any] = {"seeds": range(len(texts)), "engine": "fast", "progress": True}
    cut = lens.generate(texts, seconds, window=window, overlap=overlap, **asked)
    whole = lens.generate(texts, seconds, **asked)
    lines = []
    for name, measured in (("nats per code", nats), ("pulse clarity", pulse)):
        places = {"at seams": (cut, seams), "between seams": (cut, between), "the same times, no seams": (whole, seams)}
        found = {place: measured(lens, clips, times, window) for place, (clips, times) in places.items()}
        for place, values in found.items():
            lines.append({"measure": name, "place": place, "mean": float(np.nanmean(values))})
            if place != "at seams":
                lines[-1] |= {"seams_differ_by": _difference(found["at seams"], values)}
    for line in lines:
        less = line.get("seams_differ_by")
        told = "" if less is None else f"   seams differ by {less[0]:+.3f} [{less[1]:+.3f}, {less[2]:+.3f}]"
        typer.echo(f"{line['measure']:14} {line['place']:26} {line['mean']:6.3f}{told}")
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": model, "clips": len(texts), "seconds": seconds, "window": window, "overlap": overlap}
    out.write_text(json.dumps({**facts, "seams": seams, "lines": lines}, indent=1))


def nats(lens: AudioLens, clips: Generation, places: list[float], window: float) -> np.ndarray:
    """The loss after each place, given the rest of a window before it: one number per clip, averaged over places."""
    from audiolens import measure

    rate, found = lens.config.frame_rate, []
    after = round(AFTER * rate)
    for place in places:
        end = round(place * rate) + after
        codes = clips.codes[..., max(0, end - round(window * rate)) : end]
        found.append(measure.code_nats(lens, clips.prompts, codes)[..., -after:].mean((1, 2)))
    return torch.stack(found).mean(0).numpy()


def pulse(lens: AudioLens, clips: Generation, places: list[float], window: float) -> np.ndarray:  # noqa: ARG001
    """The pulse clarity around each place: one number per clip, averaged over places."""
    from audiolens import measure

    assert clips.audio is not None
    found = []
    for place in places:
        first, end = (round((place + side * AROUND / 2) * clips.sample_rate) for side in (-1, 1))
        found.append(measure.pulse_clarity(clips.audio[..., first:end], clips.sample_rate))
    return np.nanmean(found, axis=0)


def _difference(one: np.ndarray, other: np.ndarray) -> list[float]:
    """The mean paired difference, and its interval."""
    from analysis.statistics import means

    found = means(one - other, range(len(one)))
    return [float(found.value), float(found.low), float(found.high)]


if __name__ == "__main__":
    typer.run(main)
