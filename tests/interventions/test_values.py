"""numpy and torch functions on directions, caches and weights give their values or a one-line error with a remedy."""

from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from audiolens.errors import AudioLensError
from audiolens.model.provenance import Provenance

audiolens: Any = al
CODES = torch.randint(0, 32, (2, 4, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def cache(lens: Any) -> Any:
    return lens.run_with_cache(["calm", "loud"], CODES, sites=["resid_pre", "resid_post", "attn_out"])[1]


@pytest.fixture
def directions() -> al.Directions:
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    return al.Directions(vectors, (0, 1, 2), torch.ones(3), Provenance(model="tiny", weights="0", n_layers=3))


SCALARS = [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5)]


@pytest.mark.parametrize("half", SCALARS, ids=lambda half: f"{type(half).__module__}.{type(half).__name__}")
def test_every_kind_of_number_multiplies_and_divides(directions: Any, half: Any) -> None:
    expected = directions.vectors * 0.5
    for found in (half * directions, directions * half, directions / (1 / half)):
        assert isinstance(found, al.Directions)
        assert torch.equal(found.vectors, expected)


def test_a_sum_of_directions_is_theirs(directions: Any) -> None:
    added: Any = sum([directions] * 3)
    assert torch.equal(added.vectors, directions.vectors * 3)


@pytest.mark.parametrize(
    "refused",
    [
        lambda d: np.ones(3) * d,
        lambda d: d * torch.ones(3),
        lambda d: torch.ones(3) * d,
        lambda d: np.ones(48) + d,
        lambda d: torch.ones(3) - d,
        lambda d: 1 + d,
        lambda d: d * True,
        lambda d: np.True_ * d,
        lambda d: d * np.nan,
        lambda d: d / 0,
        lambda d: d / np.float64(0),
        lambda d: d * "2",
        lambda d: np.multiply(0.5, d),
        lambda d: np.abs(d),
        lambda d: torch.mean(d),
        lambda d: d[True],
        lambda d: d[np.array([0, 1])],
        lambda d: d[0:2],
    ],
)
def test_what_directions_are_not_is_refused(directions: Any, refused: Any) -> None:
    with pytest.raises((TypeError, AudioLensError)):
        refused(directions)


def test_numpy_and_torch_take_directions_for_their_vectors(directions: Any) -> None:
    vectors = directions.vectors
    for read in (np.asarray, np.array, torch.as_tensor, torch.tensor, torch.asarray):
        np.testing.assert_array_equal(np.asarray(read(directions)), vectors.numpy())
    assert np.linalg.norm(directions) == pytest.approx(float(vectors.norm()))
    assert np.mean(directions) == pytest.approx(float(vectors.mean()), abs=1e-6)
    assert np.asarray(directions, dtype=np.float64).dtype == np.float64
    torch.as_tensor(directions)[:] = 0
    assert torch.equal(directions.vectors, vectors)
    assert float(vectors.norm()) > 0


def test_layers_are_found_by_any_whole_number_and_by_nothing_else(directions: Any) -> None:
    for layer in (1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1)):
        assert layer in directions
        assert torch.equal(directions[layer], directions.vectors[1])
        assert directions.at(layer).layers == (1,)
        assert directions.at([layer, 0]).layers == (0, 1)
    assert True not in directions
    assert directions.at(layer for layer in (2, 0)).layers == (0, 2)
    assert directions.at(np.array([2, 0])).layers == (0, 2)


MASK = [True, False, True]


@pytest.mark.parametrize("mask", [np.array(MASK), torch.tensor(MASK), MASK, True])
def test_a_mask_names_no_layers(directions: Any, lens: Any, mask: Any) -> None:
    with pytest.raises(TypeError, match="expected a layer, a list of layers"):
        directions.at(mask)
    with pytest.raises(TypeError, match="expected a layer, a list of layers"):
        al.Add(torch.ones(48), layers=mask)
    with pytest.raises(TypeError, match="expected a layer, a list of layers"):
        lens.run_with_cache("calm", layers=mask)


@pytest.mark.parametrize(
    "refused",
    [
        lambda d: audiolens.Add(d),
        lambda d: audiolens.Add(torch.ones(48), strength=d),
        lambda d: audiolens.Ablate(d),
        lambda d: audiolens.Clamp(d, 1.0),
        lambda d: audiolens.Clamp(torch.ones(48), d),
        lambda d: audiolens.Replace(d),
        lambda d: audiolens.Scale(d),
        lambda d: audiolens.steer(d, layer=1, strength=d),
        lambda d: audiolens.Add({0: torch.ones(48)}),
        lambda d: audiolens.Add(torch.ones(48), strength={1.0, 2.0}),
        lambda d: audiolens.Add(torch.ones(48), strength="12"),
        lambda d: audiolens.Add(torch.ones(48), strength=[True, False]),
        lambda d: audiolens.Add(np.ma.masked_array(np.ones(48), mask=[True] + [False] * 47)),
        lambda d: audiolens.Add(torch.ones(48), strength=np.ma.masked_array([1.0, 2.0], mask=[True, False])),
        lambda d: audiolens.Add([np.ma.masked_array(np.ones(48), mask=True), np.ones(48)]),
    ],
)
def test_a_value_that_is_no_vector_is_refused_where_one_is_expected(directions: Any, refused: Any) -> None:
    with pytest.raises(al.errors.InputTypeError, match="expected (real )?numbers|masked"):
        refused(directions)


def test_add_says_what_to_give_instead_of_directions(directions: Any) -> None:
    with pytest.raises(TypeError, match=r"vector=Directions: expected numbers; give one vector, d\[layer\]"):
        al.Add(directions)


@pytest.mark.parametrize(
    "read",
    [np.asarray, torch.as_tensor, torch.tensor, np.mean, np.linalg.norm, al.Add, lambda cache: np.float64(2) * cache,
     lambda cache: torch.tensor(2.0) * cache, lambda cache: cache * 2],
)  # fmt: skip
def test_a_cache_is_no_array(cache: Any, read: Any) -> None:
    with pytest.raises(TypeError):
        read(cache)


def test_components_are_their_values_and_iterate_over_their_labels(cache: Any) -> None:
    parts = cache.accumulated_resid()
    assert list(parts) == list(parts.labels)
    assert "final_post" in parts
    assert "nothing" not in parts
    np.testing.assert_array_equal(np.asarray(parts), parts.values.numpy())
    assert torch.equal(torch.as_tensor(parts), parts.values)


def test_half_precision_components_are_floats_in_numpy(cache: Any) -> None:
    parts = cache.to(dtype="bfloat16").accumulated_resid()
    np.testing.assert_array_equal(np.asarray(parts), parts.values.float().numpy())


def test_weights_are_not_repeated_by_a_number_nor_joined_by_a_sum(lens: Any) -> None:
    for refused in (lambda w: 2 * w, lambda w: w * 2, lambda w: w + w, lambda w: np.int64(2) * w):
        with pytest.raises(TypeError, match=r"torch\.stack"):
            refused(lens.W_Q)
    assert torch.stack(lens.W_Q).shape[0] == 3
