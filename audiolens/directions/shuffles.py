"""Split prompts into two random groups other than the poles, for control directions and permutation tests.

A *balanced* split puts half of each pole into each group, so the concept cancels in the difference between the groups.
After a free permutation of the labels, the difference still contains part of the concept, and rescaling it to the
direction's norm magnifies that part.
"""

from collections import Counter
from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from audiolens.checks import checked_count, checked_seed
from audiolens.errors import InputError

FEWEST = 2
"""The smallest number of prompts per pole that can be split into halves."""
_TRIES = 50
"""The number of seeds that are tried per distinct split. Small sets can be split in only a few ways."""

Groups = tuple[Int[Tensor, " member"], Int[Tensor, " other_member"]]
"""The indices of the prompts in the two groups."""


def balanced(labels: Bool[Tensor, " prompt"], seed: int) -> Groups:
    """Split each pole at random into two halves, one per group.

    If a pole has an odd number of prompts, a random one is left out.

    The poles are split independently, even if their prompts are matched. If the two prompts of a pair are read on the
    same clip, everything but the concept cancels within the pair. If half of the pairs were swapped instead, only
    differences in how strongly each pair expresses the concept would be left, and rescaling would magnify these
    differences.

    Raises:
        InputError: if a pole has fewer than two prompts.
    """
    generator = _generator(seed)
    poles = [_where(labels), _where(~labels)]
    sizes = [len(pole) for pole in poles]
    if min(sizes) < FEWEST:
        raise InputError(
            f"{sizes[0]} positive and {sizes[1]} negative prompts: a balanced shuffle halves each pole, so it needs at "
            f"least {FEWEST} of each."
        )
    halves = [[pole[half] for half in _halves(len(pole), generator)] for pole in poles]
    return torch.cat([halves[0][0], halves[1][0]]), torch.cat([halves[0][1], halves[1][1]])


def free(labels: Bool[Tensor, " prompt"], seed: int) -> Groups:
    """Permute the labels over all prompts, regardless of how many prompts of each pole a group then contains."""
    shuffled = labels[torch.randperm(len(labels), generator=_generator(seed), device="cpu")]
    return _where(shuffled), _where(~shuffled)


def different(labels: Bool[Tensor, " prompt"], n: int, first_seed: int = 0) -> list[int]:
    """Return `n` seeds, starting at `first_seed`, whose balanced splits differ in more than the order of the groups.

    A small set of prompts has few distinct splits. Fewer than `n` seeds are then returned, because a repeated control
    adds no evidence.
    """
    n, seed = checked_count("n", n, least=0), checked_seed(first_seed)
    found: dict[frozenset[frozenset[int]], int] = {}
    for number in range(seed, seed + _TRIES * n):
        if len(found) == n:
            break
        groups = balanced(labels, number)
        found.setdefault(frozenset(frozenset(group.tolist()) for group in groups), number)
    return list(found.values())


def permuted(
    labels: Bool[Tensor, " prompt"], n: int, seed: int, prompts: Int[np.ndarray, " prompt"] | None = None
) -> Float[Tensor, "shuffle prompt"]:
    """Return the weight of each prompt in the difference in means under `n` random labellings, for a permutation test.

    If the poles have the same number of prompts, labels are permuted within pairs, and otherwise over all prompts.
    These labellings are not balanced, because a permutation test is exact only if the original labelling is among those
    that can be drawn.

    Samples of one prompt resemble each other, and so do their labels if the prompt decides them, so they are not
    exchangeable with those of other prompts one by one. If `prompts` numbers the prompt of each sample, and some prompt
    has several, all labels of a prompt are exchanged with all those of another prompt that has as many samples, and
    then permuted within the prompt.
    """
    generator = _generator(seed)
    positive, negative = _where(labels), _where(~labels)
    if _several(prompts):
        drawn = labels.expand(n, -1).clone()
        for rows in _alike(prompts):
            whole = torch.rand(n, len(rows), generator=generator, device="cpu").argsort(1)
            within = torch.rand(n, *rows.shape, generator=generator, device="cpu").argsort(2)
            drawn[:, rows] = labels[rows][whole].gather(2, within)
        return drawn.double() / len(positive) - (~drawn).double() / len(negative)
    if len(positive) == len(negative):
        signs = torch.randint(0, 2, (n, len(positive)), generator=generator, device="cpu").double() * 2 - 1
        weights = torch.zeros(n, len(labels), dtype=torch.float64, device="cpu")
        weights[:, positive], weights[:, negative] = signs / len(positive), -signs / len(positive)
        return weights
    orders = torch.rand(n, len(labels), generator=generator, device="cpu").argsort(1)
    drawn = labels[orders]
    return drawn.double() / len(positive) - (~drawn).double() / len(negative)


def orders(labels: Bool[Tensor, " prompt"], prompts: Int[np.ndarray, " prompt"] | None = None) -> float:
    """Return how many distinct lengths the difference in means can have under the labellings of `permuted`."""
    if _several(prompts):
        return _orders_of_prompts(labels, prompts)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if positive == negative:
        return 2.0 ** (positive - 1)
    return float(torch.exp(_log_factorial(positive + negative) - _log_factorial(positive) - _log_factorial(negative)))


def _several(prompts: Int[np.ndarray, " prompt"] | None) -> TypeGuard[Int[np.ndarray, " prompt"]]:
    """Whether some prompt has several samples."""
    return prompts is not None and len(np.unique(prompts)) < len(prompts)


def _alike(prompts: Int[np.ndarray, " prompt"]) -> Iterator[Int[Tensor, "group member"]]:
    """Yield the rows of all prompts that have the same number of samples, prompt by prompt."""
    _, numbers, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    for size in np.unique(sizes):
        yield torch.from_numpy(order[sizes[numbers[order]] == size].reshape(-1, size))


def _orders_of_prompts(labels: Bool[Tensor, " prompt"], prompts: Int[np.ndarray, " prompt"]) -> float:
    total, symmetric = torch.zeros((), dtype=torch.float64, device="cpu"), True
    for rows in _alike(prompts):
        size, positive = rows.shape[1], labels[rows].sum(1).tolist()
        counts = Counter(positive)
        total += _log_factorial(len(rows)) - sum(_log_factorial(count) for count in counts.values())
        total += sum(_log_factorial(size) - _log_factorial(one) - _log_factorial(size - one) for one in positive)
        symmetric &= counts == Counter(size - one for one in positive)
    # Exchanging the two poles does not change the length.
    return float(torch.exp(total)) / (2 if symmetric else 1)


def _log_factorial(n: int) -> Float[Tensor, ""]:
    """Return log n!."""
    return torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64, device="cpu"))


def _halves(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two random halves of 0 ... n - 1; if n is odd, one number is in neither."""
    order = torch.randperm(n, generator=generator, device="cpu")
    half = n // 2
    return order[:half], order[half : 2 * half]


def _where(chosen: Bool[Tensor, " prompt"]) -> Int[Tensor, " member"]:
    return chosen.nonzero()[:, 0]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(checked_seed(seed))
