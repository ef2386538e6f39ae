"""The logit lens: what the stream says after each block, read through the model's own final norm and heads.

`read` compares it with what was played and with what the whole model says (nostalgebraist 2020, "interpreting GPT: the
logit lens"). Codes are given, so every block says what comes next after the same history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.figures.canvas import drawable
from analysis.likelihood import by_frame, checked_rows
from analysis.statistics import means
from audiolens.door import guarded
from audiolens.lens import AudioLens
from audiolens.model.sites import checked_layers
from audiolens.model.tokens import named_once
from audiolens.tracing.overflow import checked_logits


@guarded
@dataclass(frozen=True, eq=False)
class LogitLensResult:
    """What each block says of every code, beside the code that was given and what the last block says.

    Attributes:
        ranks: of the given code, 1 the likeliest.
        probabilities: of the given code.
        divergences: KL(last block || this block), in nats: 0 where the model has made up its mind.
        agrees: whether the likeliest code is the last block's.
        control_ranks: of the code that the next row has at this place: how far a code's mere frequency goes. NaN with
            one row.
        layers: of the first axis; the last is the model's last block, whose reading is the model's own.
        prompts: of the rows; intervals are over them.
        frame_rate: frames a second.
        vocab_size: codes a codebook; a uniform guess has mean rank (vocab_size + 1) / 2.

    It does not show what a block *knows*: the heads were trained to read the last block alone, and what an earlier one
    holds in another basis reads as noise. A code of low rank at a block need not be used there.
    """

    ranks: Float[np.ndarray, "layer row codebook frame"]
    probabilities: Float[np.ndarray, "layer row codebook frame"]
    divergences: Float[np.ndarray, "layer row codebook frame"]
    agrees: Bool[np.ndarray, "layer row codebook frame"]
    control_ranks: Float[np.ndarray, "layer row codebook frame"]
    layers: tuple[int, ...]
    prompts: tuple[str | None, ...]
    frame_rate: float
    vocab_size: int

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and codebook, means over frames and rows with `_low` and `_high` ends over prompts:
        `rank` (geometric mean), `probability`, `kl` [nats], `agreement`, `control_rank`."""
        layer, codebook = np.indices((len(self.layers), self.ranks.shape[2]))
        table = {"layer": np.asarray(self.layers)[layer.ravel()], "codebook": codebook.ravel()}
        for name, values in self._summaries().items():
            found = means(np.moveaxis(values.mean(-1), 1, 0), self.prompts)
            undo = np.exp if "rank" in name else np.asarray
            for suffix, part in (("", found.value), ("_low", found.low), ("_high", found.high)):
                table[name + suffix] = undo(part.ravel())
        return pd.DataFrame(table)

    def over_time(self) -> pd.DataFrame:
        """One row per layer, codebook and frame: `seconds`, `rank` (geometric mean over rows), `probability`, `kl`."""
        layer, codebook, frame = np.indices((len(self.layers), *self.ranks.shape[2:]))
        summaries = self._summaries()
        return pd.DataFrame(
            {
                "layer": np.asarray(self.layers)[layer.ravel()],
                "codebook": codebook.ravel(),
                "seconds": frame.ravel() / self.frame_rate,
                "rank": np.exp(summaries["rank"].mean(1).ravel()),
                "probability": summaries["probability"].mean(1).ravel(),
                "kl": summaries["kl"].mean(1).ravel(),
            }
        )

    @drawable
    def plot(self) -> Any:
        """Rank, probability and divergence over blocks, a line a codebook (matplotlib figure)."""
        from analysis.logit_lens import figures

        return figures.paper(self)

    def figure(self) -> Any:
        """The same on screen (plotly figure)."""
        from analysis.logit_lens import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        table = self.to_frame()
        kl = table.groupby("layer")["kl"].mean()
        half = next((layer for layer in self.layers if kl[layer] <= 0.5 * kl.iloc[0]), self.layers[-1])
        first, last = (table[table["layer"] == layer] for layer in (self.layers[0], self.layers[-1]))
        other = np.exp(np.log(last["control_rank"]).mean())
        chance = "" if np.isnan(other) else f" (of another row's code {other:.1f})"
        return (
            f"LogitLensResult(rank of the code that follows: {np.exp(np.log(first['rank']).mean()):.1f} after block "
            f"{self.layers[0]}, {np.exp(np.log(last['rank']).mean()):.1f} after the last{chance}; half of the "
            f"divergence is gone after block {half})"
        )

    def _summaries(self) -> dict[str, np.ndarray]:
        return {
            "rank": np.log(self.ranks),
            "probability": self.probabilities,
            "kl": self.divergences,
            "agreement": self.agrees.astype(float),
            "control_rank": np.log(self.control_ranks),
        }


@guarded
@named_once
def read(
    lens: AudioLens,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    layers: int | Sequence[int] | None = None,
    batch_size: int = 8,
) -> LogitLensResult:
    """Rank and probability of the given codes, and divergence from the last block, after every block.

    Args:
        layers: of which to keep the readings; the last block is always among them.
        batch_size: rows in one forward.

    Raises:
        PromptError, InputError: for prompts or codes that do not fit the model or each other.
        SiteError: for a layer that it lacks.
    """
    codes, listed, chosen = checked(lens, prompts, codes, layers)
    found: dict[str, list[np.ndarray]] = {}
    last = lens.config.n_layers - 1
    others = codes.roll(-1, 0)
    first = 0
    for cache in lens.iter_cache(listed, codes, layers=chosen, batch_size=batch_size, progress=False):
        rows = slice(first, first + len(cache.prompts))
        first = rows.stop
        final = log_probabilities(lens, cache, last, codes, rows)
        names = ("ranks", "probabilities", "divergences", "agrees", "others")
        each: dict[str, list[Tensor]] = {name: [] for name in names}
        for layer in chosen:
            told = final if layer == last else log_probabilities(lens, cache, layer, codes, rows)
            mine, theirs = (told.gather(-1, given[rows, ..., None]) for given in (codes, others))
            each["ranks"].append((told > mine).sum(-1) + 1)
            each["others"].append((told > theirs).sum(-1) + 1)
            each["probabilities"].append(mine[..., 0].exp())
            each["divergences"].append((final.exp() * (final - told)).sum(-1))
            each["agrees"].append(told.argmax(-1) == final.argmax(-1))
        for name, parts in each.items():
            found.setdefault(name, []).append(torch.stack(parts).cpu().numpy())
    whole = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    control = whole["others"].astype(float)
    return LogitLensResult(
        ranks=whole["ranks"].astype(float),
        probabilities=whole["probabilities"].astype(float),
        divergences=whole["divergences"].astype(float),
        agrees=whole["agrees"],
        control_ranks=control if len(codes) > 1 else np.full_like(control, np.nan),
        layers=tuple(chosen),
        prompts=listed,
        frame_rate=lens.config.frame_rate,
        vocab_size=lens.config.vocab_size,
    )


def log_probabilities(
    lens: AudioLens, cache: Any, layer: int, codes: Tensor, rows: slice
) -> Float[Tensor, "row codebook frame vocab"]:
    """Log-probabilities of every frame's codes after a block; `rows` are those that the cache holds.

    Raises:
        ActivationOverflow: if a logit is NaN or infinite.
    """
    named = range(rows.start, rows.stop)
    logits = checked_logits(cache.logit_lens(layers=layer)[0], lens.config.frame_rate, named)
    return by_frame(logits, lens.config.delays, codes.shape[-1]).float().log_softmax(-1)


def checked(
    lens: AudioLens, prompts: Any, codes: Any, layers: Any, last: bool = True
) -> tuple[Tensor, tuple[str | None, ...], list[int]]:
    """Codes, prompts and layers to read (the last block among them if `last`), or an error before the model runs."""
    listed, codes = checked_rows(lens, prompts, codes)
    chosen = checked_layers(layers, lens.config.n_layers)
    top = [lens.config.n_layers - 1] if last else []
    return codes.to(lens.device), listed, sorted({*chosen, *top})
