"""Cosine maps: against numpy, and against the chance of random directions."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch

from analysis import similarity
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


def test_tables_and_figures() -> None:
    found = similarity.cosine_map(planted.directions(), planted.directions(seed=1))
    table = found.to_frame()
    assert len(table) == 64
    assert set(table.columns) == {"layer", "other_layer", "cosine", "above_chance"}
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
