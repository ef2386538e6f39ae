"""PCA finds the block from which two planted poles are separated, and by how much."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from analysis import pca
from audiolens.cache.activation_cache import ActivationCache
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


def test_shuffled_labels_have_the_silhouettes_of_sklearn() -> None:
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 3))
    targets = np.stack([rng.permutation(np.repeat([0, 1, 2], [12, 10, 8])) for _ in range(5)])
    expected = [silhouette_score(scores, target) for target in targets]
    np.testing.assert_allclose(pca.components._silhouettes(scores, targets), expected)


def test_the_best_of_many_layers_is_judged_as_the_best_of_many() -> None:
    """Labels of noise: over simulated data p is at most .05 about as often as it says, whatever the best layer."""
    rng = np.random.default_rng(0)
    p, naive = [], []
    for _ in range(40):
        values = rng.normal(size=(8, 24, 6))
        found = pca.fit(values, ["a", "b"] * 12, n_shuffles=39)
        p.append(found.p.min())
        naive.append(pca.fit(values[[found.silhouettes.argmax()]], ["a", "b"] * 12, n_shuffles=39).p[0])
    assert np.mean(np.array(p) <= 0.05) < 0.15
    assert np.median(p) > 0.3
    assert np.median(naive) < 0.15, "one layer, chosen as the best of eight, seems to say something"
    assert "are no further apart than shuffled" in repr(found)


@pytest.mark.parametrize(("rows", "shuffles", "least"), [(4, 2999, 1 / 3), (6, 2999, 1 / 10), (24, 9, 1 / 10)])
def test_what_no_shuffle_can_show_is_not_called_chance(rows: int, shuffles: int, least: float) -> None:
    """Two poles of 2 rows have three partitions, of 3 rows ten: p of the clearest difference is a third, or a tenth."""
    values = np.random.default_rng(0).normal(size=(1, rows, 6))
    values[0, ::2] += 50
    found = pca.fit(values, ["a", "b"] * (rows // 2), n_shuffles=shuffles)
    assert found.least_p == pytest.approx(least, rel=0.15)
    assert found.p[0] == found.least_p
    assert "are furthest apart at" in repr(found)
    assert "(too few rows or shuffles to test: p = " in repr(found)


def test_a_planted_separation_is_one_and_rows_without_groups_are_said(activations: np.ndarray) -> None:
    found = pca.fit(activations, LABELS)
    assert found.p[3] == pytest.approx(0.01)
    assert found.summary()["p"].tolist() == found.p.tolist()
    assert "are furthest apart at block 3" in repr(found)
    assert "best of 4 (p = 0.010)" in repr(found)
    assert "so each counts as independent" in repr(found)
    assert "independent" not in repr(pca.fit(activations, LABELS, groups=range(40)))


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


def test_titles_tell_the_silhouette_with_its_interval(activations: np.ndarray) -> None:
    found = pca.fit(activations, LABELS)
    low, high = found.intervals[3].low, found.intervals[3].high
    told = f"silhouette {found.silhouettes[3]:.2f} [{low:.2f}, {high:.2f}]"
    for figure in (found.plot(), found.plot(dimensions=3)):
        assert told in figure.axes[3].get_title()
    assert told in found.figure().layout.sliders[0].steps[3].args[1]["title.text"]


def test_components_in_three_dimensions(activations: np.ndarray) -> None:
    found = pca.fit(activations, LABELS)
    panels = found.plot(dimensions=3).axes
    assert [panel.name for panel in panels] == ["3d"] * 4
    assert "component 3" in panels[0].get_zlabel()  # type: ignore[attr-defined]
    figure = found.figure(dimensions=3)
    assert {trace.type for trace in figure.data} == {"scatter3d"}
    assert len(figure.layout.sliders[0].steps) == 4
    with pytest.raises(InputError, match="n_components of at least 3"):
        pca.fit(activations, LABELS, n_components=2).plot(dimensions=3)


def test_rows_of_one_prompt_count_once_in_the_interval(activations: np.ndarray) -> None:
    """Ten copies of each row tell nothing new: the interval stays as wide as that of the rows."""
    copied = np.repeat(activations[3:], 10, axis=1)
    labels = np.repeat(LABELS, 10).tolist()
    single = pca.fit(activations[3:], LABELS).intervals[0]
    grouped = pca.fit(copied, labels, groups=np.repeat(np.arange(40), 10)).intervals[0]
    naive = pca.fit(copied, labels).intervals[0]
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.35)
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """Two blocks of 40 rows over 20 steps; in the second the poles part at step 10."""
    values = np.random.default_rng(0).normal(size=(2, 40, 20, 8))
    values[1, :20, 10:, 2] += 12
    return values


def test_trajectories_part_when_they_were_planted_to(moving: np.ndarray) -> None:
    found = pca.trajectories(moving, LABELS, frame_rate=10)
    assert found.silhouettes[1, 10:].min() > 0.5
    assert found.silhouettes[1, :10].max() < 0.2
    assert found.silhouettes[0].max() < 0.2
    assert found.seconds[10] == pytest.approx(1.0)
    assert "block 1" in repr(found)
    # The same by hand: the components of all rows and steps, the mean of a pole's rows.
    expected = PCA(3, svd_solver="full").fit_transform(moving[1].reshape(-1, 8)).reshape(40, 20, 3)
    np.testing.assert_allclose(found.means[1, 0], expected[:20].mean(0), atol=1e-8)
    np.testing.assert_allclose(found.errors[1, 1], expected[20:].std(0, ddof=1) / np.sqrt(20), atol=1e-8)


def test_tables_and_figures_of_trajectories(moving: np.ndarray) -> None:
    found = pca.trajectories(moving, LABELS, frame_rate=10)
    table = found.to_frame()
    assert len(table) == 2 * 2 * 20
    assert {"layer", "label", "seconds", "silhouette", "pc1", "pc1_error"} <= set(table.columns)
    drawn = found.plot()
    assert any("time in the clip [s]" in axes.get_xlabel() for sub in drawn.subfigs for axes in sub.axes)
    assert len(found.figure().layout.sliders[0].steps) == 2
    with pytest.raises(InputError, match="record without reduce"):
        pca.trajectories(moving[:, :, 0], LABELS)


def test_trajectories_of_a_cache_know_their_time(lens, codes) -> None:
    prompts = ["fast song", "fast music", "slow song", "slow music", "slow jazz"]
    _, cache = lens.run_with_cache(prompts, codes, seconds=(0.2, 0.6))
    found = pca.trajectories(cache, ["fast"] * 2 + ["slow"] * 3, n_components=2)
    np.testing.assert_allclose(found.seconds[[0, -1]], [0.2, 0.56])
    assert found.means.shape == (3, 2, 10, 2)
