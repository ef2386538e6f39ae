"""Sample codes with noise that depends on a row's own seed and step, so that a clip does not depend on its batch.

One logits processor applies guidance, temperature and top-k, and draws the codes. It draws by an exponential race
(Gumbel-max): it takes the code with the largest `logits / temperature - log(e)`, with exponential noise `e` of the
row's seed and step (`noise.py`). Two rows with the same seed therefore share their noise. This pairs a steered clip
with its baseline: their codes differ only where the change in the logits outweighs the noise.

transformers applies its own guidance after a caller's processors. Under guidance, the sampler therefore returns its
scores once per branch, so that transformers' guidance does not change them. transformers decodes greedily and therefore
takes the largest score.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from audiolens.checks import MOST, checked_amount, checked_seed, one_or_listed, real_number, shown, whole_number
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.model.config import LensConfig
from audiolens.model.families.family import Half
from audiolens.model.timeline import Real
from audiolens.model.traced_model import TracedModel
from audiolens.tracing.noise import RowNoise

SECONDS = 4.0
"""The length of a clip in seconds, if no length is given."""
MOST_GUIDANCE = 1e6
TEMPERATURES = (1e-6, 1e6)
"""Within these limits, guided logits divided by a temperature stay finite in float32, the dtype in which transformers
draws codes."""

_ASKED = frozenset(("do_sample", "temperature", "top_k", "guidance_scale", "max_length", "max_new_tokens", "use_cache"))
"""Settings of transformers' `generate` that the lens passes explicitly in every call."""
_KEPT = frozenset(("pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"))
"""Settings that describe the model rather than how it samples."""
_RETURNED = frozenset(("return_dict_in_generate", "output_scores", "output_logits"))
"""Settings that control what `generate` returns, which the lens does not use."""


@guarded
@dataclass(frozen=True)
class Sampling:
    """The sampling arguments, combined in one object: `lens.generate(prompts, sampling=Sampling(temperature=0.9))`.

    `seconds` is the length of the clips. `None` leaves the length to the function that generates the clips.

    Raises:
        InputTypeError, InputError: on creation, if a setting has the wrong type or is out of range.
    """

    guidance_scale: Real = 3.0
    temperature: Real = 1.0
    top_k: int | None = 250
    seconds: Real | None = None
    _open: ClassVar = ("seconds",)
    """Fields that may also be given as loose arguments, if they are `None` here."""

    def __post_init__(self) -> None:
        if self.seconds is not None:
            object.__setattr__(self, "seconds", checked_amount("seconds", self.seconds, above=0))
        values = checked_settings(self.guidance_scale, self.temperature, self.top_k)
        for name, value in zip(("guidance_scale", "temperature", "top_k"), values, strict=True):
            object.__setattr__(self, name, value)


class Forbid(LogitsProcessor):
    """Excludes codes whose logit is -inf in either branch from sampling, and does not change other codes.

    Under guidance, null + (cond - null) x scale would be NaN for a code with a logit of -inf, and NaN would be chosen
    as the largest score.
    """

    def __call__(
        self, input_ids: Int[Tensor, "sequence column"], scores: Float[Tensor, "branch_sequence vocab"]
    ) -> Float[Tensor, "branch_sequence vocab"]:
        return self.among(scores, scores.shape[0] // input_ids.shape[0])

    def among(self, scores: Float[Tensor, "branch_sequence vocab"], branches: int) -> Tensor:
        """Return the scores, with the lowest possible score for the codes that any of the branches forbids."""
        each = scores.unflatten(0, (branches, -1))
        return each.masked_fill(each.isneginf().any(0), torch.finfo(scores.dtype).min).flatten(0, 1)


class RowSampler(LogitsProcessor):
    """Applies guidance, temperature and top-k, and draws the codes, for `generate(do_sample=False)`.

    Scores are in transformers' layout: rows and codebooks share one axis. Under guidance, the entries of one branch
    follow those of the other.
    `temperature=0` takes the largest logit. Step 0 of the scores is step `origin` of the clip.
    """

    def __init__(
        self,
        noise: RowNoise,
        *,
        guidance_scale: float,
        temperature: float,
        top_k: int | None,
        halves: tuple[Half, ...] = ("cond", "null"),
        origin: int = 0,
    ) -> None:
        self.noise, self.halves, self.origin = noise, halves, origin
        self.guidance_scale = guidance_scale
        self.temperature = temperature
        self.top_k = top_k

    def __call__(
        self, input_ids: Int[Tensor, "sequence column"], scores: Float[Tensor, "branch_sequence vocab"]
    ) -> Float[Tensor, "branch_sequence vocab"]:
        guided = scores.shape[0] == 2 * input_ids.shape[0]
        merged = self.merged(scores, guided, input_ids.shape[-1] - 1)
        if not guided:
            return merged
        # transformers' own guidance, x + (x - x), would be NaN for -inf.
        merged = merged.clamp_min(torch.finfo(merged.dtype).min)
        return torch.cat([merged, merged])

    def merged(
        self, scores: Float[Tensor, "branch_sequence vocab"], guided: bool, step: int
    ) -> Float[Tensor, "sequence vocab"]:
        """Return the scores of which the largest is drawn at a step."""
        if guided:
            halves = dict(zip(self.halves, scores.chunk(2), strict=True))
            cond, null = halves["cond"], halves["null"]
            merged = null + (cond - null) * self.guidance_scale
        else:
            merged = scores
        if self.temperature > 0:
            merged = merged / self.temperature
            if self.top_k and self.top_k < merged.shape[-1]:
                merged = merged.masked_fill(merged < _least_of(merged, self.top_k), torch.finfo(merged.dtype).min)
            noise = self.noise.at(self.origin + step, merged.device)
            merged = merged + rearrange(noise, "row codebook vocab -> (row codebook) vocab")
        return merged


def _least_of(scores: Float[Tensor, "sequence vocab"], top_k: int) -> Float[Tensor, "sequence 1"]:
    """Return the `top_k`-th largest score. On a CPU, selecting it is much faster than sorting the largest ones."""
    if scores.device.type == "cpu":
        return scores.kthvalue(scores.shape[-1] - top_k + 1, dim=-1, keepdim=True).values
    return scores.topk(top_k).values[..., -1:]


def sampling_arguments(
    seeds: Sequence[int] | None, traced: TracedModel, sampling: Sampling, steps: int, origin: int = 0
) -> dict[str, Any]:
    """Return `generate`'s arguments for guidance, and for sampling `steps` steps of clips, from their step `origin` on,
    with the noise of each row's seed.

    If `seeds` is `None`, transformers' own sampler draws the codes.
    """
    guidance_scale, temperature, top_k = float(sampling.guidance_scale), float(sampling.temperature), sampling.top_k
    if seeds is None:
        own = {"temperature": temperature, "top_k": top_k or 0} if temperature > 0 else {}
        return {"do_sample": temperature > 0, "guidance_scale": guidance_scale, **own}
    return {
        "do_sample": False,
        "guidance_scale": guidance_scale,
        "logits_processor": LogitsProcessorList([row_sampler(seeds, traced, sampling, steps, origin)]),
    }


def row_sampler(
    seeds: Sequence[int], traced: TracedModel, sampling: Sampling, steps: int, origin: int = 0
) -> RowSampler:
    """Return the sampler for `steps` steps of a batch of clips, from their step `origin` on, with one seed per row."""
    return RowSampler(
        RowNoise(seeds, traced.config.n_codebooks, traced.config.vocab_size, origin + steps),
        guidance_scale=float(sampling.guidance_scale),
        temperature=float(sampling.temperature),
        top_k=sampling.top_k,
        halves=traced.family.guided,
        origin=origin,
    )


def checked_seeds(seeds: int | Sequence[int] | None, rows: int) -> list[int] | None:
    """Return one seed per row. A single seed applies to every row; `None` (transformers' own sampler) stays `None`."""
    if seeds is None:
        return None
    given = one_or_listed("seeds", seeds)
    listed = given if isinstance(given, list) else [_whole("seeds", given)] * rows
    if len(listed) != rows:
        raise InputError(f"{len(listed)} seeds for {rows} rows: give one seed per prompt, or a single one for all.")
    return [checked_seed(seed) for seed in listed]


def checked_settings(guidance_scale: Real, temperature: Real, top_k: int | None) -> tuple[float, float, int | None]:
    """Return the settings as Python numbers; raise an error for values that transformers would ignore, or reject only
    later."""
    guidance_scale, temperature = _real("guidance_scale", guidance_scale), _real("temperature", temperature)
    if not 1 <= guidance_scale <= MOST_GUIDANCE:
        raise InputError(
            f"guidance_scale={guidance_scale}: expected at least 1 (no guidance), up to {MOST_GUIDANCE:g}."
        )
    least, most = TEMPERATURES
    if temperature != 0 and not least <= temperature <= most:
        raise InputError(f"temperature={temperature}: expected 0 (greedy), or {least:g} to {most:g}.")
    try:
        kept = None if top_k is None else whole_number(top_k)
    except TypeError:
        kept = -1
    if kept is not None and kept < 0:
        raise InputError(f"top_k={shown(top_k)}: expected a positive whole number, or 0 or None for all codes.")
    if kept is not None and kept > MOST:
        raise InputError(f"top_k={shown(top_k)}: expected at most {MOST:,}, or 0 or None for all codes.")
    return guidance_scale, temperature, kept


def checked_generation_config(model: Any, config: LensConfig) -> None:
    """Reject settings in `model.generation_config` that would change what `generate` draws.

    Sampling must depend only on the arguments of a call.

    Raises:
        InputError: if a setting would change what is drawn (the message explains how to undo the setting), or if the
            start token has changed since the lens was opened.
    """
    own = model.generation_config
    start = own.bos_token_id if own.decoder_start_token_id is None else own.decoder_start_token_id
    if start != config.pad_code:
        raise InputError(
            f"the model's generation_config starts clips with token {start}, but the lens was opened with "
            f"{config.pad_code}: set lens.model.generation_config.decoder_start_token_id = {config.pad_code}."
        )
    found = _leaking(own, config)
    if found:
        named = ", ".join(f"{name}={shown(value)}" for name, value in found.items())
        raise InputError(
            f"the model's generation_config sets {named}: sampling must depend only on the guidance_scale, temperature "
            f"and top_k of each call. Undo it: lens.model.generation_config.{next(iter(found))} = None."
        )


@contextmanager
def settings_aside(model: Any, config: LensConfig) -> Iterator[None]:
    """Suspend the settings that `checked_generation_config` rejects.

    The self-check at load may suspend them, because it does not generate clips for the user.
    """
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    for name in _leaking(own, config):
        setattr(model.generation_config, name, None)
    try:
        yield
    finally:
        model.generation_config = own


def _leaking(own: GenerationConfig, config: LensConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(own).items()
        if name in _neutral() and not _changes_nothing(name, value, config.vocab_size)
    }


@cache
def _neutral() -> dict[str, Any]:
    """The default of every setting that transformers knows."""
    bare = GenerationConfig()
    # Since transformers 5 an unset setting is None, and its default is defined elsewhere.
    defaults = getattr(bare, "_get_default_generation_params", dict)()
    known = {name: value for name, value in vars(bare).items() if not name.startswith("_")}
    return {
        name: defaults.get(name) if value is None else value
        for name, value in known.items()
        if name not in _ASKED | _KEPT | _RETURNED
    }


def _changes_nothing(name: str, value: Any, vocab_size: int) -> bool:
    if value is None or value == _neutral()[name]:
        return True
    if name == "eos_token_id":
        # A token that the LM heads do not predict cannot end a clip.
        return all(token >= vocab_size for token in (value if isinstance(value, list | tuple) else [value]))
    return value is False or (isinstance(value, list | tuple | dict) and not value)


def _whole(name: str, value: object) -> int:
    try:
        return whole_number(value)
    except TypeError:
        raise InputTypeError(f"{name}={shown(value)}: expected a whole number, or one per prompt.") from None


def _real(name: str, value: object) -> float:
    try:
        return real_number(value)
    except TypeError:
        raise InputTypeError(f"{name}={shown(value)}: expected a number.") from None
