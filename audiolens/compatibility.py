"""The lens under other names: what a user of TransformerLens, nnsight or transformers types first.

Each is one of the lens's own verbs, or one of its arguments, and does what that does, to the bit.
`docs/coming-from.md` sets both side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.checks import checked_count, checked_seed, listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Apply, Branch
from audiolens.model.config import LensConfig
from audiolens.model.loading import checked_device
from audiolens.model.sites import Site
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real
from audiolens.tracing.model_calls import alone
from audiolens.tracing.self_check.sites import prove

Names = str | Sequence[str] | Callable[[str], bool]
T = TypeVar("T", bound=Any)
HookFunction = Callable[[Tensor, "Hook"], Tensor | None]

# Arguments that were left out are told by identity: what was given, even the same, is another object.
SITES: Sequence[str] = ("resid_post",)
SECONDS = 4.0


@guarded
@dataclass(frozen=True)
class Hook:
    """Where a function of `run_with_hooks` was called: TransformerLens's hook point, as far as it is a place."""

    name: str

    def layer(self) -> int:
        """The block.

        Raises:
            InputError: at a site that stands in no block.
        """
        found = Site.of(self.name).layer
        if found is None:
            raise InputError(f"{self.name} stands in no block: it has no layer.")
        return found


@guarded
class OtherNames:
    """The verbs of a lens that have another name elsewhere."""

    @property
    def cfg(self: Any) -> LensConfig:
        """`config`, as TransformerLens calls it."""
        return self.config

    def to_str_tokens(self: Any, prompts: Prompt | Sequence[Prompt]) -> list[str] | list[list[str]]:
        """`text_tokens`, and of a single prompt its tokens alone, as TransformerLens gives them."""
        found = self.text_tokens(prompts)
        return found[0] if prompts is None or isinstance(prompts, str) else found

    def decode(self: Any, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
        """`decode_codes`: the sound of codes. For the tokens of a prompt there is `text_tokens`."""
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
        """The logits of one forward over given codes, and nothing recorded; see `run_with_cache`."""
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
        """The logits of one forward that `fwd_hooks` change, as in TransformerLens: each is (name, function).

        A function is called with the value of the rows, in the site's shape, and a `Hook` with the site's `name` and
        `layer()`; it returns the new value, or `None` if it has changed its own copy in place, or only looked. A short
        name is the site of every block; a function in the place of the name chooses among full names. With `batch_size`
        and under guidance it is called for each batch and branch. It is `run_with_interventions` with `Apply`.

        Raises:
            InputError, InputTypeError: as `run_with_interventions`, and for what is no list of pairs.
        """
        if len(listed("bwd_hooks", bwd_hooks)):
            raise InputError("bwd_hooks: there are none here; take gradients in lens.trace, or analysis.attribution.")
        hooks = [
            Apply(partial(_called, function, Hook(site.name)), site=site.name)
            for names, function in _pairs(fwd_hooks)
            for site in self.traced_model.family.filter(self.config, names, None)
        ]
        return self.run_with_interventions(
            prompts, codes, hooks, branch=branch, guidance_scale=guidance_scale, batch_size=batch_size
        )

    def to(self: Any, device: str | int | torch.device) -> Any:
        """Move the model itself, in place, and prove it there as when it was opened; returns the lens.

        Other lenses on the same model move with it; caches and clips stay where they are.

        Raises:
            InputError: if there is no such device, or a `device_map` placed the model.
            InputTypeError: for a dtype, which is chosen when a model is loaded.
        """
        if isinstance(device, torch.dtype):
            raise InputTypeError(f"lens.to({device}): give dtype= to AudioLens.from_pretrained, which loads it so.")
        target = checked_device(device)
        if getattr(self.model, "hf_device_map", None):
            raise InputError(
                "a device_map placed this model: give another to AudioLens.from_pretrained(device_map=...)."
            )
        before = self.device
        try:
            with alone(self.model):
                self.model.to(target)
            prove(self.traced_model)
        except BaseException:
            self.model.to(before)
            raise
        return self


def either(name: str, given: T | None, loose: T, default: T) -> T:
    """A group of arguments, given as one value or one by one.

    Raises:
        InputTypeError: if the value is of another kind.
        InputError: if both were given.
    """
    if given is None:
        return loose
    if not isinstance(given, type(loose)):
        raise InputTypeError(f"{name}={shown(given)}: expected a {type(loose).__name__}, or None.")
    if loose != default:
        changed = next(one.name for one in fields(loose) if getattr(loose, one.name) != getattr(default, one.name))
        raise InputError(f"{name}= and {changed}= were both given: {name} holds {changed}, so give one of them.")
    return given


def chosen_sites(lens: Any, sites: Any, layers: Any, names_filter: Names | None) -> Any:
    """The sites to record, by whichever name they were given.

    Raises:
        InputError: if both were given, or the filter chooses none.
    """
    if names_filter is None:
        return sites
    if sites is not SITES:
        raise InputError(f"sites={sites!r} and names_filter were both given: give one of them.")
    return [site.name for site in lens.traced_model.family.filter(lens.config, names_filter, layers)]


def chosen_seeds(seeds: Any, seed: int | None) -> Any:
    """The seeds of the rows, by whichever name they were given.

    Raises:
        InputTypeError, InputError: if both were given, or `seed` is no single seed.
    """
    if seed is None:
        return seeds
    if seeds is not None:
        raise InputError(f"seed={seed!r} and seeds={seeds!r} were both given: give one of them.")
    return checked_seed(seed)


def chosen_seconds(config: LensConfig, seconds: Any, max_new_tokens: int | None, audio_prompt: Any) -> Any:
    """The length of the clips: of so many steps, all frames but the tail, which only finishes the delayed codebooks.

    Raises:
        InputError: if both were given, it is too few steps, or an audio prompt makes it ambiguous.
    """
    if max_new_tokens is None:
        return seconds
    if seconds is not SECONDS:
        raise InputError(
            f"seconds={seconds!r} and max_new_tokens={max_new_tokens!r} were both given: give one of them."
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
            raise InputTypeError(f"fwd_hooks: expected pairs (name, function), got {pair!r}.")
        found.append((pair[0], pair[1]))
    return found


def _called(function: HookFunction, hook: Hook, value: Tensor) -> Tensor | None:
    return function(value, hook)
