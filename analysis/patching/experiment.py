"""Run a grid of activation patches over pairs of clean and corrupted runs (`patch`), or estimate its cost (`plan`).

The metric on codes is the log-likelihood of the clean continuation, in nats, per codebook and in total. Unless a
history is given, both runs read the same codes. The gap between them then comes from the text alone, and is a few nats
out of a thousand. Results therefore report the raw gap and its interval first. Every cell gives the same value as a
full forward pass with a hook, but `engine.py` computes the cells faster.

Velez Vasquez et al. (ISMIR 2024) previously studied the exchange of activations between runs of a music model.
Denoising and noising are distinguished as in Heimersheim and Nanda (2024, arXiv 2404.15255).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.patching.grid import WINDOWS, By, Cell, Grid, Mode, checked_mode, needs_tokens
from analysis.patching.plans import GridPlan, SoundPlan
from analysis.patching.result import PatchingResult
from analysis.patching.runs import Runs
from analysis.patching.sound import Listening, Sound
from analysis.resampling import Resampling
from audiolens.checks import MOST_SEED, checked_amount, checked_count, checked_flags, shown
from audiolens.door import guarded
from audiolens.errors import ActivationOverflow, InputError
from audiolens.groups import takes
from audiolens.model.memory import Need, weight_bytes
from audiolens.model.timeline import Span, checked_span, codes_timeline
from audiolens.model.tokens import named_once
from audiolens.tracing.fitting import Fitting
from audiolens.tracing.model_calls import alone
from audiolens.tracing.recording import Reading

if TYPE_CHECKING:
    from audiolens import AudioLens


@guarded
@dataclass(frozen=True)
class LogLikelihood:
    """The metric on codes: the log-probability of the clean codes in a window, summed over its frames, in nats.

    `seconds=None` means the first second, or the whole clip if it is shorter.
    """

    seconds: Span | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None:
            checked_span(self.seconds)


@guarded
@named_once
@takes("resampling", Resampling)
@takes("reading", Reading, sites="site")
def patch(
    lens: AudioLens,
    clean: str | None | Sequence[str | None],
    corrupted: str | None | Sequence[str | None],
    codes: Int[Tensor, "pair codebook frame"] | tuple[Any, int] | None,
    metric: Literal["log_likelihood"] | LogLikelihood | Sound = "log_likelihood",
    site: str | Sequence[str] | None = None,
    *,
    by: By = "seconds",
    mode: Mode = "denoising",
    layers: int | Sequence[int] | None = None,
    windows: int | Sequence[Span] = WINDOWS,
    seconds: Span | None = None,
    heads: Sequence[int] | None = None,
    history: Int[Tensor, "pair codebook past"] | None = None,
    clusters: Sequence[str] | None = None,
    sound: Sound | None = None,
    memory_gib: float = 1.0,
    n_bootstrap: int = 1000,
    n_permutations: int = 2000,
    seed: int = 0,
    progress: bool = True,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> PatchingResult:
    """Patch every cell of a grid in many pairs of clean and corrupted runs, and return the effects.

    Args:
        lens: the model.
        clean, corrupted: the prompts of each pair (`pairs` makes matched prompts from a prompt set).
        codes: codes generated from the clean prompts, one row per pair, or (waveform, sample_rate). Both runs read
            these codes. Use `None` for a metric on sound.
        metric: `"log_likelihood"` of those codes in the first second, `LogLikelihood(seconds=...)` for another window,
            or a `Sound`, which is measured on patched generations.
        site: one site, or several sites that are in one part of a block and are patched together (`("cross_attn.k",
            "cross_attn.v")`). With `by="component"`, each site has its own column. The default depends on `by`:
            `resid_post` for "seconds"; `cross_attn.z` for "head" (`attn.z` without cross-attention); `attn_out`,
            `cross_attn_out`, `mlp_out` and `resid_post` for "component"; and keys and values of the cross-attention for
            "token". A grid with a `Sound` metric leaves the residual stream out and uses `cross_attn_out` for
            "seconds", because in a run that reads its own codes, the stream encodes those codes at every block.
        by: the kind of columns: "seconds" (time windows), "head", "component", or "token" (text tokens, counted from
            +0, the first token in which the prompts differ).
        mode: "denoising" copies clean values into the corrupted run and tests whether they are sufficient. "noising"
            copies corrupted values into the clean run and tests whether the clean values are necessary.
        layers: the blocks that form the rows of the grid (`None`: all blocks).
        windows: for `by="seconds"`, the number of equal windows up to the last scored step, or a list of (from, to) in
            seconds. Windows after the scored window cannot change the metric, so their effects are exactly 0.
        seconds: the time span to patch in grids other than `by="seconds"` (`None`: all steps).
        heads: the heads that form the columns of `by="head"` (`None`: all heads).
        history: codes that the corrupted run reads instead of `codes` before the scored window, such as codes generated
            from the corrupted prompts. The scored window must then start later than 0.
        clusters: the cluster of each pair; intervals resample clusters. By default, pairs with the same two prompts
            form one cluster, whatever their seeds.
        sound: a `Sound` metric for a second, coarser grid that covers the whole clip. With `None`, the second grid is
            not computed.
        memory_gib: memory for recordings and batches, in GiB. Larger grids run in parts.
        n_bootstrap, n_permutations, seed: settings of the intervals and p-values.
        reading: a `Reading` instead of `site`, `layers`, `heads` and `seconds`, to state what is patched.
        resampling: a `Resampling` instead of `n_bootstrap`, `n_permutations` and `seed`.
        progress: show the plan and a progress bar on stderr. `plan` returns the plan without running the grid.

    Raises:
        InputError: (or a subclass) if pairs, codes, sites or windows are not valid. The error is raised before the
            model runs.

    The codes are scored under the conditional branch alone, without guidance.
    """
    checked_flags(progress=progress)
    options: dict[str, Any] = {"layers": layers, "windows": windows, "seconds": seconds, "heads": heads}
    counts = {"n_bootstrap": n_bootstrap, "n_permutations": n_permutations}
    stats: dict[str, Any] = {name: checked_count(name, value, 0) for name, value in counts.items()}
    stats["seed"] = checked_count("seed", seed, 0, MOST_SEED)
    asked: dict[str, Any] = {"by": by, "mode": mode, "clusters": clusters}
    if isinstance(metric, Sound):
        if codes is not None or history is not None or sound is not None:
            raise InputError("a metric on sound generates its own codes: give codes=None, without history= or sound=.")
        ear = Listening.checked(lens, clean, corrupted, metric, site, **asked, **options)
        if progress:
            _show(ear.plan(timed=True))
        return ear.run(progress, stats)
    job = _job(lens, clean, corrupted, codes, metric, site, by, mode, history, memory_gib, options)
    groups = job.runs.clusters(clusters)
    ear = None
    if sound is not None:
        ear = Listening.checked(
            lens, clean, corrupted, sound, site, **asked, **{**options, "windows": 1, "seconds": None}
        )
    if progress:
        for todo in filter(None, (job, ear)):
            _show(todo.plan(timed=True))
    patched, before = job.run(progress)
    return PatchingResult(
        patched=patched,
        clean=before["clean"],
        corrupted=before["corrupted"],
        codebooks=tuple(str(codebook) for codebook in range(lens.config.n_codebooks)),
        layers=job.grid.layers,
        columns=job.grid.columns,
        spans=job.grid.spans,
        by=by,
        sites=job.grid.sites,
        mode=mode,
        metric="log-likelihood of the clean codes",
        unit="nats",
        scored=job.runs.window.seconds,
        prompts=tuple(zip(job.runs.clean, job.runs.corrupted, strict=True)),
        clusters=groups,
        sound=None if ear is None else ear.run(progress, stats),
        **stats,
    )


@guarded
@named_once
@takes("reading", Reading, sites="site")
def plan(
    lens: AudioLens,
    clean: str | None | Sequence[str | None],
    corrupted: str | None | Sequence[str | None],
    codes: Int[Tensor, "pair codebook frame"] | tuple[Any, int] | None,
    metric: Literal["log_likelihood"] | LogLikelihood | Sound = "log_likelihood",
    site: str | Sequence[str] | None = None,
    *,
    by: By = "seconds",
    mode: Mode = "denoising",
    layers: int | Sequence[int] | None = None,
    windows: int | Sequence[Span] = WINDOWS,
    seconds: Span | None = None,
    heads: Sequence[int] | None = None,
    history: Int[Tensor, "pair codebook past"] | None = None,
    memory_gib: float = 1.0,
    timed: bool = True,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> GridPlan | SoundPlan:
    """Return the cost of `patch` with the same arguments. With `timed`, the model runs one row to estimate the time.

    For a `Sound` metric, the result is a `SoundPlan`. Its time is estimated from a few steps of the largest generation,
    and from decoding and measuring one clip.
    """
    checked_flags(timed=timed)
    options: dict[str, Any] = {"layers": layers, "windows": windows, "seconds": seconds, "heads": heads}
    if isinstance(metric, Sound):
        return Listening.checked(lens, clean, corrupted, metric, site, by=by, mode=mode, clusters=None, **options).plan(
            timed
        )
    return _job(lens, clean, corrupted, codes, metric, site, by, mode, history, memory_gib, options).plan(timed)


def _show(plan: GridPlan | SoundPlan) -> None:
    """Print a plan on stderr, like the progress bar, because stdout is for output that programs read."""
    tqdm.write(repr(plan), file=sys.stderr)


@dataclass(frozen=True, eq=False)
class _Job:
    """A patching grid with a metric on codes. Its arguments have already been checked."""

    runs: Runs
    grid: Grid
    mode: Mode
    memory: float

    @property
    def cells(self) -> list[Cell]:
        """The cells, sorted by first step and then by block from the bottom up.

        They are split into parts in this order.
        """
        return sorted(self.grid.cells, key=lambda cell: (cell.start, cell.enters, cell.part))

    def plan(self, timed: bool = False) -> GridPlan:
        runs, steps, blocks = self.runs, self.runs.steps, self.runs.lens.config.n_layers
        row, pair = self._row_bytes(), self._pair_bytes()
        room = self.memory * 2**30 / 2
        rows = max(1, int(room // row))
        chunk = min(len(self.grid.cells), rows)
        batch = max(1, min(len(runs.clean), rows // chunk, int(room // pair)))
        moving = [cell for cell in self.grid.cells if cell.start < cell.stop]
        climbs = sum((blocks - cell.enters) * (steps - cell.start) for cell in moving)
        recorded = 2 * blocks * steps
        return GridPlan(
            cells=len(self.grid.cells),
            pairs=len(runs.clean),
            row_steps=(climbs + recorded) * len(runs.clean),
            naive_row_steps=len(self.grid.cells) * len(runs.clean) * blocks * steps,
            batch=batch,
            chunk=chunk,
            memory_mib=(batch * pair + batch * chunk * row) / 2**20,
            seconds=(climbs + recorded) * len(runs.clean) * self._speed() if timed else float("nan"),
        )

    def run(self, progress: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run the grid, and return the patched metrics "pair codebook layer column" and the unpatched metrics."""
        runs, plan, cells = self.runs, self.plan(), self.cells
        shape = len(runs.clean), runs.lens.config.n_codebooks
        patched = np.full((*shape, len(self.grid.layers), len(self.grid.columns)), np.nan)
        before = {"clean": np.empty(shape), "corrupted": np.empty(shape)}
        names = ("corrupted", "clean") if self.mode == "denoising" else ("clean", "corrupted")
        with tqdm(total=plan.cells * plan.pairs, desc="patching", unit="cell", disable=not progress) as bar:
            by_pair, by_cell = self._fitting("pairs being patched"), self._fitting("patches of a pair", plan.chunk)
            finished = 0

            def part(rows: list[int]) -> None:
                # A batch that is divided begins again, and writes the same cells.
                bar.update(finished - bar.n)
                batch = runs.batch(rows, self.grid.cells, self.mode)
                for name, side in zip(names, (batch.base, batch.source), strict=True):
                    before[name][rows] = side.scores.double().sum(-1).cpu().numpy()

                def scored(at: slice) -> np.ndarray:
                    with alone(runs.lens.model), torch.no_grad():
                        return batch.scored(cells[at]).cpu().numpy()

                for at, found in by_cell.run(len(cells), scored):
                    for cell, values in zip(cells[at], found, strict=True):
                        self._refuse_nan(cell, rows, values)
                        patched[(rows, slice(None), *cell.at)] = values
                    bar.update(len(found) * len(rows))

            for rows, _ in by_pair.each(runs.batches(plan.batch), part):
                finished += len(rows) * len(cells)
        return patched, before

    def _fitting(self, rows: str, at_once: int | None = None) -> Fitting:
        """Return what divides batches of pairs, or of the cells of a batch of pairs."""
        runs = self.runs

        def need() -> Need:
            return Need(weight_bytes(runs.lens.model), round(self._pair_bytes()), round(self._row_bytes()))

        instead = "shorter clips, fewer layers, a narrower dtype"
        return Fitting(runs.lens.device, f"{rows} of {runs.timeline.seconds:g} s", need, None, None, at_once, instead)

    def _refuse_nan(self, cell: Cell, rows: Sequence[int], values: Float[np.ndarray, "pair codebook"]) -> None:
        """Raise if a score is NaN, except for pairs that lack the cell's token."""
        lost = np.isnan(values).any(1)
        if cell.token is not None:
            lost &= (self.runs.offsets[0][list(rows), cell.token] >= 0).numpy()
        if lost.any():
            raise ActivationOverflow(
                f"the patch at {' and '.join(cell.hooks)}, layer {cell.layer}, changed logits to NaN in pair "
                f"{rows[int(lost.argmax())]}: load the model in a wider dtype."
            )

    def _row_bytes(self) -> float:
        """Return the size in bytes of one row of a climb.

        A row consists of its stream, one block's intermediate values, and its keys, values and logits.
        """
        config, steps = self.runs.lens.config, self.runs.steps
        size = torch.finfo(self.runs.lens.dtype).bits // 8
        block = steps * (2 * config.d_mlp + 10 * config.d_model) + 4 * (steps + self.runs.prefix) * config.d_model
        return block * size + 12 * steps * config.vocab_size

    def _pair_bytes(self) -> float:
        """Return the size in bytes of one pair's recordings."""
        config, steps = self.runs.lens.config, self.runs.steps + self.runs.prefix
        size = torch.finfo(self.runs.lens.dtype).bits // 8
        wide = {hook: config.d_mlp for hook in ("mlp.hook_pre", "mlp.hook_post")}
        keys = {"attn.hook_pattern": config.n_heads * steps, "cross_attn.hook_pattern": config.n_heads * 64}
        theirs = sum({**wide, **keys}.get(hook, config.d_model) for hook in self.grid.hooks)
        logits = 3 * 4 * config.n_codebooks * steps * config.vocab_size
        return config.n_layers * steps * (7 * config.d_model + theirs) * size + logits

    def _speed(self) -> float:
        """Return the time in seconds per step of one row in one block, measured by timing one forward pass."""
        runs = self.runs
        given = runs.lens, runs.clean[:1], runs.read[0][:1]
        _forward(*given)
        begun = time.perf_counter()
        _forward(*given)
        taken = time.perf_counter() - begun
        return taken / (runs.lens.config.n_layers * codes_timeline(given[2], runs.lens.config, runs.prefix).steps)


def scored_cells(
    runs: Runs, cells: Sequence[Cell], mode: Mode = "denoising", memory_gib: float = 1.0
) -> tuple[Float[np.ndarray, "pair codebook cell"], Float[np.ndarray, "pair codebook"]]:
    """Return the log-likelihood under each patch of any list of cells, and that of the run that is patched."""
    rows = tuple(range(len(cells)))
    listed = tuple(replace(cell, at=(number, 0)) for number, cell in enumerate(cells))
    grid = Grid("component", (), rows, ("cell",), None, listed)
    patched, before = _Job(runs, grid, mode, memory_gib).run(progress=False)
    return patched[..., 0], before["corrupted" if mode == "denoising" else "clean"]


def _forward(lens: AudioLens, prompts: Sequence[str | None], codes: Tensor) -> None:
    lens.run_with_cache(prompts, codes, sites=())


def _job(
    lens: AudioLens,
    clean: Any,
    corrupted: Any,
    codes: Any,
    metric: Any,
    site: Any,
    by: Any,
    mode: Any,
    history: Any,
    memory_gib: Any,
    options: dict[str, Any],
) -> _Job:
    checked_mode(mode)
    if metric != "log_likelihood" and not isinstance(metric, LogLikelihood):
        raise InputError(f"metric={shown(metric)}: expected 'log_likelihood', LogLikelihood(...) or Sound(...).")
    memory = checked_amount("memory_gib", memory_gib, above=0)
    runs = Runs.checked(
        lens, clean, corrupted, codes, metric.seconds if isinstance(metric, LogLikelihood) else None, history
    )
    tokens = runs.token_columns() if by == "token" else ()
    grid = Grid.of(lens, site, by, steps=runs.steps, timeline=runs.timeline, tokens=tokens, **options)
    if needs_tokens(lens, grid.hooks):
        runs.refuse_unequal(f"{' and '.join(grid.sites)} by {by}")
    return _Job(runs, grid, mode, memory)
