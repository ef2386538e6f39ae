"""Detect clips that steering has broken, from their loudness, onsets and code entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from audiolens.checks import as_array
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.measure.clips import Clip, read
from audiolens.measure.pairing import refuse_unpaired
from audiolens.measure.rhythm import FEWEST_ONSETS, onsets_seconds

if TYPE_CHECKING:
    import pandas as pd

LOUDEST_RATIO = 3.0
LEAST_ENTROPY_RATIO = 0.5


@runtime_checkable
class Generated(Protocol):
    """The fields of a generation that this module uses: audio [row, channel, sample] and codes [row, codebook,
    frame]."""

    @property
    def audio(self) -> Any: ...

    @property
    def codes(self) -> Any: ...

    @property
    def sample_rate(self) -> int: ...


@guarded
def failed(steered: Generated, baseline: Generated) -> Bool[np.ndarray, " row"]:
    """Return which steered rows failed, compared with the baseline row of the same prompt and seed.

    A row fails if its root mean square is outside [1/3, 3] times the baseline's, if it has fewer than four onsets, or
    if the entropy of its codes is less than half the baseline's. In an analysis, treat a failed row as showing no
    effect, because a clip that steering has silenced does not show that the music became slower. Four beats take five
    seconds at 50 BPM, so shorter clips of slow music may fail.

    Raises:
        InputError: if the baseline differs in its model, length, prompts, seeds or sampling, or was itself steered.
    """
    return failures(steered, baseline)["failed"].to_numpy(dtype=bool)


@guarded
def failures(steered: Generated, baseline: Generated) -> pd.DataFrame:
    """Return a table of the criteria of `failed` per clip: `rms_ratio`, `onsets`, `entropy_ratio`, `failed`."""
    ours, theirs = _clips(steered, "steered"), _clips(baseline, "baseline")
    entropy, reference = code_entropy(steered.codes), code_entropy(baseline.codes)
    for name, clips, codes in (("steered", ours, entropy), ("baseline", theirs, reference)):
        if len(clips) != len(codes):
            raise InputError(f"{name} has {len(clips)} clips of sound and {len(codes)} rows of codes; give one of each")
    refuse_unpaired(steered, baseline)
    return failures_of_clips(ours, theirs, entropy, reference)


def failures_of_clips(
    ours: list[Clip], theirs: list[Clip], entropy: Float[np.ndarray, " row"], reference: Float[np.ndarray, " row"]
) -> pd.DataFrame:
    """Return `failures` of clips that were already read, given the entropies of their codes and of the baseline's.

    Onsets that were computed for a measure of the same clips are not computed again.
    """
    import pandas as pd

    with np.errstate(divide="ignore", invalid="ignore"):
        rms_ratio = _rms(ours) / _rms(theirs)
        entropy_ratio = entropy / reference
    onsets = np.array([len(onsets_seconds(clip)) for clip in ours])
    sound = (rms_ratio >= 1 / LOUDEST_RATIO) & (rms_ratio <= LOUDEST_RATIO)
    varied = (entropy_ratio >= LEAST_ENTROPY_RATIO) | (reference == 0)
    return pd.DataFrame(
        {
            "rms_ratio": rms_ratio,
            "onsets": onsets,
            "entropy_ratio": entropy_ratio,
            # The comparison is negated so that NaN (from a silent baseline) fails.
            "failed": ~(sound & (onsets >= FEWEST_ONSETS) & varied),
        }
    )


@guarded
def code_entropy(codes: Any) -> Float[np.ndarray, " row"]:
    """Return the entropy in bits of the codes in each row, averaged over codebooks.

    `codes` is [row, codebook, frame], undelayed. The plug-in estimate is at most log2 of the number of frames, so
    compare only clips of the same length.
    """
    array = as_array("codes", codes.detach().cpu() if hasattr(codes, "detach") else codes)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        raise InputError(
            f"codes have shape {array.shape} and dtype {array.dtype}; expected integers [row, codebook, frame]"
        )
    return np.array([np.mean([_entropy_bits(book) for book in row]) for row in array])


def _rms(clips: list[Clip]) -> Float[np.ndarray, " row"]:
    return np.array([10 ** (clip.loudness_dbfs / 20) for clip in clips])


def _entropy_bits(codes: np.ndarray) -> float:
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(share * np.log2(share)).sum())


def _clips(generated: Generated, name: str) -> list[Clip]:
    missing = [field for field in ("audio", "codes", "sample_rate") if getattr(generated, field, None) is None]
    if missing:
        raise InputTypeError(f"{name} has no {', '.join(missing)}; give what lens.generate returned")
    return read(generated.audio, generated.sample_rate)[0]
