"""Choose the engine that generates a sweep's clips; see `audiolens.tracing.engines`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from analysis.sweep import ledger
from analysis.sweep.conditions import BASELINE, Plan
from analysis.sweep.planned import Used
from analysis.sweep.playing import Making
from audiolens.errors import AudioLensError, AudioLensWarning, InputError
from audiolens.model.tokens import tell_unread
from audiolens.tracing import fast_clips
from audiolens.tracing.engines import Engine, checked_engine

if TYPE_CHECKING:
    from audiolens import AudioLens

SAMPLE = 8
"""Number of unsteered rows, and of steered ones, that are generated with both engines to compare them."""
LEAST = 64
"""A sweep of fewer clips would lose more time by the comparison than the fast engine saves."""
Facts = Callable[[Used], Mapping[str, Any]]
_COMPARED: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Used]] = WeakKeyDictionary()
"""The outcome of comparisons, by model and by the settings with which its clips were compared."""


def chosen(
    lens: AudioLens, plan: Plan, making: Making, engine: Engine, out: str | os.PathLike[str] | None, facts: Facts
) -> Used:
    """Return the engine for a sweep. A sweep that has begun in a folder keeps its engine.

    With "auto", rows of the sweep's first unsteered and first steered batch are generated with both engines, once per
    model and settings. The fast engine is chosen if all their codes are equal. `facts` returns the description of the
    sweep with an engine.

    Raises:
        InputError: if there is no such engine, or if the sweep was begun with a different one or with one that cannot
            be used now.
    """
    engine = checked_engine(engine)
    begun = None if out is None else ledger.engine_of(out, facts)
    if begun is not None and engine not in ("auto", begun):
        raise InputError(f"{out} was begun with engine={begun!r}: use it or 'auto', or choose another folder.")
    unfit = fast_clips.refusal(lens.traced_model)
    if begun == "fast" and unfit:
        raise InputError(
            f"{out} was begun with the fast engine, which cannot be used now, because {unfit}. Undo this, or choose "
            "another folder."
        )
    if begun is not None:
        return begun
    if engine != "auto":
        return engine
    return "exact" if unfit or len(plan) < LEAST else _compared(lens, plan, making)


def _compared(lens: AudioLens, plan: Plan, making: Making) -> Used:
    found = _COMPARED.setdefault(lens.model, {})
    settings = (lens.traced_model.dtype, lens.device, making.guidance_scale, making.temperature, making.top_k)
    if settings not in found:
        steered = next((batch for batch in plan.batches if batch[0][0].name != BASELINE), ())
        rows = [*plan.batches[0][:SAMPLE], *steered[:SAMPLE]]
        tell_unread()
        with warnings.catch_warnings():
            # The sweep generates these rows again, and then warns.
            warnings.simplefilter("ignore", AudioLensWarning)
            exact = replace(making, engine="exact").generate(lens, plan, rows).codes
            try:
                equal = torch.equal(exact, replace(making, engine="fast").generate(lens, plan, rows).codes)
            except AudioLensError:
                # The exact engine generated these rows, so it also generates the others.
                equal = False
        found[settings] = "fast" if equal else "exact"
    return found[settings]
