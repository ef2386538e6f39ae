"""Attention: which word is heard when (`to_text`), and which heads look back by the beat (`by_lag`).

What switching a head off costs is in `ablation.py` (`ablate`). Weights say where a head looks, not what it takes from
there or whether anything depends on it: Jain and Wallace 2019, "Attention is not explanation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.intervals import Means, means
from analysis.statistics import LEVEL, correct
from audiolens.audio import checked_codes
from audiolens.errors import InputError, nearest
from audiolens.rows import whole_batch_size
from audiolens.sites import checked_heads, checked_layers
from audiolens.text import checked_prompts


@dataclass(frozen=True, eq=False)
class TextAttention:
    """Attention from steps to the text's tokens.

    Attributes:
        weights: NaN behind the end of a row's text. A cross-attention's add up to 1 over tokens; a family whose text
            is a prefix also looks at steps and chroma, and they add up to less.
        tokens: of each row, as strings.
        layers, heads: of the first two axes.
        prompts: of the rows.
        frame_rate: steps a second.

    It does not show which word matters: a head may rest on a token that says nothing (often the last), and take
    nothing from it. See `attribution.attribute` with `sites="cross_attn.v"`.
    """

    weights: Float[np.ndarray, "layer head row step token"]
    tokens: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    prompts: tuple[str | None, ...]
    frame_rate: float

    def word(self, word: str | Sequence[str]) -> Float[np.ndarray, "layer head row step"]:
        """Weight on a word (or any of several), summed where it comes more than once; NaN in rows without it.

        Raises:
            InputError: if no row holds it.
        """
        wanted = {word} if isinstance(word, str) else set(word)
        here = [[_plain(token) in wanted for token in tokens] for tokens in self.tokens]
        if not any(map(any, here)):
            known = {_plain(token) for tokens in self.tokens for token in tokens}
            asked = sorted(wanted)[0]
            raise InputError(f"no prompt holds the token {asked!r}.{nearest(asked, known)}")
        mask = np.zeros((len(here), self.weights.shape[-1]), dtype=bool)
        for row, places in enumerate(here):
            mask[row, : len(places)] = places
        found = np.where(mask[:, None], self.weights, 0.0).sum(-1)
        found[:, :, ~mask.any(1)] = np.nan
        return found

    def listens(self, word: str | Sequence[str]) -> Means:
        """Mean weight on a word as a multiple of a uniform share of its text, with intervals over prompts: "layer
        head". 1 is no preference."""
        uniform = np.array([len(tokens) for tokens in self.tokens], dtype=float)
        ratio = self.word(word).mean(-1) * uniform
        kept = np.isfinite(ratio[0, 0])
        rows = [prompt for prompt, keep in zip(self.prompts, kept, strict=True) if keep]
        return means(np.moveaxis(ratio[:, :, kept], 2, 0), rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, head and token (by its word): mean `weight` over rows and steps with `low` and `high`
        over prompts, and `uniform`, the share it would have if all tokens weighed the same."""
        tables = []
        layer, head = (axis.ravel() for axis in np.meshgrid(self.layers, self.heads, indexing="ij"))
        for word in dict.fromkeys(_plain(token) for tokens in self.tokens for token in tokens):
            values = self.word(word).mean(-1)
            kept = np.isfinite(values[0, 0])
            rows = [prompt for prompt, keep in zip(self.prompts, kept, strict=True) if keep]
            found = means(np.moveaxis(values[:, :, kept], 2, 0), rows)
            counts = [
                sum(_plain(token) == word for token in tokens) / len(tokens)
                for tokens, keep in zip(self.tokens, kept, strict=True)
                if keep
            ]
            tables.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "head": head,
                        "token": word,
                        "weight": found.mean.ravel(),
                        "low": found.low.ravel(),
                        "high": found.high.ravel(),
                        "uniform": float(np.mean(counts)),
                        "rows": int(kept.sum()),
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)

    def plot(self, row: int = 0, heads: Sequence[tuple[int, int]] | None = None) -> Any:
        """Tokens by time of one row, a panel a (layer, head); default the heads furthest from uniform (matplotlib)."""
        from analysis.attention import figures

        return figures.text_paper(self, row, heads)

    def figure(self, row: int = 0) -> Any:
        """Tokens by time of one row, with a slider over layers and heads (plotly figure)."""
        from analysis.attention import figures

        return figures.text_screen(self, row)

    def selective(self) -> Float[np.ndarray, "layer head"]:
        """How far a head is from weighing all tokens alike: KL from uniform in nats, mean over rows and steps."""
        counts = np.array([len(tokens) for tokens in self.tokens], dtype=float)[:, None, None]
        shares = self.weights / np.nansum(self.weights, axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(shares > 0, shares * np.log(shares * counts), 0.0)
        return terms.sum(-1).mean((2, 3))

    def __repr__(self) -> str:
        far = self.selective()
        layer, head = np.unravel_index(far.argmax(), far.shape)
        weights = self.weights[layer, head].mean(axis=1)
        tops = [_plain(tokens[int(np.nanargmax(w))]) for tokens, w in zip(self.tokens, weights, strict=True)]
        top = max(set(tops), key=tops.count)
        return (
            f"TextAttention({len(self.prompts)} rows; most selective: block {self.layers[layer]} head "
            f"{self.heads[head]}, {far[layer, head]:.2f} nats from uniform, most often on {top!r})"
        )


@dataclass(frozen=True, eq=False)
class LagAttention:
    """Self-attention by how far back it looks, and how much more on the beat than between beats.

    Attributes:
        profiles: mean weight at each lag (0, 1, 2, ... steps back), over the same queries for every lag.
        scores: per row (on - off) / (on + off), from -1 to 1: on is the mean weight one, two, ... whole beats back, off
            that half a beat to either side of each, so that a steady decay is no beat. NaN where the beat is unknown.
        beat_seconds: of each row.
        p: how often clips' beats dealt out to *other* clips score as high on average, corrected for as many heads
            (Benjamini-Hochberg).
        control: the mean score under those dealt-out beats, and `control_high` its 95% quantile.
        layers, heads, prompts, frame_rate: of the axes.

    It does not show that a head keeps time: it may follow whatever recurs with the beat. Beats of other clips are a
    hard control, as a double or a half of a beat falls on some of its lags too.
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

    @property
    def means(self) -> Means:
        """Mean score over rows with intervals over prompts: "layer head"."""
        kept = np.isfinite(self.beat_seconds)
        rows = [prompt for prompt, keep in zip(self.prompts, kept, strict=True) if keep]
        return means(np.moveaxis(self.scores[:, :, kept], 2, 0), rows)

    @property
    def periodic(self) -> Bool[np.ndarray, "layer head"]:
        """The heads that look back by the beat: score above 0 with its whole interval, and p at most .05."""
        return (self.means.low > 0) & (self.p <= LEVEL)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and head: `score`, `low`, `high`, `control`, `control_high`, `p`, `periodic`."""
        found = self.means
        layer, head = (axis.ravel() for axis in np.meshgrid(self.layers, self.heads, indexing="ij"))
        columns = {
            "score": found.mean, "low": found.low, "high": found.high, "control": self.control,
            "control_high": self.control_high, "p": self.p, "periodic": self.periodic,
        }  # fmt: skip
        return pd.DataFrame({"layer": layer, "head": head, **{name: v.ravel() for name, v in columns.items()}})

    def plot(self, heads: Sequence[tuple[int, int]] | None = None) -> Any:
        """Scores by layer and head, and the profiles of some heads over lag in beats (matplotlib figure)."""
        from analysis.attention import figures

        return figures.lag_paper(self, heads)

    def figure(self) -> Any:
        """Scores by layer and head (plotly figure)."""
        from analysis.attention import figures

        return figures.lag_screen(self)

    def __repr__(self) -> str:
        found = self.means
        layer, head = np.unravel_index(np.nanargmax(found.mean), found.mean.shape)
        n = int(np.isfinite(self.beat_seconds).sum())
        return (
            f"LagAttention({int(self.periodic.sum())} of {self.p.size} heads look back by the beat; most: block "
            f"{self.layers[layer]} head {self.heads[head]}, {found.mean[layer, head]:+.2f} "
            f"[{found.low[layer, head]:+.2f}, {found.high[layer, head]:+.2f}], other clips' beats "
            f"{self.control[layer, head]:+.2f}, p = {self.p[layer, head]:.3g}; {n} clips)"
        )


def to_text(
    lens: Any,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    batch_size: int = 8,
) -> TextAttention:
    """Weights from every step to every token of its prompt, per layer and head; the tail is left out.

    Where the text is a prefix (MusicGen Melody) these are the self-attention's weights on the text's places in it.
    """
    codes, listed, blocks, chosen = _checked(lens, prompts, codes, layers, heads)
    if any(prompt is None for prompt in listed):
        raise InputError("a prompt is None: without text there is nothing to attend to. Leave that row out.")
    prefixed = lens.config.conditioning == "prefix"
    tokens = tuple(tuple(words) for words in lens.text_tokens(list(listed)))
    shape = (len(blocks), len(chosen), len(listed), codes.shape[-1], max(map(len, tokens)))
    weights = np.full(shape, np.nan)
    site = "attn.pattern" if prefixed else "cross_attn.pattern"
    for first, cache in _caches(lens, listed, codes, site, blocks, chosen, batch_size):
        for place, layer in enumerate(blocks):
            pattern = cache[site, layer].float().cpu().numpy()[:, :, : codes.shape[-1]]
            longest = max(cache.prefixes) if prefixed else 0
            for row in range(len(pattern)):
                n = len(tokens[first + row])
                start = longest - n if prefixed else 0
                weights[place, :, first + row, :, :n] = pattern[row, :, :, start : start + n]
    return TextAttention(weights, tokens, tuple(blocks), tuple(chosen), listed, lens.config.frame_rate)


def by_lag(
    lens: Any,
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
) -> LagAttention:
    """Self-attention by lag, and its beat.

    Args:
        beat_seconds: a beat of each clip, in seconds; NaN is unknown. Default: measured in the decoded sound
            (`audiolens.measure.tempo`).
        longest_seconds: how far back; default half of the clip. Only queries that can look so far back count.
        n_permutations: times that beats are dealt out to other clips.
        seed: of the dealing.

    Raises:
        InputError: fewer than two clips with a beat, or lags that leave no query.
    """
    codes, listed, blocks, chosen = _checked(lens, prompts, codes, layers, heads)
    frames, rate = codes.shape[-1], lens.config.frame_rate
    lags = frames // 2 if longest_seconds is None else round(longest_seconds * rate)
    if not 2 <= lags < frames:
        raise InputError(
            f"longest_seconds={longest_seconds}: of a clip of {frames / rate:g} s expected {2 / rate:g} s up to less "
            "than its length."
        )
    beats = _beats(lens, codes, beat_seconds)
    profiles = np.empty((len(blocks), len(chosen), len(listed), lags + 1))
    for first, cache in _caches(lens, listed, codes, "attn.pattern", blocks, chosen, batch_size):
        for place, layer in enumerate(blocks):
            pattern = cache["attn.pattern", layer].float().cpu().numpy()
            # The keys begin with the prefix, where there is one; what counts back is steps.
            pattern = pattern[..., pattern.shape[-1] - pattern.shape[-2] :]
            queries = np.arange(lags, frames)
            for lag in range(lags + 1):
                found = pattern[:, :, queries, queries - lag].mean(-1)
                profiles[place, :, first : first + len(pattern), lag] = found.T
    known = np.flatnonzero(np.isfinite(beats))
    scores = np.full(profiles.shape[:3], np.nan)
    # Each clip under each clip's beat, once: dealing out is then only picking.
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
    )


def beat_score(profiles: Float[np.ndarray, "*lead lag"], beat_steps: float) -> Float[np.ndarray, "*lead"]:
    """(on - off) / (on + off) of weights by lag, for a beat of so many steps; NaN if one and a half do not fit."""
    n = int((profiles.shape[-1] - 1) / beat_steps - 0.5)
    if n < 1:
        return np.full(profiles.shape[:-1], np.nan)

    def at(beats: np.ndarray) -> np.ndarray:
        places = beats * beat_steps
        below = np.floor(places).astype(int)
        above = np.minimum(below + 1, profiles.shape[-1] - 1)
        return profiles[..., below] * (1 - places + below) + profiles[..., above] * (places - below)

    whole = np.arange(1, n + 1)
    on, off = at(whole).mean(-1), ((at(whole - 0.5) + at(whole + 0.5)) / 2).mean(-1)
    return np.asarray((on - off) / np.maximum(on + off, np.finfo(float).tiny))


def _mean_score(scores: np.ndarray) -> np.ndarray:
    """Mean over clips of "layer head row", of those whose lags reach far enough."""
    counts = np.isfinite(scores).sum(-1)
    return np.nansum(scores, axis=-1) / np.maximum(counts, 1)


def _beats(lens: Any, codes: Tensor, given: Any) -> Float[np.ndarray, " row"]:
    if given is None:
        from audiolens import measure

        audio = lens.decode_codes(codes).detach().float().cpu().numpy()
        beats = 60 / np.atleast_1d(measure.tempo(audio, lens.config.sample_rate))
    else:
        beats = np.asarray(given, dtype=float)
    if beats.shape != (len(codes),) or (beats[np.isfinite(beats)] <= 0).any():
        raise InputError(f"beat_seconds of shape {beats.shape}: expected {len(codes)} positive numbers, one a clip.")
    if np.isfinite(beats).sum() < 2 or len(np.unique(beats[np.isfinite(beats)])) < 2:
        raise InputError("fewer than two clips have beats that differ: there is no other clip's beat to compare with.")
    return beats


def _checked(
    lens: Any, prompts: Any, codes: Any, layers: Any, heads: Any
) -> tuple[Tensor, tuple[str | None, ...], list[int], list[int]]:
    codes = checked_codes(codes, lens.config)
    listed = checked_prompts(prompts, len(codes))
    checked_codes(codes, lens.config, len(listed))
    chosen = range(lens.config.n_heads) if heads is None else checked_heads(heads, lens.config.n_heads)
    return codes, listed, checked_layers(layers, lens.config.n_layers), list(chosen)


def _caches(
    lens: Any, prompts: Sequence[Any], codes: Tensor, site: str, layers: list[int], heads: list[int], batch_size: int
) -> Any:
    """The first row and the recordings of each batch: patterns are as long as the clip squared, and not kept."""
    size = whole_batch_size(batch_size)
    for first in range(0, len(prompts), size):
        rows = slice(first, first + size)
        _, cache = lens.run_with_cache(list(prompts[rows]), codes[rows], sites=site, layers=layers, heads=heads)
        yield first, cache


def _plain(token: str) -> str:
    """A token as its word, without the sign of a word's start."""
    return token.lstrip("▁Ġ")
