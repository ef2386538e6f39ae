"""Beat This (Foscarin, Schlueter and Widmer, ISMIR 2024), the beat tracker of the paper we follow: an extra.

`pip install 'audiolens[beats]'` brings the package; it fetches its weights when first used. Nothing of it is imported
before.
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
    """`tempo(..., method="beat_this")` of one clip: 60 over the median interval between the beats it finds."""
    tracker = _tracker()
    if clip.silent:
        return float("nan")
    beats, _ = tracker(clip.samples, clip.sample_rate)
    return tempo_of(np.asarray(beats, dtype=float))


def tempo_of(beats: Float[np.ndarray, " beat"]) -> float:
    """BPM of beats in seconds; NaN of fewer than four."""
    return 60 / float(np.median(np.diff(beats))) if len(beats) >= FEWEST_BEATS else float("nan")


def lacking() -> str | None:
    """Why Beat This cannot be used here; `None` where it can. Fetches its weights where they are not there yet."""
    try:
        require()
    except AudioLensError as error:
        return str(error)
    return None


def require() -> None:
    """Raise, as the measure itself would, where Beat This cannot be used here."""
    _tracker()


@cache
def _tracker() -> Any:
    """The tracker, loaded once a process: (samples, sample rate) -> (beats, downbeats) in seconds."""
    try:
        from beat_this.inference import Audio2Beats  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            f"the tempo by Beat This needs its package ({error}): pip install 'audiolens[beats]', or take another "
            "method ('beat', 'ioi')."
        ) from None
    if Path(CHECKPOINT).exists():
        raise InputError(
            f"{Path(CHECKPOINT).absolute()} would be opened in the place of Beat This's own weights of that name: "
            "rename it, or work in another folder."
        )
    try:
        with _tensors_only():
            return Audio2Beats(checkpoint_path=CHECKPOINT, device="cpu", dbn=False)
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        # What it raises where it cannot fetch its weights.
        raise InputError(
            f"Beat This could not load its weights ({CHECKPOINT}): {error}. They come from the network when first "
            "used; try again where there is one."
        ) from None


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Have `torch.load` take nothing but tensors from a pickle, as which the weights come: it could run anything."""
    before = os.environ.get(_ONLY)
    os.environ[_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY]
        else:
            os.environ[_ONLY] = before
