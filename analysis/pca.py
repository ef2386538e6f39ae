"""PCA of activations per layer: do the two poles of a concept lie apart, and from which block on?

Activations come as a cache reduced over time (one vector per row and block) or as an array "layer row d_model".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples

from analysis.statistics import Interval, bootstrap
from audiolens.cache import ActivationCache
from audiolens.errors import InputError


@dataclass(frozen=True, eq=False)
class PCAResult:
    """The first principal components of every layer.

    Attributes:
        scores: "layer row component", each layer's activations centred and projected.
        explained: "layer component", share of the layer's variance.
        layers, labels: of the axes.
        silhouettes: per layer the mean silhouette of the labels in all components kept: 1 far apart, 0 mixed, negative
            nearer to the other pole.
        intervals: of `silhouettes`, over rows.

    It does not show a separation that needs no labels: the poles were chosen, so something differs between them, and
    the largest variance may be something else than the concept. It shows whether they are far apart beside the
    spread within each.
    """

    scores: Float[np.ndarray, "layer row component"]
    explained: Float[np.ndarray, "layer component"]
    layers: tuple[int, ...]
    labels: tuple[str, ...]
    silhouettes: Float[np.ndarray, " layer"]
    intervals: tuple[Interval, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and activation: `layer`, `row`, `label`, `pc1`, `pc2`, ..."""
        frames = [
            pd.DataFrame(scores, columns=[f"pc{i + 1}" for i in range(scores.shape[1])]).assign(
                layer=layer, row=np.arange(len(scores)), label=self.labels
            )
            for layer, scores in zip(self.layers, self.scores, strict=True)
        ]
        table = pd.concat(frames, ignore_index=True)
        return table[["layer", "row", "label", *[name for name in table.columns if name.startswith("pc")]]]

    def summary(self) -> pd.DataFrame:
        """One row per layer: explained variance of each component, silhouette and its interval."""
        parts = {f"explained_pc{i + 1}": self.explained[:, i] for i in range(self.explained.shape[1])}
        return pd.DataFrame(
            {
                "layer": self.layers,
                **parts,
                "silhouette": self.silhouettes,
                "low": [interval.low for interval in self.intervals],
                "high": [interval.high for interval in self.intervals],
            }
        )

    def plot(self) -> Any:
        """One panel per layer (matplotlib figure)."""
        from analysis import plots

        return plots.components(self)

    def figure(self) -> Any:
        """One panel with a slider over layers (plotly figure)."""
        from analysis import screen

        return screen.components(self)

    def __repr__(self) -> str:
        best = int(np.nanargmax(self.silhouettes))
        interval = self.intervals[best]
        return (
            f"PCAResult({' and '.join(sorted(set(self.labels)))} lie furthest apart at block {self.layers[best]}: "
            f"silhouette {self.silhouettes[best]:.2f} [{interval.low:.2f}, {interval.high:.2f}])"
        )


def fit(
    activations: ActivationCache | np.ndarray,
    labels: Sequence[str],
    *,
    site: str = "resid_post",
    n_components: int = 3,
    layers: Sequence[int] | None = None,
) -> PCAResult:
    """Principal components of every layer's activations.

    Args:
        activations: a cache recorded with `reduce="mean"` (or "last"), or an array "layer row d_model".
        labels: the pole of each row.
        site: which recording of a cache.
        n_components: kept per layer.
        layers: numbers of an array's layers (default 0, 1, ...).

    Raises:
        InputError: if labels do not match rows, fewer than two labels or rows of a label, or activations are constant.
    """
    if isinstance(activations, ActivationCache):
        layers = activations.layers(site)
        activations = activations.stack(site).detach().float().cpu().numpy()
    array = np.asarray(activations, dtype=float)
    if array.ndim != 3:
        raise InputError(
            f"activations of shape {array.shape}: expected 'layer row d_model'; record with reduce='mean', or average "
            "over steps."
        )
    names = tuple(str(label) for label in labels)
    _check(array, names)
    n_kept = min(n_components, array.shape[1] - 1, array.shape[2])
    numbers = tuple(range(len(array)) if layers is None else layers)
    scores, explained, silhouettes, intervals = [], [], [], []
    for layer, rows in zip(numbers, array, strict=True):
        if not np.ptp(rows, axis=0).any():
            raise InputError(f"the activations of block {layer} are the same in every row: nothing varies.")
        model = PCA(n_kept, svd_solver="full").fit(rows)
        projected = model.transform(rows)
        samples = np.asarray(silhouette_samples(projected, names))
        scores.append(projected)
        explained.append(model.explained_variance_ratio_)
        silhouettes.append(samples.mean())
        intervals.append(
            bootstrap(lambda index, of=samples: float(of[index].mean()), np.arange(len(rows)), n_bootstrap=500)
        )
    return PCAResult(np.stack(scores), np.stack(explained), numbers, names, np.array(silhouettes), tuple(intervals))


def _check(array: np.ndarray, labels: tuple[str, ...]) -> None:
    if len(labels) != array.shape[1]:
        raise InputError(f"{len(labels)} labels for {array.shape[1]} rows: give one per row.")
    counts = {label: labels.count(label) for label in set(labels)}
    if len(counts) < 2 or min(counts.values()) < 2:
        raise InputError(f"labels {counts}: expected at least two labels with at least two rows each.")
    if not np.isfinite(array).all():
        raise InputError("activations hold NaN or infinite values: expected finite numbers.")
