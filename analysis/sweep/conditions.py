"""Define the conditions of a sweep, and pack their rows into full batches.

A clip is a (prompt, seed) pair, and a condition defines what is done to it. Every condition is applied to the same
clips, so that rows pair up by prompt and seed. A batch contains rows of many conditions, and the vectors that these
conditions add are merged into one vector per row and block. `sweep.play` calls this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import torch

from audiolens.checks import checked_count, in_order, shown
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError
from audiolens.interventions import Add, Branch, Intervention
from audiolens.model.families import FAMILIES
from audiolens.model.sites import Site, resolve
from audiolens.model.timeline import Span
from audiolens.tracing.batching import whole_batch_size

BASELINE = "baseline"
_BLOCK = {hook: tap for family in FAMILIES for hook, tap in family.block_taps.items()}
_WHOLE = {hook: tap for family in FAMILIES for hook, tap in family.model_taps.items()}
PromptSeed = tuple[str, int]
"""A prompt, and the seed with which its clip is sampled."""


@guarded
@dataclass(frozen=True)
class Condition:
    """A condition of a sweep, which states what is done to every clip.

    Attributes:
        name: a name that is unique in the sweep. The condition that changes nothing is named "baseline".
        interventions: the interventions applied to each row of the condition.
        ask: a function that maps a clip's prompt to the prompt used instead, with the same seed. `None` uses the clip's
            own prompt.
        labels: further columns of the condition's rows, such as strategy, layer and strength.
        reseed: number added to the clip's seed when the clip is sampled. Its row keeps the original seed, by which rows
            are paired.
    """

    name: str
    interventions: tuple[Intervention, ...] = ()
    ask: Callable[[str], str] | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    reseed: int = 0

    def __post_init__(self) -> None:
        checked_kinds(self)
        for intervention in self.interventions:
            if intervention.rows is not None or torch.as_tensor(intervention.strength, device="cpu").ndim:
                raise InputError(
                    f"condition {shown(self.name)}: an intervention names rows or has a strength per row, but a "
                    "condition applies to all its rows: give one strength and no rows."
                )

    def asked(self, prompt: str) -> str:
        """Return the text that the model reads for a clip with this prompt."""
        return prompt if self.ask is None else self.ask(prompt)


@guarded
@dataclass(frozen=True)
class Plan:
    """The rows that a sweep generates, and their batches. A plan depends only on its arguments.

    Baselines come first, because every other row is compared with its own baseline.
    """

    conditions: tuple[Condition, ...]
    clips: tuple[PromptSeed, ...]
    batch_size: int

    @cached_property
    def batches(self) -> list[list[tuple[Condition, int]]]:
        """The rows of each batch as (condition, clip number).

        The sizes of batches differ by at most one and never exceed `batch_size`. Baselines have their own batches.
        """
        packed = []
        for group in self._groups:
            rows = [(condition, clip) for condition in group for clip in range(len(self.clips))]
            bounds = np.linspace(0, len(rows), -(-len(rows) // self.batch_size) + 1).astype(int)
            packed += [rows[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
        return packed

    @cached_property
    def starts(self) -> list[int]:
        """The number of the first row of each batch."""
        return np.cumsum([0, *(len(batch) for batch in self.batches)])[:-1].tolist()

    @property
    def labels(self) -> pd.DataFrame:
        """One row per generated clip in batch order, with condition, labels, `prompt`, `asked` and `seed`."""
        groups = self._groups
        conditions = [condition for group in groups for condition in group]
        prompts, seeds = (pd.Series(list(one)) for one in zip(*self.clips, strict=True))
        # Only one row of each condition is made of its labels, because a dictionary for every row takes much memory.
        first = [
            {"condition": one.name, **one.labels, "prompt": prompts[0], "asked": prompts[0], "seed": seeds[0]}
            for one in conditions
        ]
        clip = np.tile(np.arange(len(self.clips)), len(conditions))
        found = pd.DataFrame(first).iloc[np.repeat(np.arange(len(conditions)), len(self.clips))].reset_index(drop=True)
        found["prompt"], found["seed"] = (one.iloc[clip].reset_index(drop=True) for one in (prompts, seeds))
        asked = (prompts if one.ask is None else map(one.ask, prompts) for one in conditions)
        found["asked"] = pd.Series([text for texts in asked for text in texts])
        return found

    @property
    def _groups(self) -> tuple[list[Condition], list[Condition]]:
        """The baseline, and the other conditions."""
        first = [condition for condition in self.conditions if condition.name == BASELINE]
        return first, [condition for condition in self.conditions if condition.name != BASELINE]

    def asked(self) -> list[str]:
        """Return every distinct text that the model reads."""
        texts = (condition.asked(prompt) for condition in self.conditions for prompt, _ in self.clips)
        return list(dict.fromkeys(texts))

    def __len__(self) -> int:
        return len(self.conditions) * len(self.clips)


@guarded
def clips(prompts: Sequence[str], seeds_per_prompt: int, first_seed: int = 0) -> list[PromptSeed]:
    """Return each prompt paired with each of its own seeds. No seed is used twice, so that prompts are independent."""
    prompts = in_order("prompts", prompts, "prompts")
    if not prompts or checked_count("seeds", seeds_per_prompt, 0) < 1:
        raise InputError(f"{len(prompts)} prompts x {seeds_per_prompt} seeds: expected at least one of each.")
    seeds = iter(range(first_seed, first_seed + len(prompts) * seeds_per_prompt))
    return [(prompt, next(seeds)) for prompt in prompts for _ in range(seeds_per_prompt)]


@guarded
def packed(conditions: Sequence[Condition], clips: Sequence[PromptSeed], batch_size: int = 64) -> Plan:
    """Check conditions and clips, and return a plan that packs them into batches.

    Raises:
        InputError: if names or clips are duplicated, the baseline is missing, or there are no clips.
        InputTypeError: if conditions or clips are given in a collection without order, such as a set.
    """
    conditions = in_order("conditions", conditions, "conditions")
    clips = in_order("clips", clips, "(prompt, seed) pairs")
    names = [condition.name for condition in conditions]
    if len(set(names)) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two conditions are named {shown(doubled)}: give each its own name.")
    if BASELINE not in names:
        raise InputError(f"no condition is named {BASELINE!r}: add Condition({BASELINE!r}) to compare with.")
    if not clips or len(set(clips)) != len(clips):
        raise InputError(f"only {len(set(clips))} of {len(clips)} clips are different: give each (prompt, seed) once.")
    return Plan(conditions, clips, whole_batch_size(batch_size))


@guarded
def merge(conditions: Sequence[Condition], n_layers: int) -> Iterator[Intervention]:
    """Return the interventions of a batch whose row i belongs to `conditions[i]`.

    Conditions that only add plain vectors are merged into one addition per site and layer, with one vector per row, so
    that a decoder step costs the same for any number of conditions. Other conditions keep their interventions.
    """
    added: dict[tuple[Site, Branch, Span | None, bool], dict[int, torch.Tensor]] = {}
    others: dict[str, list[int]] = {}
    for row, condition in enumerate(conditions):
        additions = [step for step in condition.interventions if _plain(step)]
        if len(additions) < len(condition.interventions):
            others.setdefault(condition.name, []).append(row)
            continue
        for step in additions:
            vector = torch.as_tensor(step.strength, device="cpu") * _masked(step)
            for site in resolve(step.site, step.layers, hooks=_BLOCK, model_hooks=_WHOLE, n_layers=n_layers):
                if vector.ndim == 1 and len((_WHOLE if site.layer is None else _BLOCK)[site.hook].form.axes) > 3:
                    # At such a site, a step has one vector per head or codebook, and the same vector is added to all.
                    vector = vector[None]
                rows = added.setdefault((site, step.branch, step.seconds, step.prefix), {})
                rows[row] = rows[row] + vector if row in rows else vector
    for (site, branch, seconds, prefix), rows in added.items():
        vectors = torch.stack(torch.broadcast_tensors(*rows.values()))
        yield Add(vectors, rows=list(rows), site=site.name, branch=branch, seconds=seconds, prefix=prefix)
    for rows_here in others.values():
        for step in conditions[rows_here[0]].interventions:
            yield replace(step, rows=rows_here)


def _masked(step: Add) -> torch.Tensor:
    """Return the vector, or one vector for every head, of which those of heads that are not named are 0."""
    vector = torch.as_tensor(step.vector, device="cpu")
    if vector.ndim == 1:
        return vector
    named = torch.zeros(vector.shape[1], 1, device="cpu")
    named[slice(None) if step.heads is None else list(step.heads)] = 1
    return vector[0] * named


def _plain(step: Intervention) -> TypeGuard[Add]:
    return (
        type(step) is Add
        and (
            (torch.as_tensor(step.vector, device="cpu").ndim == 1 and step.heads is None)
            or torch.as_tensor(step.vector, device="cpu").shape[:-2] == (1,)
        )
        and step.schedule is None
        and not step.preserve_norm
        and step.gate is None
    )
