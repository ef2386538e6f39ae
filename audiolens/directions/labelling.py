"""What an estimator predicts from samples: two poles, one of several classes, or a quantity.

Samples of the same prompt stay together when they are divided into a side to fit and a side to judge by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from audiolens.checks import as_array, in_order, refuse_masked, shown
from audiolens.directions.samples import Samples, halves, prompt_numbers
from audiolens.errors import InputError, InputTypeError, nearest, shortened

_TRIES = 50


@dataclass(frozen=True, eq=False)
class Target:
    """The labels of samples.

    Attributes:
        kind: "poles", "classes" or "quantity".
        outputs: what is regressed on: +1 or -1 for each class ("poles" have one output), or the standardised quantity.
        output: the column of `outputs` towards which the direction points.
        positive: the two groups between which a direction is oriented, scaled and judged: the poles, the class against
            the rest, or the values above the median against the others.
        groups: the number of each sample's prompt.
        paired: whether the rows are the prompts of two poles, each once and in order.
    """

    kind: Literal["poles", "classes", "quantity"]
    outputs: Float[Tensor, "prompt output"]
    output: int
    positive: Bool[Tensor, " prompt"]
    groups: Int[np.ndarray, " prompt"]
    paired: bool

    @classmethod
    def of(cls, samples: Samples, labels: Any = None, towards: Any = None) -> "Target":
        """Read labels: Booleans are poles, text is classes, and numbers are a quantity, or classes if `towards` is
        given.

        Raises:
            InputError: if a label is missing, if all labels are equal, or if `towards` is not a class.
        """
        groups = prompt_numbers(samples.prompts)
        paired = labels is None and len(np.unique(groups)) == len(groups) and _in_order(samples.labels)
        given = samples.labels.numpy() if labels is None else _array(labels, len(samples.labels))
        if given.dtype.kind == "b":
            if towards is not None:
                raise InputError(f"towards={shown(towards)}: the labels are two poles; give one label per class.")
            return cls("poles", _signed(given)[:, None], 0, torch.from_numpy(given.copy()), groups, paired)._checked()
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            raise InputError(
                f"the label of sample {int(np.argmin(np.isfinite(given)))} is NaN or infinite: leave it out."
            )
        if towards is None and given.dtype.kind != "U":
            values = torch.from_numpy(given.astype(float))
            if values.std() == 0:
                raise InputError(f"all {len(values)} labels are {values[0]:g}: expected different values.")
            above = values > values.median()
            if not above.any():
                above = values == values.max()
            return cls("quantity", ((values - values.mean()) / values.std())[:, None], 0, above, groups, False)
        named = given.astype(str)
        classes = np.unique(named)
        if towards is None or str(towards) not in classes:
            hint = "" if towards is None else nearest(str(towards), classes.tolist())
            raise InputError(
                f"towards={shown(towards)}: expected the class to which the direction points, one of "
                f"{shortened(classes.tolist())}.{hint}"
            )
        coded = torch.stack([_signed(named == one) for one in classes], dim=1)
        mine = int(np.flatnonzero(classes == str(towards))[0])
        return cls("classes", coded, mine, coded[:, mine] > 0, groups, False)._checked()

    def _checked(self) -> "Target":
        if bool(self.positive.all()) or not bool(self.positive.any()):
            raise InputError(f"all {len(self.positive)} labels are of one class: expected samples of at least two.")
        return self

    def refuse_fewer(self, least: int, method: str) -> None:
        """Raise an error if either group has too few samples."""
        sizes = int(self.positive.sum()), int((~self.positive).sum())
        if min(sizes) < least:
            raise InputError(
                f"method={method!r} needs at least {least} samples on either side, and there are {sizes[0]} positive "
                f"and {sizes[1]} negative ones."
            )

    def rows(self, index: Sequence[int] | Int[np.ndarray, " row"]) -> "Target":
        """Return the labels of some samples, in the order given."""
        chosen = torch.as_tensor(np.asarray(index), device="cpu")
        outputs, groups = self.outputs[chosen], self.groups[np.asarray(index)]
        return Target(self.kind, outputs, self.output, self.positive[chosen], groups, self.paired)

    def split(self, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples to fit and to hold out, divided at random by prompt. Both sides have both groups.

        Raises:
            InputError: if there are too few prompts for this.
        """
        rng, prompts = np.random.default_rng(seed), np.unique(self.groups)
        positive = self.positive.numpy()
        for _ in range(_TRIES):
            held = rng.permutation(prompts)[: max(1, round(held_out * len(prompts)))]
            side = np.isin(self.groups, held)
            if all(0 < positive[rows].sum() < rows.sum() for rows in (side, ~side)):
                return np.flatnonzero(~side), np.flatnonzero(side)
        raise InputError(
            f"{len(prompts)} prompts cannot be divided so that both sides have both labels: give more prompts."
        )

    def halves(self) -> tuple[list[int], list[int]] | None:
        """Return the samples of two halves of the prompts; `None` if a half would lack a label.

        For two poles, the halves and their order are those in which the poles were read.
        """
        if self.paired:
            n = int(self.positive.sum())
            first, second = halves(n, len(self.positive) - n)
            return (first, second) if second and self._both(second) else None
        try:
            first, second = (one.tolist() for one in self.split(0.5, 0))
        except InputError:
            return None
        return first, second

    def early(self, first: list[int], count: int) -> list[int]:
        """Return the first `count` samples of either group among those of the first half."""
        kept: list[int] = []
        for side in (True, False):
            kept += [row for row in first if bool(self.positive[row]) == side][:count]
        return kept

    def _both(self, rows: Sequence[int]) -> bool:
        return len(set(self.positive[list(rows)].tolist())) == 2


def _array(labels: Any, rows: int) -> np.ndarray:
    refuse_masked("labels", labels)
    plain = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels
    array = as_array("labels", plain if isinstance(plain, np.ndarray) else list(in_order("labels", plain, "labels")))
    if array.ndim != 1 or len(array) != rows:
        raise InputError(f"labels of shape {array.shape} for {rows} samples: give one per sample.")
    if array.dtype.kind == "O" or array.dtype.kind not in "biufU":
        raise InputTypeError(f"labels: expected Booleans, text or numbers, one per sample, got {array.dtype}.")
    return array


def _in_order(labels: Bool[Tensor, " prompt"]) -> bool:
    positive = int(labels.sum())
    return bool(labels[:positive].all())


def _signed(positive: np.ndarray) -> Float[Tensor, " prompt"]:
    return torch.from_numpy(np.where(positive, 1.0, -1.0))
