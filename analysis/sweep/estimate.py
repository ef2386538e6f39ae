"""Check a factorial sweep before it starts, pack it into batches, and estimate its time and disk space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.sweep import ledger as ledgers
from analysis.sweep.conditions import Plan, PromptSeed, clips, packed
from analysis.sweep.factorial import Factors, conditions, named
from analysis.sweep.playing import clips_per_second
from analysis.sweep.storage import SoundFormat, size_of
from audiolens.checks import checked_amount, checked_count, checked_seed, in_order, one_or_listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import checked_branch
from audiolens.model import tokens
from audiolens.model.timeline import clip_timeline
from audiolens.prompts import PromptSet, load
from audiolens.prompts.files import readable
from audiolens.tracing.engines import Engine

if TYPE_CHECKING:
    from audiolens import AudioLens


@guarded
@dataclass(frozen=True)
class Estimate:
    """What a sweep will do, and the time and disk space that it will take.

    Attributes:
        plan: rows and batches of the sweep.
        seconds: length of each clip.
        speed: clips per second, measured on this machine with one short batch. It is NaN if the speed was not measured.
        finished: number of rows that are already finished.
        n_bytes: approximate size on disk in bytes; 0 without a folder.
    """

    plan: Plan
    seconds: float
    speed: float
    finished: int = 0
    n_bytes: int = 0

    @property
    def expected_seconds(self) -> float:
        """Expected time for the remaining clips, in seconds."""
        return (len(self.plan) - self.finished) / self.speed

    def __repr__(self) -> str:
        kinds: dict[str, int] = {}
        for condition in self.plan.conditions:
            kind = str(condition.labels.get("kind", "condition"))
            kinds[kind] = kinds.get(kind, 0) + 1
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        sizes = [len(batch) for batch in self.plan.batches]
        lines = [
            f"{len(self.plan)} clips of {self.seconds:g} s: {len(self.plan.conditions)} conditions ({listed}) x "
            f"{len(self.plan.clips)} clips, in {len(sizes)} batches of {min(sizes)} to {max(sizes)}"
        ]
        if self.finished:
            lines.append(f"{self.finished} of them are already finished")
        if math.isfinite(self.speed):
            lines.append(f"about {_spoken(self.expected_seconds)} at {self.speed:.2g} clips per second on this machine")
        if self.n_bytes:
            lines.append(f"about {self.n_bytes / 1e6:.3g} MB on disk")
        return "; ".join(lines)


@dataclass(frozen=True)
class Prepared:
    """A factorial sweep and its clips, checked and packed into batches."""

    plan: Plan
    seconds: float

    @classmethod
    def of(
        cls,
        lens: AudioLens,
        directions: Any,
        *,
        prompts: Sequence[str] | None = None,
        seeds: int | Sequence[int] = 2,
        sets: Mapping[str, PromptSet] | None = None,
        seconds: float = 5.0,
        batch_size: int = 64,
        **asked: Any,
    ) -> Prepared:
        clip_timeline(seconds, lens.config)
        own, others = named(directions), {} if asked.get("others") is None else named(asked["others"])
        for one in (*own.values(), *others.values()):
            one.meta.refuse_other(lens)
        if sets is not None and not isinstance(sets, Mapping):
            raise InputTypeError(f"sets={shown(sets)}: expected prompt sets by name.")
        if sets is None:
            sets = {name: load(name, lens=lens) for name in own if readable(name, lens)}
        words = dict(sets)
        if prompts is None:
            neutral = next((one.development for one in words.values() if one.development), ())
            if not neutral:
                raise InputError(f"there are no neutral prompts for {', '.join(own)}: give prompts=[...].")
            prompts = neutral
        names = {entry.name for entry in fields(Factors)}
        given = {name: value for name, value in asked.items() if name in names}
        factors = Factors(**{**given, "others": others})
        if "null" in factors.branches:
            checked_branch("null", checked_amount("guidance_scale", asked.get("guidance_scale", 3.0)) > 1)
        plan = packed(conditions(own, factors, words), _pairs(prompts, seeds), batch_size)
        tokens.note_unread(plan.asked(), lens.tokenizer)
        return cls(plan, float(seconds))

    def estimate(
        self,
        lens: AudioLens,
        out: Any,
        sound: SoundFormat | None,
        timed: bool = True,
        n_jobs: int | None = None,
        engine: Engine = "auto",
    ) -> Estimate:
        first = self.plan.clips[0][0]
        size = self.plan.batch_size
        speed = clips_per_second(lens, first, self.seconds, size, n_jobs, engine) if timed else math.nan
        done = ledgers.finished(Path(out)) if out is not None else frozenset()
        there = sum(len(batch) for number, batch in enumerate(self.plan.batches) if number in done)
        n_bytes = 0 if out is None else size_of(lens, self.plan, self.seconds, sound)
        return Estimate(self.plan, self.seconds, speed, there, n_bytes)


def _pairs(prompts: Sequence[str], seeds: int | Sequence[int]) -> list[PromptSeed]:
    listed = () if isinstance(prompts, str) else in_order("prompts", prompts, "texts")
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in listed):
        raise InputError("prompts: expected a list of texts.")
    given = one_or_listed("seeds", seeds)
    if isinstance(given, list):
        return [(prompt, seed) for prompt in listed for seed in map(checked_seed, given)]
    return clips(listed, checked_count("seeds", given, least=0))


def _spoken(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
