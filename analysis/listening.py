"""Decode codes and measure the resulting sound, in worker processes that run alongside generation.

For a small model, decoding and measuring take as much CPU time as generating the codes. A sweep on two cores is
therefore nearly twice as fast when one core generates and the other measures. Each worker has its own copy of the
codec. If the model is on an accelerator, sound is decoded there and the workers only measure. Results do not depend on
the number of workers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from joblib import cpu_count
from threadpoolctl import threadpool_limits
from torch import Tensor

from audiolens import measure
from audiolens.measure.clips import read
from audiolens.measure.failure import failures_of_clips
from audiolens.measure.table import table_of_clips
from audiolens.sound.codec import decode

if TYPE_CHECKING:
    from audiolens import AudioLens

CHUNK = 32
"""Number of clips decoded at a time on an accelerator. On a CPU, decoding one clip at a time takes about half as long
per clip, because several clips do not fit in its cache."""

_codec: Any = None


@dataclass
class Heard:
    """A batch of codes with its sound and measures. `frame` has one row per clip, in the order of the batch."""

    codes: Int[np.ndarray, "row codebook frame"]
    audio: Float[np.ndarray, "row channel sample"]
    frame: pd.DataFrame
    sample_rate: int


def default_workers() -> int:
    """Return half the number of cores that this process may use, at most 8, or 0 if there is only one core."""
    return min(8, cpu_count() // 2)


def share_cores() -> None:
    """Limit torch's threads, so that the processes that measure clips have separate cores."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cpu_count() - default_workers())))


class Listener(AbstractContextManager["Listener"]):
    """Decode and measure batches of codes.

    A listener is a context manager that ends its worker processes on exit.

    Args:
        lens: the model whose codec decodes the codes.
        measures: names from `audiolens.measure.MEASURES`.
        n_jobs: number of worker processes. With 0, the calling process decodes and measures. `None` uses half the
            cores, or 0 workers if there is only one core.
    """

    def __init__(self, lens: AudioLens, measures: Sequence[str], n_jobs: int | None = None) -> None:
        self.lens, self.measures = lens, list(measures)
        self.n_jobs = default_workers() if n_jobs is None else n_jobs
        self.on_cpu = lens.device.type == "cpu"
        self._pool: Any = None
        if self.n_jobs > 0:
            from joblib.externals.loky import ProcessPoolExecutor

            codec = lens.model.audio_encoder
            state = {name: tensor.detach().cpu() for name, tensor in codec.state_dict().items()}
            self._pool = ProcessPoolExecutor(
                self.n_jobs,
                initializer=_start,
                initargs=(os.getpid(), *((type(codec), codec.config, state) if self.on_cpu else ())),
                env={"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            )
            # Workers take seconds to start, so start them before there is anything to measure.
            for _ in range(self.n_jobs):
                self._pool.submit(_start_measuring)

    def hear(self, codes: Tensor, baseline: Heard | None) -> Future[Heard]:
        """Decode and measure `codes`, and add columns for `failed` and the causes of failure.

        A clip fails relative to the same row of `baseline`. Without a baseline, clips are compared with themselves.
        """
        config = self.lens.config
        if self._pool is None or not self.on_cpu:
            with _one_thread():
                parts = [self.lens.decode_codes(part) for part in codes.split(1 if self.on_cpu else CHUNK)]
            audio: np.ndarray | None = torch.cat(parts).detach().float().cpu().numpy()
        else:
            audio = None
        job = (codes.cpu().numpy(), audio, baseline, self.measures, config)
        if self._pool is not None:
            return self._pool.submit(_hear, *job)
        done: Future[Heard] = Future()
        with _one_thread():
            done.set_result(_hear(*job))
        return done

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(kill_workers=kind is not None)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, as a worker does.

    The number of threads changes the last bits of a sum, and results must not depend on which process computed them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _start(parent: int, codec_class: Any = None, config: Any = None, state: dict[str, Tensor] | None = None) -> None:
    global _codec
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    if codec_class is not None and state is not None:
        # Use the dtype in which the model decodes. Another dtype would decode the same codes slightly differently.
        dtype = next((part.dtype for part in state.values() if part.is_floating_point()), torch.float32)
        _codec = codec_class(config).to(dtype).eval()
        _codec.load_state_dict(state)


def _end_with(parent: int) -> None:
    """Exit when the parent process has ended, because a killed parent cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _start_measuring() -> None:
    """Measure a clip of noise once, so that lazy imports and compilation happen now."""
    measure.table(np.random.default_rng(0).normal(0, 0.1, (1, 1, 16_000)), 16_000)


def _hear(
    codes: np.ndarray, audio: np.ndarray | None, baseline: Heard | None, measures: list[str], config: Any
) -> Heard:
    if audio is None:
        model = SimpleNamespace(audio_encoder=_codec)
        with torch.no_grad():
            parts = [decode(part, model, config) for part in torch.from_numpy(codes).split(1)]
        audio = torch.cat(parts).float().numpy()
    # A codec can produce NaN or infinity on codes far from its training data. Such a clip is measured as silence, not
    # rejected.
    audio = np.where(np.isfinite(audio).all(axis=(1, 2), keepdims=True), audio, 0.0).astype(np.float32)
    # The same clips are measured and checked for failure, because both need their onsets.
    clips, rate = read(audio, config.sample_rate)[0], config.sample_rate
    theirs = clips if baseline is None else read(baseline.audio, baseline.sample_rate)[0]
    measured = table_of_clips(clips, measures)
    entropy = measure.code_entropy(codes)
    reference = entropy if baseline is None else measure.code_entropy(baseline.codes)
    lost = failures_of_clips(clips, theirs, entropy, reference)
    return Heard(codes, audio, pd.concat([measured, lost], axis=1), rate)
