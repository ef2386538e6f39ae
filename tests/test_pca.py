"""PCA finds the block from which two planted poles lie apart, and says how far."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from analysis import pca
from audiolens.cache import ActivationCache
from audiolens.errors import InputError

LABELS = ["fast"] * 20 + ["slow"] * 20


@pytest.fixture(scope="module")
def activations() -> np.ndarray:
    """Four blocks of 40 rows; the poles are shifted apart by the number of the block."""
    values = np.random.default_rng(0).normal(size=(4, 40, 12))
    values[:, :20, 3] += 3 * np.arange(4)[:, None]
    return values


def test_the_poles_lie_furthest_apart_where_they_were_planted(activations: np.ndarray) -> None:
    found = pca.fit(activations, LABELS)
    assert found.silhouettes.argmax() == 3
    assert (np.diff(found.silhouettes) > 0).all()
    assert found.intervals[3].low > 0.3
    assert found.intervals[0].low < 0.1
    assert "block 3" in repr(found)


def test_scores_are_those_of_sklearn(activations: np.ndarray) -> None:
    found = pca.fit(activations, LABELS, n_components=2)
    expected = PCA(2).fit_transform(activations[2])
    np.testing.assert_allclose(np.abs(found.scores[2]), np.abs(expected), atol=1e-8)


def test_a_cache_says_its_own_layers(activations: np.ndarray) -> None:
    import torch

    tensors = {f"blocks.{layer}.hook_resid_post": torch.tensor(activations[layer]) for layer in (1, 3)}
    cache = ActivationCache(tensors, dict.fromkeys(tensors, ("row", "d_model")), reduce="mean")
    assert pca.fit(cache, LABELS).layers == (1, 3)


def test_tables_and_figures(activations: np.ndarray) -> None:
    found = pca.fit(activations, LABELS)
    table = found.to_frame()
    assert list(table.columns) == ["layer", "row", "label", "pc1", "pc2", "pc3"]
    assert len(table) == 4 * 40
    assert list(found.summary()["layer"]) == [0, 1, 2, 3]
    panels = found.plot().axes
    assert all("component" in axes.get_xlabel() for axes in panels)
    assert len(found.figure().layout.sliders[0].steps) == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [(LABELS[:-1], "39 labels for 40 rows"), (["fast"] * 40, "at least two labels"), (["a"] + ["b"] * 39, "two rows")],
)
def test_labels_that_do_not_fit_are_refused(activations: np.ndarray, labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pca.fit(activations, labels)


def test_constant_activations_are_refused(activations: np.ndarray) -> None:
    with pytest.raises(InputError, match="block 0 are the same in every row"):
        pca.fit(np.ones_like(activations), LABELS)


def test_activations_with_steps_are_refused(activations: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected 'layer row d_model'"):
        pca.fit(activations[:, :, None], LABELS)
