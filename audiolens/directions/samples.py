"""Samples: one vector per prompt and layer, from which every estimator of a direction computes its vectors.

The prompts of two poles are divided into two halves in one fixed order, which the reader, the estimators and their
evidence share. Samples of the same prompt are never divided, because half of a prompt's clips would predict the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.model.provenance import Provenance


@guarded
@dataclass(frozen=True, eq=False)
class Samples:
    """One vector per prompt: as read, those of the positive prompts in order, then those of the negative ones.

    Attributes:
        values: the vectors, on the CPU.
        labels: true for prompts of the positive pole, or of the group towards which a direction points.
        layers: the blocks at which the vectors were read.
        prompts: the prompt of each vector.
        meta: how the vectors were read. `None` if they were not read by audiolens; `al.estimate` needs it.
        residual_norms: the mean norms of the activations at these blocks, over prompts and steps; as for `meta`.
        measured: what was measured in the clip of each vector, for directions by measure.
    """

    values: Float[Tensor, "layer prompt d_model"]
    labels: Bool[Tensor, " prompt"]
    layers: tuple[int, ...]
    prompts: tuple[str | None, ...]
    meta: Provenance | None = None
    residual_norms: Float[Tensor, " layer"] | None = None
    measured: Float[Tensor, " prompt"] | None = None

    def difference(self, labels: Bool[Tensor, " prompt"] | None = None) -> Float[Tensor, "layer d_model"]:
        """Return the positive pole's mean minus the negative pole's, by the stored labels unless others are given."""
        chosen = self.labels if labels is None else labels
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != self.labels.shape:
            raise InputError(f"labels={shown(chosen)}: expected a tensor of {len(self.labels)} Booleans.")
        return self.values[:, chosen].mean(1) - self.values[:, ~chosen].mean(1)

    def __repr__(self) -> str:
        positive = int(self.labels.sum())
        return f"Samples({positive} positive, {len(self.labels) - positive} negative, {len(self.layers)} layers)"


def by_pole(
    prompts: Sequence[str | None], labels: Bool[Tensor, " prompt"]
) -> tuple[list[str | None], list[str | None]]:
    """Return the prompts of the positive pole and those of the negative one, in order."""
    rows = list(zip(prompts, labels.tolist(), strict=True))
    return [prompt for prompt, label in rows if label], [prompt for prompt, label in rows if not label]


def prompt_numbers(prompts: Sequence[str | None]) -> Int[np.ndarray, " prompt"]:
    """Number the prompts. A prompt of `None` (no text) is a prompt of its own, because its music sets it apart."""
    numbers: dict[Any, int] = {}
    return np.array(
        [numbers.setdefault(row if prompt is None else prompt, len(numbers)) for row, prompt in enumerate(prompts)]
    )


def halves(n_positive: int, n_negative: int) -> tuple[list[int], list[int]]:
    """Return the rows of the first and of the second half of both poles, each in the order in which they are read.

    Rows are shuffled in pairs: prompt i of one pole and prompt i of the other are in the same half. The order of
    prompts in a file may be meaningful, and must not determine the halves.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    shuffled = torch.randperm(max(n_positive, n_negative), generator=generator, device="cpu").tolist()
    poles = [
        [row for row in shuffled if row < n_positive],
        [n_positive + row for row in shuffled if row < n_negative],
    ]
    parts = [[pole[: (len(pole) + 1) // 2] for pole in poles], [pole[(len(pole) + 1) // 2 :] for pole in poles]]
    first, second = ([row for pair in zip_longest(*half) for row in pair if row is not None] for half in parts)
    return first, second
