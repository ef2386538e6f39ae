"""Cosines between directions: which blocks write a concept the same way, which concepts share a direction.

Between layers of one set of directions, or between two sets (two concepts, two estimators, two positions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens.directions import Directions


@dataclass(frozen=True, eq=False)
class CosineMap:
    """Cosines between the directions of layers.

    Attributes:
        cosines: "layer other_layer", from -1 to 1.
        layers, other_layers: the blocks of its rows and columns.
        names: of the two sets of directions (twice the same name for a map of one).
        chance: |cosine| that 5% of pairs of independent random directions of this width exceed.

    A high cosine does not show that two blocks use the direction, only that it points the same way in both: in a
    residual stream what one block writes stays there for the next to pass on.
    """

    cosines: Float[np.ndarray, "layer other_layer"]
    layers: tuple[int, ...]
    other_layers: tuple[int, ...]
    names: tuple[str, str]
    chance: float

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of blocks: `layer`, `other_layer`, `cosine`, `above_chance`."""
        rows, columns = np.meshgrid(self.layers, self.other_layers, indexing="ij")
        cosine = self.cosines.ravel()
        return pd.DataFrame(
            {
                "layer": rows.ravel(),
                "other_layer": columns.ravel(),
                "cosine": cosine,
                "above_chance": np.abs(cosine) > self.chance,
            }
        )

    def plot(self) -> Any:
        """A labelled heat map (matplotlib figure)."""
        from analysis import plots

        return plots.cosines(self)

    def figure(self) -> Any:
        """The same for the screen (plotly figure)."""
        from analysis import screen

        return screen.cosines(self)

    def __repr__(self) -> str:
        first, second = self.names
        if first == second and self.layers == self.other_layers and len(self.layers) > 1:
            neighbours = float(np.mean(np.diagonal(self.cosines, 1)))
            ends = float(self.cosines[0, -1])
            return (
                f"CosineMap({first}: neighbouring blocks {neighbours:+.2f} on average, first and last {ends:+.2f}; "
                f"chance {self.chance:.2f})"
            )
        largest = float(self.cosines.flat[np.abs(self.cosines).argmax()])
        return f"CosineMap({first} and {second}: largest {largest:+.2f}; chance {self.chance:.2f})"


def cosine_map(directions: Directions, other: Directions | None = None) -> CosineMap:
    """Cosines between every layer of `directions` and every layer of `other` (default: of itself).

    Raises:
        InputError: if the two are of different width, or a direction has no length.
    """
    ours = _units(directions)
    theirs = ours if other is None else _units(other)
    if ours.shape[1] != theirs.shape[1]:
        raise InputError(f"directions of width {ours.shape[1]} and {theirs.shape[1]}: expected those of one model.")
    return CosineMap(
        cosines=np.clip(ours @ theirs.T, -1, 1),
        layers=tuple(directions.layers),
        other_layers=tuple((other or directions).layers),
        names=(_name(directions), _name(other or directions)),
        chance=chance_cosine(ours.shape[1]),
    )


def chance_cosine(width: int, share: float = 0.05) -> float:
    """|cosine| that a `share` of pairs of random directions exceeds: (cosine + 1) / 2 is Beta((d-1)/2, (d-1)/2)."""
    half = (width - 1) / 2
    return float(2 * stats.beta.ppf(1 - share / 2, half, half) - 1) if width > 1 else 1.0


def _units(directions: Directions) -> Float[np.ndarray, "layer d_model"]:
    vectors = torch.stack([torch.as_tensor(directions[layer]) for layer in directions.layers])
    array = vectors.detach().cpu().double().numpy()
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not (norms > 0).all():
        layer = list(directions.layers)[int(np.argmin(norms))]
        raise InputError(f"the direction of block {layer} is zero: a cosine needs a length.")
    return array / norms


def _name(directions: Directions) -> str:
    return directions.meta.label or "directions"
