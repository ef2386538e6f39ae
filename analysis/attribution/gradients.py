"""Compute a metric's gradient with respect to the activations at all sites in one forward and one backward pass.

A tensor of zeros is added at each site, and the metric is differentiated with respect to that tensor. This also works
for values that are not tensors of the model, such as one head's part or a recomputed attention pattern. The zeros leave
every path through the model intact. For a family without a text mask (MusicGen Melody), all prompts must have the same
length in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.errors import InputError
from audiolens.lens import AudioLens

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function of (logits "row codebook step vocab", codes) that returns "row codebook", or one number per row."""


@dataclass(frozen=True, eq=False)
class Pass:
    """The results of one pass: activations and the metric's gradients by full site name, and the metric itself.

    Gradients have the axes "codebook row ...". The codebook axis has length 1 if the metric was summed over codebooks.
    """

    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    scores: Float[Tensor, "row codebook"]


def backward(
    lens: AudioLens,
    prompts: Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    sites: Sequence[str],
    metric: Metric,
    *,
    text_states: Float[Tensor, "row token d_model"] | None = None,
    per_codebook: bool = False,
) -> Pass:
    """Return the activations at all sites, and the gradients of the metric with respect to them.

    Args:
        sites: full names, in the model's order.
        metric: the function to differentiate, summed over codebooks.
        per_codebook: differentiate each codebook's metric separately, at the cost of one backward pass per codebook.
        text_states: text states that the decoder attends to instead of those of the prompts.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() is active, but attribution needs gradients: leave this mode first.")
    names = list(sites)
    extra = [] if text_states is None or "hook_text_states" in names else ["hook_text_states"]
    with torch.enable_grad(), lens.trace(list(prompts), codes=codes) as tracer:
        values, zeros = nnsight.save({}), []
        for name in (*extra, *names):
            place = lens.site(name)
            value = place.value
            if name == "hook_text_states" and text_states is not None:
                value = text_states.to(value)
            zero = torch.zeros_like(value, requires_grad=True)
            place.value = value + zero
            values[name] = value.detach()
            zeros.append(zero)
        scores = nnsight.save(scored(metric, tracer.result, codes))
        summed = list(scores.unbind(-1)) if per_codebook else [scores]
        found = nnsight.save(
            [
                torch.autograd.grad(part.sum(), zeros, retain_graph=place + 1 < len(summed), materialize_grads=True)
                for place, part in enumerate(summed)
            ]
        )
    stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
    gradients = dict(zip((*extra, *names), stacked, strict=True))
    return Pass({name: values[name] for name in names}, {name: gradients[name] for name in names}, scores.detach())


def scored(metric: Metric, logits: Tensor, codes: Tensor) -> Float[Tensor, "row codebook"]:
    """Return the metric as "row codebook". The codebook axis has length 1 if the metric gives one number per row.

    Raises:
        InputError: if the metric returns another shape, or NaN.
    """
    scores = metric(logits, codes)
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != len(codes):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"metric returned {found} for {len(codes)} rows; expected a tensor 'row codebook', or one number per row."
        )
    shaped = scores if scores.ndim == 2 else scores[:, None]
    lost = shaped.detach().isnan().any(-1)
    if bool(lost.any()):
        raise InputError(f"metric returned NaN for row {int(lost.nonzero()[0])}; expected a number for each row.")
    return shaped
