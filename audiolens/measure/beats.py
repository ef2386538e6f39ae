"""Tempo by Beat This (Foscarin, Schlueter and Widmer, ISMIR 2024), the beat tracker used by Facchiano et al. (2025).

The tracker is an optional extra (`pip install 'audiolens[beats]'`), and is imported only when it is used. It downloads
its weights on first use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from jaxtyping import Float

from audiolens.errors import AudioLensError, InputError, MissingPackageError
from audiolens.measure.clips import Clip

FEWEST_BEATS = 4
CHECKPOINT = "final0"
_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def beat_this_tempo(clip: Clip) -> float:
    """Return `tempo(..., method="beat_this")` of one clip: 60 over the median interval between its beats."""
    tracker = _tracker()
    if clip.silent:
        return float("nan")
    beats, _ = tracker(clip.samples, clip.sample_rate)
    return tempo_of(np.asarray(beats, dtype=float))


def tempo_of(beats: Float[np.ndarray, " beat"]) -> float:
    """Return the tempo in BPM from beat times in seconds; NaN for fewer than four beats."""
    return 60 / float(np.median(np.diff(beats))) if len(beats) >= FEWEST_BEATS else float("nan")


def lacking() -> str | None:
    """Return the reason why Beat This cannot be used, or `None` if it can. Missing weights are downloaded."""
    try:
        require()
    except AudioLensError as error:
        return str(error)
    return None


def require() -> None:
    """Raise the error that `beat_this_tempo` would raise, if Beat This cannot be used."""
    _tracker()


@cache
def _tracker() -> Any:
    """Load the tracker once per process; it maps (samples, sample rate) to (beats, downbeats) in seconds."""
    try:
        from beat_this.inference import Audio2Beats  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            f"tempo by Beat This needs the package beat_this ({error}): pip install 'audiolens[beats]', or use another "
            "method ('beat', 'ioi')."
        ) from None
    if Path(CHECKPOINT).exists():
        raise InputError(
            f"{Path(CHECKPOINT).absolute()} would be opened instead of Beat This's own weights, which have the same "
            "name: rename it, or work in another folder."
        )
    try:
        with _tensors_only():
            return Audio2Beats(checkpoint_path=CHECKPOINT, device="cpu", dbn=False)
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        # Beat This raises these errors if it cannot download its weights.
        raise InputError(
            f"Beat This could not load its weights ({CHECKPOINT}): {error}. They are downloaded on first use: try "
            "again with a network connection."
        ) from None


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Restrict `torch.load` to tensors, because the weights are a pickle file, which could otherwise run any code."""
    before = os.environ.get(_ONLY)
    os.environ[_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY]
        else:
            os.environ[_ONLY] = before
