"""Compare directions by cosine similarity, to show which blocks or concepts share a direction.

`cosine_map` compares the layers of one set of directions, or of two. `compare` compares named sets at each layer, such
as concepts, estimators, positions or time spans. Both compare the cosines with those of random directions, or with
those of the same estimate under shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.statistics import LEVEL, correct
from audiolens.checks import checked_amount, checked_count, numbers_of, shown
from audiolens.directions.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError

Null = Literal["random", "shuffled"]
_ESTIMATOR = "difference in means"


@guarded
@dataclass(frozen=True, eq=False)
class CosineMap:
    """Cosine similarities between the directions of layers.

    Attributes:
        cosines: "layer other_layer", from -1 to 1.
        layers, other_layers: the blocks of the rows and columns.
        names: names of the two sets of directions (the same name twice for a map of one set).
        chance: the |cosine| that 5% of pairs of independent random directions of this width exceed.
        p: the share of random directions (or shuffles) whose cosine is at least as far from 0 as the one observed; NaN
            for a direction with itself.
        null: the comparison behind `p`: "random" directions or "shuffled" labels.
        n_draws: number of shuffles; 0 for random directions, whose distribution is known.

    A high cosine does not show that two blocks use the direction, only that it is similar in both. What one block
    writes to the residual stream is still present in later blocks. Activations also vary along only a few of their
    dimensions, so unrelated directions read from them have larger cosines than random ones. `null="shuffled"` is
    therefore the stricter comparison.
    """

    cosines: Float[np.ndarray, "layer other_layer"]
    layers: tuple[int, ...]
    other_layers: tuple[int, ...]
    names: tuple[str, str]
    chance: float
    p: Float[np.ndarray, "layer other_layer"]
    null: Null = "random"
    n_draws: int = 0

    @property
    def significant(self) -> Bool[np.ndarray, "layer other_layer"]:
        """Cells whose p, corrected over the map (Benjamini and Hochberg), is at most 0.05."""
        return _significant(self.p)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per pair of blocks: `layer`, `other_layer`, `cosine`, `above_chance`, `p`, `significant`."""
        rows, columns = np.meshgrid(self.layers, self.other_layers, indexing="ij")
        cosine = self.cosines.ravel()
        return pd.DataFrame(
            {
                "layer": rows.ravel(),
                "other_layer": columns.ravel(),
                "cosine": cosine,
                "above_chance": np.abs(cosine) > self.chance,
                "p": self.p.ravel(),
                "significant": self.significant.ravel(),
            }
        )

    @drawable
    def plot(self) -> Any:
        """Draw a labelled heat map (matplotlib figure)."""
        from analysis.similarity import figures

        return figures.map_paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.similarity import figures

        return figures.map_screen(self)

    def __repr__(self) -> str:
        first, second = self.names
        # Two sets may have the same name and layers, but only in a map of one set is p NaN on the whole diagonal.
        if self.layers == self.other_layers and len(self.layers) > 1 and np.isnan(np.diagonal(self.p)).all():
            neighbours = float(np.mean(np.diagonal(self.cosines, 1)))
            ends = float(self.cosines[0, -1])
            return (
                f"CosineMap({first}: neighbouring blocks {neighbours:+.2f} on average, first and last {ends:+.2f}; "
                f"chance {self.chance:.2f})"
            )
        largest = float(self.cosines.flat[np.abs(self.cosines).argmax()])
        return (
            f"CosineMap({first} and {second}: largest of {self.cosines.size} {largest:+.2f}; "
            f"{self.significant.mean():.0%} of them beyond {_null_name(self.null)})"
        )


@guarded
@dataclass(frozen=True, eq=False)
class Comparison:
    """Cosine similarities at each layer between named sets of directions, such as concepts or estimators.

    Attributes:
        cosines: "layer name other_name".
        layers, names: the layer and name axes.
        chance: the |cosine| that 5% of pairs of random directions of this width exceed.
        p, null, n_draws: as in `CosineMap`.

    A cosine near 0 does not show that the model separates two concepts, only that their mean directions are unrelated.
    A cosine far from 0 may come from prompts that name both concepts.
    """

    cosines: Float[np.ndarray, "layer name other_name"]
    layers: tuple[int, ...]
    names: tuple[str, ...]
    chance: float
    p: Float[np.ndarray, "layer name other_name"]
    null: Null = "random"
    n_draws: int = 0

    @property
    def significant(self) -> Bool[np.ndarray, "layer name other_name"]:
        """Cells whose p, corrected over all layers and pairs (Benjamini and Hochberg), is at most 0.05."""
        found = np.zeros(self.p.shape, dtype=bool)
        first, second = np.triu_indices(len(self.names), 1)
        found[:, first, second] = _significant(self.p[:, first, second])
        return found | found.transpose(0, 2, 1)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer and pair.

        The columns are `layer`, `name`, `other_name`, `cosine`, `above_chance`, `p` and `significant`.
        """
        marks = self.significant
        rows = [
            {
                "layer": layer, "name": self.names[i], "other_name": self.names[j], "cosine": self.cosines[place, i, j],
                "above_chance": abs(self.cosines[place, i, j]) > self.chance, "p": self.p[place, i, j],
                "significant": marks[place, i, j],
            }
            for place, layer in enumerate(self.layers)
            for i, j in combinations(range(len(self.names)), 2)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    @drawable
    def plot(self) -> Any:
        """Draw one heat map per layer (matplotlib figure)."""
        from analysis.similarity import figures

        return figures.comparison_paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw one heat map with a slider over layers (plotly figure)."""
        from analysis.similarity import figures

        return figures.comparison_screen(self)

    def __repr__(self) -> str:
        table = self.to_frame()
        far = table.iloc[int(np.argmax(table["cosine"].abs()))]
        return (
            f"Comparison({len(self.names)} directions at {len(self.layers)} blocks: {far['name']} and "
            f"{far['other_name']} most alike, {far['cosine']:+.2f} at block {far['layer']}"
            f"{'' if far['significant'] else ', not distinguishable from chance'}; "
            f"{table['significant'].mean():.0%} of cosines beyond {_null_name(self.null)})"
        )


@guarded
def cosine_map(
    directions: Directions, other: Directions | None = None, *, null: Null = "random", n_draws: int = 200
) -> CosineMap:
    """Return the cosine similarity between every layer of `directions` and every layer of `other` (or of itself).

    Args:
        null: "random" (directions of the same width) or "shuffled" (the same estimate from balanced shuffles of the
            labels, `Directions.shuffled`). Shuffled directions are affected by the geometry of the residual stream in
            the same way as the real ones. To shuffle, read the directions with `keep_samples=True`.
        n_draws: number of shuffles; p is at least 1 / (n_draws + 1).

    Raises:
        InputError, InputTypeError: if either argument is not a `Directions`, their widths differ, if a direction is
            zero, or if there are no samples to shuffle.
    """
    second = directions if other is None else other
    _refuse_other({"directions": directions, "other": second})
    _checked_null(null, n_draws)
    ours, theirs = _units(directions), _units(second)
    if ours.shape[1] != theirs.shape[1]:
        raise InputError(f"directions of width {ours.shape[1]} and {theirs.shape[1]}: expected those of one model.")
    cosines = np.clip(ours @ theirs.T, -1, 1)
    if null == "random":
        p = chance_p(cosines, ours.shape[1])
    else:
        drawn = _shuffles(directions, n_draws), _shuffles(second, n_draws)
        p = _rank(cosines, np.abs(np.einsum("nld,nmd->nlm", *drawn)))
    p[cosines > 1 - 1e-9] = np.nan
    return CosineMap(
        cosines=cosines,
        layers=tuple(directions.layers),
        other_layers=tuple(second.layers),
        names=(_name(directions), _name(second)),
        chance=chance_cosine(ours.shape[1]),
        p=p,
        null=null,
        n_draws=0 if null == "random" else n_draws,
    )


@guarded
def compare(directions: Mapping[str, Directions], *, null: Null = "random", n_draws: int = 200) -> Comparison:
    """Return the cosine similarity between named sets of directions at each layer that all of them have.

    `{"tempo": d, "timbre": e}` compares concepts, `{"means": d, "rfm": al.estimate(samples=d.samples, method="rfm")}`
    compares estimators, and `{"0 to 1 s": d, "1 to 2 s": e}` compares time spans. Positions and sites can be compared
    in the same way.

    Args:
        null, n_draws: as in `cosine_map`. Sets read from the same prompts get the same shuffles. Estimators other than
            the difference in means cannot be shuffled.

    Raises:
        InputError, InputTypeError: if there are fewer than two sets, if they have no common layer or differ in width,
            or for the reasons listed in `cosine_map`.
    """
    if not isinstance(directions, Mapping):
        raise InputTypeError(
            f"directions: expected sets by name, {{'tempo': d, ...}}, not {type(directions).__name__}."
        )
    _refuse_other(directions)
    _checked_null(null, n_draws)
    if len(directions) < 2:
        raise InputError(f"{len(directions)} sets of directions: give at least two, by name.")
    shared = sorted(set.intersection(*(set(one.layers) for one in directions.values())))
    if not shared:
        raise InputError("these directions have no layer in common: give sets read at the same layers.")
    chosen = {name: one.at(shared) for name, one in directions.items()}
    widths = {name: one.vectors.shape[1] for name, one in chosen.items()}
    if len(set(widths.values())) > 1:
        raise InputError(f"directions of different widths, {widths}: expected those of one model.")
    units = np.stack([_units(one) for one in chosen.values()])
    cosines = np.clip(np.einsum("nld,mld->lnm", units, units), -1, 1)
    width = units.shape[-1]
    if null == "random":
        p = chance_p(cosines, width)
    else:
        places = {name: [one.layers.index(layer) for layer in shared] for name, one in directions.items()}
        drawn = np.stack([_shuffles(one, n_draws)[:, places[name]] for name, one in directions.items()])
        p = _rank(cosines, np.abs(np.einsum("nsld,msld->slnm", drawn, drawn)))
    p[:, np.arange(len(chosen)), np.arange(len(chosen))] = np.nan
    return Comparison(
        cosines, tuple(shared), tuple(chosen), chance_cosine(width), p, null, 0 if null == "random" else n_draws
    )


@guarded
def chance_cosine(width: int, share: float = 0.05) -> float:
    """Return the |cosine| that a `share` of random pairs exceeds.

    For width d, (cosine + 1) / 2 follows Beta((d-1)/2, (d-1)/2).

    Raises:
        InputError: if the width is below 1, or the share is not above 0 and at most 1.
    """
    width, share = checked_count("width", width), checked_amount("share", share, above=0)
    if share > 1:
        raise InputError(f"share={share}: expected a share of the pairs, above 0 and at most 1.")
    half = (width - 1) / 2
    return float(2 * stats.beta.ppf(1 - share / 2, half, half) - 1) if width > 1 else 1.0


@guarded
def chance_p(cosines: np.ndarray, width: int) -> np.ndarray:
    """Return the probability that the cosine of two random vectors is at least as far from 0 as each value."""
    cosines, width = numbers_of("cosines", cosines), checked_count("width", width)
    half = (width - 1) / 2
    return 2 * stats.beta.sf((1 + np.abs(cosines)) / 2, half, half) if width > 1 else np.ones(cosines.shape)


def _rank(cosines: np.ndarray, drawn: Float[np.ndarray, "draw ..."]) -> np.ndarray:
    return (1 + (drawn >= np.abs(cosines)).sum(axis=0)) / (len(drawn) + 1)


def _refuse_other(given: Mapping[str, Any]) -> None:
    """Raise `InputTypeError` unless all values are `Directions`."""
    for name, one in given.items():
        if not isinstance(one, Directions):
            raise InputTypeError(
                f"{name}: expected Directions, such as difference_in_means returns, not {type(one).__name__}."
            )


def _checked_null(null: Any, n_draws: Any) -> None:
    if null not in get_args(Null):
        raise InputError(f"null={shown(null)}: expected {' or '.join(map(repr, get_args(Null)))}.")
    checked_count("n_draws", n_draws)


def _shuffles(directions: Directions, n_draws: int) -> Float[np.ndarray, "draw layer d_model"]:
    """Return the unit directions under shuffled labels.

    In draw i, sets with the same number of prompts use the same order of labels.
    """
    if directions.samples is None or directions.meta.estimator != _ESTIMATOR:
        raise InputError(
            f"{_name(directions)}: shuffles need a difference in means read with keep_samples=True; use null='random'."
        )
    return np.stack([_units(directions.shuffled(seed)) for seed in range(n_draws)])


def _significant(p: np.ndarray) -> Bool[np.ndarray, "..."]:
    known = np.isfinite(p)
    found = np.zeros(p.shape, dtype=bool)
    if known.any():
        found[known] = correct(p[known], "bh") <= LEVEL
    return found


def _null_name(null: Null) -> str:
    return "random directions" if null == "random" else "shuffled labels"


def _units(directions: Directions) -> Float[np.ndarray, "layer d_model"]:
    vectors = torch.stack([torch.as_tensor(directions[layer], device="cpu") for layer in directions.layers])
    array = vectors.detach().cpu().double().numpy()
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not (norms > 0).all():
        layer = list(directions.layers)[int(np.argmin(norms))]
        raise InputError(f"the direction of block {layer} is zero, so its cosines are undefined: leave the block out.")
    return array / norms


def _name(directions: Directions) -> str:
    return directions.meta.label or "directions"
