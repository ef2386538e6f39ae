"""Erase a concept while the model runs, with the affine map of LEACE: `al.Erase(d)`, an intervention like `Ablate`."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from audiolens.checks import checked_flags, shown
from audiolens.directions import leace
from audiolens.directions.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Intervention, Operand
from audiolens.model.sites import counted, listed_layers


@guarded
@dataclass(frozen=True, eq=False)
class Erase(Intervention):
    """Apply LEACE's map at the layers of directions: x -> x - strength * removed * (reader . (x - mean)).

    `maps` are directions of `al.estimate(method="leace")`, or directions with samples (`keep_samples=True`), whose map
    is then fitted. The site is that of the directions. `layers` are all of theirs unless some are given. Every layer
    has a map of its own. Both engines apply it, as every other intervention.

    `Ablate` sets the projection onto the direction to 0, wherever the two poles were. `Erase` sets what can be read of
    the concept to the mean of both poles, and changes the rest of the activations as little as possible. The map was
    fitted on one vector per prompt, usually a mean over steps, and is applied at every step.

    Raises:
        InputTypeError: if `maps` are not directions.
        InputError: if the directions have neither an eraser nor samples, or were read at another site.
        SiteError: if a layer was given at which the directions have no vector.
    """

    maps: Any
    site: str = field(default="", kw_only=True)

    def __post_init__(self, *aliases: Any) -> None:
        checked_flags(prefix=self.prefix, preserve_norm=self.preserve_norm)
        given = self.maps
        if not isinstance(given, Tensor):
            if not isinstance(given, Directions):
                raise InputTypeError(f"{shown(given)}: expected Directions to erase, such as al.estimate returns.")
            site = given.meta.site
            if given.meta.n_heads:
                raise InputError(f"{site} has heads, and Erase maps one vector per step: read another site.")
            if self.site not in ("", site):
                raise InputError(f"site={shown(self.site)}: these directions were read at {site}, and erase there.")
            object.__setattr__(self, "site", site)
            if self.meta is None:
                object.__setattr__(self, "meta", given.meta)
        super().__post_init__(*aliases)
        if isinstance(given, Directions):
            eraser = _eraser(given)
            if self.layers is not None:
                eraser = eraser.at([counted(layer, given.meta.n_layers) for layer in listed_layers(self.layers)])
            object.__setattr__(self, "layers", list(eraser.layers))
            object.__setattr__(self, "maps", torch.stack([eraser.removed, eraser.reader, eraser.mean], dim=1))

    def at_layer(self, layer: int | None) -> "Erase":
        """Return the erasure of one of the layers, whose map a run binds."""
        assert layer is not None
        index = listed_layers(self.layers or ()).index(layer)
        return replace(self, maps=self.maps[index : index + 1], layers=[layer])

    @property
    def operands(self) -> dict[str, Operand]:
        """The map of the first layer: see `at_layer`."""
        return {
            name: Operand(part, "vector")
            for name, part in zip(("removed", "reader", "mean"), self.maps[0], strict=True)
        }

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Return `value` after the share `amount` of the erasure."""
        size = ((value.float() - parts["mean"]) * parts["reader"]).sum(-1, keepdim=True)
        return value - (amount * size * parts["removed"]).to(value.dtype)


def _eraser(directions: Directions) -> leace.Eraser:
    if directions.eraser is not None:
        return directions.eraser
    if directions.samples is None:
        raise InputError(
            'these directions have no eraser: estimate them with method="leace", or read them with keep_samples=True.'
        )
    return leace.fit(directions.samples.values, directions.samples.labels, directions.layers)
