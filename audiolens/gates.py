"""A gate: a condition, read from the run itself at every step, under which an intervention acts.

A gate is part of an intervention (`Intervention.gate`). A run binds it to its batch (`tracing/bound_gate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from audiolens.checks import checked_amount, shown, whole_number
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.model.provenance import Provenance
from audiolens.tensors import finite


@guarded
@dataclass(frozen=True, eq=False, kw_only=True)
class Gate:
    """Let an intervention act only while a trait is missing.

    At every step, the level of a row is `weights @ x + offset`. Here x is the activation of the conditional branch at
    `site` of block `layer`, before any intervention there. The level is averaged over the steps so far with weights
    that decay exponentially into the past. The gate of a row opens when its level falls below `threshold`, and closes
    when it reaches `release`. In between, it stays as it is. A clip begins with a closed gate, and so does each window
    of a clip that is generated in windows. Both guidance branches follow the conditional one.

    The intervention must come after the site that the gate reads, or be at the same site, so that the level and the
    change belong to the same forward pass. With and without a key-value cache, the clips are therefore the same.

    Attributes:
        weights: the weights of the level, "d_model".
        offset: the offset of the level.
        site: the name of the site to read, which must have steps and one vector per step.
        layer: the block to read.
        threshold: the level below which the gate opens.
        release: the level from which on the gate closes, at least `threshold`.
        smoothing: the time constant of the average, in seconds; 0 reads each step by itself.
        meta: the provenance of the weights. A run of another model then raises an error.

    Raises:
        InputTypeError, InputError: if the weights are not a vector of finite numbers, or a number is invalid.
    """

    weights: Any
    offset: float = 0.0
    site: str = "resid_post"
    layer: int
    threshold: float = 0.0
    release: float | None = None
    smoothing: float = 0.0
    meta: Provenance | None = None

    def __post_init__(self) -> None:
        weights = finite("weights", self.weights)
        if weights.ndim != 1:
            raise InputError(f"weights of shape {tuple(weights.shape)}: expected one vector.")
        object.__setattr__(self, "weights", weights)
        if not isinstance(self.site, str):
            raise InputTypeError(f"site={shown(self.site)}: expected the name of one site.")
        try:
            object.__setattr__(self, "layer", whole_number(self.layer))
        except TypeError:
            raise InputTypeError(f"layer={shown(self.layer)}: expected a layer number.") from None
        for name in ("offset", "threshold"):
            object.__setattr__(self, name, checked_amount(name, getattr(self, name)))
        release = self.threshold if self.release is None else checked_amount("release", self.release)
        if release < self.threshold:
            raise InputError(f"release={release:g}: expected at least the threshold, {self.threshold:g}.")
        object.__setattr__(self, "release", release)
        smoothing = checked_amount("smoothing", self.smoothing)
        if smoothing < 0:
            raise InputError(f"smoothing={smoothing:g}: expected at least 0 seconds.")
        object.__setattr__(self, "smoothing", smoothing)
