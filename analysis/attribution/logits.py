"""Direct logit attribution, which measures what each component writes directly to the logits, bypassing later blocks.

With the scale of the final norm held fixed, the logits are linear in the residual stream. Each component's output is
mapped through the norm and a codebook's LM head, and these contributions add up exactly to the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.likelihood import Window, by_frame, checked_rows
from analysis.statistics import N_PERMUTATIONS, Means, means
from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import checked_flags
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.model.timeline import Span
from audiolens.model.tokens import named_once
from audiolens.tensors import finite
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.overflow import checked_logits
from audiolens.vectors import unit

Along = Literal["codes", "difference", "direction"]


@guarded
@dataclass(frozen=True, eq=False)
class DirectResult:
    """What each component adds to the logits, averaged over the frames of the window.

    Attributes:
        values: the contribution of each component, in logits. The contributions add up to `totals`.
        labels: labels as in TransformerLens, such as "3_cross_attn_out" and, for heads, "3_cross_attn_h2". "norm_bias"
            is the bias of the final norm.
        totals: the value for the whole residual stream.
        along: "codes" (the logit of the given codes minus the mean over the vocabulary), "difference" (clean minus
            corrupted, projected onto the unit difference of the two runs' logits), or "direction" (projected onto the
            contribution of a direction in the stream, scaled to unit length).
        prompts: the (clean) prompts of the rows.
        window: the frames over which the values are averaged.

    The values do not include indirect effects. A component that writes nothing to these logits can still determine them
    through later blocks. The scale of the norm is that of the whole stream, so a large component can shrink the
    contributions of the others.
    """

    values: Float[np.ndarray, "component row codebook"]
    labels: tuple[str, ...]
    totals: Float[np.ndarray, "row codebook"]
    along: Along
    prompts: tuple[str | None, ...]
    window: Window

    @property
    def shares(self) -> Means:
        """Mean contribution over rows and codebooks, "component", with intervals over prompts and p-values."""
        return means(np.moveaxis(self.values.mean(2), 0, -1), self.prompts, n_permutations=N_PERMUTATIONS)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per component and codebook: `component`, `layer`, `codebook`, `logits`, `low`, `high`.

        `layer` is -1 for a component that is not in a block.
        """
        found = means(np.moveaxis(self.values, 1, 0), self.prompts)
        component, codebook = np.indices(found.value.shape)
        return pd.DataFrame(
            {
                "component": np.asarray(self.labels)[component.ravel()],
                "layer": np.asarray([layer_of(label) for label in self.labels])[component.ravel()],
                "codebook": codebook.ravel(),
                "logits": found.value.ravel(),
                "low": found.low.ravel(),
                "high": found.high.ravel(),
            }
        )

    @drawable
    def plot(self) -> Any:
        """Plot components by codebook (matplotlib figure)."""
        from analysis.attribution import figures

        return figures.direct_paper(self)

    @interactive
    def figure(self) -> Any:
        """Plot components by codebook (plotly figure)."""
        from analysis.attribution import figures

        return figures.direct_screen(self)

    def __repr__(self) -> str:
        found = self.shares
        order = np.argsort(-np.abs(found.value))[:3]
        largest = [
            f"{self.labels[i]} {found.value[i]:+.3g} [{found.low[i]:+.3g}, {found.high[i]:+.3g}], "
            f"p = {found.p_adjusted[i]:.2g}"
            for i in order
        ]
        return f"DirectResult(along the {self.along}, {self.totals.mean():+.3g} logits in all: {'; '.join(largest)})"


@guarded
@named_once
def direct(
    lens: AudioLens,
    prompts: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    corrupted: str | Sequence[str | None] | None = None,
    direction: Any = None,
    seconds: Span | None = None,
    heads: bool = False,
    batch_size: int = 16,
) -> DirectResult:
    """Return what every component writes to each codebook's logits, projected in one of three ways.

    By default, the written logits are projected onto the logit of the given codes minus the mean over the vocabulary.

    Args:
        prompts: one prompt per row of codes.
        corrupted: other prompts, paired by row. Each component's difference (clean minus corrupted) is projected onto
            the unit difference between the two runs' logits. The total is then the norm of that difference.
        direction: a vector "d_model" in the stream before the final norm (for `Directions`, that of the last layer).
            Each component's contribution to the logits is projected onto the contribution of `direction`, scaled to
            unit length.
        seconds: the window over which values are averaged; the first second by default.
        heads: whether to split attention and cross-attention by head.

    Raises:
        InputError: if both `corrupted` and `direction` are given, if the prompts do not pair up, or if `prompts` and
            `corrupted` are the same.
    """
    checked_flags(heads=heads)
    listed, codes = checked_rows(lens, prompts, codes)
    others = None if corrupted is None else checked_rows(lens, corrupted, codes)[0]
    if others is not None and direction is not None:
        raise InputError("corrupted and direction were both given: give one of them.")
    if listed == others:
        raise InputError("clean and corrupted prompts are the same: their logits do not differ.")
    window = Window.of(lens, codes, seconds)
    short, size = window.cropped(codes), whole_batch_size(batch_size)
    vector = None if direction is None else _vector(direction, lens)

    def part(rows: slice) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        runs = [
            _Run.of(lens, given[rows], short[rows], window, heads) for given in (listed, others) if given is not None
        ]
        ours = runs[0]
        if others is not None:
            along = unit(ours.logits - runs[1].logits)
        elif vector is not None:
            along = ours.written(vector)
        else:
            wanted = short[rows, :, window.first : window.end].to(ours.logits.device)
            along = (
                torch.nn.functional.one_hot(wanted, ours.logits.shape[-1]).to(ours.logits) - 1 / ours.logits.shape[-1]
            )
        read = [run.read(along) for run in runs]
        whole = [(run.logits * along).sum(-1).mean(-1) for run in runs]
        return (
            read[0] - read[1] if len(read) > 1 else read[0],
            whole[0] - whole[1] if len(whole) > 1 else whole[0],
            ours.labels,
        )

    fit = reading_fit(
        lens.traced_model, listed, short.shape[-1], size, rows="rows whose logits are attributed",
        kept_blocks=lens.config.n_layers,
    )  # fmt: skip
    parts, totals, labels = zip(*(found for _, found in fit.run(len(short), part)), strict=True)
    return DirectResult(
        values=torch.cat(parts, dim=1).double().cpu().numpy(),
        labels=labels[0],
        totals=torch.cat(totals).double().cpu().numpy(),
        along="difference" if others is not None else "codes" if vector is None else "direction",
        prompts=listed,
        window=window,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """The components of one run of some rows, its logits in the window, and the scale of the final norm."""

    lens: AudioLens
    window: Window
    labels: tuple[str, ...]
    components: Float[Tensor, "component row step d_model"]
    scale: Float[Tensor, "row step 1"]
    logits: Float[Tensor, "row codebook frame vocab"]

    @classmethod
    def of(cls, lens: AudioLens, prompts: Sequence[str | None], codes: Tensor, window: Window, heads: bool) -> _Run:
        cross = lens.traced_model.family.has("hook_cross_attn_out")
        outs = ["attn_out", *(["cross_attn_out"] if cross else []), "mlp_out"]
        results = ["attn.result", *(["cross_attn.result"] if cross else [])] if heads else []
        sites = ["blocks.0.hook_resid_pre", *outs, *results, f"blocks.{lens.config.n_layers - 1}.hook_resid_post"]
        logits, cache = lens.run_with_cache(list(prompts), codes, sites=sites)
        checked_logits(logits, lens.config.frame_rate)
        labels, values = _components(cache, heads)
        stream = cache["resid_post", lens.config.n_layers - 1].float()
        norm = lens.traced_model.final_norm
        scale = (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
        in_window = by_frame(logits, window.delays, window.end)[..., window.first :, :].float()
        return cls(lens, window, (*labels, "norm_bias"), values, scale, in_window)

    def read(self, along: Float[Tensor, "row codebook frame vocab"]) -> Float[Tensor, "component row codebook"]:
        """Return each component's logits projected onto `along`, averaged over frames, with the norm's bias last."""
        norm = self.lens.traced_model.final_norm
        weight, bias = norm.weight.detach().float(), norm.bias.detach().float()
        parts = []
        for codebook, (head, delay) in enumerate(zip(self.lens.W_U, self.window.delays, strict=True)):
            steps = slice(self.window.first + delay, self.window.end + delay)
            back = along[:, codebook] @ head.float().T
            inner = weight * back
            inner = (inner - inner.mean(-1, keepdim=True)) * self.scale[:, steps]
            each = einsum(self.components[:, :, steps], inner, "component row step d, row step d -> component row step")
            whole = torch.cat([each, (back @ bias)[None]])
            parts.append(whole.mean(-1))
        return torch.stack(parts, dim=-1)

    def written(self, vector: Float[Tensor, " d_model"]) -> Float[Tensor, "row codebook frame vocab"]:
        """Return the contribution of a vector in the stream to each codebook's logits, scaled to unit length.

        The vector contributes through the final norm and the LM heads.
        """
        weight = self.lens.traced_model.final_norm.weight.detach().float()
        through = weight * (vector - vector.mean()).to(weight)
        each = torch.stack([unit(through @ head.float()) for head in self.lens.W_U])
        return each[None, :, None].expand_as(self.logits)


def _components(cache: ActivationCache, heads: bool) -> tuple[list[str], Float[Tensor, "component row step d_model"]]:
    found = cache.decompose_resid()
    labels, values = [], []
    for label, value in zip(found.labels, found.values, strict=True):
        layer, _, part = label.partition("_")
        site = {"attn_out": "attn.result", "cross_attn_out": "cross_attn.result"}.get(part)
        if not heads or site is None:
            labels.append(label)
            values.append(value.float())
            continue
        result = cache[site, int(layer)].float()
        name = part.removesuffix("_out")
        labels += [f"{layer}_{name}_h{head}" for head in range(result.shape[2])]
        values += list(result.unbind(2))
    return labels, torch.stack(values)


def layer_of(label: str) -> int:
    """Return the block of a component, or -1 for the embeddings and the bias of the final norm."""
    layer, _, part = label.partition("_")
    return int(layer) if layer.isdigit() and part != "pre" else -1


def _vector(direction: Any, lens: AudioLens) -> Float[Tensor, " d_model"]:
    layers = getattr(direction, "layers", None)
    vector = finite("direction", direction if layers is None else direction[layers[-1]])
    if vector.shape != (lens.config.d_model,) or not bool(vector.any()):
        raise InputError(
            f"direction of shape {tuple(vector.shape)}: expected {lens.config.d_model} finite numbers, not all 0."
        )
    return vector
