"""One forward and one backward pass: a metric's gradient with respect to the activations at every site at once.

A zero is added at each site and the metric differentiated by it: that reaches what is no tensor of the model's own (a
head's part, a recomputed pattern) as well as what is, and leaves every path through the model whole. Prompts of a
family without a text mask (MusicGen Melody) must be of one length in tokens.
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
"""(logits "row codebook step vocab", codes) -> "row codebook", or one number a row."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass gave: activations by full site name, the metric's gradients there ("codebook row ...", the
    codebook axis of length 1 for their sum), and the metric itself."""

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
    """Activations, and gradients of the metric with respect to them.

    Args:
        sites: full names, in the model's order.
        metric: summed over codebooks unless `per_codebook`, which costs a backward pass a codebook.
        text_states: what the decoder attends to in place of the prompts' own states.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("gradients are asked for inside torch.inference_mode(), which keeps none: leave it first.")
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
    """The metric with its codebook axis, of length 1 where it gives one number a row.

    Raises:
        InputError: for a metric that gives anything else, NaN among it.
    """
    scores = metric(logits, codes)
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != len(codes):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"metric: gave {found} for {len(codes)} rows; expected a tensor 'row codebook', or one number a row."
        )
    shaped = scores if scores.ndim == 2 else scores[:, None]
    lost = shaped.detach().isnan().any(-1)
    if bool(lost.any()):
        raise InputError(f"metric: gave NaN for row {int(lost.nonzero()[0])}; expected a number for each.")
    return shaped
