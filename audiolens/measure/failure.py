"""Detect clips that steering has broken, from their loudness, onsets and code entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from audiolens.checks import as_array, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.measure.clips import Clip, read
from audiolens.measure.rhythm import FEWEST_ONSETS, onsets_seconds

if TYPE_CHECKING:
    import pandas as pd

SAMPLING = ("guidance_scale", "temperature", "top_k")
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
    if the entropy of its codes is less than half the baseline's. Failed rows count as no effect: a clip steered into
    silence is not a slow clip. Four beats take five seconds at 50 BPM, so shorter clips of slow music may fail.

    Raises:
        InputError: if the baseline differs in its model, length, prompts, seeds or sampling, or was itself steered.
    """
    return failures(steered, baseline)["failed"].to_numpy(dtype=bool)


@guarded
def failures(steered: Generated, baseline: Generated) -> pd.DataFrame:
    """Return the three criteria of `failed`, one row per clip: `rms_ratio`, `onsets`, `entropy_ratio`, `failed`."""
    import pandas as pd

    ours, theirs = _clips(steered, "steered"), _clips(baseline, "baseline")
    if len(ours) != len(theirs):
        raise InputError(
            f"steered has {len(ours)} rows, baseline {len(theirs)}; give the same prompts and seeds in the same order"
        )
    _refuse_unpaired(steered, baseline)
    entropy, reference = code_entropy(steered.codes), code_entropy(baseline.codes)
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

    `codes` is [row, codebook, frame], undelayed. This is the plug-in estimate, at most log2 of the number of frames, so
    compare clips of the same length.
    """
    array = as_array("codes", codes.detach().cpu() if hasattr(codes, "detach") else codes)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        raise InputError(
            f"codes have shape {array.shape} and dtype {array.dtype}; expected integers [row, codebook, frame]"
        )
    return np.array([np.mean([_entropy_bits(book) for book in row]) for row in array])


def _refuse_unpaired(steered: Generated, baseline: Generated) -> None:
    """Raise unless the baseline has the same model, length and sampling, and row by row the same prompt and seed."""
    for name, ours, theirs in (
        ("frames", steered.codes.shape[-1], baseline.codes.shape[-1]),
        ("sample rate", steered.sample_rate, baseline.sample_rate),
        ("model", *(getattr(one, "settings", {}).get("model") for one in (steered, baseline))),
    ):
        if ours != theirs and None not in (ours, theirs):
            raise InputError(f"steered has {name} {ours}, baseline {theirs}; give the same clips without steering")
    ours, theirs = (getattr(one, "settings", {}) for one in (steered, baseline))
    if theirs.get("interventions"):
        raise InputError("baseline was steered itself; give the same clips without steering")
    for name in SAMPLING:
        if None not in (ours.get(name), theirs.get(name)) and ours[name] != theirs[name]:
            raise InputError(
                f"steered was generated with {name}={ours[name]}, baseline with {theirs[name]}; use the same for both"
            )
    for name in ("prompts", "seeds"):
        if not (hasattr(steered, name) and hasattr(baseline, name)):
            continue
        sides = getattr(steered, name), getattr(baseline, name)
        ours, theirs = ((None,) * len(steered.codes) if side is None else tuple(side) for side in sides)
        other = [row for row, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
        if other:
            row = other[0]
            raise InputError(
                f"row {row}: the {name[:-1]} of steered is {shown(ours[row])}, that of baseline {shown(theirs[row])}; "
                "give the same prompts and seeds in the same order"
            )


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
