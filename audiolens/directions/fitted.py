"""What an estimator found at one layer, and how the vectors and the evidence of all layers are made from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from audiolens.directions.directions import Directions
from audiolens.directions.evidence import LEVEL, Evidence, measured
from audiolens.directions.heads import heads_of
from audiolens.directions.labelling import Target
from audiolens.directions.permutation import N_SHUFFLES, permutation_test
from audiolens.directions.samples import Samples, by_pole
from audiolens.errors import InputError
from audiolens.model.provenance import prompts_hash
from audiolens.ranking import auc
from audiolens.vectors import unit


@dataclass(frozen=True, eq=False)
class Fitted:
    """A vector of any length and sign, or (if `exact`) the direction itself.

    `predictor` returns a score of samples, for estimators that are not linear. `share` is `Evidence.share`. `notes` are
    the settings that were chosen.
    """

    vector: Float[Tensor, " d_model"]
    exact: bool = False
    predictor: Callable[[Tensor], Tensor] | None = None
    share: float | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


Fit = Callable[..., Fitted]
"""A function of one layer's samples "prompt d_model", their labels, and the options of the estimator."""


def estimated(
    samples: Samples, target: Target, fit: Callable[[Tensor, Target], Fitted], *, name: str, least: int, curve: bool
) -> Directions:
    """Fit every layer, and return the directions with their evidence.

    Vectors point towards the positive group. Unless a fit is exact, they are scaled to the length of the difference in
    means along them, so that a strength of 1 is the same step for every estimator. If the means coincide within chance,
    an estimator that is not linear scales them to twice the standard deviation of the samples along them instead.
    At a site with heads, every head is fitted by itself.

    Args:
        least: the samples per group that a fit needs.
        curve: also fit the first 1, 2, 4, ... samples, for `Evidence.stability`.
    """
    meta, norms = samples.meta, samples.residual_norms
    if meta is None or norms is None:
        raise InputError(
            "these samples do not state how they were read: use those of directions read with keep_samples=True, or "
            "give Samples(..., meta=, residual_norms=)."
        )
    lost = (~torch.isfinite(samples.values)).any(-1).nonzero()
    if len(lost):
        layer, row = samples.layers[int(lost[0, 0])], int(lost[0, 1])
        raise InputError(f"sample {row} has NaN or infinite values at layer {layer}: leave it out.")
    if meta.n_heads:
        fit = _each_head(fit, meta.n_heads)
    means = permutation_test(replace(samples, labels=target.positive), N_SHUFFLES, 0)
    fits = [fit(layer, target) for layer in samples.values]
    tested = means.least_p <= LEVEL
    apart = [not tested or float(p) <= LEVEL for p in means.p]
    layers = zip(fits, samples.values, apart, strict=True)
    vectors = torch.stack([_oriented(one, layer, target, apart=differ) for one, layer, differ in layers])
    if not vectors.any():
        raise InputError(f"the direction of {name!r} is 0 at every layer, because the samples of both sides are equal.")
    notes = {key: ", ".join(f"{one.notes[key]:g}" for one in fits) for key in fits[0].notes}
    try:
        evidence = _evidence(samples, target, fit, least, curve, apart)
    except InputError:
        # All samples were fitted with the same options, so a half has too few prompts.
        evidence = None
    if evidence is not None:
        shares = [one.share for one in fits]
        share = None if None in shares else torch.tensor(shares, dtype=torch.float32, device="cpu")
        evidence = replace(evidence, means_p=means.p.float() if tested else None, share=share)
    positive = int(target.positive.sum())
    prompts = meta.prompts
    if not torch.equal(target.positive, samples.labels):
        # The groups are not the poles that were read.
        prompts = prompts_hash(*by_pole(samples.prompts, target.positive))
    return Directions(
        vectors=vectors,
        layers=samples.layers,
        residual_norms=norms,
        meta=replace(
            meta, estimator=name, options={**meta.options, **notes}, prompts=prompts,
            n_prompts=(positive, len(target.positive) - positive),
        ),
        evidence=evidence,
        # What is computed from the samples later, such as shuffles, must be of the same two groups.
        samples=replace(samples, labels=target.positive),
        heads=heads_of(samples, target, vectors, meta.n_heads) if meta.n_heads else None,
    )  # fmt: skip


def _each_head(fit: Callable[[Tensor, Target], Fitted], n_heads: int) -> Callable[[Tensor, Target], Fitted]:
    """Return a fit of a layer that fits every head, and puts the vectors one after the other."""

    def fitted(values: Tensor, target: Target) -> Fitted:
        heads = rearrange(values, "prompt (head d) -> head prompt d", head=n_heads)
        return Fitted(torch.cat([_oriented(fit(one, target), one, target, apart=True) for one in heads]), exact=True)

    return fitted


def _oriented(fitted: Fitted, values: Float[Tensor, "prompt d_model"], target: Target, *, apart: bool) -> Tensor:
    """Return the vector of one layer, in the direction and with the length that `estimated` states."""
    if fitted.exact:
        return fitted.vector.float()
    along = unit(fitted.vector.double())
    projected = values.double() @ along
    step = projected[target.positive].mean() - projected[~target.positive].mean()
    if fitted.predictor is not None and not apart:
        sign = torch.sign(((projected - projected.mean()) * target.outputs[:, target.output]).mean())
        step = 2 * projected.std() * (1.0 if float(sign) == 0 else sign)
    return (along * step).float()


def _evidence(
    samples: Samples,
    target: Target,
    fit: Callable[[Tensor, Target], Fitted],
    least: int,
    curve: bool,
    apart: list[bool],
) -> Evidence | None:
    divided = target.halves()
    if divided is None:
        return None
    first, second = divided
    most = min(_sizes(target, first))
    if min(most, *_sizes(target, second)) < least:
        return None

    def fitted(rows: list[int]) -> tuple[list[Fitted], Tensor]:
        mine = target.rows(rows)
        found = [fit(layer, mine) for layer in samples.values[:, rows]]
        layers = zip(found, samples.values[:, rows], apart, strict=True)
        return found, torch.stack([_oriented(one, layer, mine, apart=differ) for one, layer, differ in layers])

    # A half contains every sample of the larger group, not only as many as of the smaller.
    fits, direction = fitted(first)
    counts = [count for count in (2**power for power in range(20)) if least <= count < most] if curve else []
    early = {count: fitted(target.early(first, count))[1] for count in counts}
    early[most] = direction
    held, positive = samples.values[:, second], target.positive[second]
    side, prompts = positive.numpy(), target.groups[second]
    scores = torch.einsum("lpd,ld->lp", held.double(), unit(direction.double()))
    # Where the means coincide, a direction has no sign, so the two halves are given the same one.
    other = fitted(second)[1]
    signless = [one.predictor is not None and not differ for one, differ in zip(fits, apart, strict=True)]
    turned = torch.tensor(signless, device="cpu") & ((other * direction).sum(-1) < 0)
    other = torch.where(turned[:, None], -other, other)
    found = measured(
        scores[:, positive], scores[:, ~positive], direction.double(), other.double(),
        {count: one.double() for count, one in early.items()}, np.concatenate([prompts[side], prompts[~side]]),
    )  # fmt: skip
    if any(one.predictor is None for one in fits):
        return found
    areas: list[float] = []
    for one, layer in zip(fits, held, strict=True):
        assert one.predictor is not None
        guess = one.predictor(layer)
        areas.append(float(auc(guess[positive].numpy(), guess[~positive].numpy())))
    return replace(found, predictor_auc=torch.tensor(areas, dtype=torch.float32, device="cpu"))


def _sizes(target: Target, rows: list[int]) -> tuple[int, int]:
    positive = int(target.positive[rows].sum())
    return positive, len(rows) - positive
