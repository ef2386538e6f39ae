"""Balanced shuffles of the poles hold no part of a planted concept; free ones do, and the permutation test is exact."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from audiolens.directions import shuffles
from audiolens.directions.directions import Directions
from audiolens.directions.samples import Samples
from audiolens.errors import InputError
from audiolens.model.provenance import Provenance

WIDTH = 256


def planted(n_positive: int, n_negative: int, shift: float = 12.0, seed: int = 0, width: int = WIDTH) -> Directions:
    """Directions at two layers: prompts are isotropic noise, and the positive ones are moved by `shift`."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_positive + n_negative) < n_positive
    concept = torch.randn(2, 1, width, generator=draw)
    concept /= concept.norm(dim=-1, keepdim=True)
    values = torch.randn(2, len(labels), width, generator=draw) + shift * labels[None, :, None] * concept
    samples = Samples(values, labels, (0, 1), tuple(map(str, range(len(labels)))))
    meta = Provenance(model="planted", weights="0" * 16, n_layers=2, label="concept")
    return Directions(samples.difference(), (0, 1), torch.ones(2), meta, None, samples)


def mean_cosine(directions: Directions, count: int = 200, **options: Any) -> float:
    found = [directions.cosine(directions.shuffled(seed, **options)).abs() for seed in range(count)]
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(("n_positive", "n_negative"), [(24, 24), (25, 25), (24, 36), (23, 37)])
def test_balanced_shuffles_are_as_far_from_the_concept_as_noise(n_positive: int, n_negative: int) -> None:
    """The mean |cosine| of two random vectors is sqrt(2 / (pi x width)); free shuffles keep a share of the shift."""
    directions = planted(n_positive, n_negative)
    chance = math.sqrt(2 / (math.pi * WIDTH))
    balanced, free = mean_cosine(directions), mean_cosine(directions, balanced=False)
    print(f"mean |cosine|: balanced {balanced:.3f}, free {free:.3f}, random vectors {chance:.3f}")
    assert balanced < 1.3 * chance
    # The imbalance of free labels has mean sqrt(2/pi) x its standard deviation; the rest of a shuffle is noise.
    n = n_positive + n_negative
    spread = math.sqrt(n / (n_positive * n_negative))
    kept, noise = 12 * math.sqrt(2 / math.pi) * math.sqrt(n / (4 * n_positive * n_negative)), spread * math.sqrt(WIDTH)
    assert free > 0.8 * kept / math.hypot(kept, noise)
    assert free > 3 * balanced


@pytest.mark.parametrize(("n_positive", "n_negative"), [(6, 6), (7, 7), (5, 8), (2, 2), (2, 3)])
def test_either_group_holds_half_of_each_pole(n_positive: int, n_negative: int) -> None:
    labels = torch.arange(n_positive + n_negative) < n_positive
    for seed in range(20):
        first, second = shuffles.balanced(labels, seed)
        assert not set(first.tolist()) & set(second.tolist())
        for group in (first, second):
            assert int(labels[group].sum()) == n_positive // 2
            assert int((~labels[group]).sum()) == n_negative // 2


def test_the_order_of_the_prompts_does_not_matter() -> None:
    labels = torch.tensor([True, False, False, True] * 6)
    assert [int(labels[group].sum()) for group in shuffles.balanced(labels, 3)] == [6, 6]


def test_the_prompt_that_is_left_out_changes_with_the_seed() -> None:
    labels = torch.arange(13) < 7
    left_out = [set(range(13)) - {*a.tolist(), *b.tolist()} for a, b in
                (shuffles.balanced(labels, seed) for seed in range(60))]  # fmt: skip
    assert set().union(*left_out) == set(range(7))
    assert {len(one) for one in left_out} == {1}


def test_pairs_that_share_a_clip_are_not_dealt_as_pairs() -> None:
    """Within a pair the clip cancels, so that swapped pairs would differ only in how much of the concept they hold."""
    directions = planted(24, 24, shift=0.0)
    draw, samples = torch.Generator().manual_seed(3), directions.samples
    assert samples is not None
    concept = torch.randn(2, 1, WIDTH, generator=draw)
    concept /= concept.norm(dim=-1, keepdim=True)
    amounts = 12 * (1 + 0.3 * torch.randn(24, generator=draw))
    clips = samples.values[:, :24]
    own = 0.05 * torch.randn(2, 24, WIDTH, generator=draw)
    values = torch.cat([clips + own + amounts[None, :, None] * concept, clips], dim=1)
    read = replace(samples, values=values)
    directions = replace(directions, vectors=read.difference(), samples=read)
    swapped = []
    for seed in range(50):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        pairs = values[:, :24] - values[:, 24:]
        vector = pairs[:, order[:12]].mean(1) - pairs[:, order[12:]].mean(1)
        swapped.append(torch.nn.functional.cosine_similarity(vector, directions.vectors, dim=-1).abs())
    found, naive = mean_cosine(directions), float(torch.stack(swapped).mean())
    print(f"mean |cosine|: balanced {found:.3f}, half of the pairs swapped {naive:.3f}")
    assert naive > 0.8
    # The amounts spread 3.6 / sqrt(2) along the concept, the clips 1 along each of 256 axes.
    assert found < 1.3 * math.sqrt(2 / math.pi) * math.sqrt((1 + 3.6**2 / 2) / WIDTH)


def test_a_shuffle_depends_on_its_seed_alone() -> None:
    directions = planted(10, 10)
    assert torch.equal(directions.shuffled(4).vectors, directions.shuffled(4).vectors)
    assert not torch.equal(directions.shuffled(4).vectors, directions.shuffled(5).vectors)
    torch.testing.assert_close(directions.shuffled(4).norms, directions.norms)
    # Without the concept, the difference between groups of ten has the length of noise.
    noise = math.sqrt(WIDTH * 2 / 10)
    assert directions.shuffled(4, match_norms=False).norms.tolist() == pytest.approx([noise] * 2, rel=0.15)


def test_a_pole_of_one_prompt_cannot_be_halved() -> None:
    with pytest.raises(InputError, match="1 positive and 5 negative prompts: .* at least 2 of each"):
        planted(1, 5).shuffled(0)


@pytest.mark.parametrize(("n_positive", "n_negative", "deals"), [(2, 2, 2), (3, 3, 18), (2, 4, 6), (4, 4, 18)])
def test_controls_of_few_prompts_are_not_repeated(n_positive: int, n_negative: int, deals: int) -> None:
    """A pole of n has C(n, n/2) halves, and n times those of n - 1 if n is odd. The order of groups is ignored."""
    directions = planted(n_positive, n_negative)
    seeds = shuffles.different(directions.samples.labels, 40, first_seed=7)  # pyright: ignore[reportOptionalMemberAccess]
    assert len(seeds) == deals
    assert min(seeds) >= 7
    drawn = torch.stack([directions.shuffled(seed).unit().vectors[0] for seed in seeds])
    alike = (drawn @ drawn.T).abs() - torch.eye(deals)
    assert float(alike.max()) < 1 - 1e-4


def test_enough_prompts_have_as_many_shuffles_as_asked_for() -> None:
    labels = torch.arange(96) < 48
    assert shuffles.different(labels, 19) == list(range(19))
    assert shuffles.different(labels, 0) == []


def test_another_concepts_direction_takes_the_norms_of_this_one() -> None:
    one, other = planted(8, 8), planted(8, 8, seed=1)
    control = other.with_norms_of(one)
    torch.testing.assert_close(control.norms, one.norms)
    torch.testing.assert_close(control.cosine(other), torch.ones(2))
    assert control.meta.label == "concept like (concept)"
    with pytest.raises(InputError, match="different layers"):
        other.with_norms_of(one.at(0))
    with pytest.raises(TypeError, match="expected Directions"):
        other.with_norms_of("one")  # pyright: ignore[reportArgumentType]


def test_the_permutation_test_is_that_of_all_labellings() -> None:
    """Six pairs have 64 labellings, in mirrored twos; the drawn p must approach the share among all of them."""
    directions = planted(6, 6, shift=1.5, width=16)
    samples = directions.samples
    assert samples is not None
    pairs = (samples.values[:, :6] - samples.values[:, 6:]).double()
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    norms = torch.einsum("sp,lpd->sld", signs, pairs).norm(dim=-1)
    ratios = norms / norms.mean(0)
    exact = (ratios.amax(1)[:, None] >= ratios[-1] - 1e-9).double().mean(0)
    found = directions.permutation_test(4999)
    np.testing.assert_allclose(found.p, exact, atol=0.03)
    assert found.least_p == pytest.approx(1 / 32)
    np.testing.assert_allclose(found.ratio, (norms[-1] / norms.median(0).values).numpy(), rtol=0.1)


def test_the_permutation_test_finds_a_concept_and_says_how_few_prompts_allow() -> None:
    found = planted(24, 24).permutation_test()
    assert found.p.tolist() == pytest.approx([1 / 200] * 2)
    assert float(found.ratio.min()) > 2
    assert "smallest p = 0.005" in repr(found)
    assert planted(24, 20).permutation_test().p.tolist() == pytest.approx([1 / 200] * 2)
    assert "too few prompts or shuffles to test: smallest p" in repr(planted(3, 3).permutation_test())
    with pytest.raises(InputError, match="keep_samples=True"):
        (-planted(4, 4)).permutation_test()


@pytest.mark.slow
@pytest.mark.parametrize(("n_positive", "n_negative"), [(8, 8), (7, 10)])
def test_the_permutation_test_claims_nothing_at_the_stated_rate(n_positive: int, n_negative: int) -> None:
    p = [
        float(planted(n_positive, n_negative, 0.0, seed, width=12).permutation_test(39, 10_000 + seed).p.min())
        for seed in range(600)
    ]
    rate = float(np.mean(np.array(p) <= 0.05))
    print(f"false positives at .05 over two layers: {rate:.3f}")
    assert rate == pytest.approx(0.05, abs=0.025)


def test_free_shuffles_permute_the_labels_over_all_prompts() -> None:
    directions = planted(5, 7)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    labels = directions.samples.labels[order]  # pyright: ignore[reportOptionalMemberAccess]
    expected = directions.samples.difference(labels)  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(directions.shuffled(2, match_norms=False, balanced=False).vectors, expected)
