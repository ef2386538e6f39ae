"""Family: everything that differs between kinds of model, so that no other code needs to distinguish the kinds.

A `Tap` (`site_access.py`) states where nnsight provides a site's value and how the value is laid out. Taps are listed
in the order in which the forward pass reaches them, which is the order in which a trace must request them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from audiolens.checks import checked_flags, shown
from audiolens.errors import InputError, UnsupportedModelError
from audiolens.model.config import LensConfig
from audiolens.model.site_access import Form, Tap
from audiolens.model.sites import Site, checked_names, resolve
from audiolens.model.text import Text

Half = Literal["cond", "null"]


@dataclass(frozen=True)
class BlockPaths:
    """The paths of a block's modules, relative to the block. A path is `None` if the family lacks that module."""

    attention_norm: str
    attention: str
    cross_attention_norm: str | None
    cross_attention: str | None
    mlp_norm: str
    mlp_in: str
    activation: str
    mlp_out: str
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "out_proj"
    """The paths of the projections of an attention module, relative to that module."""

    @property
    def attentions(self) -> dict[str, str]:
        """The path of each attention module, by the prefix of its site names."""
        found = {"attn": self.attention, "cross_attn": self.cross_attention}
        return {name: path for name, path in found.items() if path is not None}


@dataclass(frozen=True)
class AttentionModules:
    """The four projections of an attention module, each "... d_model -> ... d_model"."""

    query: Any
    key: Any
    value: Any
    output: Any


@dataclass(frozen=True)
class BlockModules:
    """The modules of one block, by role."""

    attention_norm: Any
    attention: AttentionModules
    cross_attention_norm: Any
    cross_attention: AttentionModules | None
    mlp_norm: Any
    mlp_in: Any
    activation: Any
    mlp_out: Any


@dataclass(frozen=True)
class Family:
    """How to recognise and condition the models of one family, and where to find their sites and modules.

    Attributes:
        name, architecture: the family's common name, and the name of its class in transformers.
        conditioning: how text reaches the decoder, by cross-attention or as a prefix in the decoder's own sequence.
        inputs: a function that returns the keyword arguments of a forward pass, given the model, the encoded prompts,
            and whether guidance adds an unconditional (null) half.
        decoder: the path of the module that runs the blocks.
        parts: the paths of a block's modules.
        entry_taps, block_taps, exit_taps: where nnsight provides the values of sites before, in and after the blocks.
        guided: the order of the two halves of a guided batch.
        body_blocks, body_norm, body_embeddings, body_positions: the paths of the blocks, the final norm, the code
            embeddings and the position embeddings, relative to the decoder.
        lm_heads: the path of the output heads, of which there is one per codebook.
    """

    name: str
    architecture: str
    conditioning: Literal["cross-attention", "prefix"]
    inputs: Callable[[Any, Text, bool], dict[str, Any]]
    decoder: str
    parts: BlockPaths
    entry_taps: Mapping[str, Tap]
    block_taps: Mapping[str, Tap]
    exit_taps: Mapping[str, Tap]
    guided: tuple[Half, ...] = ("cond", "null")
    body_blocks: str = "layers"
    body_norm: str = "layer_norm"
    body_embeddings: str = "embed_tokens"
    body_positions: str = "embed_positions"
    lm_heads: str = "decoder.lm_heads"

    @property
    def has_prefix(self) -> bool:
        """Whether the conditioning is a prefix in the decoder's own sequence, before step 0."""
        return self.conditioning == "prefix"

    def halves(self, guidance: bool) -> tuple[Half, ...]:
        """The guidance branches in a batch, in the order of its rows."""
        return self.guided if guidance else ("cond",)

    @property
    def model_taps(self) -> dict[str, Tap]:
        """The sites outside the blocks."""
        return {**self.entry_taps, **self.exit_taps}

    def has(self, hook: str) -> bool:
        """Whether models of this family have a site, given its name without the block ("cross_attn.hook_q")."""
        return hook in self.block_taps or hook in self.entry_taps or hook in self.exit_taps

    def tap(self, site: Site) -> Tap:
        """The tap of a site."""
        return (self.model_taps if site.layer is None else self.block_taps)[site.hook]

    def form(self, hook: str) -> Form:
        """The layout of a site, given its name without the block ("cross_attn.hook_q")."""
        return {**self.model_taps, **self.block_taps}[hook].form

    def sites(self, config: LensConfig) -> list[Site]:
        """Every site of a model, in the model's order."""
        blocks = [Site(hook, layer) for layer in range(config.n_layers) for hook in self.block_taps]
        return self._with_axes([*map(Site, self.entry_taps), *blocks, *map(Site, self.exit_taps)])

    def shapes(self, config: LensConfig) -> dict[str, str]:
        """The shape of the values at every site, by full name, in the model's order."""
        return {site.name: self.tap(site).form.described(config) for site in self.sites(config)}

    def find(self, config: LensConfig, sites: str | Sequence[str], layers: int | Iterable[int] | None) -> list[Site]:
        """Return the sites that names and layers select."""
        return self._with_axes(
            resolve(sites, layers, hooks=self.block_taps, model_hooks=self.model_taps, n_layers=config.n_layers)
        )

    def _with_axes(self, sites: Iterable[Site]) -> list[Site]:
        return [replace(site, axes=self.tap(site).form.axes) for site in sites]

    def filter(
        self,
        config: LensConfig,
        names: str | Sequence[str] | Callable[[str], bool],
        layers: int | Iterable[int] | None,
    ) -> list[Site]:
        """Return the sites that `find` selects or, if `names` is a function, those whose full name it accepts.

        Raises:
            InputTypeError, InputError: if the function selects no site or does not return a bool, or if layers are also
                given.
        """
        if not callable(names):
            return self.find(config, checked_names("names", names), layers)
        if layers is not None:
            raise InputError(
                f"layers={shown(layers)} with a function of names: let the function choose the layers too."
            )
        chosen = []
        for site in self.sites(config):
            kept = names(site.name)
            checked_flags(**{f"names({site.name!r})": kept})
            if kept:
                chosen.append(site)
        if not chosen:
            raise InputError("names: the function chose none of this model's sites; lens.sites() lists them.")
        return chosen

    def order(self, sites: Iterable[Site]) -> list[Site]:
        """Sites sorted in the order in which the model reaches them."""
        head, hooks, tail = list(self.entry_taps), list(self.block_taps), list(self.exit_taps)

        def rank(site: Site) -> tuple[float, int]:
            if site.layer is not None:
                return site.layer, hooks.index(site.hook)
            return (-1, head.index(site.hook)) if site.hook in head else (math.inf, tail.index(site.hook))

        return sorted(sites, key=rank)

    def body(self, model: nn.Module) -> Any:
        """The module that runs the blocks."""
        return self.part(model, self.decoder)

    def blocks(self, model: nn.Module) -> Any:
        return self.part(self.body(model), self.body_blocks)

    def final_norm(self, model: nn.Module) -> Any:
        return self.part(self.body(model), self.body_norm)

    def embeddings(self, model: nn.Module) -> Any:
        """The code embeddings, one per codebook."""
        return self.part(self.body(model), self.body_embeddings)

    def positions(self, model: nn.Module) -> Any:
        return self.part(self.body(model), self.body_positions)

    def heads(self, model: nn.Module) -> Any:
        """The output heads, one per codebook, which produce the logits."""
        return self.part(model, self.lm_heads)

    def modules(self, block: nn.Module) -> BlockModules:
        """The modules of a block of this family."""
        parts = self.parts

        def attention(path: str) -> AttentionModules:
            paths = (parts.query, parts.key, parts.value, parts.output)
            return AttentionModules(*(self.part(block, f"{path}.{projection}") for projection in paths))

        return BlockModules(
            self.part(block, parts.attention_norm),
            attention(parts.attention),
            None if parts.cross_attention_norm is None else self.part(block, parts.cross_attention_norm),
            None if parts.cross_attention is None else attention(parts.cross_attention),
            self.part(block, parts.mlp_norm),
            self.part(block, parts.mlp_in),
            self._activation(block),
            self.part(block, parts.mlp_out),
        )

    def _activation(self, block: Any) -> Any:
        """The activation function of a block, which need not be a module."""
        try:
            return getattr(block, self.parts.activation)
        except AttributeError as error:
            raise UnsupportedModelError(f"this model does not look like {self.name}: {error}.") from None

    def part(self, root: nn.Module, path: str) -> Any:
        """Return the module at a path.

        Raises:
            UnsupportedModelError: if there is no module at this path, because the model is not built like its family.
        """
        try:
            return root.get_submodule(path)
        except AttributeError as error:
            raise UnsupportedModelError(
                f"this model does not look like {self.name}: {type(root).__name__} has no part {path!r} ({error})."
            ) from None
