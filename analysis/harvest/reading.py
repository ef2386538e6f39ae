"""Read the shards of a harvest, in this process or in workers on a Ray cluster.

A shard depends on the arguments of the harvest alone, so any worker can read it. Only this process writes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.distributed.backend import WorkersLostError
from analysis.harvest.planned import Prepared
from audiolens.cache.activation_cache import ActivationCache
from audiolens.errors import AudioLensWarning, StoppedError, UnreadWordsWarning
from audiolens.model.tokens import callers_level, tell_unread

if TYPE_CHECKING:
    from analysis.distributed.cluster import Call, Cluster
    from analysis.distributed.settings import Ray
    from audiolens.lens import AudioLens

Keep = Callable[[int, ActivationCache, Int[Tensor, "row codebook frame"] | None], None]
"""What writes a shard, given its number, its activations and its codes."""


def read_all(asked: Prepared, spans: Mapping[int, range], keep: Keep) -> None:
    """Read shards one after another in this process. No activations of an earlier shard stay in memory.

    Args:
        spans: the clips of each shard, by its number.
    """
    fit = asked.fitting()
    for number, rows in spans.items():
        keep(number, *asked.read(rows, fit))


def read_elsewhere(
    asked: Prepared, spans: Mapping[int, range], keep: Keep, ray: Ray, kept: Callable[[], str], *, tell: bool
) -> None:
    """Read shards in workers on a Ray cluster, each as soon as a worker is free. They finish in any order.

    If a shard fails, those that workers have begun are still kept before the error is raised.

    Args:
        kept: a function that returns a sentence about what is kept.
        tell: name the cluster on stderr.

    Raises:
        InputError, MissingPackageError: as `Cluster` does.
        StoppedError: if a shard cannot be finished because its workers died again and again.
    """
    from analysis.distributed.cluster import Cluster

    with Cluster(asked.lens, ray, len(spans)) as cluster:
        if tell:
            tqdm.write(cluster.about, file=sys.stderr)
        # This process generates nothing, so the warnings of its workers are given here.
        tell_unread()
        try:
            _read_on(cluster, asked, spans, keep)
        except WorkersLostError as error:
            raise StoppedError(f"a worker process died (killed, or out of memory). {kept()}") from error


def _read_on(cluster: Cluster, asked: Prepared, spans: Mapping[int, range], keep: Keep) -> None:
    work = cluster.put(replace(asked, lens=cast(Any, None)))
    todo = iter(spans.items())
    waiting: dict[int, Call] = {}
    said: set[str] = set()
    failed: Exception | None = None
    while True:
        for number, rows in _some(todo, 0 if failed is not None else cluster.ahead - len(waiting)):
            waiting[number] = cluster.submit(_read, work, rows)
        if not waiting:
            break
        cluster.wait(waiting.values())
        for number in [number for number, call in waiting.items() if call.done()]:
            try:
                shard, told = waiting.pop(number).result()
            except Exception as error:
                failed = failed or error
                continue
            keep(number, *shard)
            del shard
            _warn([*told, *_devices(cluster)], said)
    if failed is not None:
        raise failed


def _some(todo: Iterable[Any], count: int) -> list[Any]:
    """Return the next items, at most this many."""
    return [item for _, item in zip(range(count), todo, strict=False)]


def _read(lens: AudioLens, asked: Prepared, rows: range) -> tuple[Any, list[str]]:
    """Return what `asked.read` does in a worker, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioLensWarning)
        cache, codes = replace(asked, lens=lens).read(rows)
    # No file contains the readout, which can be larger than the activations.
    shard = replace(cache, readout=None, weights=cache.model_weights()), codes
    ours = [one.message for one in caught if isinstance(one.message, AudioLensWarning)]
    return shard, [str(one) for one in ours if not isinstance(one, UnreadWordsWarning)]


def _devices(cluster: Cluster) -> list[str]:
    """Return what to say if the workers compute on different devices."""
    devices = sorted({place.device for place in cluster.ready.values()})
    if len(devices) < 2:
        return []
    return [
        f"the workers compute on different devices ({', '.join(devices)}), which round differently in the last bits: "
        "activations, and where codes are almost equally likely also clips, depend on the device of their worker."
    ]


def _warn(told: Iterable[str], said: set[str]) -> None:
    for message in told:
        if message not in said:
            said.add(message)
            warnings.warn(message, AudioLensWarning, stacklevel=callers_level())
