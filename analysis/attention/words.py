"""Measure how much attention each step pays to each token of the prompt, by layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from analysis.attention.weights import caches, checked
from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.statistics import Means, means
from audiolens.checks import checked_text, listed, shown
from audiolens.door import guarded
from audiolens.errors import InputError, nearest
from audiolens.groups import takes
from audiolens.lens import AudioLens
from audiolens.model.tokens import named_once
from audiolens.tracing.recording import Reading


@guarded
@dataclass(frozen=True, eq=False)
class TextAttention:
    """Attention from each step to the tokens of the text.

    Attributes:
        weights: attention weights; NaN after the end of a row's text. In cross-attention, the weights sum to 1 over
            tokens. If the text is a prefix, they sum to less than 1, because steps and chroma also receive attention.
        tokens: the tokens of each row, as strings.
        layers, heads: the labels of the first two axes.
        prompts: the prompts of the rows.
        frame_rate: steps per second.

    The weights do not show which word matters, because a head can attend to an uninformative token (often the last)
    without using it. To find which words matter, use `attribution.attribute` with `sites="cross_attn.v"`.
    """

    weights: Float[np.ndarray, "layer head row step token"]
    tokens: tuple[tuple[str, ...], ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    prompts: tuple[str | None, ...]
    frame_rate: float

    def word(self, word: str | Sequence[str]) -> Float[np.ndarray, "layer head row step"]:
        """Return the attention weight on a word, or the total weight on several words.

        Weights are summed over all occurrences. They are NaN in rows that do not contain any of the words.

        Raises:
            InputError: if no row contains any of the words.
        """
        wanted = {word} if isinstance(word, str) else {checked_text("word", one) for one in listed("word", word)}
        if not wanted:
            raise InputError("word=[]: give at least one.")
        here = [[plain_token(token) in wanted for token in tokens] for tokens in self.tokens]
        if not any(map(any, here)):
            known = {plain_token(token) for tokens in self.tokens for token in tokens}
            asked = sorted(wanted)[0]
            raise InputError(f"no prompt contains the token {shown(asked)}.{nearest(asked, known)}")
        mask = np.zeros((len(here), self.weights.shape[-1]), dtype=bool)
        for row, positions in enumerate(here):
            mask[row, : len(positions)] = positions
        found = np.where(mask[:, None], self.weights, 0.0).sum(-1)
        found[:, :, ~mask.any(1)] = np.nan
        return found

    def listens(self, word: str | Sequence[str]) -> Means:
        """Return the mean weight on a word relative to uniform attention, "layer head", with intervals over prompts.

        A value of 1 means that the head has no preference for the word.
        """
        uniform = np.array([len(tokens) for tokens in self.tokens], dtype=float)
        ratio = self.word(word).mean(-1) * uniform
        kept = np.isfinite(ratio[0, 0])
        rows = [prompt for prompt, keep in zip(self.prompts, kept, strict=True) if keep]
        return means(np.moveaxis(ratio[:, :, kept], 2, 0), rows)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer, head and distinct token.

        `weight` is the mean over rows and steps, and `low` and `high` are its interval over prompts. `uniform` is the
        weight that uniform attention would give.
        """
        tables = []
        layer, head = (axis.ravel() for axis in np.meshgrid(self.layers, self.heads, indexing="ij"))
        for word in dict.fromkeys(plain_token(token) for tokens in self.tokens for token in tokens):
            values = self.word(word).mean(-1)
            kept = np.isfinite(values[0, 0])
            rows = [prompt for prompt, keep in zip(self.prompts, kept, strict=True) if keep]
            found = means(np.moveaxis(values[:, :, kept], 2, 0), rows)
            counts = [
                sum(plain_token(token) == word for token in tokens) / len(tokens)
                for tokens, keep in zip(self.tokens, kept, strict=True)
                if keep
            ]
            tables.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "head": head,
                        "token": word,
                        "weight": found.value.ravel(),
                        "low": found.low.ravel(),
                        "high": found.high.ravel(),
                        "uniform": float(np.mean(counts)),
                        "rows": int(kept.sum()),
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)

    @drawable
    def plot(self, row: int = 0, heads: Sequence[tuple[int, int]] | None = None) -> Any:
        """Plot weights by token and time for one row, with one panel per (layer, head) (matplotlib figure).

        By default, the plot shows the heads that are furthest from uniform attention.

        Raises:
            InputError: if the row or one of the heads was not recorded.
        """
        from analysis.attention import figures

        return figures.text_paper(self, row, heads)

    @interactive
    def figure(self, row: int = 0) -> Any:
        """Plot weights by token and time for one row, with a slider over layers and heads (plotly figure)."""
        from analysis.attention import figures

        return figures.text_screen(self, row)

    def selective(self) -> Float[np.ndarray, "layer head"]:
        """Return each head's mean KL divergence from uniform attention, in nats. Selective heads have high values."""
        counts = np.array([len(tokens) for tokens in self.tokens], dtype=float)[:, None, None]
        shares = self.weights / np.nansum(self.weights, axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(shares > 0, shares * np.log(shares * counts), 0.0)
        return terms.sum(-1).mean((2, 3))

    def __repr__(self) -> str:
        far = self.selective()
        layer, head = np.unravel_index(far.argmax(), far.shape)
        weights = self.weights[layer, head].mean(axis=1)
        tops = [plain_token(tokens[int(np.nanargmax(w))]) for tokens, w in zip(self.tokens, weights, strict=True)]
        few = "; too few prompts to test: an interval needs at least two" if len(set(self.prompts)) < 2 else ""
        top = max(tops, key=tops.count)  # in a tie, the word of the earliest row is chosen
        return (
            f"TextAttention({len(self.prompts)} rows; most selective: block {self.layers[layer]} head "
            f"{self.heads[head]}, {far[layer, head]:.2f} nats from uniform, most often on {top!r}{few})"
        )


@guarded
@named_once
@takes("reading", Reading)
def to_text(
    lens: AudioLens,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    batch_size: int = 8,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> TextAttention:
    """Return the attention weights from every step to every token of its row's prompt, per layer and head.

    The last steps, which only finish the delayed codebooks, are left out. If the text is a prefix (MusicGen Melody),
    the weights are self-attention weights on the text's positions in the prefix. `reading` is a `Reading` that replaces
    `layers` and `heads`.

    Raises:
        PromptError, InputError: if prompts or codes do not fit the model or each other, if a prompt is `None`, or if
            the model lacks one of the heads.
        SiteError: if the model lacks one of the layers.
    """
    codes, listed, blocks, chosen = checked(lens, prompts, codes, layers, heads)
    if any(prompt is None for prompt in listed):
        raise InputError("a prompt is None, so there is no text to attend to: leave that row out.")
    prefixed = lens.config.has_prefix
    tokens = tuple(tuple(words) for words in lens.text_tokens(list(listed)))
    shape = (len(blocks), len(chosen), len(listed), codes.shape[-1], max(map(len, tokens)))
    weights = np.full(shape, np.nan)
    site = "attn.pattern" if prefixed else "cross_attn.pattern"
    for first, cache in caches(lens, listed, codes, site, blocks, chosen, batch_size):
        for index, layer in enumerate(blocks):
            pattern = cache[site, layer].float().cpu().numpy()[:, :, : codes.shape[-1]]
            longest = max(cache.prefixes) if prefixed else 0
            for row in range(len(pattern)):
                n = len(tokens[first + row])
                start = longest - n if prefixed else 0
                weights[index, :, first + row, :, :n] = pattern[row, :, :, start : start + n]
    return TextAttention(weights, tokens, tuple(blocks), tuple(chosen), listed, lens.config.frame_rate)


def plain_token(token: str) -> str:
    """Return a token without its word-start marker."""
    return token.lstrip("▁Ġ")
