"""Measure how patches change the sound, by comparing patched generations with the clean and the corrupted ones.

The clean, the corrupted and every patched clip of a pair are generated in one batch from the same seed. At each step, a
patched row takes the values that another row of the batch has at the same step, so values need not be stored and are
not shifted in time. Once the codes of the two rows diverge, the rows continue with different music. The patch then
transfers everything that the *other run* computes at that step, including its music. Only the text states, and the keys
and values of the cross-attention, depend on the text alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.likelihood import refuse_unequal
from analysis.patching.grid import By, Cell, Grid, Mode, checked_mode, needs_tokens
from analysis.patching.plans import SoundPlan
from analysis.patching.result import PatchingResult
from analysis.patching.runs import checked_clusters, checked_prompts, refuse_same, token_offsets
from audiolens import measure
from audiolens.checks import MOST_SEED, checked_amount, checked_count
from audiolens.door import guarded
from audiolens.errors import PromptError
from audiolens.groups import takes
from audiolens.interventions import Apply, Branch, checked_branch
from audiolens.measure.table import known_measure
from audiolens.model.timeline import Span, Timeline, clip_timeline
from audiolens.tracing.fitting import Fitting, reading_fit
from audiolens.tracing.sampling import Sampling, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens


@guarded
@takes("sampling", Sampling)
@dataclass(frozen=True)
class Sound:
    """A metric on sound. All clean prompts must ask for the same pole; otherwise the gaps cancel in the mean.

    Attributes:
        measure: one of `audiolens.measure.MEASURES`: "tempo_ioi", "brightness", ...
        seconds: length of the clips.
        pairs: number of pairs to generate, counted from the first (`None`: all).
        guidance_scale, temperature, top_k: as in `lens.generate`.
        branch: the guidance branch that is patched. The null branch does not see the text.
        first_seed: pair i is generated from seed first_seed + i.
        batch_size: largest number of rows in one generation.
        sampling: a `Sampling` instead of `guidance_scale`, `temperature`, `top_k` and, if it contains a clip length,
            `seconds`. It can only be given when the object is created.
    """

    measure: str
    seconds: float = 4.0
    pairs: int | None = 16
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int | None = 250
    branch: Branch = "cond"
    first_seed: int = 0
    batch_size: int = 64
    sampling: InitVar[Sampling | None] = field(default=None, kw_only=True)

    def __post_init__(self, sampling: Sampling | None) -> None:  # noqa: ARG002 - its values arrive as the other fields
        known_measure("measure", self.measure)
        checked = {
            "seconds": checked_amount("seconds", self.seconds, above=0),
            "pairs": None if self.pairs is None else checked_count("pairs", self.pairs),
            # A patched clip is generated together with both unpatched ones.
            "batch_size": checked_count("batch_size", self.batch_size, 3),
            "first_seed": checked_count("first_seed", self.first_seed, 0, MOST_SEED),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        checked_settings(self.guidance_scale, self.temperature, self.top_k)
        checked_branch(self.branch, guided=self.guidance_scale != 1)


@dataclass(frozen=True, eq=False)
class Listening:
    """A patching grid with a `Sound` metric. Its arguments have already been checked."""

    lens: AudioLens
    sound: Sound
    grid: Grid
    mode: Mode
    clean: tuple[Any, ...]
    corrupted: tuple[Any, ...]
    clusters: tuple[str, ...]
    prefixes: tuple[int, ...]
    timeline: Timeline
    tokens: Int[Tensor, "pair column"] | None

    @classmethod
    def checked(
        cls,
        lens: AudioLens,
        clean: Any,
        corrupted: Any,
        sound: Sound,
        site: str | Sequence[str] | None,
        *,
        by: By,
        mode: Mode,
        layers: int | Sequence[int] | None,
        windows: int | Sequence[Span],
        seconds: Span | None,
        heads: Sequence[int] | None,
        clusters: Sequence[str] | None,
    ) -> Listening:
        """Check the arguments of `patching.patch` before any model runs, and return the grid."""
        checked_mode(mode)
        ours, theirs, sizes = checked_prompts(lens, clean, corrupted)
        groups = checked_clusters(clusters, ours, theirs)[: sound.pairs]
        ours, theirs = ours[: sound.pairs], theirs[: sound.pairs]
        sizes = sizes[0][: sound.pairs], sizes[1][: sound.pairs]
        refuse_same(ours, theirs)
        if lens.config.has_prefix and any(a != b for a, b in zip(*sizes, strict=True)):
            raise PromptError(
                f"{lens.config.family} has no mask for its text, so both prompts of a pair need the same number of "
                "tokens to run in one batch: use patching.pairs(..., same_length=True)."
            )
        timeline = clip_timeline(sound.seconds, lens.config, lens.config.prefix(max(map(max, sizes))))
        positions, columns = None, ()
        if by == "token":
            refuse_unequal(sizes, "patching by token")
            positions, columns = token_offsets(lens, ours, theirs)
        # The windows divide the clip alone, because the steps after its last frame only finish the delayed codebooks.
        grid = Grid.of(
            lens, site, by, steps=timeline.frames, timeline=timeline, layers=layers, windows=windows, seconds=seconds,
            heads=heads, tokens=columns, on_sound=True,
        )  # fmt: skip
        if needs_tokens(lens, grid.hooks):
            refuse_unequal(sizes, f"{' and '.join(grid.sites)} by {by}")
        prefixes = tuple(lens.config.prefix(size) for size in sizes[0])
        return cls(lens, sound, grid, mode, ours, theirs, groups, prefixes, timeline, positions)

    @property
    def generations(self) -> list[tuple[list[int], tuple[Cell, ...]]]:
        """The pairs and cells of each generation, which also contains both unpatched clips of its pairs."""
        cells = self.grid.cells
        chunk = min(len(cells), self.sound.batch_size - 2)
        together = max(1, self.sound.batch_size // (chunk + 2))
        found = []
        for prefix in dict.fromkeys(self.prefixes):
            mine = [row for row, own in enumerate(self.prefixes) if own == prefix]
            for first in range(0, len(mine), together):
                for begin in range(0, len(cells), chunk):
                    found.append((mine[first : first + together], cells[begin : begin + chunk]))
        return found

    def plan(self, timed: bool = False) -> SoundPlan:
        """Return the estimated cost, with the time (measured on a few steps of generation and one clip) if `timed`."""
        counts = [len(rows) * (2 + len(cells)) for rows, cells in self.generations]
        branches = 1 if self.sound.guidance_scale == 1 else 2
        seconds = float("nan")
        if timed:
            step, clip = self._speed()
            # A generation with fewer rows is not slower.
            seconds = len(counts) * self.timeline.steps * step + sum(counts) * clip
        return SoundPlan(
            cells=len(self.grid.cells),
            pairs=len(self.clean),
            clips=sum(counts),
            clip_seconds=self.timeline.seconds,
            generations=len(counts),
            rows=max(counts),
            row_steps=sum(counts) * branches * self.timeline.steps * self.lens.config.n_layers,
            seconds=seconds,
        )

    def run(self, progress: bool, stats: dict[str, Any]) -> PatchingResult:
        """Generate and measure every clip, and return the result. `stats` contains its resampling settings."""
        grid, sound = self.grid, self.sound
        values = np.full((len(self.clean), len(grid.layers), len(grid.columns)), np.nan)
        before = {"clean": np.empty(len(self.clean)), "corrupted": np.empty(len(self.clean))}
        with tqdm(total=len(self.clean) * len(grid.cells), desc="playing", unit="clip", disable=not progress) as bar:
            by_pair, by_cell = self._fitting("pairs with their patched clips"), self._fitting("patched clips of a pair")

            def part(rows: list[int], cells: Sequence[Cell]) -> None:
                def played(at: slice) -> np.ndarray:
                    return self._measured(self._played(rows, cells[at])).reshape(2 + len(cells[at]), len(rows))

                for at, found in by_cell.run(len(cells), played):
                    before["clean"][rows], before["corrupted"][rows] = found[0], found[1]
                    for cell, value in zip(cells[at], found[2:], strict=True):
                        tokens = self.tokens
                        there = np.ones(len(rows), bool) if tokens is None else (tokens[rows, cell.token] >= 0).numpy()
                        values[(rows, *cell.at)] = np.where(there, value, np.nan)

            for rows, cells in self.generations:
                for some, _ in by_pair.each([rows], lambda some, cells=cells: part(some, cells)):
                    bar.update(len(some) * len(cells))
        return PatchingResult(
            patched=values[:, None],
            clean=before["clean"][:, None],
            corrupted=before["corrupted"][:, None],
            codebooks=(sound.measure,),
            layers=grid.layers,
            columns=grid.columns,
            spans=grid.spans,
            by=grid.by,
            sites=grid.sites,
            mode=self.mode,
            metric=sound.measure,
            unit=measure.UNITS[sound.measure],
            scored=(0.0, self.timeline.seconds),
            prompts=tuple(zip(self.clean, self.corrupted, strict=True)),
            clusters=self.clusters,
            **stats,
        )

    def _fitting(self, rows: str) -> Fitting:
        """Return what divides a generation, whose patched clips need the unpatched clips of their pair beside them."""
        branches = 1 if self.sound.guidance_scale == 1 else 2
        prompts, frames = (*self.clean, *self.corrupted), self.timeline.frames
        return reading_fit(self.lens.traced_model, prompts, frames, rows=rows, branches=3 * branches)

    def _played(self, rows: Sequence[int], cells: Sequence[Cell], seconds: float | None = None, **how: Any) -> Any:
        """Generate the clean clips, the corrupted clips and the patched clips of each cell.

        `seconds` shortens the clips, for timing.
        """
        count, rate = len(rows), self.lens.config.frame_rate
        sides = [self.clean[row] for row in rows], [self.corrupted[row] for row in rows]
        base = sides[1 if self.mode == "denoising" else 0]
        listed = [*sides[0], *sides[1], *(prompt for _ in cells for prompt in base)]
        giver = list(range(count)) if self.mode == "denoising" else list(range(count, 2 * count))
        todo = []
        for index, cell in enumerate(cells):
            own = list(range((2 + index) * count, (3 + index) * count))
            timed = cell.layer is not None and self.tokens is None and seconds is None
            whole = cell.start == 0 and cell.stop >= self.timeline.frames
            for hook in cell.hooks:
                todo.append(
                    Apply(
                        taking(count, None if self.tokens is None else self.tokens[list(rows), cell.token]),
                        site=hook,
                        layers=cell.layer,
                        rows=[*giver, *own],
                        heads=None if cell.head is None else [cell.head],
                        seconds=None if whole or not timed else (cell.start / rate, cell.stop / rate),
                        branch=self.sound.branch,
                    )
                )
        return self.lens.generate(
            listed,
            self.timeline.seconds if seconds is None else seconds,
            seeds=[self.sound.first_seed + row for _ in range(2 + len(cells)) for row in rows],
            guidance_scale=self.sound.guidance_scale,
            temperature=self.sound.temperature,
            top_k=self.sound.top_k,
            interventions=todo,
            **how,
        )

    def _measured(self, clips: Any) -> Float[np.ndarray, " clip"]:
        return measure.table(clips, measures=[self.sound.measure])[self.sound.measure].to_numpy()

    def _speed(self) -> tuple[float, float]:
        """Return the times in seconds for a step of the largest generation, and for decoding and measuring a clip."""
        config = self.lens.config
        largest = max(self.generations, key=lambda each: len(each[0]) * (2 + len(each[1])))
        tail = self.timeline.steps - self.timeline.frames
        frames = max(1, tail)
        _played = partial(self._played, *largest, seconds=frames / config.frame_rate, decode=False)
        codes = _played().codes[:1].repeat(1, 1, -(-self.timeline.frames // frames))[..., : self.timeline.frames]
        step = _seconds(_played) / (frames + tail)

        def clip() -> None:
            audio = self.lens.decode_codes(codes).detach().float().cpu().numpy()
            measure.table(audio, config.sample_rate, measures=[self.sound.measure])

        clip()
        return step, _seconds(clip)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def taking(count: int, tokens: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return a function for `Apply` that gives the last `count` rows the values of the first `count` rows.

    With `tokens`, only one token per row is replaced.
    """

    def take(value: Tensor) -> Tensor:
        giving, own = value[:count], value[count:]
        if tokens is not None:
            chosen = torch.arange(value.shape[1], device=value.device) == tokens[:, None].to(value.device)
            giving = torch.where(chosen.reshape(*chosen.shape, *[1] * (value.ndim - 2)), giving, own)
        return torch.cat([value[:count], giving])

    return take
