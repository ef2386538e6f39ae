"""Put a sparse autoencoder into the model: replace activations by their reconstruction, or edit single latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from analysis.features.sae import SAE, flat
from audiolens.checks import checked_flags, real_number, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Intervention
from audiolens.model.sites import hooked, listed_layers

_WHERE = ("site", "layers", "layer", "heads", "meta", "prefix")
"""Arguments of an intervention that follow from the SAE, or that it does not take."""


_DEFAULT = hooked(Intervention.site)


@guarded
@dataclass(frozen=True, eq=False, kw_only=True)
class Splice(Intervention):
    """Pass activations through a sparse autoencoder, with some latents changed. `splice` makes one.

    Attributes:
        sae: the autoencoder, which also determines the site, the layer and the model.
        factors: one factor per latent that is multiplied: 0 ablates it.
        values: one value per latent that is clamped.
        keeps_error: whether what the autoencoder does not reconstruct stays in the activation.
    """

    sae: Any = None
    factors: Mapping[int, float] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    keeps_error: bool = False
    _edits: dict[torch.device, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self, *aliases: Any) -> None:
        checked_flags(keeps_error=self.keeps_error, prefix=self.prefix, preserve_norm=self.preserve_norm)
        if not isinstance(self.sae, SAE):
            raise InputTypeError(f"sae={shown(self.sae)}: expected an SAE; features.splice(sae) makes a Splice.")
        for name in ("factors", "values"):
            object.__setattr__(self, name, _numbers(self.sae, name, getattr(self, name)))
        if both := sorted({*self.factors} & {*self.values}):
            raise InputError(f"latent {both[0]} is clamped, and also ablated or scaled: give one of them.")
        if self.meta is None:
            object.__setattr__(self, "meta", self.sae.meta)
        super().__post_init__(*aliases)
        layers = None if self.sae.layer is None else [self.sae.layer]
        given = None if self.layers is None else listed_layers(self.layers)
        if hooked(self.site) not in (self.sae.site, _DEFAULT) or given not in (None, layers):
            raise InputError(
                f"site={shown(self.site)}, layers={shown(self.layers)}: this SAE is spliced in at {self.sae.name}."
            )
        object.__setattr__(self, "site", self.sae.site)
        object.__setattr__(self, "layers", layers)

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Interpolate from `value` (at `amount` 0) to the reconstruction with the changed latents (at 1)."""
        sae = self.sae.on(value.device)
        x = flat(value.float())
        found = sae.encode(x)
        changed = self._edited(found)
        made = sae.decode(changed)
        if self.keeps_error:
            # The difference of the latents alone, so that a position without active edited latents stays as it was.
            made = x + (changed - found) @ sae.W_dec
        made = made.reshape(value.shape)
        return torch.where(amount == 1, made, value.float() + amount * (made - value.float())).to(value.dtype)

    def _edited(self, latents: Tensor) -> Tensor:
        if not self.factors and not self.values:
            return latents
        if latents.device not in self._edits:
            # Made once per device, because a step of a generation must not wait for numbers from the host.
            factor, value = torch.ones(self.sae.width), torch.zeros(self.sae.width)
            for latent, number in self.factors.items():
                factor[latent] = number
            for latent, number in self.values.items():
                factor[latent], value[latent] = 0.0, number
            self._edits[latents.device] = factor.to(latents.device), value.to(latents.device)
        factor, value = self._edits[latents.device]
        return latents * factor + value

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_edits": {}}

    def __repr__(self) -> str:
        edits = [f"latent {latent} x {number:g}" for latent, number in self.factors.items()]
        edits += [f"latent {latent} = {number:g}" for latent, number in self.values.items()]
        return f"Splice({', '.join(edits) or 'the reconstruction'} at {self.sae.name})"


@guarded
def splice(
    sae: SAE,
    *,
    ablate: int | Sequence[int] | None = None,
    clamp: Mapping[int, float] | None = None,
    scale: Mapping[int, float] | None = None,
    keep_error: bool | None = None,
    **where: Any,
) -> Splice:
    """Return an intervention that passes the activations of a site through a sparse autoencoder.

    Without edits, activations are replaced by their reconstruction. With edits, the latents are changed and, by
    default, everything else stays as it was: x + (z' - z) W_dec. It works wherever interventions are taken (reading,
    generating, sweeps) and with both engines. An SAE is trained on the conditional branch: give branch="cond" to leave
    the unconditional one, which it may reconstruct worse, as it is.

    Args:
        ablate: latents to set to 0.
        clamp: maps latents to the value that they are set to, also where they are not active.
        scale: maps latents to a factor.
        keep_error: whether to keep what the autoencoder does not reconstruct (default: only with edits).
        where: the arguments of an intervention: `branch`, `seconds` or `span`, `rows`, `strength`, `schedule`,
            `preserve_norm`, `gate`. The site and the layer are those of the SAE.

    Raises:
        InputTypeError, InputError: if a latent does not exist or is edited twice, or if a number is not finite.
    """
    if not isinstance(sae, SAE):
        raise InputTypeError(f"sae={shown(sae)}: expected an SAE, such as features.train or features.load returns.")
    allowed = {one.name for one in fields(Intervention)} | {"span"}
    for name in where:
        if name in _WHERE or name not in allowed:
            known = ", ".join(sorted(allowed - {*_WHERE}))
            raise InputTypeError(f"{name}= is not an argument of splice, which takes {known}.")
    factors = dict.fromkeys(sae.numbers("ablate", ablate), 0.0) if ablate is not None else {}
    scaled = _numbers(sae, "scale", {} if scale is None else scale)
    if both := sorted({*factors} & {*scaled}):
        raise InputError(f"latent {both[0]} is both ablated and scaled: give one of them.")
    values = _numbers(sae, "clamp", {} if clamp is None else clamp)
    edits = bool(factors or scaled or values)
    return Splice(
        sae=sae, factors={**factors, **scaled}, values=values,
        keeps_error=edits if keep_error is None else keep_error, **where,
    )  # fmt: skip


def _numbers(sae: SAE, name: str, given: Any) -> dict[int, float]:
    """Return latents with a number for each."""
    if not isinstance(given, Mapping):
        raise InputTypeError(f"{name}={shown(given)}: expected a mapping of latents to numbers, such as {{7: 2.0}}.")
    if not given:
        return {}
    latents = sae.numbers(name, list(given))
    try:
        found = dict(zip(latents, map(real_number, given.values()), strict=True))
    except TypeError:
        raise InputTypeError(f"{name}={shown(given)}: expected a number for each latent.") from None
    for latent, number in found.items():
        if not abs(number) < float("inf"):
            raise InputError(f"{name}: latent {latent} has {number}: expected a finite number.")
    return found
