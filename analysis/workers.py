"""Worker processes that measure batches, or that generate them as well, each with its own copy of the model or codec.

A worker that generates opens the model once (`audiolens.tracing.reopening`), and then generates, decodes and measures
one batch after another. A batch depends only on its plan, so it does not matter which process generates it. Workers end
with the process that started them, and leave Ctrl-C to it.

Workers generate with the number of threads of the process that started them, because another number may change the
last bits of a sum. A small model therefore runs best with one thread per process and one process per core.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from joblib import cpu_count
from torch import Tensor

from analysis.heard import Heard, Wanted, hear, one_thread, sound_of, warm_up
from audiolens.errors import AudioLensWarning
from audiolens.interventions import Intervention
from audiolens.sound.codec import decode
from audiolens.tracing.reopening import opened_by_name

if TYPE_CHECKING:
    from audiolens import AudioLens

MOST = 8
"""The most processes that are started without being asked for."""
LIBRARIES_BYTES = 800e6
"""Memory of a worker that has opened étude (764 MB when measured), most of which is libraries."""
FEWEST_BATCHES = 2
"""Batches per process below which starting processes that generate takes longer than it saves (7 s each)."""
CodecParts = tuple[Any, Any, Mapping[str, Tensor]]
"""The class, configuration and weights of a codec."""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

_content: bytes | None = None
_lens: Any = None
_codec: Any = None


def default_measuring() -> int:
    """Return half the number of cores that this process may use, at most 8, or 0 if there is only one core."""
    return min(MOST, cpu_count() // 2)


def default_generating(lens: AudioLens | None = None, threads: int = 1) -> int:
    """Return how many processes can generate at once, each with this number of threads, at most 8.

    All of them together take at most half of the machine's memory.
    """
    fitting = MOST
    if hasattr(os, "sysconf"):
        weights = 0 if lens is None else sum(part.numel() * part.element_size() for part in lens.model.parameters())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        fitting = int(memory / 2 // (weights + LIBRARIES_BYTES))
    return max(1, min(MOST, fitting, cpu_count() // threads))


def share_cores(lens: AudioLens | None = None) -> None:
    """Limit torch's threads, so that the processes that generate or measure clips have separate cores."""
    on_cpu = lens is None or lens.device.type == "cpu"
    own = cpu_count() // default_generating(lens) if on_cpu else cpu_count() - default_measuring()
    torch.set_num_threads(max(1, min(torch.get_num_threads(), own)))


def divided(lens: AudioLens, n_jobs: int | None, n_batches: int | None = None) -> tuple[int, bool]:
    """Return the number of worker processes for a number of batches, and whether they generate the batches.

    Args:
        n_jobs: the number that was asked for; `None` chooses it.
    """
    if n_jobs == 0:
        return 0, False
    # A single accelerator would be shared by all processes, which makes none of them faster.
    can_generate = lens.device.type == "cpu" and opened_by_name(lens)
    if n_jobs is not None:
        return (min(n_jobs, n_batches or n_jobs), True) if can_generate else (n_jobs, False)
    n = default_generating(lens, torch.get_num_threads())
    if not can_generate or n < 2 or (n_batches is not None and n_batches < FEWEST_BATCHES * n):
        return default_measuring(), False
    return n, True


def generating(n: int, lens: AudioLens) -> Any:
    """Start processes that generate, decode and measure.

    Raises:
        InputError: if the model cannot be opened in another process because it was given in memory, or has hooks.
    """
    return _pool(n, dumps(lens))


def measuring(n: int, lens: AudioLens) -> Any:
    """Start processes that measure and, if the model is on the CPU, decode."""
    return _pool(n, None, parts_of(lens.model.audio_encoder)) if lens.device.type == "cpu" else _pool(n)


def parts_of(codec: Any) -> CodecParts:
    """Return the class, configuration and weights of a codec, from which another process builds it."""
    return type(codec), codec.config, {name: tensor.detach().cpu() for name, tensor in codec.state_dict().items()}


def codec_of(parts: CodecParts) -> Any:
    """Build a codec from its class, configuration and weights."""
    kind, config, state = parts
    # Use the dtype in which the model decodes. Another dtype would decode the same codes slightly differently.
    dtype = next((part.dtype for part in state.values() if part.is_floating_point()), torch.float32)
    codec = kind(config).to(dtype).eval()
    codec.load_state_dict(state)
    return codec


def dumps(value: Any) -> bytes:
    """Pickle a value, including functions that were defined in a script or a notebook."""
    from joblib.externals.loky.backend import reduction

    return bytes(reduction.dumps(value))


def can_be_sent(interventions: list[Intervention]) -> bool:
    """Return whether all interventions are the package's own.

    A function of the user's may record what it sees, or depend on earlier calls, so it stays in the user's process.
    """
    return all(one.called is None and type(one).__module__.startswith("audiolens.") for one in interventions)


def torch_settings() -> dict[str, Any]:
    """Return the settings of torch that may change the last bits of results."""
    return {"threads": torch.get_num_threads(), "precision": torch.get_float32_matmul_precision()}


def open_model() -> None:
    """Open the model in this worker, and prepare for measuring. Errors are raised here, before there is a batch."""
    if _content is not None:
        _opened()
    warm_up()


def play_batch(content: bytes, settings: Mapping[str, Any], wanted: Wanted) -> Heard:
    """Generate, decode and measure a batch in this worker.

    Args:
        content: the pickled arguments of `lens.generate`.
        settings: the `torch_settings` of the process that asks for the batch.
    """
    lens = _opened()
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision(settings["precision"])
    made = lens.generate(**pickle.loads(content))
    return _heard(made.codes.numpy(), None, lens.config, wanted, made)


def hear_batch(
    codes: Int[np.ndarray, "row codebook frame"], audio: np.ndarray | None, config: Any, wanted: Wanted
) -> Heard:
    """Measure a batch in this worker, and decode it if `audio` is `None`."""
    return _heard(codes, audio, config, wanted, None)


def _heard(codes: np.ndarray, audio: np.ndarray | None, config: Any, wanted: Wanted, made: Any) -> Heard:
    with one_thread():
        if audio is None:
            given = torch.from_numpy(codes)
            audio = sound_of(_opened(), given) if _content is not None else decoded(given, _codec, config)
        return hear(codes, audio, config.sample_rate, wanted, made)


def decoded(codes: Tensor, codec: Any, config: Any) -> np.ndarray:
    """Decode a batch on the CPU with a codec, in the same way as `sound_of` does with a lens."""
    with torch.no_grad():
        parts = [decode(part, SimpleNamespace(audio_encoder=codec), config) for part in codes.split(1)]
        return torch.cat(parts).float().numpy()


def _opened() -> AudioLens:
    global _lens
    if _lens is None:
        assert _content is not None
        _lens = pickle.loads(_content)
    return _lens


def _pool(n: int, *given: Any) -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(n, initializer=_start, initargs=(os.getpid(), *given), env=_ENVIRONMENT)


def _start(parent: int, content: bytes | None = None, parts: CodecParts | None = None) -> None:
    global _content, _codec
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Ctrl-C reaches every process of a terminal. The one that started this worker ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The process that started this worker has warned already.
    warnings.simplefilter("ignore", AudioLensWarning)
    torch.set_num_threads(1)
    _content = content
    _codec = None if parts is None else codec_of(parts)


def _end_with(parent: int) -> None:
    """Exit when the parent process has ended, because a killed parent cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
