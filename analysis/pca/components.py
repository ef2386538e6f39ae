"""Find at which block, and from which time, the poles of a concept separate, by PCA of each layer's activations.

`fit` takes one vector per row and block, as a cache reduced over time or an array "layer row d_model". `trajectories`
takes every step, as a cache that was not reduced or an array "layer row step d_model".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.probing.labels import checked_groups, same
from analysis.probing.probes import shuffled
from analysis.probing.result import UNGROUPED, UNTESTED
from analysis.probing.table import column
from analysis.resampling import Interval, Resampling, bootstrap
from analysis.statistics import LEVEL, rank_test
from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import MOST_SEED, checked_amount, checked_count, numbers_of
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.groups import takes
from audiolens.model.sites import listed_layers
from audiolens.tracing.recording import Reading


@guarded
@dataclass(frozen=True, eq=False)
class PCAResult:
    """The first principal components of every layer.

    Attributes:
        scores: "layer row component", the centred activations of each layer, projected onto its components.
        explained: "layer component", the share of the layer's variance that each component explains.
        layers, labels: the labels of the layer and row axes.
        silhouettes: per layer, the mean silhouette of the labels in the space of the components kept. 1 means that the
            poles are far apart, 0 that they are mixed, and negative values that rows are nearer to the other pole.
        intervals: intervals of `silhouettes` over groups. The silhouette of each row is held fixed, so the intervals
            show the uncertainty of the mean, not how the components would change with other rows.
        p: per layer, the share of label shuffles whose best layer has a silhouette at least as large as this layer's.
        grouped: whether groups or prompts are known. If not, `intervals` and `p` treat every row as independent.
        least_p: the smallest p that these shuffles can give. If there are few rows, there are few ways to shuffle the
            labels.

    The result shows whether the poles are far apart compared with the spread within each pole. It does not show that
    the poles would separate without labels. They were chosen to differ, and the largest variance might come from
    something other than the concept.
    """

    scores: Float[np.ndarray, "layer row component"]
    explained: Float[np.ndarray, "layer component"]
    layers: tuple[int, ...]
    labels: tuple[str, ...]
    silhouettes: Float[np.ndarray, " layer"]
    intervals: tuple[Interval, ...]
    p: Float[np.ndarray, " layer"]
    grouped: bool
    least_p: float = 0.0

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer and row of activations: `layer`, `row`, `label`, `pc1`, `pc2`, ..."""
        frames = [
            pd.DataFrame(scores, columns=[f"pc{i + 1}" for i in range(scores.shape[1])]).assign(
                layer=layer, row=np.arange(len(scores)), label=self.labels
            )
            for layer, scores in zip(self.layers, self.scores, strict=True)
        ]
        table = pd.concat(frames, ignore_index=True)
        return table[["layer", "row", "label", *[name for name in table.columns if name.startswith("pc")]]]

    def summary(self) -> pd.DataFrame:
        """Return one row per layer, with the explained variances, the silhouette and its interval, and `p`.

        `p` is corrected for the choice among layers.
        """
        parts = {f"explained_pc{i + 1}": self.explained[:, i] for i in range(self.explained.shape[1])}
        return pd.DataFrame(
            {
                "layer": self.layers,
                **parts,
                "silhouette": self.silhouettes,
                "low": [interval.low for interval in self.intervals],
                "high": [interval.high for interval in self.intervals],
                "p": self.p,
            }
        )

    @drawable
    def plot(self, dimensions: int = 2) -> Any:
        """Draw the first two or three components, with one panel per layer (matplotlib figure)."""
        from analysis.pca import figures

        return figures.space_paper(self) if _checked_dimensions(self, dimensions) == 3 else figures.panels_paper(self)

    @interactive
    def figure(self, dimensions: int = 2) -> Any:
        """Draw one panel with a slider over layers (plotly figure). A three-dimensional panel can be rotated."""
        from analysis.pca import figures

        three = _checked_dimensions(self, dimensions) == 3
        return figures.space_screen(self) if three else figures.panels_screen(self)

    def __repr__(self) -> str:
        best = int(np.nanargmax(self.silhouettes))
        interval, poles = self.intervals[best], " and ".join(sorted(set(self.labels)))
        mixed, untested = self.p[best] > LEVEL, self.least_p >= LEVEL
        found = "no further apart than shuffled labels, furthest at" if mixed and not untested else "furthest apart at"
        few = UNTESTED if mixed and untested else ""
        return (
            f"PCAResult({poles} are {found} block {self.layers[best]}: silhouette {self.silhouettes[best]:.2f} "
            f"[{interval.low:.2f}, {interval.high:.2f}], best of {len(self.layers)} ({few}p = {self.p[best]:.3f})"
            f"{'' if self.grouped else f'; {UNGROUPED}'})"
        )


@guarded
@dataclass(frozen=True, eq=False)
class Trajectories:
    """The paths of the poles over time in each layer's components.

    Attributes:
        means: "layer pole step component", means over groups (prompts).
        errors: standard errors of `means` over groups.
        explained: "layer component", the share of the variance over rows and steps that each component explains.
        silhouettes: "layer step", the mean silhouette of the labels at each step. 1 means that the poles are far apart,
            and 0 that they are mixed.
        seconds: time of each step from the beginning of the clip.
        layers, poles: the labels of the layer and pole axes.

    The paths do not show what the model does with the difference between the poles. Much of a path reflects time
    itself, which all rows share. The distance between the paths shows whether the poles separate; the shape of either
    path does not.
    """

    means: Float[np.ndarray, "layer pole step component"]
    errors: Float[np.ndarray, "layer pole step component"]
    explained: Float[np.ndarray, "layer component"]
    silhouettes: Float[np.ndarray, "layer step"]
    seconds: Float[np.ndarray, " step"]
    layers: tuple[int, ...]
    poles: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer, pole and step: `seconds`, `silhouette`, and `pc1`, `pc1_error`, `pc2`, ..."""
        parts = []
        for index, layer in enumerate(self.layers):
            for number, pole in enumerate(self.poles):
                columns: dict[str, Any] = {"layer": layer, "label": pole, "seconds": self.seconds}
                columns["silhouette"] = self.silhouettes[index]
                for i in range(self.means.shape[-1]):
                    columns[f"pc{i + 1}"] = self.means[index, number, :, i]
                    columns[f"pc{i + 1}_error"] = self.errors[index, number, :, i]
                parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    @drawable
    def plot(self) -> Any:
        """Draw the paths in each layer, and a map of the silhouette over time (matplotlib figure)."""
        from analysis.pca import figures

        return figures.paths_paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the paths with a slider over layers (plotly figure)."""
        from analysis.pca import figures

        return figures.paths_screen(self)

    def __repr__(self) -> str:
        layer, step = np.unravel_index(int(np.nanargmax(self.silhouettes)), self.silhouettes.shape)
        return (
            f"Trajectories({' and '.join(self.poles)} are furthest apart at block {self.layers[layer]}, "
            f"{self.seconds[step]:.2f} s: silhouette {self.silhouettes[layer, step]:.2f}, the largest "
            f"of {self.silhouettes.size}, not tested against chance; first step {self.silhouettes[layer, 0]:.2f})"
        )


@guarded
@takes("resampling", Resampling, n_permutations="n_shuffles")
@takes("reading", Reading, single=["sites"], sites="site")
def fit(
    activations: ActivationCache | np.ndarray,
    labels: Sequence[str],
    *,
    site: str = "resid_post",
    n_components: int = 3,
    layers: Sequence[int] | None = None,
    groups: Sequence[Any] | None = None,
    n_shuffles: int = 99,
    seed: int = 0,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> PCAResult:
    """Return the principal components of every layer's activations.

    Args:
        activations: a cache recorded with `reduce="mean"` (or "last"), or an array "layer row d_model".
        labels: the pole of each row.
        site: the site to read from a cache.
        n_components: number of components kept per layer.
        layers: the layers to read from a cache, or the layer numbers of an array (default: 0, 1, ...).
        groups: the group of each row, for rows that are not independent. By default, rows of a cache that share a
            prompt form a group.
        n_shuffles: number of label shuffles between groups; p is at least 1 / (n_shuffles + 1).
        seed: seed of the shuffles.
        reading: a `Reading` instead of `site` and `layers`.
        resampling: a `Resampling` instead of `n_shuffles` (its `n_permutations`) and `seed`.

    Raises:
        InputError: if labels do not match the rows, if there are fewer than two labels, if a label has fewer than two
            rows, or if activations are constant.
    """
    array, numbers, clusters = _arrays(activations, site, layers, groups, steps=False)
    names = tuple(map(str, column("labels", labels, array.shape[1])))
    _check(array, names)
    n_shuffles = checked_count("n_shuffles", n_shuffles)
    dealt = _shuffles(names, clusters, n_shuffles, checked_count("seed", seed, 0, MOST_SEED))
    n_kept = min(checked_count("n_components", n_components), array.shape[1] - 1, array.shape[2])
    scores, explained, silhouettes, intervals, chance = [], [], [], [], []
    for layer, rows in zip(numbers, array, strict=True):
        _refuse_constant(rows, layer)
        model = PCA(n_kept, svd_solver="full").fit(rows)
        projected = model.transform(rows)
        samples = np.asarray(silhouette_samples(projected, names))
        scores.append(projected)
        explained.append(model.explained_variance_ratio_)
        silhouettes.append(samples.mean())
        chance.append(_silhouettes(projected, dealt))
        intervals.append(bootstrap(lambda index, of=samples: float(of[index].mean()), clusters, n_bootstrap=500))
    highest = np.max(chance, axis=0)
    return PCAResult(
        np.stack(scores),
        np.stack(explained),
        numbers,
        names,
        np.array(silhouettes),
        tuple(intervals),
        # Equal silhouettes can differ in their last digits if they were summed in another order.
        p=np.array([rank_test(float(one) - 1e-9, highest).p for one in silhouettes]),
        grouped=groups is not None or any(isinstance(text, str) for text in getattr(activations, "prompts", ())),
        least_p=_least_p(np.unique(names, return_inverse=True)[1], dealt),
    )


@guarded
@takes("reading", Reading, single=["sites"], sites="site")
def trajectories(
    activations: ActivationCache | np.ndarray,
    labels: Sequence[str],
    *,
    site: str = "resid_post",
    n_components: int = 3,
    layers: Sequence[int] | None = None,
    groups: Sequence[Any] | None = None,
    frame_rate: float | None = None,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> Trajectories:
    """Return the poles' paths through each layer's components, which are fitted to all rows and steps.

    Args:
        activations: a cache recorded without `reduce`, or an array "layer row step d_model". Leave out the tail, whose
            steps only complete the delayed codebooks, by recording with `seconds=(0, ...)`.
        labels, site, n_components, layers, groups, reading: as in `fit`.
        frame_rate: steps per second of an array. A cache stores its own frame rate.

    Raises:
        InputError: for the reasons listed in `fit`, or if the activations have no step axis.
    """
    array, numbers, clusters = _arrays(activations, site, layers, groups, steps=True)
    names = tuple(map(str, column("labels", labels, array.shape[1])))
    _check(array[:, :, 0], names)
    first = activations.first_step if isinstance(activations, ActivationCache) else 0
    if frame_rate is not None:
        frame_rate = checked_amount("frame_rate", frame_rate, above=0)
    rate = (activations.frame_rate if isinstance(activations, ActivationCache) else frame_rate) or 1.0
    poles = tuple(dict.fromkeys(names))
    labelled = np.array(names)
    n_kept = min(checked_count("n_components", n_components), array.shape[1] * array.shape[2] - 1, array.shape[3])
    means, errors, explained, silhouettes = [], [], [], []
    for layer, values in zip(numbers, array, strict=True):
        _refuse_constant(values.reshape(-1, values.shape[-1]), layer)
        model = PCA(n_kept, svd_solver="full").fit(values.reshape(-1, values.shape[-1]))
        scores = model.transform(values.reshape(-1, values.shape[-1])).reshape(*values.shape[:2], -1)
        own = [_by_group(scores[labelled == pole], clusters[labelled == pole]) for pole in poles]
        means.append([one.mean(0) for one in own])
        errors.append([one.std(0, ddof=1) / np.sqrt(len(one)) if len(one) > 1 else one[0] * np.nan for one in own])
        explained.append(model.explained_variance_ratio_)
        silhouettes.append([_silhouette(scores[:, step], names) for step in range(scores.shape[1])])
    return Trajectories(
        means=np.array(means),
        errors=np.array(errors),
        explained=np.stack(explained),
        silhouettes=np.array(silhouettes),
        seconds=(first + np.arange(array.shape[2])) / rate,
        layers=numbers,
        poles=poles,
    )


def _arrays(
    activations: Any, site: str, layers: Sequence[int] | None, groups: Any, *, steps: bool
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Return values "layer row (step) d_model", layer numbers, and the group of each row."""
    ties = []
    if isinstance(activations, ActivationCache):
        held = activations.layers(site)
        chosen = held if layers is None else activations.numbered(layers)
        if held and (not chosen or not set(chosen) <= set(held)):
            raise InputError(f"layers={chosen}: the cache contains layers {', '.join(map(str, held))} of {site}.")
        _refuse_axes(activations, site, held, steps)
        keep = [index for index, layer in enumerate(held) if layer in chosen]
        ties = [same(activations.prompts)] if activations.prompts else []
        activations = activations.stack(site)[keep]
        layers = [held[index] for index in keep]
    array = numbers_of("activations", activations)
    if array.ndim != 3 + steps:
        expected = "layer row step d_model" if steps else "layer row d_model"
        how = "record without reduce" if steps else "record with reduce='mean', or average over steps"
        raise InputError(f"activations of shape {array.shape}: expected '{expected}'; {how}.")
    numbers = tuple(range(len(array)) if layers is None else listed_layers(layers))
    if len(numbers) != len(array):
        raise InputError(f"{len(numbers)} layers for activations of {len(array)} layers: give one number each.")
    return array, numbers, checked_groups(groups, array.shape[1], ties)


def _refuse_axes(cache: ActivationCache, site: str, held: Sequence[int], steps: bool) -> None:
    """Raise if a head axis would be mistaken for steps, or the padding of shorter prefixes for activations."""
    axes = cache.axes_of(site, held[0]) if held else ()
    if "head" in axes or "key" in axes:
        raise InputError(f"{site} has the axes {' '.join(axes)}: give an array of one head, 'layer row (step) d_head'.")
    if steps and cache.first_step < 0 and len(set(cache.prefixes)) > 1:
        raise InputError(
            "the rows' prefixes differ in length, and the cache pads the shorter ones with zeros: record without "
            "prefix=True, or use prompts of equal length."
        )


def _refuse_constant(rows: Float[np.ndarray, "row d_model"], layer: int) -> None:
    if not np.ptp(rows, axis=0).any():
        raise InputError(f"the activations of block {layer} are the same in every row: nothing varies.")


def _by_group(scores: Float[np.ndarray, "row step component"], groups: np.ndarray) -> np.ndarray:
    """Return the mean scores of each group, so that each prompt counts once."""
    return np.stack([scores[groups == group].mean(0) for group in np.unique(groups)])


def _shuffles(
    names: tuple[str, ...], groups: Int[np.ndarray, " row"], n: int, seed: int
) -> Int[np.ndarray, "shuffle row"]:
    """Return shuffled labels, as numbers. Whole groups exchange labels, so that groups stay together."""
    target, rng = np.unique(names, return_inverse=True)[1], np.random.default_rng(seed)
    return np.stack([shuffled(target, groups, np.zeros(len(target), dtype=int), rng) for _ in range(n)])


def _least_p(target: Int[np.ndarray, " row"], dealt: Int[np.ndarray, "shuffle row"]) -> float:
    """Return the smallest possible p, which completely separated poles would give.

    Shuffles that split the rows in the same way as the real labels are then equally extreme.
    """
    same = [np.array_equal(_by_first_row(one), _by_first_row(target)) for one in dealt]
    return (1 + sum(same)) / (len(dealt) + 1)


def _by_first_row(labels: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Return the labels, renumbered in the order of their first rows."""
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def _silhouettes(
    scores: Float[np.ndarray, "row component"], targets: Int[np.ndarray, "shuffle row"]
) -> Float[np.ndarray, " shuffle"]:
    """Return the mean silhouette under each labelling.

    All labellings share one distance matrix, which scikit-learn would recompute for each labelling.
    """
    distances, labels = squareform(pdist(scores)), np.unique(targets)
    members = np.stack([targets == label for label in labels]).astype(float)
    sums, sizes = members @ distances, members.sum(-1, keepdims=True)
    own = members.astype(bool)
    within = np.where(own, sums / np.maximum(sizes - 1, 1), 0.0).sum(0)
    beyond = np.where(own, np.inf, sums / sizes).min(0)
    return ((beyond - within) / np.maximum(np.maximum(within, beyond), np.finfo(float).tiny)).mean(-1)


def _silhouette(scores: Float[np.ndarray, "row component"], names: tuple[str, ...]) -> float:
    """Return the mean silhouette, or 0 if all rows are equal (as they are at the first step without text)."""
    return float(np.asarray(silhouette_samples(scores, names)).mean()) if np.ptp(scores, axis=0).any() else 0.0


def _checked_dimensions(result: PCAResult, dimensions: int) -> int:
    if checked_count("dimensions", dimensions, 2, 3) > max(result.scores.shape[2], 2):
        raise InputError(f"dimensions={dimensions}: expected 2, or 3 with n_components of at least 3.")
    return dimensions


def _check(array: np.ndarray, labels: tuple[str, ...]) -> None:
    counts = {label: labels.count(label) for label in set(labels)}
    if len(counts) < 2 or min(counts.values()) < 2:
        raise InputError(f"labels {counts}: expected at least two labels with at least two rows each.")
    if not np.isfinite(array).all():
        raise InputError("activations contain NaN or infinite values: expected finite numbers.")
