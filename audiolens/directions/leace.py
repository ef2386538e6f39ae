"""LEACE (least-squares concept erasure): the affine map that removes a concept from activations, and its direction.

After the map, both poles have the same mean, so no linear classifier does better on these samples than a constant
(Belrose et al. 2023, arXiv 2306.03819). Among all affine maps with this property, LEACE changes the samples least in
the mean square. For two poles with difference in means delta and covariance S of all samples, the map removes a
component of rank one:

    x -> x - delta * (g . (x - mean)),  with g = S^-1 delta / (delta . S^-1 delta)

It therefore *removes* a component along delta (the difference in means), as much of it as g *reads*. The direction of
the estimator "leace" is g, which is also Fisher's discriminant. With fewer samples than dimensions S is singular, so
it is shrunk towards a multiple of the identity (Ledoit and Wolf 2004). Whatever S is, both poles' means become equal.
The package concept-erasure by the authors of LEACE computes the same map, with another shrinkage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from audiolens.door import guarded
from audiolens.errors import InputError, SiteError, shortened
from audiolens.tensors import finite


@guarded
@dataclass(frozen=True, eq=False)
class Eraser:
    """The map of LEACE at each layer: x -> x - removed * (reader . (x - mean)).

    Attributes:
        removed: the direction of the component that is removed, which is the difference in means.
        reader: the vector that reads the size of this component. Its product with `removed` is 1.
        mean: the mean of both poles together, which stays where it is.
        layers: the blocks.
    """

    removed: Float[Tensor, "layer d_model"]
    reader: Float[Tensor, "layer d_model"]
    mean: Float[Tensor, "layer d_model"]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("removed", "reader", "mean"):
            object.__setattr__(self, name, finite(name, getattr(self, name)))
        shapes = {tuple(part.shape) for part in (self.removed, self.reader, self.mean)}
        if len(shapes) != 1 or self.removed.ndim != 2 or len(self.removed) != len(self.layers):
            raise InputError(f"an eraser for {len(self.layers)} layers needs one removed, reader and mean each.")

    def __call__(self, values: Float[Tensor, "... d_model"], layer: int) -> Float[Tensor, "... d_model"]:
        """Return activations of a layer after erasure, for use on your own tensors or inside `lens.trace`.

        Raises:
            SiteError: if the eraser was not fitted at this layer.
            InputError: if the last axis of `values` is not that of the eraser.
        """
        index = self.index(layer)
        if values.shape[-1:] != self.mean.shape[1:]:
            raise InputError(f"values of shape {tuple(values.shape)}: expected a last axis of {self.mean.shape[1]}.")
        removed, reader, mean = (part[index].to(values.device) for part in (self.removed, self.reader, self.mean))
        size = (values.float() - mean) @ reader
        return values - (size[..., None] * removed).to(values.dtype)

    def index(self, layer: int) -> int:
        if layer not in self.layers:
            raise SiteError(f"no erasure at layer {layer}: it was fitted at {shortened(map(str, self.layers), 60)}.")
        return self.layers.index(layer)

    def at(self, layers: Sequence[int]) -> "Eraser":
        """Return the maps of some of the layers."""
        rows = [self.index(layer) for layer in layers]
        return Eraser(self.removed[rows], self.reader[rows], self.mean[rows], tuple(layers))

    def __repr__(self) -> str:
        return f"Eraser(layers {shortened(map(str, self.layers), 60)}, width {self.mean.shape[1]})"


def fit(
    values: Float[Tensor, "layer prompt d_model"],
    positive: Bool[Tensor, " prompt"],
    layers: tuple[int, ...],
    shrinkage: float | None = None,
) -> Eraser:
    """Fit the map of every layer.

    Args:
        shrinkage: the weight of the identity in the covariance, from 0 to 1; `None` chooses it (Ledoit and Wolf). With
            0, the map is exactly that of the paper, with a pseudo-inverse.
    """
    parts = [_fitted(layer.double(), positive, shrinkage) for layer in values]
    removed, reader, mean = (torch.stack(part).float() for part in zip(*parts, strict=True))
    return Eraser(removed, reader, mean, layers)


def _fitted(
    values: Float[Tensor, "prompt d_model"], positive: Bool[Tensor, " prompt"], shrinkage: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = values.mean(0)
    centred = values - mean
    delta = values[positive].mean(0) - values[~positive].mean(0)
    weight = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True)) if shrinkage is None else shrinkage
    covariance = centred.T @ centred / len(values)
    identity = torch.eye(len(mean), dtype=torch.float64, device="cpu")
    shrunk = (1 - weight) * covariance + weight * covariance.trace() / len(mean) * identity
    solved = torch.linalg.pinv(shrunk, hermitian=True) @ delta if weight == 0 else torch.linalg.solve(shrunk, delta)
    size = solved @ delta
    # Where the means are equal, nothing is left to erase.
    return delta, solved / size if float(size) > 0 else torch.zeros_like(delta), mean
