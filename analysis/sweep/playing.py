"""Generate and measure the batches of a plan, in this process or several at a time in worker processes.

The rows of a batch depend on the plan alone, so that a resumed sweep generates the remaining clips unchanged.
`sweep.play` calls this module.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from analysis.heard import Heard, Wanted
from analysis.listening import Listener
from analysis.sweep.conditions import BASELINE, Condition, Plan, PromptSeed, merge
from analysis.workers import divided
from audiolens.checks import MOST_JOBS, checked_amount, checked_count, shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.measure.failure import Levels, criteria
from audiolens.model import text
from audiolens.model.timeline import clip_timeline
from audiolens.model.tokens import tell_unread
from audiolens.tracing.engines import Engine
from audiolens.tracing.generate_clips import warn_beyond
from audiolens.tracing.generation import Generation
from audiolens.tracing.sampling import checked_seeds, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens

Also = Mapping[str, Callable[["AudioLens", Generation], ArrayLike]]
"""Further columns by name, as functions of a lens and the clips from `generate` that return one number per row."""
Batch = Sequence[tuple[Condition, int]]
"""The rows of a batch as (condition, clip number)."""


@dataclass(frozen=True)
class Making:
    """The arguments of `lens.generate` for every clip, and the columns to compute besides the listener's measures."""

    seconds: float = 5.0
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int | None = 250
    also: Also | None = None
    engine: Engine = "exact"

    def check(self, lens: AudioLens, plan: Plan) -> None:
        """Raise an error now for input that `lens.generate` would reject in a later batch."""
        _, sizes = text.checked(plan.asked(), lens.model, lens.tokenizer)
        checked_seeds([seed for _, seed in plan.clips], len(plan.clips))
        checked_settings(self.guidance_scale, self.temperature, self.top_k)
        clip_timeline(self.seconds, lens.config, lens.config.prefix(max(sizes)))

    def asked(self, lens: AudioLens, plan: Plan, batch: Batch) -> dict[str, Any]:
        """Return the arguments of `lens.generate` for one batch, with the interventions of its conditions merged."""
        return {
            "prompts": [condition.asked(plan.clips[clip][0]) for condition, clip in batch],
            "seconds": self.seconds,
            "seeds": [plan.clips[clip][1] + condition.reseed for condition, clip in batch],
            "guidance_scale": self.guidance_scale,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "interventions": list(merge([condition for condition, _ in batch], lens.config.n_layers)),
            "decode": False,
            "engine": self.engine,
        }

    def generate(self, lens: AudioLens, plan: Plan, batch: Batch) -> Generation:
        """Generate one batch of a plan in this process."""
        return lens.generate(**self.asked(lens, plan, batch))


def heard_batches(
    lens: AudioLens,
    plan: Plan,
    making: Making,
    ear: Listener,
    done: Mapping[int, Callable[[], np.ndarray]] | None = None,
    keep_audio: Callable[[Condition, PromptSeed], bool] | None = None,
) -> Iterator[tuple[int, Heard, pd.DataFrame]]:
    """Yield the number, sound and table of every batch that is not `done`, in the plan's order.

    A clip is compared with its baseline only here, and only in numbers (`Levels`). Batches therefore need not wait for
    the baselines, whichever process generates them.

    `done` maps finished batches to functions that return their codes. Finished baselines are decoded again, because
    steered clips are compared with them. `keep_audio` selects the rows whose sound is returned (default: none). If an
    exception occurs, all batches that could be measured are yielded before the exception is raised.
    """
    finished = {} if done is None else done
    todo = [number for number in range(len(plan.batches)) if number not in finished]
    n_baselines = sum(batch[0][0].name == BASELINE for batch in plan.batches)
    if todo and todo[-1] >= n_baselines:
        todo = sorted({*todo, *range(n_baselines)})
    if ear.generates:
        # This process generates nothing, so the warnings of `lens.generate` are given here.
        tell_unread()
        warn_beyond(making.seconds, lens.traced_model)
    baselines: dict[int, Levels] = {}
    waiting: deque[tuple[int, Future[Heard], Generation | None]] = deque()

    def begin(number: int) -> tuple[int, Future[Heard], Generation | None]:
        if number in finished:
            return number, ear.hear(torch.from_numpy(finished[number]()), Wanted()), None
        batch = plan.batches[number]
        sound = tuple(
            place
            for place, (condition, clip) in enumerate(batch)
            if keep_audio is not None and keep_audio(condition, plan.clips[clip])
        )
        wanted = Wanted(ear.measures, sound, made=bool(making.also))
        future = ear.play(making.asked(lens, plan, batch), wanted) if ear.generates else None
        if future is not None:
            return number, future, None
        made = making.generate(lens, plan, batch)
        return number, ear.hear(made.codes, wanted), made

    def first() -> Iterator[tuple[int, Heard, pd.DataFrame]]:
        number, future, made = waiting.popleft()
        heard, batch = future.result(), plan.batches[number]
        if number < n_baselines:
            baselines.update({clip: heard.levels[place] for place, (_, clip) in enumerate(batch)})
        if number not in finished:
            assert heard.onsets is not None
            lost = criteria(heard.levels, Levels.joined([baselines[clip] for _, clip in batch]), heard.onsets)
            further = _further(lens, made or heard.made, making.also or {})
            yield number, heard, pd.concat([heard.frame, lost, further], axis=1)

    try:
        for number in todo:
            waiting.append(begin(number))
            # Yield measured batches at once, so that an interrupted run loses only what is still being measured.
            while waiting and (waiting[0][1].done() or len(waiting) > ear.ahead):
                yield from first()
        while waiting:
            yield from first()
    except Exception:
        for _, future, _ in waiting:
            future.cancel()
        while waiting:
            try:
                left = list(first())
            except Exception:
                # The first exception is raised below. This batch failed too, was not begun, or has no baseline.
                continue
            yield from left
        raise


@guarded
def clips_per_second(
    lens: AudioLens, prompt: str, seconds: float, batch_size: int = 64, n_jobs: int | None = None
) -> float:
    """Return the speed of this machine, measured with one short batch, for estimates before a sweep.

    `n_jobs` is as in `play`. Processes are assumed not to slow each other down.
    """
    batch_size, seconds = checked_count("batch_size", batch_size), checked_amount("seconds", seconds, above=0)
    n_jobs = None if n_jobs is None else checked_count("n_jobs", n_jobs, 0, MOST_JOBS)
    short = min(1.0, seconds)
    started = time.perf_counter()
    made = lens.generate([prompt] * batch_size, seconds=short, seeds=list(range(batch_size)), decode=False)
    generating = (time.perf_counter() - started) * seconds / short
    started = time.perf_counter()
    rows = made.codes[:4].split(1)
    for clip in rows:
        lens.decode_codes(clip)
    listening = (time.perf_counter() - started) * seconds / short * batch_size / len(rows)
    n_workers, generate = divided(lens, n_jobs)
    if generate or not n_workers:
        return max(1, n_workers) * batch_size / (generating + listening)
    # Workers measure while the next batch is generated.
    return batch_size / max(generating, listening / n_workers)


def _further(lens: AudioLens, made: Generation | None, also: Also) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for name, measured in also.items():
        assert made is not None
        values = np.asarray(measured(lens, made), dtype=float)
        if values.shape != (len(made),):
            raise InputError(f"also: {shown(name)} gave shape {values.shape} for {len(made)} clips: expected one each.")
        columns[name] = values
    return pd.DataFrame(columns)
