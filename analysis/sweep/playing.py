"""Generate the batches of a plan one after the other, while worker processes measure the finished ones.

The rows of a batch depend on the plan alone, so that a resumed sweep generates the remaining clips unchanged.
`sweep.play` calls this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from analysis.listening import Heard, Listener
from analysis.sweep.conditions import BASELINE, Condition, Plan, merge
from audiolens.checks import checked_amount, checked_count, shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.model import text
from audiolens.model.timeline import clip_timeline
from audiolens.tracing.generation import Generation
from audiolens.tracing.sampling import checked_seeds, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens

Also = Mapping[str, Callable[["AudioLens", Generation], ArrayLike]]
"""Further columns by name, as functions of a lens and the clips from `generate` that return one number per row."""


@dataclass(frozen=True)
class Making:
    """The arguments of `lens.generate` for every clip, and the columns to compute besides the listener's measures."""

    seconds: float = 5.0
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int | None = 250
    also: Also | None = None

    def check(self, lens: AudioLens, plan: Plan) -> None:
        """Raise an error now for input that `lens.generate` would reject in a later batch."""
        _, sizes = text.checked(plan.asked(), lens.model, lens.tokenizer)
        checked_seeds([seed for _, seed in plan.clips], len(plan.clips))
        checked_settings(self.guidance_scale, self.temperature, self.top_k)
        clip_timeline(self.seconds, lens.config, lens.config.prefix(max(sizes)))

    def generate(self, lens: AudioLens, plan: Plan, batch: Sequence[tuple[Condition, int]]) -> Generation:
        """Generate one batch of a plan, with the interventions of its conditions merged."""
        return lens.generate(
            [condition.asked(plan.clips[clip][0]) for condition, clip in batch],
            seconds=self.seconds,
            seeds=[plan.clips[clip][1] + condition.reseed for condition, clip in batch],
            guidance_scale=self.guidance_scale,
            temperature=self.temperature,
            top_k=self.top_k,
            interventions=list(merge([condition for condition, _ in batch], lens.config.n_layers)),
            decode=False,
        )


def heard_batches(
    lens: AudioLens,
    plan: Plan,
    making: Making,
    ear: Listener,
    done: Mapping[int, Callable[[], np.ndarray]] | None = None,
) -> Iterator[tuple[int, Heard]]:
    """Yield the number, sound and measures of every batch that is not `done`, in the plan's order.

    `done` maps finished batches to functions that return their codes. Finished baselines are measured again, because
    steered clips are compared with them. If an exception occurs, all batches that could be measured are yielded before
    the exception is raised.
    """
    finished = {} if done is None else done
    todo = [number for number in range(len(plan.batches)) if number not in finished]
    n_baselines = sum(batch[0][0].name == BASELINE for batch in plan.batches)
    if todo and todo[-1] >= n_baselines:
        todo = sorted({*todo, *range(n_baselines)})
    baselines: dict[int, tuple[Heard, int]] = {}
    waiting: list[tuple[int, Future[Heard], pd.DataFrame]] = []

    def first() -> Iterator[tuple[int, Heard]]:
        number, future, further = waiting.pop(0)
        measured = future.result()
        if number < n_baselines:
            baselines.update({clip: (measured, place) for place, (_, clip) in enumerate(plan.batches[number])})
        if number not in finished:
            yield number, replace(measured, frame=pd.concat([measured.frame, further], axis=1))

    try:
        for number in todo:
            further = pd.DataFrame()
            if number in finished:
                codes = torch.from_numpy(finished[number]())
            else:
                made = making.generate(lens, plan, plan.batches[number])
                codes, further = made.codes, _further(lens, made, making.also or {})
            # Wait only now, so that earlier batches are measured while this one is generated.
            steered = number >= n_baselines
            while steered and waiting and waiting[0][0] < n_baselines:
                yield from first()
            reference = _reference(plan.batches[number], baselines) if steered else None
            waiting.append((number, ear.hear(codes, reference), further))
            # Yield measured batches at once, so that an interrupted run loses only what is still being measured.
            while waiting and (waiting[0][1].done() or len(waiting) > max(1, ear.n_jobs) + 1):
                yield from first()
        while waiting:
            yield from first()
    except Exception:
        while waiting:
            if waiting[0][1].exception() is None:
                yield from first()
            else:
                waiting.pop(0)
        raise


@guarded
def clips_per_second(lens: AudioLens, prompt: str, seconds: float, batch_size: int = 64) -> float:
    """Return the speed of this machine, measured with one short batch, for estimates before a sweep."""
    batch_size, seconds = checked_count("batch_size", batch_size), checked_amount("seconds", seconds, above=0)
    short = min(1.0, seconds)
    started = time.perf_counter()
    made = lens.generate([prompt] * batch_size, seconds=short, seeds=list(range(batch_size)), decode=False)
    generating = (time.perf_counter() - started) * seconds / short
    started = time.perf_counter()
    rows = made.codes[:4].split(1)
    for clip in rows:
        lens.decode_codes(clip)
    listening = (time.perf_counter() - started) * seconds / short * batch_size / len(rows)
    # Workers measure while the next batch is generated.
    return batch_size / max(generating, listening)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use the number of threads with which a sweep was started. Another number would change the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reference(batch: Sequence[tuple[Condition, int]], baselines: Mapping[int, tuple[Heard, int]]) -> Heard:
    """Return the baseline clip of each row of a batch."""
    pairs = [baselines[clip] for _, clip in batch]
    return Heard(
        codes=np.stack([source.codes[place] for source, place in pairs]),
        audio=np.stack([source.audio[place] for source, place in pairs]),
        frame=pd.DataFrame(),
        sample_rate=pairs[0][0].sample_rate,
    )


def _further(lens: AudioLens, made: Generation, also: Also) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for name, measured in also.items():
        values = np.asarray(measured(lens, made), dtype=float)
        if values.shape != (len(made),):
            raise InputError(f"also: {shown(name)} gave shape {values.shape} for {len(made)} clips: expected one each.")
        columns[name] = values
    return pd.DataFrame(columns)
