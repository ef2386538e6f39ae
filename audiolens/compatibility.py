"""Give the lens aliases that match the method and argument names of TransformerLens, nnsight and transformers.

Each alias gives the same results, bit for bit, as the lens's own method or argument. `docs/coming-from.md` lists all
aliases.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.checks import checked_count, checked_seed, listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Apply, Branch
from audiolens.model.config import LensConfig
from audiolens.model.devices import checked_device
from audiolens.model.sites import Site
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real
from audiolens.tracing.model_calls import alone
from audiolens.tracing.plan import beyond
from audiolens.tracing.run_on_codes import checked_stop
from audiolens.tracing.sampling import SECONDS
from audiolens.tracing.self_check.sites import prove

Names = str | Sequence[str] | Callable[[str], bool]
HookFunction = Callable[[Tensor, "Hook"], Tensor | None]

# `SITES` and `SECONDS` are compared by identity, to tell an omitted argument from an equal value that was given.
SITES: Sequence[str] = ("resid_post",)


@guarded
@dataclass(frozen=True)
class Hook:
    """The site at which `run_with_hooks` calls a function. It has a `name` and `layer()`, as in TransformerLens."""

    name: str

    def layer(self) -> int:
        """The number of the block.

        Raises:
            InputError: if the site is outside the blocks.
        """
        found = Site.of(self.name).layer
        if found is None:
            raise InputError(f"{self.name} is outside the blocks: it has no layer.")
        return found


@guarded
class OtherNames:
    """Methods of a lens under the names that other libraries use for them."""

    @property
    def cfg(self: Any) -> LensConfig:
        """TransformerLens's name for `config`."""
        return self.config

    def to_str_tokens(self: Any, prompts: Prompt | Sequence[Prompt]) -> list[str] | list[list[str]]:
        """Return each prompt's tokens as text, like `text_tokens`. As in TransformerLens, one prompt gives one list."""
        found = self.text_tokens(prompts)
        return found[0] if prompts is None or isinstance(prompts, str) else found

    def decode(self: Any, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
        """Decode codes to audio, as `decode_codes` does. To see the tokens of a prompt as text, use `text_tokens`."""
        return self.decode_codes(codes)

    def __call__(
        self: Any,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        *,
        branch: Branch = "cond",
        guidance_scale: Real = 1.0,
        batch_size: int | None = None,
    ) -> Float[Tensor, "*branch row codebook step vocab"]:
        """Return the logits of one forward pass over given codes, without activations; see `run_with_cache`."""
        return self.run_with_interventions(
            prompts, codes, (), branch=branch, guidance_scale=guidance_scale, batch_size=batch_size
        )

    def run_with_hooks(
        self: Any,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        fwd_hooks: Sequence[tuple[Names, HookFunction]] = (),
        *,
        bwd_hooks: Any = (),
        branch: Branch = "cond",
        guidance_scale: Real = 1.0,
        batch_size: int | None = None,
    ) -> Float[Tensor, "*branch row codebook step vocab"]:
        """Return the logits of one forward pass with `fwd_hooks`, (name, function) pairs as in TransformerLens.

        Each function is called with the activations of all rows, in the site's shape, and with a `Hook` that has the
        site's `name` and `layer()`. It returns new activations, or `None` if it only read its copy of the activations
        or changed that copy in place. A short name selects the site in every block. Instead of a name, a pair can
        contain a function that selects among the full names. Each function is called once per batch and guidance
        branch.
        `run_with_interventions` with `Apply` is equivalent.

        Raises:
            InputError, InputTypeError: as for `run_with_interventions`; also if `fwd_hooks` is not a list of pairs.
        """
        if len(listed("bwd_hooks", bwd_hooks)):
            raise InputError("bwd_hooks are not supported: take gradients in lens.trace, or use analysis.attribution.")
        hooks = [
            Apply(partial(_called, function, Hook(site.name)), site=site.name)
            for names, function in _pairs(fwd_hooks)
            for site in self.traced_model.family.filter(self.config, names, None)
        ]
        return self.run_with_interventions(
            prompts, codes, hooks, branch=branch, guidance_scale=guidance_scale, batch_size=batch_size
        )

    def to(self: Any, device: str | int | torch.device) -> Any:
        """Move the model in place, repeat the self-check on the new device, and return the lens.

        Other lenses on the same model move with it; caches and clips stay where they are.

        Raises:
            InputError: if this machine does not have the device, or if a `device_map` placed the model.
            InputTypeError: if a dtype is given, because it can be chosen only when a model is loaded.
        """
        if isinstance(device, torch.dtype):
            raise InputTypeError(f"lens.to({device}): expected a device; give dtype= to AudioLens.from_pretrained.")
        target = checked_device(device)
        if getattr(self.model, "hf_device_map", None):
            raise InputError(
                "a device_map placed this model: load it again with AudioLens.from_pretrained(device_map=...) instead."
            )
        with alone(self.model):
            before = self.device
            try:
                self.model.to(target)
            except BaseException:
                self.model.to(before)
                raise
        try:
            prove(self.traced_model)
        except BaseException:
            self.model.to(before)
            raise
        return self


def chosen_sites(lens: Any, sites: Any, layers: Any, names_filter: Names | None, stop_at_layer: Any = None) -> Any:
    """Return the sites to record, given either as `sites` or as `names_filter`.

    A filter function selects among the names of all sites of the model. As in TransformerLens, selected sites that a
    run with `stop_at_layer` does not reach are left out.

    Raises:
        InputError: if both were given, or if the filter selects no site that the run reaches.
    """
    if names_filter is None:
        return sites
    if sites is not SITES:
        raise InputError(f"sites={shown(sites)} and names_filter were both given: give one of them.")
    if not callable(names_filter):
        if not lens.traced_model.family.filter(lens.config, names_filter, None):
            raise InputError(f"names_filter={shown(names_filter)} names no site: leave it out, or name at least one.")
        return names_filter
    family, stop = lens.traced_model.family, checked_stop(stop_at_layer, lens.config.n_layers)
    found = family.filter(lens.config, names_filter, layers)
    reached = [site.name for site in found if not beyond(family, site, stop)]
    if not reached:
        raise InputError(
            f"names_filter: stop_at_layer={stop_at_layer} ends the run before {found[0].name}, the first site that the "
            "function chose. Stop later, or choose an earlier site."
        )
    return reached


def chosen_seeds(seeds: Any, seed: int | None) -> Any:
    """Return the seeds of the rows, given either as `seeds` or as `seed`.

    Raises:
        InputTypeError, InputError: if both were given, or if `seed` is not a single seed.
    """
    if seed is None:
        return seeds
    if seeds is not None:
        raise InputError(f"seed={shown(seed)} and seeds={shown(seeds)} were both given: give one of them.")
    return checked_seed(seed)


def chosen_seconds(config: LensConfig, seconds: Any, max_new_tokens: int | None, audio_prompt: Any) -> Any:
    """Return the length of the clips in seconds, given as `seconds` or as a number of steps (`max_new_tokens`).

    The last steps (the tail) only complete the delayed codebooks and add no frames.

    Raises:
        InputError: if both were given, if there are too few steps, or if an audio prompt makes the length ambiguous.
    """
    if max_new_tokens is None:
        return seconds
    if seconds is not SECONDS:
        raise InputError(
            f"seconds={shown(seconds)} and max_new_tokens={shown(max_new_tokens)} were both given: give one of them."
        )
    if audio_prompt is not None:
        raise InputError("max_new_tokens with an audio_prompt: give seconds=, the length of the clips with the prompt.")
    tail = max(config.delays)
    steps = checked_count("max_new_tokens", max_new_tokens, least=tail + max(1, tail))
    return (steps - tail) / config.frame_rate


def _pairs(hooks: Any) -> list[tuple[Any, HookFunction]]:
    found = []
    for pair in listed("fwd_hooks", hooks):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[1]):
            raise InputTypeError(f"fwd_hooks: expected pairs (name, function), got {shown(pair)}.")
        found.append((pair[0], pair[1]))
    return found


def _called(function: HookFunction, hook: Hook, value: Tensor) -> Tensor | None:
    """Call a function, passing `hook` by keyword as TransformerLens does, or by position if the function's parameter
    has another name."""
    try:
        named = "hook" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        named = False
    given: Any = function
    return given(value, hook=hook) if named else given(value, hook)
