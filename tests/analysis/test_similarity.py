"""Cosine maps agree with numpy, and with the distribution for random directions."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from plants import tables as planted

from analysis import similarity
from audiolens.directions.directions import Directions
from audiolens.directions.samples import Samples
from audiolens.errors import InputError


def test_the_map_is_the_cosine_of_every_pair() -> None:
    directions = planted.directions()
    found = similarity.cosine_map(directions)
    vectors = directions.vectors.numpy().astype(float)
    for row, ours in enumerate(vectors):
        for column, theirs in enumerate(vectors):
            expected = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
            assert found.cosines[row, column] == pytest.approx(expected, abs=1e-6)
    assert "neighbouring blocks" in repr(found)


def test_length_and_sign_of_a_direction() -> None:
    directions = planted.directions()
    longer = similarity.cosine_map(3.0 * directions)
    np.testing.assert_allclose(longer.cosines, similarity.cosine_map(directions).cosines, atol=1e-6)
    opposed = similarity.cosine_map(directions, -directions)
    np.testing.assert_allclose(np.diagonal(opposed.cosines), -1, atol=1e-6)


@pytest.mark.parametrize("width", [8, 48, 192])
def test_chance_is_exceeded_by_one_random_pair_in_twenty(width: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(2, 20_000, width))
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    share = (np.abs((drawn[0] * drawn[1]).sum(-1)) > similarity.chance_cosine(width)).mean()
    assert share == pytest.approx(0.05, abs=0.006)


def test_a_share_is_a_part() -> None:
    assert similarity.chance_cosine(48, share=Fraction(1, 20)) == similarity.chance_cosine(48)  # pyright: ignore[reportArgumentType]
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="share="):
            similarity.chance_cosine(48, share=share)


def test_tables_and_figures() -> None:
    found = similarity.cosine_map(planted.directions(), planted.directions(seed=1))
    table = found.to_frame()
    assert len(table) == 64
    assert set(table.columns) == {"layer", "other_layer", "cosine", "above_chance", "p", "significant"}
    axes = found.plot().axes
    assert "block" in axes[0].get_xlabel()
    assert "cosine" in axes[1].get_ylabel()
    assert found.figure().data[0].zmax == 1


def test_what_has_no_cosine_is_refused() -> None:
    directions = planted.directions()
    flat = replace(directions, vectors=directions.vectors * (torch.arange(8) != 2)[:, None])
    with pytest.raises(InputError, match="block 2 is zero"):
        similarity.cosine_map(flat)
    with pytest.raises(InputError, match="width 32 and 16"):
        similarity.cosine_map(directions, planted.directions(width=16))


def test_what_random_directions_reach_is_not_marked() -> None:
    """Unrelated directions are marked as rarely as corrected tests may be, and planted relatives always."""
    marked = 0
    for seed in range(20):
        ours, theirs = independent(seed), independent(1000 + seed)
        marked += int(similarity.cosine_map(ours, theirs).significant.any())
    assert marked <= 4
    relative = similarity.cosine_map(independent(0), independent(0) + 0.5 * independent(1))
    assert np.diagonal(relative.significant).all()
    own = similarity.cosine_map(independent(0))
    assert np.isnan(np.diagonal(own.p)).all()
    assert not np.diagonal(own.significant).any()


def independent(seed: int, width: int = 64) -> Directions:
    """Random directions with nothing in common from block to block."""
    drawn = torch.randn(planted.N_LAYERS, width, generator=torch.Generator().manual_seed(seed))
    return replace(planted.directions(width), vectors=drawn)


def test_p_is_the_share_of_random_pairs_beyond() -> None:
    drawn = np.random.default_rng(0).normal(size=(2, 20_000, 16))
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    spread = np.abs((drawn[0] * drawn[1]).sum(-1))
    for cosine in (0.1, 0.3, 0.5):
        assert similarity.chance_p(np.array(cosine), 16) == pytest.approx((spread > cosine).mean(), abs=0.01)


def test_the_largest_cosine_of_a_map_of_noise_is_no_finding() -> None:
    found = similarity.cosine_map(independent(0), independent(1))
    assert "0% of them beyond random directions" in repr(found)
    pair = repr(similarity.compare({"one": independent(0), "other": independent(1)}))
    assert "not distinguishable from chance" in pair


def test_named_directions_are_compared_at_each_layer() -> None:
    tempo, timbre = planted.directions(), planted.directions(seed=1)
    found = similarity.compare({"tempo": tempo, "timbre": timbre.at([2, 5]), "both": tempo + timbre})
    assert found.layers == (2, 5)
    for place, layer in enumerate(found.layers):
        expected = torch.cosine_similarity(tempo[layer], (tempo + timbre)[layer], dim=0)
        assert found.cosines[place, 0, 2] == pytest.approx(float(expected), abs=1e-6)
    table = found.to_frame()
    assert len(table) == 2 * 3
    assert table[table["other_name"] == "both"]["significant"].all()
    assert "both most alike" in repr(found)
    panels = found.plot().axes
    assert [axes.get_title() for axes in panels[:2]] == ["block 2", "block 5"]
    assert len(found.figure().layout.sliders[0].steps) == 2


def read_directions(seed: int, shift: float) -> Directions:
    """Differences of means of 40 prompts a pole in activations that vary along few axes, with their samples."""
    rng = torch.Generator().manual_seed(seed)
    basis = torch.randn(3, 64, generator=torch.Generator().manual_seed(99))
    values = torch.randn(planted.N_LAYERS, 80, 3, generator=rng) @ basis
    labels = torch.arange(80) < 40
    values[:, labels] += shift * basis[0]
    samples = Samples(values, labels, tuple(range(planted.N_LAYERS)), tuple(f"p{i}" for i in range(80)))
    return replace(planted.directions(64), vectors=samples.difference(), samples=samples)


def test_shuffled_labels_allow_for_what_the_stream_does_to_any_direction() -> None:
    """In few dimensions unrelated concepts point alike by accident: random directions do not know, shuffles do."""
    unrelated = {"a": read_directions(0, 0.0), "b": read_directions(1, 0.0)}
    loose = similarity.compare(unrelated).to_frame()["significant"].mean()
    strict = similarity.compare(unrelated, null="shuffled", n_draws=100).to_frame()
    assert loose > 0.3
    assert strict["significant"].mean() <= 0.15
    related = {"a": read_directions(0, 3.0), "b": read_directions(1, 3.0)}
    assert similarity.compare(related, null="shuffled", n_draws=100).cosines[:, 0, 1].min() > 0.9
    found = similarity.cosine_map(related["a"], related["b"], null="shuffled", n_draws=100)
    assert found.p.min() >= 1 / 101
    assert "shuffled" in found.plot().axes[0].get_title()


def test_sets_that_do_not_compare_are_refused() -> None:
    directions = planted.directions()
    with pytest.raises(InputError, match="at least two"):
        similarity.compare({"one": directions})
    with pytest.raises(InputError, match="different widths"):
        similarity.compare({"one": directions, "two": planted.directions(width=16)})
    with pytest.raises(InputError, match="no layer in common"):
        similarity.compare({"one": directions.at(0), "two": directions.at(1)})
    with pytest.raises(InputError, match="keep_samples=True"):
        similarity.compare({"one": directions, "two": -directions}, null="shuffled")
    with pytest.raises(InputError, match="'random' or 'shuffled'"):
        similarity.cosine_map(directions, null="none")  # type: ignore[arg-type]
