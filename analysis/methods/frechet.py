"""The Fréchet distance between the clips of every condition and the unsteered ones, in the codec's quantised features.

`measure.frechet_distance` takes the features of the encoder, for which clips have to be decoded and encoded again. The
sum of the code vectors is what the quantiser makes of the same features, and is read from the codes at once, so that
every condition of a comparison can have a distance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from analysis.sweep.conditions import BASELINE
from analysis.sweep.result import SweepResult
from audiolens.measure.frechet import LEAST, between
from audiolens.tracing.model_calls import alone

if TYPE_CHECKING:
    from audiolens import AudioLens


def distances(lens: AudioLens, swept: SweepResult) -> dict[str, float]:
    """Return the distance of every condition from the baseline, or NaN if there are too few clips to estimate it.

    Features are averaged over the longest windows of whole frames of which there are enough.
    """
    own = quantised(lens, swept.codes(BASELINE))
    rows, width, frames = own.shape
    window = next((one for one in range(frames, 0, -1) if rows * (frames // one) > LEAST * width), None)
    names = list(dict.fromkeys(swept.table["condition"]))
    if window is None:
        return dict.fromkeys(names, float("nan"))
    before = _windows(own, window)
    return {name: between(_windows(quantised(lens, swept.codes(name)), window), before) for name in names}


def quantised(lens: AudioLens, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row codec_feature frame"]:
    """Return the sum of the code vectors of every frame, averaged over the channels of a stereo model."""
    codec = lens.model.audio_encoder
    sides = rearrange(codes, "row (codebook side) frame -> codebook (side row) frame", side=lens.config.channels)
    with alone(lens.model), torch.no_grad():
        found = codec.quantizer.decode(sides.to(codec.device)).cpu().double()
    return reduce(found, "(side row) feature frame -> row feature frame", "mean", side=lens.config.channels)


def _windows(features: Float[Tensor, "row codec_feature frame"], window: int) -> Float[np.ndarray, "window feature"]:
    whole = features[..., : features.shape[-1] // window * window]
    return reduce(whole, "row feature (place frame) -> (row place) feature", "mean", frame=window).numpy()
