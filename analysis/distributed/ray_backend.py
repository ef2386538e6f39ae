"""Generate and measure the batches of a run on a Ray cluster.

Each worker holds a model and generates whole batches. If the model is on a GPU, other workers measure the finished
batches on CPUs meanwhile, so that no GPU waits for it. The codes, or the sound if a GPU has decoded it, go from one to
the other through Ray's object store, and not through this process, which gets the numbers alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from analysis import workers
from analysis.distributed.actors import Ear, generated, played, redone, sampled
from analysis.distributed.backend import Backend, Work
from analysis.distributed.cluster import Call, Cluster
from analysis.distributed.settings import Ray
from analysis.heard import Heard, Wanted
from audiolens.errors import AudioLensWarning
from audiolens.model.tokens import callers_level

if TYPE_CHECKING:
    from audiolens import AudioLens

EARS = 4
"""The most workers that measure, per worker that generates on a GPU."""


class RayListener(Backend):
    """Generates and measures batches on a Ray cluster. Its workers end when the context ends.

    Args:
        lens: the model that generates the clips.
        measures: names from `audiolens.measure.MEASURES`.
        where: the cluster and the workers.
        n_batches: number of batches to come, if known. There are never more workers than batches.

    Raises:
        InputError, MissingPackageError: as `Cluster` does.
    """

    elsewhere = True

    def __init__(self, lens: AudioLens, measures: Sequence[str], where: Ray, n_batches: int | None = None) -> None:
        self.measures = tuple(measures)
        self.differences = {}
        self.cluster = Cluster(lens, where, n_batches)
        self.about = self.cluster.about
        self._sent: tuple[Work | None, list[Any], frozenset[int]] = (None, [None], frozenset())
        on_gpu = self.cluster.gpus > 0
        count = where.listeners if where.listeners is not None else EARS * self.cluster.n_workers * on_gpu
        # Without a free CPU for them, they would never start.
        count = max(0, min(count, self.cluster.spare_cpus))
        codec = None if on_gpu else workers.parts_of(lens.model.audio_encoder)
        ear = self.cluster.actor(Ear)
        self._ears = [self.cluster.start(ear, codec, lens.config, self.cluster.expected) for _ in range(count)]
        self._next = cycle(self._ears)

    @property
    def generates(self) -> bool:
        """Whether the workers generate, which they always do. The first call waits until one has opened the model."""
        return bool(self.cluster.ready)

    @property
    def ahead(self) -> int:
        """The number of batches that may be unfinished at a time."""
        return self.cluster.ahead + len(self._ears)

    def submit(self, work: Work, number: int, wanted: Wanted) -> Call | None:
        """Let a worker generate and measure a batch. The result is `None` if this process must generate it."""
        if self._sent[0] is not work:
            copy, local = work.sent()
            self._sent = work, self.cluster.put(copy), local
        _, sent, local = self._sent
        self._compare_devices(sent)
        if number in local:
            return None
        if not self._ears:
            return self.cluster.submit(played, sent, number, wanted, own=_own)
        return self.cluster.submit(
            generated, sent, number, wanted, then=lambda made: next(self._next).hear.remote(made, wanted), own=_own
        )

    def hear(self, codes: Tensor, wanted: Wanted) -> Call:
        """Decode and measure a batch that this process generated, or read from a folder."""
        return self.cluster.submit(redone, self.cluster.put(None), codes.cpu().numpy(), wanted, own=_own)

    def wait(self, pending: Collection[Call]) -> None:
        """Wait until at least one of these batches may be done."""
        self.cluster.wait(pending)

    def _compare_devices(self, work: list[Any]) -> None:
        """Measure how much clips differ between the kinds of devices that the workers have, once per kind."""
        devices = frozenset(place.device for place in self.cluster.ready.values())
        if devices <= self.devices:
            return
        self.devices = devices
        if len(devices) > 1:
            (first, codes), *others = self.cluster.on_each_device(sampled, work).items()
            self.differences = {device: float(np.mean(other != codes)) for device, other in others}
            shares = ", ".join(f"{share:.2%} on {device}" for device, share in self.differences.items())
            warnings.warn(
                f"the workers compute on different devices. Of the codes of {len(codes)} clips, {shares} differ from "
                f"those on {first}. If some differ, a clip depends on the device that it was generated on.",
                AudioLensWarning,
                stacklevel=callers_level(),
            )

    def __exit__(self, *given: Any) -> None:
        self.cluster.__exit__(*given)


def _own(heard: Heard) -> Heard:
    """Copy a batch, because Ray's arrays cannot be written to, and keep whole results in Ray's memory."""
    levels = heard.levels
    return replace(
        heard,
        codes=heard.codes.copy(),
        frame=heard.frame.copy(),
        levels=replace(levels, rms=levels.rms.copy(), entropy=levels.entropy.copy()),
        onsets=None if heard.onsets is None else heard.onsets.copy(),
        audio={row: np.array(audio) for row, audio in heard.audio.items()},
    )
