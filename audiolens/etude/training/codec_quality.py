"""How well a codec preserves the synthesiser's clips, by two numbers on clips that it was not trained on.

SI-SDR (Le Roux et al., 2019) compares waveforms: `10 log10(|a s|^2 / |a s - d|^2)` with `a = <d, s> / <s, s>`, for the
original s and the decoded clip d, both without their mean. The mel distance compares spectra: the mean absolute
difference, in dB, of the log power in 64 mel bands (Slaney's scale, 0 to 8 kHz) of Hann windows of 64 ms every 16 ms.
Powers more than 80 dB below the loudest band and frame of the original count as 80 dB below it. It depends much on this
floor, so a value with a floor of 60 dB is also given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.etude import synth
from audiolens.etude.form import Music
from audiolens.etude.training.codec import log_mel, mel_power

SEED = 103
"""The seed of the clips. No codec was trained on any of them."""
N_CLIPS = 16
FLOOR_DB = 80.0


@dataclass(frozen=True)
class CodecQuality:
    """Means over clips.

    Attributes:
        si_sdr_db: the scale-invariant ratio of signal to distortion; higher is better.
        mel_db: the mel distance, with a floor of 80 dB; lower is better.
        mel_60_db: the mel distance with a floor of 60 dB.
        n: the number of clips.
    """

    si_sdr_db: float
    mel_db: float
    mel_60_db: float
    n: int


def codec_quality(codec: Any, music: Music, seconds: float, n: int = N_CLIPS) -> CodecQuality:
    """Encode and decode `n` new clips, and compare them with the originals."""
    clips = np.stack([clip.audio for clip in synth.labelled_clips(n, SEED, seconds, music)])
    original = torch.from_numpy(clips)[:, None]
    decoded = through(codec, original)
    return CodecQuality(
        float(si_sdr_db(original, decoded).mean()),
        float(mel_distance_db(original, decoded).mean()),
        float(mel_distance_db(original, decoded, 60.0).mean()),
        n,
    )


@torch.no_grad()
def through(codec: Any, audio: Float[Tensor, "row 1 sample"]) -> Float[Tensor, "row 1 sample"]:
    """The clips after the codec, including its quantiser, one at a time."""
    decoded = [
        codec.decode(codec.encode(clip[None]).audio_codes, [None]).audio_values[..., : clip.shape[-1]] for clip in audio
    ]
    return torch.cat(decoded)


def si_sdr_db(original: Float[Tensor, "row 1 sample"], decoded: Float[Tensor, "row 1 sample"]) -> Float[Tensor, " row"]:
    """The scale-invariant ratio of signal to distortion of every clip, in dB."""
    s, d = (x[:, 0].double() - x[:, 0].double().mean(-1, keepdim=True) for x in (original, decoded))
    target = (d * s).sum(-1, keepdim=True) / s.square().sum(-1, keepdim=True) * s
    return (10 * (target.square().sum(-1) / (target - d).square().sum(-1)).log10()).float()


def mel_distance_db(
    original: Float[Tensor, "row 1 sample"], decoded: Float[Tensor, "row 1 sample"], floor_db: float = FLOOR_DB
) -> Float[Tensor, " row"]:
    """The mean absolute difference of the log mel powers of every clip, in dB."""
    floor = mel_power(original).amax((1, 2))[:, None, None] * 10 ** (-floor_db / 10)
    return 10 * (log_mel(original, floor) - log_mel(decoded, floor)).abs().mean((1, 2))
