"""The interface between a run and the processes that do its work, on this machine or on a Ray cluster.

A run gives a backend its batches by number. They finish in any order. `analysis.listening` is the backend of this
machine's processes, and `analysis.distributed.ray_backend` that of a Ray cluster.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from analysis.heard import Heard, Wanted

if TYPE_CHECKING:
    from audiolens import AudioLens


class Work(Protocol):
    """The batches of a run, which are numbered from 0. A batch is a pure function of the lens and its number."""

    def asked(self, lens: AudioLens, number: int) -> dict[str, Any]:
        """Return the arguments of `lens.generate` for a batch."""
        ...

    def sample(self, lens: AudioLens) -> dict[str, Any]:
        """Return the arguments of `lens.generate` for a few rows, with which devices are compared."""
        ...

    def sent(self) -> tuple[Work, frozenset[int]]:
        """Return a copy that can be pickled, and the numbers of the batches that only this process can generate."""
        ...


class Pending(Protocol):
    """A batch that is being generated or measured. A `concurrent.futures.Future` is one."""

    def done(self) -> bool: ...

    def result(self) -> Heard:
        """Return the batch once it is measured, or raise the error that it failed with."""
        ...

    def cancel(self) -> bool: ...


class Backend(AbstractContextManager["Backend"]):
    """What generates and measures batches. Its workers end when the context ends.

    Attributes:
        measures: the names of the measures.
        differences: by device, if the workers have several kinds of devices, the share of the codes of a few clips that
            differ from those that the first kind generated.
        devices: the names of the devices on which workers elsewhere generate, once known (`audiolens.model.devices`).
        elsewhere: whether the workers are not those of this machine.
        about: a line about where the batches are generated, for people, or an empty string.
    """

    measures: tuple[str, ...]
    differences: Mapping[str, float] = MappingProxyType({})
    devices: frozenset[str] = frozenset()
    elsewhere: bool = False
    about: str = ""

    @property
    @abstractmethod
    def generates(self) -> bool:
        """Whether the workers generate. The first use waits until one of them has opened the model."""

    @property
    @abstractmethod
    def ahead(self) -> int:
        """The number of batches that may be unfinished at a time."""

    @abstractmethod
    def submit(self, work: Work, number: int, wanted: Wanted) -> Pending | None:
        """Let a worker generate and measure a batch. The result is `None` if this process must generate it."""

    @abstractmethod
    def hear(self, codes: Tensor, wanted: Wanted) -> Pending:
        """Decode and measure a batch that this process generated, or read from a folder."""

    @abstractmethod
    def wait(self, pending: Collection[Any]) -> None:
        """Wait until at least one of these batches, which this backend returned, is done."""


class WorkersLostError(RuntimeError):
    """Raised if a batch cannot be finished because its workers died again and again."""
