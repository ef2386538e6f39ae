"""What a grid takes, told before it runs: rows, steps, memory, and the time at the speed of one timed step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiolens.door import guarded


@guarded
@dataclass(frozen=True)
class Plan:
    """What a grid on codes takes, before it runs.

    Attributes:
        cells, pairs: of the grid; every pair has a row for every cell.
        row_steps: steps of rows through one block that will be run.
        naive_row_steps: the same of one full forward a cell.
        batch: pairs that climb together; `chunk`: the most cells that do.
        memory_mib: what recordings and the largest batch are expected to take, above the model.
        seconds: at most, at the speed of one forward of one row on this machine; NaN if it was not timed.
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
            f"{self.row_steps / max(self.naive_row_steps, 1):.0%} of one forward a cell; batches of {self.batch} pairs "
            f"x {self.chunk} cells, about {self.memory_mib:.0f} MiB{_told(self.seconds, 'at most about')})"
        )


@guarded
@dataclass(frozen=True)
class SoundPlan:
    """What a grid by ear takes, before its first clip.

    Attributes:
        cells, pairs: of the grid; every pair has a patched clip for every cell.
        clips: that will be played, the unpatched ones of each generation among them, and `clip_seconds` of each.
        generations: calls of `lens.generate`, of at most `rows` clips each.
        row_steps: steps of rows through one block, both halves of the guidance counted.
        seconds: about, at the speed of one step of the largest generation and of one clip decoded and measured on this
            machine; NaN if it was not timed.
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
            f"block{_told(self.seconds, 'about')})"
        )


def _told(seconds: float, how: str) -> str:
    if np.isnan(seconds):
        return ""
    return f", {how} " + (f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min")
