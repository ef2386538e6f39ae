"""Fréchet distance between two sets of clips, for example between steered clips and the model's unsteered clips.

`frechet_distance` uses features of the model's own codec (its encoder, before quantisation), so it works offline and
needs no other model. `fad` uses a standard embedding, LAION's CLAP (Gui et al. 2024, "Adapting Frechet Audio Distance
for Generative Music Evaluation"). This module needs torch, so `audiolens.measure` imports it only on first use.
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
from audiolens.tracing.fitting import sound_fit
from audiolens.tracing.model_calls import alone

if TYPE_CHECKING:
    from audiolens.lens import AudioLens
    from audiolens.measure.clap import Clap
    from audiolens.tracing.generation import Generation

Features = Float[np.ndarray, "window feature"]
"""One vector per window of sound; a window never spans two clips."""
LEAST = 5.0
"""Each set needs more than this many feature vectors per feature dimension; otherwise the distance is mostly bias."""


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
    """Return the Fréchet distance between the codec features of two sets of clips; 0 for identical sets.

    Each set is modelled as a Gaussian: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) (Fréchet 1957; used as FID by
    Heusel et al. 2017). Units are those of the codec's features, squared, so compare distances only within one codec.

    Args:
        a, b: clips, equal in number and length: what `lens.generate` returned, codes "row codebook frame", a waveform
            "row channel sample" at the model's rate or (waveform, sample_rate), or what `codec_features` returned.
        window_seconds: see `codec_features`.
        least: the required number of feature vectors per dimension; lower it only to explore, never to report.
        batch_size: the number of clips encoded at a time.

    Raises:
        InputError: if the sets differ in size or are too small, because the estimate is biased upwards, and more so
            with fewer feature vectors.

    The distance does not measure quality, because the intended change increases it too. Compare it with the distance
    between two baselines of different seeds (the smallest detectable distance), and with the distance to clips whose
    prompts name the pole.
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
    """Return the output of the codec's encoder before quantisation, averaged over each window of each clip.

    Args:
        clips: as for `frechet_distance`. Features are returned unchanged, so features of many batches can be
            concatenated and compared.
        window_seconds: length of consecutive windows from the start of the clip; an incomplete last window is dropped.
            `None` uses each clip as one window.

    Returns:
        One row per window, clip by clip, in float64.

    Raises:
        InputError: if clips are shorter than a window, or contain NaN.
    """
    if isinstance(clips, np.ndarray) and clips.ndim == 2:
        return clips.astype(np.float64, copy=False)
    size = whole_batch_size(batch_size)
    pooled: list[Features] = []
    for frames in _frames(lens, clips, size):
        n_frames = frames.shape[-1]
        window = n_frames if window_seconds is None else round(window_seconds * lens.config.frame_rate)
        if not 1 <= window <= n_frames:
            raise InputError(
                f"window_seconds={window_seconds}: the clips last {n_frames / lens.config.frame_rate:g} s; give a "
                "shorter window, or None for one window per clip."
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
    """Return the Fréchet audio distance between two sets of clips, in CLAP's audio embedding (Gui et al. 2024).

    `a` and `b` are clips as for any measure (`sample_rate` is the rate of arrays in Hz), or precomputed features
    "window feature". CLAP has 512 dimensions, so each set needs more than 2,560 windows (of at most ten seconds).
    `least` and the errors are as for `frechet_distance`. The distance is comparable with published distances only if
    the embedding, the reference set and the number of windows agree.
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
    """Return the Fréchet distance between two sets of features, modelled as Gaussians; see `frechet_distance`."""
    for name, features in (("a", a), ("b", b)):
        if not np.isfinite(features).all():
            raise InputError(f"the features of {name} have NaN or infinite values: drop these clips.")
    (n_a, width), (n_b, other) = a.shape, b.shape
    if width != other:
        raise InputError(f"features of {width} and {other} dimensions: use the same codec or embedding for both sets.")
    if n_a != n_b:
        raise InputError(
            f"{n_a} features against {n_b}: the bias of the distance depends on their number, so both sets need the "
            "same number. Drop clips of the larger set."
        )
    if n_a <= max(least * width, 1):
        raise InputError(
            f"{n_a} features of {width} dimensions: each set needs more than {max(least * width, 1):g}; otherwise the "
            "distance is mostly bias. Give more clips or shorter windows; lower least= to explore, not to report."
        )
    shift = float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum())
    cov_a, cov_b = np.cov(a, rowvar=False).reshape(width, width), np.cov(b, rowvar=False).reshape(width, width)
    # Compute the trace of (C_a C_b)^1/2 through the symmetric root of C_a, because sqrtm of the product need not be
    # real.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return max(shift + float(np.trace(cov_a) + np.trace(cov_b) - 2 * shared), 0.0)


def _frames(lens: AudioLens, clips: Any, size: int) -> Iterator[Float[Tensor, "row codec_feature frame"]]:
    """Yield the features of clips in every frame, a few rows at a time."""
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
    sounds: Any = clips
    coded = isinstance(clips, Tensor) and not clips.is_floating_point()
    length = sounds.shape[-1] / (lens.config.frame_rate if coded else max(1, sample_rate))

    def read(rows: slice) -> Float[Tensor, "row codec_feature frame"]:
        wave = lens.decode_codes(sounds[rows]) if coded else sounds[rows]
        with alone(lens.model), torch.no_grad():
            found = codec.features(wave, lens.config.sample_rate if coded else sample_rate, lens.model, lens.config)
            return found.cpu().double()

    fit = sound_fit(lens.traced_model, length, "encoded", size)
    yield from (found for _, found in fit.run(len(sounds), read))
