"""SAE: a trained sparse autoencoder of one site, with its encoder, its decoder and where it was trained.

A sparse autoencoder writes an activation x as a sum of few directions, z = act((x - b_dec) W_enc + b_enc) and
x' = z W_dec + b_dec. Each number of z is a *latent*; its row of `W_dec` is the direction that it adds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import checked_count, checked_flags, checked_text, shown, whole_numbers
from audiolens.directions.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError
from audiolens.files.integrity import digest, tensor_hash
from audiolens.model.provenance import Provenance
from audiolens.model.sites import Site, hooked

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

Activation = Literal["topk", "jumprelu", "standard"]
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


@guarded
@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder of one site.

    Attributes:
        W_enc, b_enc, W_dec, b_dec: the weights, in float32.
        activation: "topk" (the k largest pre-activations, if positive), "jumprelu" (those above their threshold) or
            "standard" (those above 0).
        site, layer: the full name of the hook, such as "hook_resid_post", and the block (`None`: a model-wide site).
        k: the number of active latents, for "topk".
        threshold: one threshold per latent, for "jumprelu".
        subtracts: whether the encoder subtracts `b_dec` first.
        kind: how it was trained: "topk", "batchtopk", "jumprelu", or what a file of another program states.
        model: the name of the model, as stated by whoever trained it; empty if unknown.
        meta: the model and the clips that it was trained on. `None` if a file of another program was loaded without a
            lens.
        residual_norm: the mean norm of the activations; NaN if unknown.
        scores: what was measured on held-out clips (`Scores.as_dict`), if anything was.

    The latents of a file with rescaled activations are in units of the activations: a latent of 1 adds its row of
    `W_dec`, whose norm is 1 if audiolens trained it.
    """

    W_enc: Float[Tensor, "d_in latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent d_in"]
    b_dec: Float[Tensor, " d_in"]
    activation: Activation
    site: str = "hook_resid_post"
    layer: int | None = None
    k: int | None = None
    threshold: Float[Tensor, " latent"] | None = None
    subtracts: bool = True
    kind: str = ""
    model: str = ""
    meta: Provenance | None = None
    residual_norm: float = float("nan")
    scores: Mapping[str, float] = field(default_factory=dict)
    _held: dict[torch.device, SAE] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        checked_flags(subtracts=self.subtracts)
        if self.activation not in get_args(Activation):
            raise InputError(f"activation={shown(self.activation)}: expected one of {', '.join(get_args(Activation))}.")
        for name in (*_WEIGHTS, "threshold"):
            value = getattr(self, name)
            if value is None and name == "threshold":
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise InputTypeError(f"{name}={shown(value)}: expected a tensor of floats.")
            object.__setattr__(self, name, value.detach().float())
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"{name} has NaN or infinite values: expected finite weights.")
        if self.W_enc.ndim != 2:
            raise InputError(f"W_enc of shape {tuple(self.W_enc.shape)}: expected (d_in, latent).")
        d_in, width = self.W_enc.shape
        shapes: dict[str, tuple[int, ...]] = {
            "b_enc": (width,), "W_dec": (width, d_in), "b_dec": (d_in,), "threshold": (width,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"{name} of shape {tuple(value.shape)}: expected {shape} beside W_enc {d_in, width}.")
        if (self.activation == "topk") != (self.k is not None):
            raise InputError(f"k={self.k}: expected a number of latents for 'topk', and None for any other activation.")
        if self.k is not None:
            object.__setattr__(self, "k", checked_count("k", self.k, 1, width))
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise InputError("threshold: expected one per latent for 'jumprelu', and None for any other activation.")
        object.__setattr__(self, "site", hooked(self.site))
        if self.layer is not None:
            object.__setattr__(self, "layer", checked_count("layer", self.layer, 0))
        for name in ("kind", "model"):
            checked_text(name, getattr(self, name))
        if self.meta is not None and not isinstance(self.meta, Provenance):
            raise InputTypeError(f"meta={shown(self.meta)}: expected a Provenance, or None.")
        if not isinstance(self.residual_norm, float):
            raise InputTypeError(f"residual_norm={shown(self.residual_norm)}: expected a number, or NaN.")
        if not isinstance(self.scores, Mapping):
            raise InputTypeError(f"scores={shown(self.scores)}: expected a mapping of names to numbers.")

    @property
    def width(self) -> int:
        """The number of latents."""
        return self.W_enc.shape[1]

    @property
    def d_in(self) -> int:
        """The number of features of an activation. At a site with heads, those of all heads together."""
        return self.W_enc.shape[0]

    @property
    def name(self) -> str:
        """The full name of the site, such as "blocks.3.hook_resid_post"."""
        return Site(self.site, self.layer).name

    @property
    def identity(self) -> str:
        """A hash of the weights and of the activation function, by which a sweep tells SAEs apart."""
        tensors = [getattr(self, name) for name in (*_WEIGHTS, "threshold")]
        parts = [self.name, self.activation, str(self.k), str(self.subtracts)]
        parts += [tensor_hash(one) for one in tensors if one is not None]
        return digest(" ".join(parts).encode())

    def encode(self, activations: Float[Tensor, "*lead d_in"] | ActivationCache) -> Float[Tensor, "*lead latent"]:
        """Return the latents of activations, or of a cache that recorded the site ("row step latent").

        Raises:
            InputError: if the activations have another width.
            SiteError: if the cache did not record the site.
        """
        x = self._read(activations) if isinstance(activations, ActivationCache) else activations
        if not isinstance(x, Tensor):
            raise InputTypeError(f"activations={shown(x)}: expected a tensor, or an ActivationCache.")
        if not x.ndim or x.shape[-1] != self.d_in:
            raise InputError(
                f"activations of width {x.shape[-1] if x.ndim else 'none'}: this SAE reads {self.d_in} features at "
                f"{self.name}."
            )
        sae = self.on(x.device)
        return sae._active(sae._pre_activations(x))

    def _pre_activations(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead latent"]:
        """Return the latents before the activation function."""
        centred = x.float() - self.b_dec if self.subtracts else x.float()
        return centred @ self.W_enc + self.b_enc

    def decode(self, latents: Float[Tensor, "*lead latent"]) -> Float[Tensor, "*lead d_in"]:
        """Return the activations that latents stand for.

        Raises:
            InputError: if there is not one number per latent.
        """
        if not isinstance(latents, Tensor):
            raise InputTypeError(f"latents={shown(latents)}: expected a tensor.")
        if not latents.ndim or latents.shape[-1] != self.width:
            raise InputError(f"latents of shape {tuple(latents.shape)}: expected (..., {self.width}).")
        sae = self.on(latents.device)
        return latents @ sae.W_dec + sae.b_dec

    def __call__(self, activations: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_in"]:
        """Return the reconstruction of activations."""
        return self.decode(self.encode(activations))

    def directions(self, latents: int | Sequence[int]) -> Directions:
        """Return the direction that a latent adds, or the sum of several, as directions to steer, ablate or compare.

        Strength 1 adds what a latent of 1 adds, so useful strengths are of the size of the latent's activations
        (`FeatureIndex.latents` lists them).

        Raises:
            InputTypeError, InputError: if a latent does not exist, or if the model of this SAE is not known.
            SiteError: if the site is not in a block.
        """
        chosen = self.numbers("latents", latents)
        if self.meta is None:
            raise InputError(
                "this SAE does not say of which model it is: load it with lens=, so that its directions have a model."
            )
        if self.layer is None:
            raise SiteError(f"{self.name} is not in a block, so it has no directions per layer.")
        label = f"latent{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))} of {self.kind} SAE"
        return Directions(
            vectors=self.W_dec[chosen].sum(0, keepdim=True),
            layers=(self.layer,),
            residual_norms=torch.tensor([self.residual_norm], device="cpu"),
            # By the name that other directions of the site have, with which these can then be compared.
            meta=replace(self.meta, label=label, site=Site(self.site, self.layer).short, sign=0),
        )

    def numbers(self, name: str, latents: Any) -> list[int]:
        """Return latents as a list of numbers from 0 to width - 1.

        Raises:
            InputTypeError, InputError: if they are not whole numbers, if there are none, or if one does not exist.
        """
        try:
            given: Any = [latents] if isinstance(latents, int) or getattr(latents, "ndim", 1) == 0 else latents
            found = whole_numbers(given)
        except TypeError:
            raise InputTypeError(f"{name}={shown(latents)}: expected the number of a latent, or a list.") from None
        if not found or len(set(found)) != len(found) or not all(0 <= latent < self.width for latent in found):
            raise InputError(f"{name}={shown(latents)}: expected different latents between 0 and {self.width - 1}.")
        return found

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the SAE into a new folder in the format of SAELens: `cfg.json` and `sae_weights.safetensors`.

        Raises:
            InputError: if the folder exists and is not empty, or cannot be written.
        """
        from analysis.features import files

        return files.save(self, folder)

    def refuse_other(self, lens: AudioLens, *, named: bool = False) -> None:
        """Raise an error unless this SAE fits a model. With `named`, the stated name must also be that of the model.

        Raises:
            InputError: if it was trained on another model, or on activations of another width.
            SiteError: if the model does not have the site.
        """
        checked_flags(named=named)
        if self.meta is not None:
            try:
                self.meta.refuse_other(lens)
            except InputError:
                raise InputError(
                    f"this SAE was trained on {shown(self.meta.model)} ({self.meta.n_layers} blocks), and "
                    f"{shown(lens.name)} has other weights or blocks: train one on this model, or load it without "
                    "lens= to inspect it."
                ) from None
        if named and self.model and _last(self.model) != _last(lens.name):
            raise InputError(
                f"this SAE states the model {shown(self.model)}, but the lens is of {shown(lens.name)}: load it "
                "without lens= to inspect it."
            )
        found = features_at(lens, self.site, self.layer)
        if prod(found) != self.d_in:
            raise InputError(
                f"this SAE reads {self.d_in} features, but {self.name} of {shown(lens.name)} has {prod(found)}: it is "
                "of another model or site."
            )

    def on(self, device: torch.device) -> SAE:
        """Return this SAE with its weights on a device, where a copy is kept."""
        if self.W_enc.device == device:
            return self
        if device not in self._held:
            threshold = None if self.threshold is None else self.threshold.to(device)
            moved = {name: getattr(self, name).to(device) for name in _WEIGHTS}
            self._held[device] = replace(self, **moved, threshold=threshold, _held={})
        return self._held[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": {}}

    def __repr__(self) -> str:
        told = [
            f"{self.scores[name]:{form}} {words}"
            for name, form, words in (
                ("explained_variance", ".1%", "of the variance"), ("l0", ".1f", "latents active"),
                ("loss_recovered", ".1%", "of the loss recovered"),
            )
            if name in self.scores
        ]  # fmt: skip
        of = f" of {shown(self.model)}" if self.model else ""
        found = f": {', '.join(told)}" if told else ""
        return f"SAE({self.kind or self.activation}, {self.width} latents at {self.name}{of}{found})"

    def _active(self, pre: Float[Tensor, "*lead latent"]) -> Float[Tensor, "*lead latent"]:
        if self.k is not None:
            return top(pre, self.k)
        return pre.relu() if self.threshold is None else torch.where(pre > self.threshold, pre.relu(), 0.0)

    def _read(self, cache: ActivationCache) -> Float[Tensor, "row step d_in"]:
        if self.name not in cache.tensors:
            raise SiteError(f"{self.name} was not recorded: record it with sites={self.name!r}.")
        return flat(cache[self.name])


def top(pre: Float[Tensor, "*lead latent"], k: int) -> Float[Tensor, "*lead latent"]:
    """Keep the k largest values along the last axis, if they are positive, and set the others to 0."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


def flat(activations: Float[Tensor, "row step *feature"]) -> Float[Tensor, "row step d_in"]:
    """Return activations with the features of all heads on one axis."""
    return activations.flatten(2) if activations.ndim > 3 else activations


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def features_at(lens: AudioLens, site: str, layer: int | None) -> tuple[int, ...]:
    """Return the sizes of a site's axes besides row and step.

    Raises:
        SiteError: if the model does not have the site, or the site does not have one vector per step.
    """
    found = lens.find_sites(site, layer)[0]
    form = lens.traced_model.family.tap(found).form
    sizes = form.features(lens.config)
    if not form.timed or form.square or None in sizes:
        raise SiteError(f"{found.name} does not have one vector per step: choose another site, such as resid_post.")
    return tuple(size for size in sizes if size is not None)


def heads_at(lens: AudioLens, site: Site) -> int:
    """Return the number of heads of a site with one vector per step and head, and 0 of a site without heads."""
    sizes = features_at(lens, site.hook, site.layer)
    return sizes[0] if len(sizes) > 1 else 0
