"""Choose the engine that generates a sweep's clips; see `audiolens.tracing.engines`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from torch import nn

from analysis.sweep import ledger
from analysis.sweep.conditions import BASELINE, Plan
from analysis.sweep.playing import Making
from audiolens.errors import InputError
from audiolens.tracing import fast_clips
from audiolens.tracing.engines import Engine, checked_engine

if TYPE_CHECKING:
    from audiolens import AudioLens

SAMPLE = 8
"""Number of unsteered rows, and of steered ones, that are generated with both engines to compare them."""
LEAST = 64
"""A sweep of fewer clips would lose more time by the comparison than the fast engine saves."""
_Used = Literal["exact", "fast"]
_COMPARED: WeakKeyDictionary[nn.Module, _Used] = WeakKeyDictionary()
"""The outcome of the comparison, by model."""


def chosen(lens: AudioLens, plan: Plan, making: Making, engine: Engine, out: str | os.PathLike[str] | None) -> _Used:
    """Return the engine for a sweep. A sweep that has begun in a folder keeps its engine.

    With "auto", rows of the sweep's first unsteered and first steered batch are generated with both engines, once per
    model. The fast engine is chosen if all their codes are equal.

    Raises:
        InputError: if there is no such engine, or if the sweep was begun with a different one.
    """
    engine = checked_engine(engine)
    begun = None if out is None else ledger.engine_of(out)
    if begun is not None and engine not in ("auto", begun):
        raise InputError(f"{out} was begun with engine={begun!r}: use it or 'auto', or choose another folder.")
    if begun is not None:
        return begun
    if engine != "auto":
        return engine
    if len(plan) < LEAST or fast_clips.refusal(lens.traced_model):
        return "exact"
    if lens.model not in _COMPARED:
        steered = next((batch for batch in plan.batches if batch[0][0].name != BASELINE), ())
        rows = [*plan.batches[0][:SAMPLE], *steered[:SAMPLE]]
        made = replace(making, engine="auto").generate(lens, plan, rows)
        _COMPARED[lens.model] = "fast" if made.settings["engine"] == "fast" else "exact"
    return _COMPARED[lens.model]
