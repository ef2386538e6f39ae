"""Steer only while a trait is missing: `gate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from audiolens.checks import checked_amount, shown, whole_number
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer, steered_blocks
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError
from audiolens.gates import Gate
from audiolens.interventions import Add, Clamp, Intervention, Numbers
from audiolens.model.provenance import Provenance
from audiolens.model.timeline import Real

OPEN_BELOW, CLOSED_FROM = 0.8, 1.0
"""The default levels at which a gate opens and closes, relative to the poles of the probe."""
LEAST_COSINE = 0.02
"""The smallest cosine between directions and probe from which the pole that is steered towards is known."""
SMOOTHING = 0.5
"""The default time constant of the level, in seconds."""


@guarded
def gate(
    directions: Directions,
    probe: Directions | None = None,
    threshold: Real = OPEN_BELOW,
    release: Real | None = None,
    strength: Numbers = 1.0,
    smoothing: Real = SMOOTHING,
    probe_layer: int | None = None,
    **steering: Any,
) -> list[Intervention]:
    """Return interventions that steer along directions only while the music lacks the pole that they steer towards.

    At every step, and separately in every row, the activation is projected onto the probe's vector. The level of the
    trait is 0 if the projection is that of the mean of the probe's opposite pole, and 1 if it is that of the mean of
    the pole that is steered towards. A row is steered from the step at which its level falls below `threshold` until
    the step at which it reaches `release`. The level is read in the conditional branch, before the first change of the
    same forward pass. It is a running average, so that single steps do not decide. Self-monitored steering is due to
    SMITIN (Koo et al., 2024), which reads probes of heads.

    The level shows what the probe reads, which need not be what is heard. `made.gates` of the generated clips states at
    which steps the gate of each row was open. A clip that is generated in windows begins each of them with a closed
    gate, and reads the overlap.

    The level of the pole that is steered towards follows from the sign of the strength and from whether the directions
    and the probe point the same way (the sign of the cosine between the probe's vector and the first that is added).

    Args:
        directions: what to steer along, as in `steer`.
        probe: directions whose samples define the level (default: `directions`). They must have been read with
            `keep_samples=True`, over the music of their own poles: on shared codes, only the text differs between the
            poles, so a probe would read the prompt instead of the music.
        threshold: the level below which steering begins.
        release: the level from which on steering pauses (default: `threshold` + 0.2).
        strength: as in `steer`; if several strengths are given, all must have the same sign.
        smoothing: the time constant of the running average, in seconds; 0 reads each step by itself.
        probe_layer: the block of the probe (default: its last block that is not after the first block that changes).
        steering: further arguments of `steer`, such as `strategy`, `layer` and `seconds`, but not `operator="ablate"`,
            which would remove what is missing.

    Raises:
        InputError: (or a subclass) if the probe has no samples, does not read the music of its poles in the conditional
            branch, does not separate its poles, is orthogonal to the directions, points the other way
            although it has their label, or would be read after the first
            change, or if a level or an argument of `steer` is invalid.
    """
    if steering.get("operator") == "ablate":
        raise InputError(
            "operator='ablate' with a gate would remove a trait while it is missing: use 'add' or 'clamp'."
        )
    probe = directions if probe is None else probe
    for one in (directions, probe):
        if isinstance(one, Directions) and one.meta.n_heads:
            raise InputError(
                f"{shown(one.meta.label)} was read at {one.meta.site}, which has heads, and a gate needs one "
                "vector per step: give directions of another site."
            )
    steps = steer(directions, strength=strength, **steering)
    threshold = checked_amount("threshold", threshold)
    release = threshold + CLOSED_FROM - OPEN_BELOW if release is None else checked_amount("release", release)
    layer = _layer(probe, steps, probe_layer)
    same = bool(probe.meta.label) and probe.meta.label == directions.meta.label
    level = _Level.of(probe, layer)
    if _sign(strength) * _orientation(steps, probe[layer], same=same) < 0:
        level = level.of_the_other_pole()
    condition = Gate(
        weights=level.weights, offset=level.offset, site=probe.meta.site, layer=level.layer, threshold=threshold,
        release=release, smoothing=smoothing, meta=probe.meta,
    )  # fmt: skip
    return [replace(step, gate=condition) for step in steps]


@dataclass(frozen=True, eq=False)
class _Level:
    """The level of a trait as a linear function of an activation: 0 at the mean of one pole, and 1 at the other's."""

    weights: Tensor
    offset: float
    layer: int

    @classmethod
    def of(cls, probe: Directions, layer: int) -> _Level:
        why = _unfit(probe.meta)
        if why:
            raise InputError(
                f"the probe {shown(probe.meta.label)} {why}: give probe=, directions read with codes='own' and "
                "keep_samples=True."
            )
        if probe.samples is None:
            raise InputError(
                f"the probe {shown(probe.meta.label)} has no samples, which define its level: read it with "
                "keep_samples=True, or give another probe=."
            )
        values, labels = probe.samples.values[probe.samples.layers.index(layer)].double(), probe.samples.labels
        weights = probe[layer].double()
        positive, negative = (float(values[mask].mean(0) @ weights) for mask in (labels, ~labels))
        if not positive > negative:
            raise InputError(
                f"the probe {shown(probe.meta.label)} does not separate its poles at layer {layer}: give another "
                "probe, or another probe_layer."
            )
        return cls((weights / (positive - negative)).float(), -negative / (positive - negative), layer)

    def of_the_other_pole(self) -> _Level:
        return replace(self, weights=-self.weights, offset=1 - self.offset)


def _unfit(meta: Provenance) -> str:
    """Return why the samples of a probe do not show the levels of music that is generated; an empty text if they do."""
    if "shared" in meta.source:
        return "was read over shared codes, so it reads the text and not the music"
    if meta.position in ("first", "eos"):
        return f"was read at position {meta.position!r}, where there is no music yet"
    if meta.branch != "cond":
        return f"was read in branch {meta.branch!r}, but a gate reads the conditional branch"
    return "includes the prefix, but a gate reads steps" if meta.prefix else ""


def _orientation(steps: Sequence[Intervention], weights: Tensor, *, same: bool) -> int:
    """Return whether the vectors that are added and the probe's vector point the same way (1) or not (-1).

    `same`: whether both have the same label. They should then point the same way, but the vectors of two blocks, or of
    the text and the music, need not.
    """
    cosine = cosine_with(steps, weights)
    if abs(cosine) < LEAST_COSINE:
        raise InputError(
            f"the probe and the directions are nearly orthogonal (cosine {cosine:.3f}), so the probe does not show to "
            "which pole is steered: give a probe of the same concept."
        )
    if same and cosine < 0:
        raise InputError(
            f"the probe and the directions have the same label but point opposite ways (cosine {cosine:.2f}), so it is "
            "unclear at which pole the level is 1: give another probe_layer, or a probe of another label."
        )
    return 1 if cosine > 0 else -1


def cosine_with(steps: Sequence[Intervention], weights: Tensor) -> float:
    """Return the cosine between the first vector that is added and a probe's vector."""
    first = steps[0]
    vector = first.vector if isinstance(first, Add) else first.direction if isinstance(first, Clamp) else weights
    return float(cosine_similarity(torch.as_tensor(vector).double(), weights.double(), dim=0))


def _sign(strength: Any) -> int:
    signs = set(torch.as_tensor(strength, device="cpu").sign().flatten().int().tolist()) - {0}
    if len(signs) > 1:
        raise InputError(
            "strength has values of both signs, which steer towards different poles: make one gate for each sign, "
            "with rows=."
        )
    return signs.pop() if signs else 1


def _layer(probe: Directions, steps: list[Intervention], given: Any) -> int:
    """Return the block at which the probe is read."""
    if given is not None:
        try:
            number = whole_number(given)
        except TypeError:
            raise InputTypeError(f"probe_layer={shown(given)}: expected a layer number.") from None
        if number not in probe:
            raise SiteError(f"probe_layer={number}: the probe has layers {', '.join(map(str, probe.layers))}.")
        return number % probe.meta.n_layers
    changed = steered_blocks(steps)
    before = [layer for layer in probe.layers if layer <= min(changed)]
    if not before:
        raise SiteError(
            f"the probe has no vector at block {min(changed)}, the first that changes, or before: it has layers "
            f"{', '.join(map(str, probe.layers))}. Steer later blocks, or give another probe."
        )
    return before[-1]
