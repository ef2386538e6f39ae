"""Parse, list and validate the names of sites in a decoder, such as "blocks.3.hook_resid_post".

Sites that exist in TransformerLens have the same names here. A short form omits "hook_" and the block: "resid_post" is
`hook_resid_post` in every block, and "attn.z" is `attn.hook_z`. TransformerLens's bare names are also accepted: "q",
"k", "v", "z", "pattern" and "result" are sites of the self-attention, and "pre" and "post" are sites of the MLP.
Negative layers count from the last block.
"""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from audiolens.checks import MOST_INDICES, bounded, listed, shown, whole_numbers
from audiolens.errors import InputError, InputTypeError, SiteError, nearest, shortened

_FULL = re.compile(r"blocks\.(\d{1,9})\.(.+)")
_BARE = {
    **{name: f"attn.hook_{name}" for name in ("q", "k", "v", "z", "pattern", "result")},
    **{name: f"mlp.hook_{name}" for name in ("pre", "post")},
}


@dataclass(frozen=True)
class Site:
    """One site: a hook name and the number of its block (`None` for model-wide sites).

    `axes` are the axes of the site's values, such as ("row", "step", "d_model"). They are set only on sites that were
    found in a model (`lens.find_sites`).
    """

    hook: str
    layer: int | None = None
    axes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, name: str) -> "Site":
        """Return the site with this full name."""
        match = _FULL.fullmatch(name)
        return cls(match[2], int(match[1])) if match else cls(name)

    @property
    def name(self) -> str:
        """The full name, such as "blocks.3.attn.hook_z"."""
        return self.hook if self.layer is None else f"blocks.{self.layer}.{self.hook}"

    @property
    def short(self) -> str:
        """The short form, such as "attn.z"."""
        return self.hook.replace("hook_", "")


def hooked(name: Any) -> str:
    """Return the hook to which a short form, a bare name or a hook name refers, whether or not a model has it.

    Raises:
        InputTypeError: if the name is not a string.
    """
    _refuse_no_name(name)
    group, dot, leaf = name.rpartition(".")
    return _BARE.get(name) or f"{group}{dot}{leaf if leaf.startswith('hook_') else f'hook_{leaf}'}"


def _refuse_no_name(name: Any) -> None:
    if not isinstance(name, str):
        raise InputTypeError(f"site {shown(name)}: expected a name such as 'resid_post' or 'blocks.3.hook_resid_post'.")


def named(name: Any) -> Site:
    """Return the site to which a name refers, whether or not a model has it.

    If the name is a short form, the `layer` of the site is `None`.
    """
    site = Site.of(name) if isinstance(name, str) else Site(name)
    return Site(hooked(site.hook), site.layer)


def canonical(name: str, hooks: Iterable[str]) -> str:
    """Return the full name of a hook, given the full name or a short form.

    Raises:
        SiteError: if the hook does not exist; the message lists the closest names and all existing hooks.
    """
    hooks = list(hooks)
    found = hooked(name)
    if found in hooks:
        return found
    short = [Site(hook).short for hook in hooks]
    if ("cross" in name or "text_states" in name) and not any("cross" in hook for hook in hooks):
        raise SiteError(
            f"site {shown(name)}: this model has no cross-attention; its text is a prefix to the audio steps, in the "
            f"decoder's own sequence (prefix=True reads and changes it there). It has: {shortened(short, 40)}."
        )
    raise SiteError(
        f"unknown site {shown(name)}.{nearest(Site(name).short, short)} This model has: {shortened(short, 40)}."
    )


def resolve(
    sites: str | Sequence[str],
    layers: int | Iterable[int] | None,
    *,
    hooks: Iterable[str],
    model_hooks: Iterable[str],
    n_layers: int,
) -> list[Site]:
    """Return the sites that names and layers select, without repeats, in the order given.

    A full name ("blocks.3.hook_resid_post") includes the layer. A short form selects a site at `layers`, or in every
    block if `layers` is `None`.
    """
    hooks, model_hooks = list(hooks), list(model_hooks)
    chosen = checked_layers(layers, n_layers)
    found: dict[Site, None] = {}
    for name in names_once("sites", sites):
        match = _FULL.fullmatch(name) if isinstance(name, str) else None
        if match:
            layer = checked_layers(int(match[1]), n_layers)[0]
            found[Site(canonical(match[2], hooks), layer)] = None
            continue
        hook = canonical(name, [*hooks, *model_hooks])
        matching = [Site(hook)] if hook in model_hooks else [Site(hook, layer) for layer in chosen]
        found.update(dict.fromkeys(matching))
    return list(found)


def checked_layers(layers: int | Iterable[int] | None, n_layers: int) -> list[int]:
    """Return layer numbers as a sorted list without repeats. `None` means all layers, and -1 means the last layer."""
    if layers is None:
        return list(range(n_layers))
    listed = listed_layers(layers)
    if not listed:
        raise SiteError(f"no layer given: choose from 0 to {n_layers - 1}, or None for all.")
    return sorted({counted(layer, n_layers) for layer in listed})


def counted(layer: int, n_layers: int) -> int:
    """Return a layer's number, counted from the first block; a `layer` of -1 is the model's last block.

    Raises:
        SiteError: if the model does not have this block.
    """
    if not -n_layers <= layer < n_layers:
        raise SiteError(f"layer {shown(layer)} does not exist: this model has layers 0 to {n_layers - 1}.")
    return layer % n_layers


def names_once(name: str, sites: Any) -> list[Any]:
    """Return one or several site names as a list.

    Raises:
        InputTypeError: if `sites` is neither a name nor a list of names.
    """
    if isinstance(sites, str):
        return [sites]
    try:
        # A set is accepted, because a run visits sites in the model's order, whatever the order of the names.
        found = sorted(sites) if isinstance(sites, Set) else listed(name, sites)
    except TypeError:
        raise InputTypeError(
            f"{name}={shown(sites)}: expected a name such as 'resid_post', or a list of names."
        ) from None
    for one in found:
        _refuse_no_name(one)
    return found


def checked_names(name: str, sites: Any) -> Any:
    """Return a single site name unchanged, or several names as a list.

    Raises:
        InputTypeError: if `sites` is neither a name nor a list of names.
        InputError: if the list is empty.
    """
    found = names_once(name, sites)
    if not found:
        raise InputError(f"{name}={shown(sites)} names no site: give at least one, such as 'resid_post'.")
    return sites if isinstance(sites, str) else found


def listed_layers(layers: int | Iterable[int]) -> list[int]:
    """Return one or several layer numbers as a list.

    Raises:
        InputTypeError: if the layers are not whole numbers.
    """
    found = layers_once(layers)
    return found if isinstance(found, list) else [found]


def layers_once(layers: Any) -> int | list[int]:
    """Return one layer as a number, or several layers as a list; an iterable is iterated over only once.

    Raises:
        InputTypeError: if the layers are not whole numbers (a mask is rejected).
    """
    try:
        given = layers if isinstance(layers, Iterable) and getattr(layers, "ndim", 1) else [layers]
        found = whole_numbers(bounded("layers", given, MOST_INDICES))
    except TypeError:
        raise InputTypeError(f"layers={shown(layers)}: expected a layer, a list of layers, or None for all.") from None
    return found if given is layers else found[0]


def checked_heads(heads: Sequence[int], n_heads: int) -> tuple[int, ...]:
    """Return head numbers in the order given, after checking that they exist and do not repeat."""
    found = tuple(head_numbers(heads))
    if not found or len(set(found)) != len(found) or not all(0 <= head < n_heads for head in found):
        raise InputError(f"heads={list(found)}: expected different heads; this model has heads 0 to {n_heads - 1}.")
    return found


def head_numbers(heads: Any) -> list[int]:
    """Return head numbers as a list, in the order given; `heads` is iterated over only once.

    Raises:
        InputTypeError: if `heads` is not a list of whole numbers (a mask is rejected).
    """
    try:
        return whole_numbers(bounded("heads", listed("heads", heads), MOST_INDICES))
    except TypeError:
        raise InputTypeError(f"heads={shown(heads)}: expected a list of heads, or None for all.") from None
