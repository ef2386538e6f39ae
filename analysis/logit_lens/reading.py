"""The logit lens, which decodes the residual stream after each block with the model's own final norm and LM heads.

`read` compares these predictions with the given codes and with the output of the whole model (nostalgebraist 2020,
"interpreting GPT: the logit lens"). The codes are given, so every block predicts the next code from the same history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.likelihood import by_frame, checked_rows
from analysis.statistics import means
from audiolens.cache.activation_cache import ActivationCache
from audiolens.door import guarded
from audiolens.lens import AudioLens
from audiolens.model.sites import checked_layers
from audiolens.model.tokens import named_once
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.overflow import checked_logits

T = TypeVar("T")


@guarded
@dataclass(frozen=True, eq=False)
class LogitLensResult:
    """What each block predicts for every code, compared with the given code and with the last block's prediction.

    Attributes:
        ranks: rank of the given code; 1 is the likeliest code.
        probabilities: probability of the given code.
        divergences: KL(last block || this block), in nats; 0 where the prediction no longer changes.
        agrees: whether the likeliest code is the same as at the last block.
        control_ranks: rank of the next row's code at the same position, as a baseline from code frequency alone. These
            ranks are NaN if there is only one row.
        layers: layers of the first axis; the last is the model's last block, whose prediction is the model's output.
        prompts: prompts of the rows, which the intervals resample.
        frame_rate: frames per second.
        vocab_size: codes per codebook; a uniform guess has mean rank (vocab_size + 1) / 2.

    The result does not show what a block *knows*. The heads were trained on the last block alone, so information that
    an earlier block encodes in another basis looks like noise. Conversely, the model need not use a code that ranks
    high at a block.
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
        """Return one row per layer and codebook, with means over frames and rows.

        The columns are `rank` (geometric mean), `probability`, `kl` [nats], `agreement` and `control_rank`. Columns
        that end in `_low` and `_high` are the ends of intervals over prompts.
        """
        layer, codebook = np.indices((len(self.layers), self.ranks.shape[2]))
        table = {"layer": np.asarray(self.layers)[layer.ravel()], "codebook": codebook.ravel()}
        for name, values in self._summaries().items():
            found = means(np.moveaxis(values.mean(-1), 1, 0), self.prompts)
            undo = np.exp if "rank" in name else np.asarray
            for suffix, part in (("", found.value), ("_low", found.low), ("_high", found.high)):
                table[name + suffix] = undo(part.ravel())
        return pd.DataFrame(table)

    def over_time(self) -> pd.DataFrame:
        """Return one row per layer, codebook and frame.

        The columns are `seconds`, `rank` (geometric mean over rows), `probability` and `kl`.
        """
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
        """Draw the rank, probability and divergence over blocks, with one line per codebook (matplotlib figure)."""
        from analysis.logit_lens import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.logit_lens import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        table = self.to_frame()
        kl = table.groupby("layer")["kl"].mean()
        half = next((layer for layer in self.layers if kl[layer] <= 0.5 * kl.iloc[0]), self.layers[-1])
        first, last = (table[table["layer"] == layer] for layer in (self.layers[0], self.layers[-1]))
        other = np.exp(np.log(last["control_rank"]).mean())
        chance = "" if np.isnan(other) else f" (another row's code: {other:.1f})"
        return (
            f"LogitLensResult(rank of the next code: {np.exp(np.log(first['rank']).mean()):.1f} after block "
            f"{self.layers[0]}, {np.exp(np.log(last['rank']).mean()):.1f} after the last{chance}; the divergence has "
            f"halved by block {half})"
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
    """Return, after every block, the rank and probability of the given codes, and the divergence from the last block.

    Args:
        layers: blocks to read; the last block is always included.
        batch_size: number of rows in one forward pass.

    Raises:
        PromptError, InputError: if prompts or codes do not fit the model or each other.
        SiteError: if the model lacks one of the layers.
    """
    codes, listed, chosen = checked(lens, prompts, codes, layers)
    last = lens.config.n_layers - 1
    others = codes.roll(-1, 0)

    def part(rows: slice, cache: ActivationCache) -> dict[str, np.ndarray]:
        final = log_probabilities(lens, cache, last, codes, rows)
        names = ("ranks", "probabilities", "divergences", "agrees", "others")
        each: dict[str, list[Tensor]] = {name: [] for name in names}
        for layer in chosen:
            read_out = final if layer == last else log_probabilities(lens, cache, layer, codes, rows)
            mine, theirs = (read_out.gather(-1, given[rows, ..., None]) for given in (codes, others))
            each["ranks"].append((read_out > mine).sum(-1) + 1)
            each["others"].append((read_out > theirs).sum(-1) + 1)
            each["probabilities"].append(mine[..., 0].exp())
            each["divergences"].append((final.exp() * (final - read_out)).sum(-1))
            each["agrees"].append(read_out.argmax(-1) == final.argmax(-1))
        return {name: torch.stack(parts).cpu().numpy() for name, parts in each.items()}

    found = read_parts(lens, listed, codes, chosen, batch_size, part)
    whole = {name: np.concatenate([one[name] for one in found], axis=1) for name in found[0]}
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


def read_parts(
    lens: AudioLens,
    prompts: Sequence[str | None],
    codes: Tensor,
    layers: Sequence[int],
    batch_size: int,
    part: Callable[[slice, ActivationCache], T],
) -> list[T]:
    """Return the result of a function for the recordings of every batch, whose logits may not fit in memory at once."""

    def read(rows: slice) -> T:
        (cache,) = lens.iter_cache(
            list(prompts[rows]), codes[rows], layers=layers, batch_size=len(codes[rows]), progress=False
        )
        return part(rows, cache)

    config = lens.config
    logits = 4 * config.n_codebooks * codes.shape[-1] * config.vocab_size
    fit = reading_fit(
        lens.traced_model, prompts, codes.shape[-1], whole_batch_size(batch_size),
        rows="rows decoded after every block", kept_blocks=len(layers), more=lambda: 4 * logits,
    )  # fmt: skip
    return [found for _, found in fit.run(len(codes), read)]


def log_probabilities(
    lens: AudioLens, cache: Any, layer: int, codes: Tensor, rows: slice
) -> Float[Tensor, "row codebook frame vocab"]:
    """Return the log-probabilities of all codes at every frame, decoded after one block, for the `rows` in the cache.

    Raises:
        ActivationOverflow: if a logit is NaN or infinite.
    """
    named = range(rows.start, rows.stop)
    logits = checked_logits(cache.logit_lens(layers=layer)[0], lens.config.frame_rate, named)
    return by_frame(logits, lens.config.delays, codes.shape[-1]).float().log_softmax(-1)


def checked(
    lens: AudioLens, prompts: Any, codes: Any, layers: Any, last: bool = True
) -> tuple[Tensor, tuple[str | None, ...], list[int]]:
    """Check and return codes, prompts and layers (including the last block if `last`) before the model runs."""
    listed, codes = checked_rows(lens, prompts, codes)
    chosen = checked_layers(layers, lens.config.n_layers)
    top = [lens.config.n_layers - 1] if last else []
    return codes.to(lens.device), listed, sorted({*chosen, *top})
