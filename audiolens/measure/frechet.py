"""Fréchet distance between two sets of clips: how far steered sound lies from the model's own, as distributions.

In the features of the model's own codec (its encoder, before quantisation), which works offline and needs no other
network. `fad` is the same in a standard embedding, LAION's CLAP (Gui et al. 2024, "Adapting Frechet Audio Distance for
Generative Music Evaluation"). Needs torch: `audiolens.measure` loads this file when one of its names is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.model.timeline import Real
from audiolens.sound import codec
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.model_calls import alone

if TYPE_CHECKING:
    from audiolens.lens import AudioLens
    from audiolens.measure.clap import Clap
    from audiolens.tracing.generation import Generation

Features = Float[np.ndarray, "window feature"]
"""One vector per window of sound; two clips' windows never mix."""
LEAST = 5.0
"""More features than this many times their dimension, in either set (rule of the design)."""


@guarded
def frechet_distance(
    lens: AudioLens,
    a: Generation | Tensor | tuple[Any, int] | Features,
    b: Generation | Tensor | tuple[Any, int] | Features,
    *,
    window_seconds: Real | None = 1.0,
    least: float = LEAST,
    batch_size: int = 16,
) -> float:
    """Fréchet distance between two sets of clips, in the codec's own features; 0 for the same set.

    Both are taken as Gaussians: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) (Fréchet 1957; as FID, Heusel et al.
    2017). In the squared units of the codec, so that only distances of one codec compare.

    Args:
        a, b: clips, alike in number and length: what `lens.generate` returned, codes "row codebook frame", a waveform
            "row channel sample" at the model's rate or (waveform, sample_rate), or what `codec_features` returned.
        window_seconds: see `codec_features`.
        least: how many features a dimension are needed; lower it to look, never to report.
        batch_size: clips encoded at a time.

    Raises:
        InputError: unequal numbers, or too few: the estimate is biased upwards, the more the fewer features.

    It does not show quality: what steering was to change moves it too. Read it beside the distance between two
    baselines of different seeds (the least that can be seen) and that of the same prompts asked for the pole in words.
    """
    settings: dict[str, Any] = {"window_seconds": window_seconds, "batch_size": batch_size}
    return between(codec_features(lens, a, **settings), codec_features(lens, b, **settings), least=least)


@guarded
def codec_features(
    lens: AudioLens,
    clips: Generation | Tensor | tuple[Any, int] | Features,
    *,
    window_seconds: Real | None = 1.0,
    batch_size: int = 16,
) -> Features:
    """What the codec's encoder says of each window of each clip, before quantisation, averaged over the window.

    Args:
        clips: as `frechet_distance` takes them; features come back as they are, so that those of many batches can be
            kept, concatenated and compared.
        window_seconds: windows follow one another from the clip's start, and an incomplete last one is left out; `None`
            takes each clip as one.

    Returns:
        One row a window, clip by clip, in float64.

    Raises:
        InputError: if clips are shorter than a window, or hold NaN.
    """
    if isinstance(clips, np.ndarray) and clips.ndim == 2:
        return clips.astype(np.float64, copy=False)
    size = whole_batch_size(batch_size)
    pooled: list[Features] = []
    for wave, sample_rate in _waves(lens, clips, size):
        with alone(lens.model), torch.no_grad():
            frames = codec.features(wave, sample_rate, lens.model, lens.config).cpu().double()
        n_frames = frames.shape[-1]
        window = n_frames if window_seconds is None else round(window_seconds * lens.config.frame_rate)
        if not 1 <= window <= n_frames:
            raise InputError(
                f"window_seconds={window_seconds}: the clips last {n_frames / lens.config.frame_rate:g} s; give a "
                "shorter window, or None for one a clip."
            )
        whole = frames[..., : n_frames // window * window].unflatten(-1, (-1, window)).mean(-1)
        pooled.append(whole.transpose(1, 2).flatten(0, 1).numpy())
    return np.concatenate(pooled)


@guarded
def fad(
    a: Any,
    b: Any,
    sample_rate: int | None = None,
    *,
    model: str | Clap = "laion/clap-htsat-unfused",
    least: float = LEAST,
    batch_size: int = 16,
) -> float:
    """Fréchet audio distance between two sets of clips, in CLAP's audio embedding (Gui et al. 2024).

    `a` and `b` are clips as every measure takes them, `sample_rate` that of arrays, or features of one's own "window
    feature". With CLAP's 512 dimensions more than 2,560 windows (of ten seconds at most) are needed a side. `least` and
    errors as in `frechet_distance`; the distance compares with published ones only where embedding,
    reference set and numbers agree.
    """
    from audiolens.measure.clap import clap_embeddings

    sides = [
        clips
        if isinstance(clips, np.ndarray) and clips.ndim == 2 and sample_rate is None
        else np.concatenate(clap_embeddings(clips, sample_rate, model=model, batch_size=batch_size))
        for clips in (a, b)
    ]
    return between(*sides, least=least)


def between(
    a: Float[np.ndarray, "window_a feature_a"], b: Float[np.ndarray, "window_b feature_b"], *, least: float = LEAST
) -> float:
    """The Fréchet distance between two sets of features, each taken as a Gaussian; see `frechet_distance`."""
    for name, features in (("a", a), ("b", b)):
        if not np.isfinite(features).all():
            raise InputError(f"the features of {name} hold NaN or infinite values: drop these clips.")
    (n_a, width), (n_b, other) = a.shape, b.shape
    if width != other:
        raise InputError(f"features of {width} and {other} dimensions: both sets need one codec or embedding.")
    if n_a != n_b:
        raise InputError(
            f"{n_a} features against {n_b}: the distance is biased by their number, so both need equally many. "
            "Drop clips of the larger set."
        )
    if n_a <= max(least * width, 1):
        raise InputError(
            f"{n_a} features of {width} dimensions: more than {max(least * width, 1):g} are needed of either set, else "
            "the distance is mostly bias. Give more clips, or shorter windows; lower least= to look, not to report."
        )
    shift = float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum())
    cov_a, cov_b = np.cov(a, rowvar=False).reshape(width, width), np.cov(b, rowvar=False).reshape(width, width)
    # The trace of (C_a C_b)^1/2 by the symmetric root of C_a: no complex residue, unlike sqrtm of the product.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return max(shift + float(np.trace(cov_a) + np.trace(cov_b) - 2 * shared), 0.0)


def _waves(lens: AudioLens, clips: Any, size: int) -> Iterator[tuple[Any, int]]:
    """The sound of clips, some rows at a time."""
    sample_rate = lens.config.sample_rate
    if hasattr(clips, "codes") and hasattr(clips, "audio"):
        if clips.audio is not None:
            sample_rate = clips.sample_rate
        clips = clips.codes if clips.audio is None else clips.audio
    elif isinstance(clips, tuple | list) and len(clips) == 2 and isinstance(clips[1], int):
        clips, sample_rate = clips
    if getattr(clips, "ndim", None) != 3 or not len(clips):
        shape = tuple(getattr(clips, "shape", ()))
        raise InputTypeError(
            f"clips of type {type(clips).__name__}, shape {shape}: expected a generation, codes 'row codebook frame', "
            "a waveform 'row channel sample' or (waveform, sample_rate)."
        )
    coded = isinstance(clips, Tensor) and not clips.is_floating_point()
    for first in range(0, len(clips), size):
        part: Any = clips[first : first + size]
        yield (lens.decode_codes(part) if coded else part), sample_rate
