"""Estimate the cost of a patching grid before it runs, in rows, steps, memory and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiolens.door import guarded


@guarded
@dataclass(frozen=True)
class GridPlan:
    """The estimated cost of a grid with a metric on codes.

    Attributes:
        cells, pairs: size of the grid. Every pair has one row for every cell.
        row_steps: number of combinations of row, step and block that will be computed.
        naive_row_steps: the same number if every cell took one full forward pass.
        batch, chunk: the largest numbers of pairs and of cells that run together.
        memory_mib: expected memory of recordings and the largest batch, in addition to the model.
        seconds: upper estimate of the time, based on how long one row's forward pass takes on this machine. It is NaN
            if this duration was not measured.
    """

    cells: int
    pairs: int
    row_steps: int
    naive_row_steps: int
    batch: int
    chunk: int
    memory_mib: float
    seconds: float = float("nan")

    def __repr__(self) -> str:
        return (
            f"Plan({self.cells} cells x {self.pairs} pairs: {self.row_steps:.3g} row-steps through a block, "
            f"{self.row_steps / max(self.naive_row_steps, 1):.0%} of one forward pass per cell; batches of "
            f"{self.batch} pairs x {self.chunk} cells, about {self.memory_mib:.0f} MiB"
            f"{_duration(self.seconds, 'at most about')})"
        )


@guarded
@dataclass(frozen=True)
class SoundPlan:
    """The estimated cost of a grid with a `Sound` metric.

    Attributes:
        cells, pairs: size of the grid. Every pair has one patched clip for every cell.
        clips: number of clips to generate, including the unpatched clips of each generation.
        clip_seconds: length of each clip.
        generations: number of calls of `lens.generate`, each of which generates at most `rows` clips.
        row_steps: number of combinations of row, step and block, over both guidance branches.
        seconds: estimated time. It is based on the time that this machine takes to run one step of the largest
            generation, and to decode and measure one clip. It is NaN if these durations were not measured.
    """

    cells: int
    pairs: int
    clips: int
    clip_seconds: float
    generations: int
    rows: int
    row_steps: int
    seconds: float = float("nan")

    def __repr__(self) -> str:
        return (
            f"SoundPlan({self.cells} cells x {self.pairs} pairs: {self.clips} clips of {self.clip_seconds:g} s in "
            f"{self.generations} generations of at most {self.rows} rows, {self.row_steps:.3g} row-steps through a "
            f"block{_duration(self.seconds, 'about')})"
        )


def _duration(seconds: float, how: str) -> str:
    if np.isnan(seconds):
        return ""
    return f", {how} " + (f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min")
