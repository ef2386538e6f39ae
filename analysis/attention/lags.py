"""Find heads whose self-attention is strongest at positions one or several whole beats back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, prod
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.attention.weights import caches, checked
from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.resampling import Resampling
from analysis.statistics import LEVEL, UNTESTED, Means, correct, means
from audiolens.checks import MOST_SEED, checked_amount, checked_count, numbers_of, refuse_masked, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.groups import takes
from audiolens.lens import AudioLens
from audiolens.model.tokens import named_once
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.recording import Reading


@guarded
@dataclass(frozen=True, eq=False)
class LagAttention:
    """Self-attention weights by lag, and how much larger they are on the beat than between beats.

    Attributes:
        profiles: mean weight at each lag (0, 1, 2, ... steps back), over the same queries for every lag.
        scores: the score (on - off) / (on + off) of each row, from -1 to 1. "On" is the mean weight one, two, ... whole
            beats back, and "off" is the mean weight half a beat to either side of each. Weights that decay steadily
            therefore score about 0. The score is NaN if the beat is unknown.
        beat_seconds: the beat period of each row.
        p: permutation p-value of each head: the share of shuffles of the beats *between* clips that give a mean score
            at least as high as the head's. It is corrected for the number of heads (Benjamini-Hochberg).
        control, control_high: the mean and the 95% quantile of the mean score over the shuffles behind `p`.
        layers, heads, prompts: the labels of the axes.
        frame_rate: steps per second.

    A high score does not show that a head tracks the beat, because the head might follow something else that recurs
    with the beat. The beats of other clips are a conservative control, because a beat of half or double the length
    shares some lags with the clip's own beat.
    """

    profiles: Float[np.ndarray, "layer head row lag"]
    scores: Float[np.ndarray, "layer head row"]
    beat_seconds: Float[np.ndarray, " row"]
    p: Float[np.ndarray, "layer head"]
    control: Float[np.ndarray, "layer head"]
    control_high: Float[np.ndarray, "layer head"]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    prompts: tuple[str | None, ...]
    frame_rate: float
    n_permutations: int = 0

    @property
    def means(self) -> Means:
        """Mean score over rows, "layer head", with intervals over prompts."""
        kept = np.isfinite(self.beat_seconds)
        rows = [prompt for prompt, keep in zip(self.prompts, kept, strict=True) if keep]
        return means(np.moveaxis(self.scores[:, :, kept], 2, 0), rows)

    @property
    def least_p(self) -> float:
        """The smallest p that these clips can give, which is 1 / (number of ways to assign the beats to the clips).

        Equal beats reduce the number of distinct assignments.
        """
        _, alike = np.unique(self.beat_seconds[np.isfinite(self.beat_seconds)], return_counts=True)
        ways = factorial(int(alike.sum())) // prod(factorial(int(count)) for count in alike)
        return max(1 / ways, 1 / (self.n_permutations + 1) if self.n_permutations else 0.0)

    @property
    def periodic(self) -> Bool[np.ndarray, "layer head"]:
        """Whether each head attends at multiples of the beat: its score's interval is above 0, and p is at most .05."""
        return (self.means.low > 0) & (self.p <= LEVEL)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer and head: `score`, `low`, `high`, `control`, `control_high`, `p`, `periodic`."""
        found = self.means
        layer, head = (axis.ravel() for axis in np.meshgrid(self.layers, self.heads, indexing="ij"))
        columns = {
            "score": found.value, "low": found.low, "high": found.high, "control": self.control,
            "control_high": self.control_high, "p": self.p, "periodic": self.periodic,
        }  # fmt: skip
        return pd.DataFrame({"layer": layer, "head": head, **{name: v.ravel() for name, v in columns.items()}})

    @drawable
    def plot(self, heads: Sequence[tuple[int, int]] | None = None) -> Any:
        """Plot scores by layer and head, and profiles of some heads over lag in beats (matplotlib figure)."""
        from analysis.attention import figures

        return figures.lag_paper(self, heads)

    @interactive
    def figure(self) -> Any:
        """Plot scores by layer and head (plotly figure)."""
        from analysis.attention import figures

        return figures.lag_screen(self)

    def __repr__(self) -> str:
        n = int(np.isfinite(self.beat_seconds).sum())
        if not self.periodic.any():
            if self.least_p > LEVEL:
                return f"LagAttention({self.p.size} heads; {UNTESTED}no p could be below {self.least_p:.2g}; {n} clips)"
            return (
                f"LagAttention(0 of {self.p.size} heads attend at multiples of the beat: other clips' beats score as "
                f"high, lowest p = {self.p.min():.3g}; {n} clips)"
            )
        found = self.means
        layer, head = np.unravel_index(np.where(self.periodic, found.value, -np.inf).argmax(), found.value.shape)
        return (
            f"LagAttention({int(self.periodic.sum())} of {self.p.size} heads attend at multiples of the beat; most: "
            f"block {self.layers[layer]} head {self.heads[head]}, {found.value[layer, head]:+.2f} "
            f"[{found.low[layer, head]:+.2f}, {found.high[layer, head]:+.2f}], other clips' beats "
            f"{self.control[layer, head]:+.2f}, p = {self.p[layer, head]:.3g}; {n} clips)"
        )


@guarded
@named_once
@takes("resampling", Resampling)
@takes("reading", Reading)
def by_lag(
    lens: AudioLens,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    beat_seconds: Sequence[float] | np.ndarray | None = None,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    longest_seconds: float | None = None,
    n_permutations: int = 999,
    batch_size: int = 8,
    seed: int = 0,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> LagAttention:
    """Return self-attention weights by lag, with scores for attending at multiples of the beat.

    Args:
        beat_seconds: the beat period of each clip in seconds; NaN if unknown. By default, the beat is measured in the
            decoded audio (`audiolens.measure.tempo`).
        longest_seconds: the longest lag; half the clip by default. Only queries with at least this much history are
            used.
        n_permutations: number of times the beats are shuffled between clips.
        seed: seed of the shuffles.
        reading: a `Reading` instead of `layers` and `heads`. The site is always `attn.pattern`.
        resampling: a `Resampling` instead of `n_permutations` and `seed`.

    Raises:
        InputError: if the clips do not have at least two different beats, if no clip has one and a half beats within
            the lags, or if no query has enough history for the longest lag.
    """
    codes, listed, blocks, chosen = checked(lens, prompts, codes, layers, heads)
    n_permutations = checked_count("n_permutations", n_permutations)
    seed = checked_count("seed", seed, 0, MOST_SEED)
    whole_batch_size(batch_size)
    frames, rate = codes.shape[-1], lens.config.frame_rate
    lags = frames // 2 if longest_seconds is None else round(checked_amount("longest_seconds", longest_seconds) * rate)
    if not 2 <= lags < frames:
        raise InputError(
            f"longest_seconds={longest_seconds}: expected at least {2 / rate:g} s, and less than the length of the "
            f"clip, {frames / rate:g} s."
        )
    beats = _beats(lens, codes, beat_seconds)
    _refuse_too_slow(beats * rate, lags, frames, rate)
    profiles = np.empty((len(blocks), len(chosen), len(listed), lags + 1))
    for first, cache in caches(lens, listed, codes, "attn.pattern", blocks, chosen, batch_size):
        for index, layer in enumerate(blocks):
            pattern = cache["attn.pattern", layer].float().cpu().numpy()
            # Lags are counted in steps, so the keys of a prefix are dropped.
            pattern = pattern[..., pattern.shape[-1] - pattern.shape[-2] :]
            queries = np.arange(lags, frames)
            for lag in range(lags + 1):
                found = pattern[:, :, queries, queries - lag].mean(-1)
                profiles[index, :, first : first + len(pattern), lag] = found.T
    known = np.flatnonzero(np.isfinite(beats))
    scores = np.full(profiles.shape[:3], np.nan)
    # Score each clip once under every clip's beat. A shuffle then only selects scores from this table.
    table = np.stack([beat_score(profiles[:, :, known], beats[other] * rate) for other in known], axis=-1)
    scores[:, :, known] = np.moveaxis(np.diagonal(table, axis1=2, axis2=3), -1, 2)
    rng = np.random.default_rng(seed)
    own = np.arange(len(known))
    dealt = np.stack([_mean_score(table[:, :, own, rng.permutation(own)]) for _ in range(n_permutations)])
    observed = _mean_score(scores[:, :, known])
    p = (1 + (dealt >= observed).sum(0)) / (n_permutations + 1)
    return LagAttention(
        profiles=profiles,
        scores=scores,
        beat_seconds=beats,
        p=correct(p.ravel(), "bh").reshape(p.shape),
        control=dealt.mean(0),
        control_high=np.quantile(dealt, 0.95, axis=0),
        layers=tuple(blocks),
        heads=tuple(chosen),
        prompts=listed,
        frame_rate=rate,
        n_permutations=n_permutations,
    )


@guarded
def beat_score(profiles: Float[np.ndarray, "*lead lag"], beat_steps: float) -> Float[np.ndarray, "*lead"]:
    """Return the score (on - off) / (on + off) of weights by lag; NaN if one and a half beats do not fit into the lags.

    Raises:
        InputTypeError, InputError: if `profiles` does not contain numbers by lag, or the beat is not positive.
    """
    profiles = numbers_of("profiles", profiles)
    beat_steps = checked_amount("beat_steps", beat_steps, above=0)
    if not profiles.ndim:
        raise InputError("profiles is one number: expected weights by lag.")
    n = whole_beats(profiles.shape[-1] - 1, beat_steps)
    if n < 1:
        return np.full(profiles.shape[:-1], np.nan)

    def at(beats: np.ndarray) -> np.ndarray:
        positions = beats * beat_steps
        below = np.floor(positions).astype(int)
        above = np.minimum(below + 1, profiles.shape[-1] - 1)
        return profiles[..., below] * (1 - positions + below) + profiles[..., above] * (positions - below)

    whole = np.arange(1, n + 1)
    on, off = at(whole).mean(-1), ((at(whole - 0.5) + at(whole + 0.5)) / 2).mean(-1)
    return np.asarray((on - off) / np.maximum(on + off, np.finfo(float).tiny))


def whole_beats(lags: int, beat_steps: float) -> int:
    """Return how many whole beats of `beat_steps` fit into the lags if half a beat must remain after the last one.

    There is at most one beat per lag, because a beat shorter than a step does not have a separate lag.
    """
    return int(min(lags / beat_steps - 0.5, lags))


def _refuse_too_slow(beat_steps: Float[np.ndarray, " row"], lags: int, frames: int, rate: float) -> None:
    """Raise if no clip has one and a half beats within the lags, because then no clip can be scored."""
    fastest = np.nanmin(beat_steps)
    if whole_beats(lags, fastest) >= 1:
        return
    # The length of the clips is fixed, and at least one query must come after the longest lag.
    needed = int(np.ceil(1.5 * fastest))
    remedy = f"give longest_seconds={needed / rate:g}" if needed < frames else "give longer clips"
    raise InputError(
        f"no clip has one and a half beats within lags of up to {lags / rate:g} s (the fastest beat lasts "
        f"{fastest / rate:.3g} s): {remedy}."
    )


def _mean_score(scores: np.ndarray) -> np.ndarray:
    """Return the mean of scores "layer head row" over the clips that have enough lags for a score."""
    counts = np.isfinite(scores).sum(-1)
    return np.nansum(scores, axis=-1) / np.maximum(counts, 1)


def _beats(lens: AudioLens, codes: Tensor, given: Any) -> Float[np.ndarray, " row"]:
    if given is None:
        from audiolens import measure

        audio = lens.decode_codes(codes).detach().float().cpu().numpy()
        beats = 60 / np.atleast_1d(measure.tempo(audio, lens.config.sample_rate))
    else:
        refuse_masked("beat_seconds", given)
        try:
            beats = np.asarray(given, dtype=float)
        except (TypeError, ValueError):
            raise InputTypeError(f"beat_seconds={shown(given)}: expected a number of seconds for each clip.") from None
    if beats.shape != (len(codes),) or (beats[np.isfinite(beats)] <= 0).any():
        raise InputError(f"beat_seconds of shape {beats.shape}: expected {len(codes)} positive numbers, one per clip.")
    if np.isfinite(beats).sum() < 2 or len(np.unique(beats[np.isfinite(beats)])) < 2:
        raise InputError("fewer than two clips have different beats: give clips of at least two tempi to compare.")
    return beats
