"""Record attention weights, one batch at a time, after checking the arguments.

The weights show where a head attends. They do not show what the head copies from these positions, or whether the output
depends on it; see Jain and Wallace (2019), "Attention is not explanation".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from analysis.likelihood import checked_rows
from audiolens.errors import ActivationOverflow
from audiolens.lens import AudioLens
from audiolens.model.sites import checked_heads, checked_layers
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit


def checked(
    lens: AudioLens, prompts: Any, codes: Any, layers: Any, heads: Any
) -> tuple[Tensor, tuple[str | None, ...], list[int], list[int]]:
    """Check and return the codes, prompts, layers and heads to record, before the model runs."""
    listed, codes = checked_rows(lens, prompts, codes)
    chosen = range(lens.config.n_heads) if heads is None else checked_heads(heads, lens.config.n_heads)
    return codes, listed, checked_layers(layers, lens.config.n_layers), list(chosen)


def caches(
    lens: AudioLens,
    prompts: Sequence[Any],
    codes: Tensor,
    site: str,
    layers: list[int],
    heads: list[int],
    batch_size: int,
) -> Iterator[tuple[int, Any]]:
    """Yield the index of each batch's first row, with the recordings of the batch.

    Earlier batches are not kept, because the size of an attention pattern grows with the square of the clip length.
    """

    def read(rows: slice) -> Any:
        _, cache = lens.run_with_cache(list(prompts[rows]), codes[rows], sites=site, layers=layers, heads=heads)
        for layer in layers:
            lost = cache[site, layer].isnan().flatten(1).any(1)
            if bool(lost.any()):
                row = rows.start + int(lost.nonzero()[0])
                raise ActivationOverflow(
                    f"{site} contains NaN in block {layer}, row {row}: either the model's weights are invalid, or its "
                    "dtype is too narrow. Load it in a wider dtype."
                )
        return cache

    fit = reading_fit(lens.traced_model, prompts, codes.shape[-1], whole_batch_size(batch_size),
                      rows="rows whose attention is read", kept_blocks=len(layers))  # fmt: skip
    yield from ((rows.start, cache) for rows, cache in fit.run(len(prompts), read))
