"""One random stream per row, so that a clip is drawn from its own seed and never from its batch.

The sampler does guidance, temperature, top-k and the draw in one logits processor. The draw is the exponential
race (Gumbel-max): the largest of `logits / temperature - log(e)`, with `e` exponential noise from the row's own
stream. Two rows with one seed therefore share their noise, and a steered clip stays paired with its baseline:
codes differ only where the logits moved past the noise.

transformers appends its own guidance after a caller's processors, so under guidance the sampler returns its
scores twice, which makes that guidance the identity; and it runs greedily, so that the largest score wins.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from audiolens.checks import in_order
from audiolens.errors import InputError, InputTypeError
from audiolens.families import LensConfig
from audiolens.timeline import Real


class RowStreams:
    """Exponential noise for a batch, each row from a generator seeded with its own seed."""

    def __init__(self, seeds: Sequence[int], n_codebooks: int, vocab_size: int) -> None:
        # On the CPU whatever the model's device: a seed then names the same stream everywhere.
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.shape = (n_codebooks, vocab_size)

    def draw(self) -> Float[Tensor, "row codebook vocab"]:
        """The next step's noise."""
        noise = torch.empty(len(self.generators), *self.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return noise.clamp_min_(torch.finfo(noise.dtype).tiny)


class Forbid(LogitsProcessor):
    """Codes whose logit is -inf, in whichever branch, are not drawn; nothing else is changed.

    Guidance alone would make them NaN, null + (cond - null) x scale, and NaN is what the largest score then is.
    """

    def __call__(
        self, input_ids: Int[Tensor, "sequence column"], scores: Float[Tensor, "branch_sequence vocab"]
    ) -> Float[Tensor, "branch_sequence vocab"]:
        branches = scores.unflatten(0, (-1, input_ids.shape[0]))
        forbidden = branches.isneginf().any(0)
        return branches.masked_fill(forbidden, torch.finfo(scores.dtype).min).flatten(0, 1)


class RowSampler(LogitsProcessor):
    """Guidance, temperature, top-k and the draw, for `generate(do_sample=False)`.

    Scores come as transformers has them, rows and codebooks in one axis, conditional rows first. `temperature=0`
    takes the largest logit.
    """

    def __init__(
        self,
        streams: RowStreams,
        *,
        guidance_scale: float,
        temperature: float,
        top_k: int | None,
    ) -> None:
        self.streams = streams
        self.guidance_scale = guidance_scale
        self.temperature = temperature
        self.top_k = top_k

    def __call__(
        self, input_ids: Int[Tensor, "sequence column"], scores: Float[Tensor, "branch_sequence vocab"]
    ) -> Float[Tensor, "branch_sequence vocab"]:
        guided = scores.shape[0] == 2 * input_ids.shape[0]
        if guided:
            cond, null = scores.chunk(2)
            merged = null + (cond - null) * self.guidance_scale
        else:
            merged = scores
        if self.temperature > 0:
            noise = self.streams.draw().to(merged.device, non_blocking=True)
            merged = merged / self.temperature
            if self.top_k and self.top_k < merged.shape[-1]:
                least = merged.topk(self.top_k).values[..., -1:]
                merged = merged.masked_fill(merged < least, torch.finfo(merged.dtype).min)
            merged = merged - rearrange(noise, "row codebook vocab -> (row codebook) vocab").log()
        if not guided:
            return merged
        # -inf would turn transformers' own guidance, x + (x - x), into NaN.
        merged = merged.clamp_min(torch.finfo(merged.dtype).min)
        return torch.cat([merged, merged])


def sampling_arguments(
    seeds: Sequence[int] | None, config: LensConfig, guidance_scale: Real, temperature: Real, top_k: int | None
) -> dict[str, Any]:
    """How `generate` guides and draws a batch: transformers' own sampler, or one stream per row."""
    if seeds is None:
        own = {"temperature": float(temperature), "top_k": top_k or 0} if temperature > 0 else {}
        return {"do_sample": temperature > 0, "guidance_scale": float(guidance_scale), **own}
    sampler = RowSampler(
        RowStreams(seeds, config.n_codebooks, config.vocab_size),
        guidance_scale=float(guidance_scale),
        temperature=float(temperature),
        top_k=top_k,
    )
    return {
        "do_sample": False,
        "guidance_scale": float(guidance_scale),
        "logits_processor": LogitsProcessorList([sampler]),
    }


def checked_seeds(seeds: int | Sequence[int] | None, rows: int) -> list[int] | None:
    """One seed per row: a single seed is every row's, `None` stays `None` (transformers' own sampler)."""
    if seeds is None:
        return None
    try:
        listed = [seeds] * rows if isinstance(seeds, int) else list(in_order("seeds", seeds, "seeds"))
    except InputTypeError:
        raise InputTypeError(f"seeds={seeds!r}: expected a whole number, or one per prompt, in order.") from None
    if len(listed) != rows:
        raise InputError(f"{len(listed)} seeds for {rows} rows: give one seed per prompt, or a single one for all.")
    for seed in listed:
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise InputTypeError(f"seed {seed!r}: expected a whole number.")
        # torch seeds its generator with 32 bits, and takes the rest without a word.
        if not 0 <= int(seed) < 2**32:
            raise InputError(f"seed {seed}: expected 0 <= seed < 2**32.")
    return [int(seed) for seed in listed]


def checked_settings(guidance_scale: Real, temperature: Real, top_k: int | None) -> None:
    """Refuse settings that transformers would ignore in silence or fail on late."""
    for name, value in {"guidance_scale": guidance_scale, "temperature": temperature}.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputTypeError(f"{name}={value!r}: expected a number.")
    if not math.isfinite(guidance_scale) or guidance_scale < 1:
        raise InputError(f"guidance_scale={guidance_scale}: expected a finite number of at least 1 (1 is no guidance).")
    if not math.isfinite(temperature) or temperature < 0:
        raise InputError(f"temperature={temperature}: expected a finite number of at least 0 (0 is greedy).")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
        raise InputError(f"top_k={top_k!r}: expected a positive whole number, or 0 or None for all codes.")
