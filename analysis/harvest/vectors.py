"""Read a harvest as a map-style data set of single vectors, in an order that reads every shard once.

A shard is read as a whole, checked against its hash, and kept while its vectors are drawn. A fully random order would
read a shard for almost every vector. `ShardOrder` instead draws a few shards at random, mixes their vectors, and goes
on to the next shards.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from audiolens.checks import checked_count, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, shortened

if TYPE_CHECKING:
    from analysis.harvest.opened import Harvest


@guarded
@dataclass(eq=False)
class Vectors(Dataset[Tensor]):
    """The activations of one site of a harvest, one vector per clip and step, for a torch `DataLoader`.

    `data[i]` is one vector, "feature", and `data[[i, j]]` are several, "vector feature". The vectors are in the order
    of the clips, and within a clip in the order of its steps. At a site with heads (or codebooks), a vector contains
    all of them. Read the vectors in the order of `order(...)`: in any other random order, most vectors read a whole
    shard.

    Attributes:
        harvest: the harvest.
        name: the full name of the site.
        held: the number of shards that are kept in memory; the least recently used one is given up first.
    """

    harvest: Harvest
    name: str
    held: int = 4
    _kept: OrderedDict[int, Tensor] = field(default_factory=OrderedDict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.held = checked_count("held", self.held)
        if not hasattr(self.harvest, "sites"):
            raise InputTypeError(f"harvest={shown(self.harvest)}: expected a Harvest.")
        if self.name not in self.harvest.sites:
            raise SiteError(
                f"{shown(self.name)} was not recorded: expected a full name, one of {shortened(self.harvest.sites)}."
            )

    def __len__(self) -> int:
        return len(self.harvest) * self.steps

    @property
    def steps(self) -> int:
        """The number of vectors per clip; 1 if the harvest was reduced over time."""
        return self.harvest.steps

    @property
    def width(self) -> int:
        """The number of features of a vector."""
        return int(np.prod(self.harvest._features(self.name)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors."""
        return self.harvest._dtype(self.name)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Float[Tensor, "*vector feature"]:
        """Return one vector, "feature", or several, "vector feature".

        Raises:
            InputTypeError, InputError: if an index is not a whole number, or is out of range.
            DamagedError: if a shard is damaged.
        """
        if isinstance(index, int | np.integer):
            return self._read(self._checked([int(index)]))[0]
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        return self._read(self._checked(chosen))

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Return several vectors as a list, which is what a torch `DataLoader` asks for."""
        return list(self[indices].unbind(0))

    def place(self, index: int) -> tuple[int, int]:
        """Return the clip and the step of a vector. The step of a reduced harvest is always its first step.

        Raises:
            InputTypeError, InputError: if the index is not a whole number, or is out of range.
        """
        clip, step = divmod(int(self._checked([index])[0]), self.steps)
        return clip, step + self.harvest.first_step

    def order(self, seed: int = 0, shards: int | None = None) -> ShardOrder:
        """Return a sampler that draws every vector once per epoch, mixing the vectors of `shards` shards at a time.

        `shards` is at most `held`, which is the default, so that every shard is read once per epoch.
        """
        return ShardOrder(self, seed, self.held if shards is None else shards)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which reads its own shards."""
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _kept=OrderedDict(), _lock=threading.Lock())

    def _checked(self, indices: Any) -> np.ndarray:
        found = np.asarray(indices)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            if found.size or found.ndim != 1:
                raise InputTypeError(f"index {shown(indices)}: expected whole numbers.")
            return found.astype(np.int64)
        wrong = found[(found < -len(self)) | (found >= len(self))]
        if len(wrong):
            raise InputError(f"vector {wrong[0]}: there are vectors 0 to {len(self) - 1}.")
        return found % len(self)

    def _read(self, indices: np.ndarray) -> Float[Tensor, "vector feature"]:
        size = self.harvest.shard_rows * self.steps
        shards = indices // size
        made = torch.empty(len(indices), self.width, dtype=self.dtype, device="cpu")
        for number in dict.fromkeys(shards.tolist()):
            mine = np.flatnonzero(shards == number)
            within = torch.from_numpy(indices[mine] - number * size)
            made[torch.from_numpy(mine)] = self._shard(number)[within]
        return made

    def _shard(self, number: int) -> Float[Tensor, "vector feature"]:
        with self._lock:
            if number not in self._kept:
                while len(self._kept) >= self.held:
                    self._kept.popitem(last=False)
                self._kept[number] = self.harvest._shard_vectors(number, self.name)
            self._kept.move_to_end(number)
            return self._kept[number]


@guarded
class ShardOrder(Sampler[int]):
    """Indices of all vectors in a random order that needs only a few shards at a time.

    The shards are shuffled. The vectors of the first few shards are then drawn in random order, then those of the next
    few, and so on. Each iteration (epoch) draws another order. Two vectors of one clip can therefore be close together,
    which a larger number of shards makes rarer.

    Args:
        data: the vectors.
        seed: the same seed and epoch give the same order.
        shards: the number of shards that are mixed.
    """

    def __init__(self, data: Vectors, seed: int = 0, shards: int = 4) -> None:
        self.data, self.seed = data, checked_count("seed", seed, 0, 2**32 - 1)
        self.shards = checked_count("shards", shards)
        if self.shards > data.held:
            raise InputError(
                f"shards={shards}: the data set holds {data.held} shards in memory, so mixing more would read each of "
                "them many times. Give held= as well."
            )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws, for example to go on with a training run."""
        self.epoch = checked_count("epoch", epoch, 0)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        drawn = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        size = self.data.harvest.shard_rows * self.data.steps
        numbers = drawn.permutation(-(-len(self.data) // size))
        for first in range(0, len(numbers), self.shards):
            group = numbers[first : first + self.shards]
            spans = [np.arange(number * size, min((number + 1) * size, len(self.data))) for number in group]
            yield from drawn.permutation(np.concatenate(spans)).tolist()
