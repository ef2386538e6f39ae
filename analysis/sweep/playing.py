"""Generate and measure the batches of a plan, in this process or several at a time in workers.

The rows of a batch depend on the plan alone, so that a resumed sweep generates the remaining clips unchanged.
`sweep.play` calls this module.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from analysis.distributed.backend import Backend, Pending
from analysis.heard import Heard, Wanted
from analysis.sweep.conditions import BASELINE, Condition, Plan, PromptSeed, merge
from analysis.workers import can_be_sent, divided, dumps
from audiolens.checks import MOST_JOBS, checked_amount, checked_count, shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.measure.failure import Levels, criteria
from audiolens.model import text
from audiolens.model.timeline import clip_timeline
from audiolens.model.tokens import callers_level, tell_unread
from audiolens.tracing.engines import Engine, checked_engine
from audiolens.tracing.fast_clips import refusal
from audiolens.tracing.fitting import divided as divided_batch
from audiolens.tracing.generate_clips import warn_beyond
from audiolens.tracing.generation import Generation
from audiolens.tracing.sampling import checked_seeds, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens

Also = Mapping[str, Callable[["AudioLens", Generation], ArrayLike]]
"""Further columns by name, as functions of a lens and the clips from `generate` that return one number per row."""
SAMPLE = 8
"""Number of rows with which devices are compared."""
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
    at_once: int | None = None
    """The number of rows of a batch that fit in memory, if it is known to be less than the whole batch."""

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
            **({} if self.at_once is None else {"batch_size": self.at_once}),
        }

    def generate(self, lens: AudioLens, plan: Plan, batch: Batch) -> Generation:
        """Generate one batch of a plan in this process."""
        return lens.generate(**self.asked(lens, plan, batch))


@dataclass(frozen=True)
class Playing:
    """The batches of a plan as work for a backend."""

    plan: Plan
    making: Making

    def asked(self, lens: AudioLens, number: int) -> dict[str, Any]:
        """Return the arguments of `lens.generate` for a batch."""
        return self.making.asked(lens, self.plan, self.plan.batches[number])

    def sample(self, lens: AudioLens) -> dict[str, Any]:
        """Return the arguments of `lens.generate` for some of the first batch's rows, which are not steered."""
        return self.making.asked(lens, self.plan, self.plan.batches[0][:SAMPLE])

    def sent(self) -> tuple[Playing, frozenset[int]]:
        """Return a copy without functions of the user's, and the numbers of the batches that need them."""
        plan = self.plan
        own = {one.name for one in plan.conditions if not _can_be_sent(one)}
        local = (number for number, batch in enumerate(plan.batches) if own.intersection(one.name for one, _ in batch))
        conditions = tuple(_plain(one, plan.clips, blank=one.name in own) for one in plan.conditions)
        return Playing(replace(plan, conditions=conditions), replace(self.making, also=None)), frozenset(local)


def heard_batches(
    lens: AudioLens,
    plan: Plan,
    making: Making,
    ear: Backend,
    done: Mapping[int, Callable[[], np.ndarray]] | None = None,
    levels: Callable[[int], Levels | None] | None = None,
    keep_audio: Callable[[Condition, PromptSeed], bool] | None = None,
    note: Callable[..., object] | None = None,
) -> Iterator[tuple[int, Heard, pd.DataFrame]]:
    """Yield the number, sound and table of every batch that is not `done`, as soon as it is measured.

    Batches are begun in the plan's order, and can finish in any order. A clip is compared with its baseline only here,
    and only in numbers (`Levels`). Batches therefore need not wait for the baselines, whichever process generates them.

    `done` maps finished batches to functions that return their codes, and `levels` returns the stored numbers of a
    finished batch of baselines. If they were not stored, the baselines are decoded again, because steered clips are
    compared with them. `keep_audio` selects the rows whose sound is returned (default: none). If an exception occurs,
    all batches that could be measured are yielded before the exception is raised.

    A batch that does not fit in memory is divided in half, and later batches begin with the number of rows that fitted.
    `note` is called with the numbers of the batches that are left, and with this number (`at_once=`) or the devices of
    workers elsewhere (`device=`), once either is known.
    """
    finished = {} if done is None else done
    todo = [number for number in range(len(plan.batches)) if number not in finished]
    n_baselines = sum(batch[0][0].name == BASELINE for batch in plan.batches)
    baselines: dict[int, Levels] = {}
    for number in range(n_baselines) if todo and todo[-1] >= n_baselines else ():
        if number in finished:
            stored = None if levels is None else levels(number)
            if stored is None:
                todo.append(number)
            else:
                baselines.update({clip: stored[place] for place, (_, clip) in enumerate(plan.batches[number])})
    todo.sort()
    if ear.generates:
        # This process generates nothing, so the warnings of `lens.generate` are given here.
        tell_unread()
        warn_beyond(making.seconds, lens.traced_model)
    work = Playing(plan, making)
    waiting: dict[int, tuple[Pending, Generation | None]] = {}
    # Batches that have not been compared with their baselines yet.
    measured: dict[int, tuple[Heard, Generation | None]] = {}
    yielded: set[int] = set()
    devices: frozenset[str] = frozenset()

    def noted(**change: Any) -> None:
        if note is not None:
            note([number for number in todo if number not in finished and number not in yielded], **change)

    def fit(at_once: int | None) -> None:
        nonlocal work
        before = work.making.at_once
        if at_once is not None and (before is None or at_once < before):
            work = replace(work, making=replace(work.making, at_once=at_once))
            noted(at_once=at_once)

    def look_at_devices() -> None:
        nonlocal devices
        if ear.devices != devices:
            devices = ear.devices
            noted(device=" and ".join(sorted(devices)))

    def begin(number: int) -> tuple[Pending, Generation | None]:
        if number in finished:
            return ear.hear(torch.from_numpy(finished[number]()), Wanted()), None
        batch = plan.batches[number]
        sound = tuple(
            place
            for place, (condition, clip) in enumerate(batch)
            if keep_audio is not None and keep_audio(condition, plan.clips[clip])
        )
        wanted = Wanted(ear.measures, sound, made=bool(making.also))
        if (pending := ear.submit(work, number, wanted)) is not None:
            return pending, None
        made = work.making.generate(lens, plan, batch)
        fit(made.settings.get("at_once"))
        return ear.hear(made.codes, wanted), made

    def taken() -> Iterator[tuple[int, Heard, pd.DataFrame]]:
        for number in [number for number, (pending, _) in waiting.items() if pending.done()]:
            pending, made = waiting.pop(number)
            heard = pending.result()
            if made is None and heard.at_once is not None:
                # Workers do not show warnings.
                told = divided_batch(len(plan.batches[number]), heard.at_once, "clips", "a worker's device")
                warnings.warn(told, stacklevel=callers_level())
                fit(heard.at_once)
            look_at_devices()
            if number < n_baselines:
                batch = plan.batches[number]
                baselines.update({clip: heard.levels[place] for place, (_, clip) in enumerate(batch)})
            if number not in finished:
                measured[number] = heard, made
        for number in sorted(measured):
            batch = plan.batches[number]
            if all(clip in baselines for _, clip in batch):
                heard, made = measured.pop(number)
                assert heard.onsets is not None
                lost = criteria(heard.levels, Levels.joined([baselines[clip] for _, clip in batch]), heard.onsets)
                further = _further(lens, made or heard.made, making.also or {})
                yielded.add(number)
                yield number, heard, pd.concat([heard.frame, lost, further], axis=1)

    def pause() -> None:
        ear.wait([pending for pending, _ in waiting.values()])

    def left() -> Iterator[tuple[int, Heard, pd.DataFrame]]:
        """Yield what can still be measured after an exception, which is raised afterwards."""
        found = taken()
        while True:
            try:
                yield next(found)
            except StopIteration:
                if not waiting:
                    return
                try:
                    pause()
                except Exception:
                    return
                found = taken()
            except Exception:
                # This batch failed too, or was not begun.
                found = taken()

    try:
        for number in todo:
            waiting[number] = begin(number)
            # Yield measured batches at once, so that an interrupted run loses only what is still being measured.
            yield from taken()
            while waiting and len(waiting) + len(measured) > ear.ahead:
                pause()
                yield from taken()
        while waiting:
            pause()
            yield from taken()
    except Exception:
        for pending, _ in waiting.values():
            pending.cancel()
        yield from left()
        raise


@guarded
def clips_per_second(
    lens: AudioLens,
    prompt: str,
    seconds: float,
    batch_size: int = 64,
    n_jobs: int | None = None,
    engine: Engine = "auto",
) -> float:
    """Return the speed of this machine, measured with one short batch, for estimates before a sweep.

    `n_jobs` and `engine` are as in `play`. "auto" is measured with the fast engine if the model allows it, because that
    is what a sweep then almost always chooses. Processes are assumed not to slow each other down.
    """
    batch_size, seconds = checked_count("batch_size", batch_size), checked_amount("seconds", seconds, above=0)
    n_jobs = None if n_jobs is None else checked_count("n_jobs", n_jobs, 0, MOST_JOBS)
    timed = checked_engine(engine)
    if timed == "auto":
        timed = "exact" if refusal(lens.traced_model) else "fast"
    short = min(1.0, seconds)
    started = time.perf_counter()
    made = lens.generate(
        [prompt] * batch_size, seconds=short, seeds=list(range(batch_size)), decode=False, engine=timed
    )
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


def _can_be_sent(condition: Condition) -> bool:
    if not can_be_sent([*condition.interventions]):
        return False
    try:
        dumps(condition.interventions)
    except Exception:
        # A schedule of the user's refers to something that cannot be pickled.
        return False
    return True


def _plain(condition: Condition, clips: Sequence[PromptSeed], blank: bool) -> Condition:
    """Return a condition with what it asks of each prompt as a table, and without its labels."""
    ask = condition.ask
    texts = None if ask is None else {prompt: ask(prompt) for prompt, _ in clips}.__getitem__
    return replace(condition, ask=texts, labels={}, interventions=() if blank else condition.interventions)


def _further(lens: AudioLens, made: Generation | None, also: Also) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for name, measured in also.items():
        assert made is not None
        values = np.asarray(measured(lens, made), dtype=float)
        if values.shape != (len(made),):
            raise InputError(f"also: {shown(name)} gave shape {values.shape} for {len(made)} clips: expected one each.")
        columns[name] = values
    return pd.DataFrame(columns)
