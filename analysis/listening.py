"""Measure batches of codes, and generate them, in this process or in worker processes.

On a CPU, several processes generate: each opens the model once, and generates, decodes and measures whole batches
(`analysis.workers`). If the model is on an accelerator, or cannot be opened in another process, this process generates,
and the workers measure the finished batches in the meantime. Results do not depend on the number of workers.
`analysis.distributed.ray_backend` does the same on a Ray cluster, behind the same interface.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor

from analysis import workers
from analysis.distributed.backend import Backend, Work
from analysis.heard import Heard, Wanted, hear, one_thread, sound_of
from audiolens.errors import AudioLensWarning, InputError
from audiolens.model.tokens import callers_level

if TYPE_CHECKING:
    from audiolens import AudioLens


class Listener(Backend):
    """Generate, decode and measure batches.

    A listener is a context manager that ends its worker processes on exit.

    Args:
        lens: the model that generates the clips, and whose codec decodes them.
        measures: names from `audiolens.measure.MEASURES`.
        n_jobs: number of worker processes. With 0, the calling process does everything. `None` uses all cores.
        n_batches: number of batches to come, if known. There are never more workers than batches.
    """

    def __init__(
        self, lens: AudioLens, measures: Sequence[str], n_jobs: int | None = None, n_batches: int | None = None
    ) -> None:
        self.lens, self.measures = lens, tuple(measures)
        self.on_cpu = lens.device.type == "cpu"
        self.asked = n_jobs
        self.n_jobs, self._generates = workers.divided(lens, n_jobs, n_batches)
        self._pool: Any = None
        self._opened: Future[None] | None = None
        if self._generates or (n_jobs and self.on_cpu):
            try:
                self._pool = workers.generating(self.n_jobs, lens)
            except InputError as error:
                # It was given in memory, or has hooks.
                self._measure_only(error)
            else:
                self._opened = self._start()
                self._note_threads()
        elif self.n_jobs:
            self._pool = workers.measuring(self.n_jobs, lens)
            self._start()

    @property
    def generates(self) -> bool:
        """Whether the workers generate. The first call waits until one of them has opened the model.

        If the model's weights were changed in memory, a worker cannot open it, and the workers only measure.
        """
        if self._opened is not None:
            opened, self._opened = self._opened, None
            try:
                opened.result()
            except InputError as error:
                self._pool.shutdown(kill_workers=True)
                self._measure_only(error)
        return self._generates

    @property
    def ahead(self) -> int:
        """The number of batches that may be unfinished at a time."""
        return 2 * self.n_jobs if self._generates else max(1, self.n_jobs) + 1

    def submit(self, work: Work, number: int, wanted: Wanted) -> Future[Heard] | None:
        """Let a worker generate and measure a batch. The result is `None` if this process must generate it."""
        return self.play(work.asked(self.lens, number), wanted) if self.generates else None

    def wait(self, pending: Collection[Future[Heard]]) -> None:
        """Wait until at least one of these batches is done."""
        # A cancelled batch is done, but `wait` would wait until a worker has noticed that it was cancelled.
        if not any(one.done() for one in pending):
            wait(pending, return_when=FIRST_COMPLETED)

    def play(self, asked: Mapping[str, Any], wanted: Wanted) -> Future[Heard] | None:
        """Let a worker generate a batch, given the arguments of `lens.generate`, and measure it.

        The result is `None` if this process must generate the batch, because the workers do not generate or an
        intervention cannot be sent to them.
        """
        if not self.generates or not workers.can_be_sent(asked["interventions"]):
            return None
        try:
            content = workers.dumps(asked)
        except Exception:
            # A schedule of the user's refers to something that cannot be pickled. Nothing has been sent yet.
            return None
        return self._pool.submit(workers.play_batch, content, workers.torch_settings(), wanted)

    def hear(self, codes: Tensor, wanted: Wanted) -> Future[Heard]:
        """Decode and measure a batch that this process generated, or read from a folder."""
        config, found = self.lens.config, codes.cpu().numpy()
        audio: np.ndarray | None = None
        if self._pool is None or not self.on_cpu:
            audio = sound_of(self.lens, codes)
        if self._pool is not None:
            return self._pool.submit(workers.hear_batch, found, audio, config, wanted)
        assert audio is not None
        done: Future[Heard] = Future()
        with one_thread():
            done.set_result(hear(found, audio, config.sample_rate, wanted))
        return done

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(kill_workers=kind is not None)

    def _start(self) -> Future[None]:
        # Workers take seconds to start, so start them before there is anything to do.
        return [self._pool.submit(workers.open_model) for _ in range(self.n_jobs)][0]

    def _measure_only(self, reason: InputError) -> None:
        """Start workers that only measure, and say why if the user asked for workers."""
        self._generates = False
        self.n_jobs = workers.default_measuring() if self.asked is None else self.asked
        if self.n_jobs:
            self._pool = workers.measuring(self.n_jobs, self.lens)
            self._start()
        if self.asked is not None:
            warnings.warn(
                f"n_jobs={self.asked}: this process generates all clips, and the others only measure them: {reason}",
                AudioLensWarning,
                stacklevel=callers_level(),
            )

    def _note_threads(self) -> None:
        threads = torch.get_num_threads()
        if threads > 1 and self.n_jobs * threads > cpu_count():
            warnings.warn(
                f"n_jobs={self.n_jobs}: each process computes with {threads} threads, as this one does, which is more "
                f"than the {cpu_count()} cores can run at once and is slow: call torch.set_num_threads(1) before.",
                AudioLensWarning,
                stacklevel=callers_level(),
            )
