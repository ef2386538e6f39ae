"""Steer only while a trait is missing: `gate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from audiolens.checks import checked_amount, shown, whole_number
from audiolens.directions.directions import Directions
from audiolens.directions.samples import Samples, by_pole
from audiolens.directions.steering import steer, steered_blocks
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError
from audiolens.gates import Gate
from audiolens.interventions import Add, Clamp, Intervention, Numbers
from audiolens.model.provenance import Provenance, prompts_hash
from audiolens.model.timeline import Real

OPEN_BELOW, CLOSED_FROM = 0.8, 1.0
"""The default levels at which a gate opens and closes, relative to the poles of the probe."""
LEAST_COSINE = 0.02
"""The smallest cosine between directions and probe from which the pole that is steered towards is known."""
_SCALED = re.compile(r"(?:-|unit|-?[\d.]+(?:e[-+]?\d+)? \* )\((.*)\)", re.DOTALL)
"""The labels of directions that were scaled."""
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

    The pole that is steered towards follows from the sign of the strength and from the prompts: if the directions and
    the probe were read from the same poles, possibly exchanged, they say which pole is which, also for `-d`, `d.unit()`
    and `2 * d`. One of the two can be from the first of these prompts alone, if the other has samples. If the prompts
    do not say it, the sign of the cosine between the probe's vector and the first that is added does. In the first
    blocks, a direction over shared codes and a probe of the music can point opposite ways although their poles are the
    same, so that for directions over shared codes the prompts have to say it.

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
            branch, does not separate its poles, or would be read after the first change; if neither the prompts nor
            the vectors show to which of the probe's poles the directions point; or if a level or an argument of `steer`
            is invalid.
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
    level = _Level.of(probe, layer)
    towards = _by_prompts(directions, probe) or _by_cosine(directions, probe, steps, layer)
    if _sign(strength) * towards < 0:
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


def _by_prompts(directions: Directions, probe: Directions) -> int:
    """Return 1 if directions point to the positive pole of a probe, -1 to the negative, 0 if their prompts do not say.

    A direction points to its positive pole by definition, and arithmetic records what it changes (`meta.sign`).
    """
    if _disagrees(directions):
        return 0
    return directions.meta.sign * (_pole(directions.meta, probe.samples) or _pole(probe.meta, directions.samples))


def _disagrees(directions: Directions) -> bool:
    """Return whether vectors point away from their own samples, as vectors that were replaced by hand can."""
    samples = directions.samples
    if samples is None:
        return False
    both = [layer for layer in directions.layers if layer in samples.layers]
    own = samples.difference()
    return any(float(directions[layer] @ own[samples.layers.index(layer)]) < 0 for layer in both)


def _pole(meta: Provenance, samples: Samples | None) -> int:
    """Return 1 if the positive pole that `meta` records is that of the samples, -1 if it is their negative one.

    The samples can be of more prompts. 0 if the prompts are others, or do not tell the poles apart.
    """
    if samples is None or not meta.prompts or None in samples.prompts:
        return 0
    positive, negative = by_pole(samples.prompts, samples.labels)
    n_positive, n_negative = meta.n_prompts
    same = meta.prompts == prompts_hash(positive[:n_positive], negative[:n_negative])
    exchanged = meta.prompts == prompts_hash(negative[:n_positive], positive[:n_negative])
    return int(same) - int(exchanged)


def _by_cosine(directions: Directions, probe: Directions, steps: Sequence[Intervention], layer: int) -> int:
    """Return whether the first vector that is added and the probe's vector point the same way (1) or not (-1).

    The vectors of two blocks, or of the text and the music, need not do so if their poles are the same.
    """
    if not directions.meta.sign:
        why = "are a combination or a control"
    elif _disagrees(directions):
        why = "point away from their own samples"
    else:
        why = "are not known to be from the probe's prompts"
    remedy = (
        "give a probe that was read from the prompts of the directions, and if the numbers of prompts differ, read the "
        "directions with keep_samples=True"
    )
    if "shared" in directions.meta.source:
        raise InputError(
            f"the directions {why}, and were read over shared codes, so that their vectors do not show at which pole "
            f"of the probe the level is 1: {remedy}."
        )
    first, weights = steps[0], probe[layer].double()
    vector = first.vector if isinstance(first, Add) else first.direction if isinstance(first, Clamp) else weights
    cosine = float(cosine_similarity(torch.as_tensor(vector).double(), weights, dim=0))
    if abs(cosine) < LEAST_COSINE:
        raise InputError(
            f"the directions {why}, and are nearly orthogonal to the probe (cosine {cosine:.3f}), so that the probe "
            f"does not show to which pole is steered: {remedy}."
        )
    label, expected = directions.meta.label, directions.meta.sign
    while label != probe.meta.label and (scaled := _SCALED.fullmatch(label)):
        label = scaled[1]
    if label and label == probe.meta.label and expected * cosine < 0:
        raise InputError(
            f"by their labels, the probe and the directions point {'the same way' if expected > 0 else 'opposite ways'}"
            f", but their cosine is {cosine:.2f}, and the directions {why}, so it is unclear where the level is "
            f"1: {remedy}, or give another probe_layer, or a probe of another label."
        )
    return 1 if cosine > 0 else -1


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
