"""Encode mono or stereo waveforms of any sample rate as codes, and decode codes to sound, with the model's codec."""

import os
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.checks import RATES_HZ, real_number, shown
from audiolens.errors import InputError, InputTypeError
from audiolens.model.config import LensConfig
from audiolens.tensors import tensor_of

AudioSource = tuple[Any, int] | str | os.PathLike[str]
"""A waveform with its sample rate, or the path of a sound file."""
_CHUNKED = "this codec splits sound into chunks: set chunk_length_s=None in its configuration."


def checked_waveform(waveform: Any, sample_rate: int, config: LensConfig) -> Float[Tensor, "row channel sample"]:
    """Convert a waveform "sample", "channel sample" or "row channel sample" to the model's sample rate and channels."""
    try:
        wave = tensor_of("waveform", waveform).detach()
    except InputTypeError as error:
        raise InputTypeError(f"waveform: expected an array of samples ({error}).") from None
    rate = _hertz(sample_rate)
    if not wave.is_floating_point():
        raise InputTypeError(f"waveform of dtype {wave.dtype}: expected floating-point samples between -1 and 1.")
    if wave.ndim not in (1, 2, 3):
        raise InputError(
            f"waveform of shape {tuple(wave.shape)}: expected 'sample', 'channel sample' or 'row channel sample'."
        )
    wave = wave[(None,) * (3 - wave.ndim)].to("cpu", torch.float32)
    if not wave.numel():
        raise InputError("the waveform is empty.")
    if not bool(torch.isfinite(wave).all()):
        raise InputError("the waveform contains NaN or infinite samples.")
    if wave.shape[1] > 2:
        raise InputError(f"waveform of {wave.shape[1]} channels: expected one or two.")
    if wave.shape[1] != config.channels:
        wave = wave.mean(1, keepdim=True) if config.channels == 1 else wave.expand(-1, config.channels, -1)
    return torch.from_numpy(resampled(wave.numpy(), rate, config.sample_rate))


def _hertz(sample_rate: Any) -> int:
    try:
        rate = real_number(sample_rate)
    except TypeError:
        rate = 0.0
    if not rate.is_integer() or rate <= 0:
        raise InputError(f"sample_rate={shown(sample_rate)}: expected a positive whole number of hertz.")
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise InputError(f"sample_rate={shown(sample_rate)}: expected {RATES_HZ[0]:,} to {RATES_HZ[1]:,} hertz.")
    return int(rate)


def resampled(
    samples: Float[np.ndarray, "*axes sample"], sample_rate: int, wanted: int
) -> Float[np.ndarray, "*axes resampled"]:
    """Resample with a polyphase filter, or return the samples unchanged if the rates are equal."""
    if sample_rate == wanted:
        return samples
    from scipy.signal import resample_poly

    divisor = int(np.gcd(sample_rate, wanted))
    return resample_poly(samples, wanted // divisor, sample_rate // divisor, axis=-1).astype(np.float32)


def encode(waveform: Any, sample_rate: int, model: Any, config: LensConfig) -> Int[Tensor, "row codebook frame"]:
    """Encode a waveform as undelayed codes.

    Channels are first averaged or duplicated to the model's number of channels, and the waveform is resampled to the
    model's sample rate.

    Raises:
        InputError: if the waveform is empty, not finite, or has an unexpected shape.
    """
    codec = model.audio_encoder
    wave = checked_waveform(waveform, sample_rate, config).to(codec.device, codec.dtype)
    sides = []
    for side in wave.split(1, dim=1):
        frames = codec.encode(side).audio_codes
        if frames.shape[0] != 1:
            raise InputError(_CHUNKED)
        sides.append(frames[0])
    return rearrange(torch.stack(sides), "side row codebook frame -> row (codebook side) frame")[
        :, : config.n_codebooks
    ]


def features(
    waveform: Any, sample_rate: int, model: Any, config: LensConfig
) -> Float[Tensor, "row codec_feature frame"]:
    """Return the output of the codec's encoder before quantisation, averaged over the channels of a stereo model.

    Raises:
        InputError: for the same reasons as `encode`.
    """
    codec = model.audio_encoder
    wave = checked_waveform(waveform, sample_rate, config).to(codec.device, codec.dtype)
    chunk = codec.config.chunk_length
    if chunk is not None and wave.shape[-1] > chunk:
        raise InputError(_CHUNKED)
    if codec.config.normalize:
        wave = wave / (wave.square().mean(-1, keepdim=True).sqrt() + 1e-8)
    return torch.stack([codec.encoder(side) for side in wave.split(1, dim=1)]).mean(0)


def checked_codes(codes: Any, config: LensConfig, rows: int | None = None) -> Int[Tensor, "row codebook frame"]:
    """Check that undelayed codes fit this model and the given number of rows, and return the codes as int64.

    Raises:
        InputTypeError, InputError: if the codes do not fit; the message gives the reason.
    """
    integral = isinstance(codes, Tensor) and not (codes.is_floating_point() or codes.is_complex())
    if not integral or codes.dtype == torch.bool or codes.ndim != 3:
        found = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
        raise InputTypeError(f"codes: expected whole numbers in a tensor 'row codebook frame', found {found}.")
    if codes.shape[1] != config.n_codebooks or not codes.numel():
        raise InputError(
            f"codes of shape {tuple(codes.shape)}: this model has {config.n_codebooks} codebooks, and codes need at "
            "least one row and one frame."
        )
    if rows is not None and len(codes) != rows:
        raise InputError(f"{len(codes)} rows of codes for {rows} prompts: give one prompt per row.")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"codes from {low} to {high}: this model's codes range from 0 to {config.vocab_size - 1}.")
    return codes.long()


def decode(codes: Tensor, model: Any, config: LensConfig) -> Float[Tensor, "row channel sample"]:
    """Decode undelayed codes to sound. In a stereo model, codebooks alternate between the left and right channel."""
    scales = [None] * len(codes)
    sides = [codes[:, side :: config.channels] for side in range(config.channels)]
    return torch.cat(
        [model.audio_encoder.decode(side[None], audio_scales=scales).audio_values for side in sides], dim=1
    )
