"""The noise of a code depends on its row's seed, its step, its codebook and the code, and on nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from analysis.store.code import code_of
from audiolens.checks import MOST_SEED
from audiolens.tracing import noise
from audiolens.tracing.noise import RowNoise, gumbel, philox, uniform_

CPU = torch.device("cpu")
ONES, PI = (0xFFFFFFFF,) * 6, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
KNOWN = {
    (0,) * 6: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ONES: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    PI: (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
}
"""Counter and key -> words, from `kat_vectors` of Random123 (philox4x32, 10 rounds)."""


def naive(a: int, b: int, c: int, d: int, first: int, second: int) -> tuple[int, ...]:
    """Philox-4x32-10 as in the paper, in Python's whole numbers."""
    low = 2**32 - 1
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ first, right & low, (left >> 32) ^ d ^ second, left & low
        first, second = (first + 0x9E3779B9) & low, (second + 0xBB67AE85) & low
    return a, b, c, d


def words(*given: int) -> tuple[int, ...]:
    a, b, c, d, first, second = (torch.tensor(one) for one in given)
    return tuple(int(word) for word in philox((a, b, c, d), (first, second)))


@pytest.mark.parametrize("given", KNOWN)
def test_published_vectors(given: tuple[int, ...]) -> None:
    assert words(*given) == naive(*given) == KNOWN[given]


def test_words_equal_naive_ones_in_every_shape() -> None:
    rng = np.random.default_rng(0)
    given = [torch.tensor(rng.integers(0, 2**32, size)) for size in (3, (2, 1), (2, 3), 1, (2, 3), (1, 3))]
    kept = [one.clone() for one in given]
    found = philox(tuple(given[:4]), tuple(given[4:]))  # pyright: ignore[reportArgumentType]
    whole = [one.expand(2, 3).flatten().tolist() for one in given]
    expected = [naive(*one) for one in zip(*whole, strict=True)]
    assert list(zip(*(word.flatten().tolist() for word in found), strict=True)) == expected
    assert all(torch.equal(one, before) for one, before in zip(given, kept, strict=True))


def test_the_noise_is_that_of_seed_step_codebook_and_code() -> None:
    seeds, steps = torch.tensor([7, MOST_SEED, 2**40 + 7]), range(5, 8)
    made = gumbel(seeds, steps, 6, 5)
    assert made.shape == (3, 3, 6, 5)
    for step, row, codebook, code in ((0, 0, 0, 0), (2, 1, 5, 4), (1, 2, 3, 1)):
        key = int(seeds[row]) % 2**32, int(seeds[row]) >> 32
        word = naive(code, codebook // 4, steps[step], 0, *key)[codebook % 4]
        assert float(made[step, row, codebook, code]) == pytest.approx(-np.log(-np.log1p(-(word + 0.5) / 2**32)), 1e-5)


@pytest.mark.parametrize(("rows", "codebooks", "vocab", "at_once"), [(3, 4, 6, 64), (5, 1, 7, 8), (2, 8, 9, 1)])
def test_batches_chunks_and_vocabularies_do_not_matter(
    monkeypatch: Any, rows: int, codebooks: int, vocab: int, at_once: int
) -> None:
    whole = gumbel(torch.arange(8), range(40), 8, 16)
    monkeypatch.setattr(noise, "_AT_ONCE_ON_CPU", at_once)
    seeds = [3, 0, 7, 7, 1][:rows]
    batch = RowNoise(seeds, codebooks, vocab, steps=40)
    for step in (*range(30), 39, 38, 4, 45):
        made = batch.at(step, CPU)
        assert made.shape == (rows, codebooks, vocab)
        if step < 40:
            assert torch.equal(made, whole[step, seeds, :codebooks, :vocab])


def test_uniform_numbers_are_never_0_or_1() -> None:
    edges = torch.tensor([0, 1, 2**24, 2**31, 2**32 - 2**8, 2**32 - 1]).float()
    made = uniform_(edges)
    assert made.tolist()[:2] == [2.0**-33, 1.5 * 2.0**-32]
    assert made.max() == 1 - 2.0**-24
    assert bool((made.diff() >= 0).all())


def test_the_largest_seeds_differ_from_all_others() -> None:
    seeds = torch.tensor([0, 1, 2**31, MOST_SEED - 1, MOST_SEED, 2**32, 2**63 - 1])
    first = gumbel(seeds, range(1), 4, 8)[0].flatten(1)
    assert len({tuple(row) for row in first.tolist()}) == len(seeds)


def test_exponential_numbers_are_independent_over_rows_steps_codebooks_and_codes() -> None:
    made = (-gumbel(torch.arange(24), range(24), 8, 64)).exp()
    assert stats.kstest(made.flatten().numpy(), "expon").pvalue > 0.01
    # The smallest numbers decide which code is drawn.
    least = made.flatten().sort().values[:1000].numpy()
    assert stats.kstest(least / least[-1], "uniform").pvalue > 0.01
    for axis in range(4):
        one, other = made.narrow(axis, 0, made.shape[axis] - 1), made.narrow(axis, 1, made.shape[axis] - 1)
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 4 / one.numel() ** 0.5
        means = made.transpose(0, axis).flatten(1).mean(1)
        assert (
            stats.kstest((means - 1) * (made[0].numel() * made.shape[0] / made.shape[axis]) ** 0.5, "norm").pvalue
            > 0.01
        )


def test_memory_is_bounded_for_large_batches() -> None:
    batch = RowNoise(range(64), 8, 2048, steps=1500)
    assert batch._computed(0, CPU).shape == (1, 64, 8, 2048)
    few = RowNoise(range(2), 4, 256, steps=1500)._computed(0, CPU)
    assert few.numel() <= 4 * noise._AT_ONCE_ON_CPU


def test_a_stored_stage_depends_on_the_noise() -> None:
    assert noise.__name__ in code_of("audiolens.lens").modules
