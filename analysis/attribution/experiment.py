"""Attribute the difference between two prompts to sites, heads and steps in a few passes (attribution patching).

Activation patching runs the model once per cell. Each run replaces one activation with the one from the other prompt's
run, and computes the metric. Attribution patching (Nanda 2023, "Attribution patching: activation patching at industrial
scale"; Syed et al. 2023) replaces all these runs with one gradient: to first order, the metric changes by gradient x
(other - own) activation. `method="integrated"` averages the gradient along the straight line between the two prompts'
text states (integrated gradients, Sundararajan et al. 2017, applied inside the model as in Hanna et al. 2024). Both
methods are approximations. Their agreement with exact patching is measured on a sample of cells and reported with every
result.

`direct` (in `logits.py`) measures what each component writes directly to the logits, bypassing later blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.attribution.gradients import Metric
from analysis.attribution.pairing import Pairing, Part, Towards
from analysis.attribution.result import AttributionResult, Method, Scores
from analysis.likelihood import Window
from analysis.site_grid import GridSite
from audiolens.checks import MOST_SEED, checked_count, checked_flags, checked_function, shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.groups import takes
from audiolens.lens import AudioLens
from audiolens.model.sites import names_once
from audiolens.model.timeline import Span
from audiolens.model.tokens import named_once
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.recording import Reading


@guarded
@named_once
@takes("reading", Reading, seconds=None)
def attribute(
    lens: AudioLens,
    clean: str | Sequence[str | None],
    corrupted: str | Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
    *,
    sites: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    seconds: Span | None = None,
    metric: Metric | None = None,
    method: Method = "gradient",
    steps: int = 8,
    towards: Towards = "denoising",
    per_codebook: bool = False,
    check: int = 16,
    check_pairs: int = 2,
    cells: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
    reading: Reading | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> AttributionResult:
    """Attribute the difference between clean and corrupted prompts to sites, layers, heads and steps (or tokens).

    Args:
        clean, corrupted: prompts, paired by row. The two prompts of a pair need the same number of tokens for sites on
            the text side, for the method "integrated", and for families whose text is a prefix.
        codes: codes for both runs, usually those generated from the clean prompts.
        sites: short or full site names. The default sites are the residual stream, the outputs of attention,
            cross-attention and MLP, and the heads.
        seconds: the window whose codes are scored; the first second by default. Later steps are not run.
        metric: a function to use instead of the log-likelihood. It takes (logits "row codebook step vocab", codes) and
            returns "row codebook" or "row".
        method: "gradient" (one pass), or "integrated" over `steps` points between the prompts' text states.
        steps: number of points on the path, for the method "integrated".
        towards: which run is patched; see `AttributionResult`.
        per_codebook: keep codebooks separate, at the cost of one backward pass per codebook.
        check: number of cells per site that are also patched exactly. The cells are sampled uniformly. They are scored
            together by the patching engine or, with a `metric`, in one run per cell. 0 disables the check.
        check_pairs: number of prompt pairs in the check. More pairs make it slower, in proportion.
        cells: number of time windows into which the steps are divided for the check.
        batch_size: number of pairs per pass.
        seed: seed for sampling the cells.
        reading: a `Reading` instead of `sites` and `layers`.

    Raises:
        SiteError: if the model family lacks one of the sites.
        InputError: if prompts and codes do not pair up, if tokens do not align, or if the metric does not differ
            between the prompts.
    """
    checked_flags(per_codebook=per_codebook, progress=progress)
    sites = None if sites is None else names_once("sites", sites)
    for name, value, known in (("method", method, get_args(Method)), ("towards", towards, get_args(Towards))):
        if value not in known:
            raise InputError(f"{name}={shown(value)}: expected {' or '.join(map(repr, known))}.")
    steps, check_pairs, cells = (
        checked_count(name, value) for name, value in (("steps", steps), ("check_pairs", check_pairs), ("cells", cells))
    )
    check = checked_count("check", check, 0)
    seed = checked_count("seed", seed, 0, MOST_SEED)
    if metric is not None:
        checked_function("metric", metric, "a function of (logits, codes), or None", None, None)
    along = method == "integrated"
    todo = Pairing.checked(
        lens,
        clean,
        corrupted,
        codes,
        sites=default_sites(lens, text=along) if sites is None else sites,
        layers=layers,
        seconds=seconds,
        metric=metric,
        towards=towards,
        along_text=along,
    )
    fit = reading_fit(
        lens.traced_model, (*todo.clean, *todo.corrupted), todo.codes.shape[-1], rows="pairs being attributed",
        kept_blocks=lens.config.n_layers, more=lambda: todo.kept_bytes(per_codebook),
    )  # fmt: skip
    batches: Any = tqdm(list(todo.batches(batch_size)), desc="attributing", unit="batch", disable=not progress)
    found_parts = fit.each(batches, lambda rows: todo.part(rows, steps if along else 0, per_codebook))
    parts = [part for _, part in found_parts]
    order = np.concatenate([part.rows for part in parts]).argsort()
    own = np.concatenate([part.own for part in parts])[order]
    other = np.concatenate([part.other for part in parts])[order]
    if np.abs(other - own).max() <= 1e-6 * max(1.0, float(np.abs(own).max())):
        raise InputError(
            "clean and corrupted prompts give the same metric, so there is no difference to attribute: give prompts "
            "that differ more, or score another window (seconds=)."
        )
    found = {short: _stacked(parts, group, order) for short, group in todo.groups.items()}
    agreement = None
    if check:
        values = {short: scores.values for short, scores in found.items()}
        agreement = todo.agreement(values, check=check, pairs=check_pairs, cells=cells, seed=seed)
    return AttributionResult(
        sites=found,
        clean_scores=other if towards == "denoising" else own,
        corrupted_scores=own if towards == "denoising" else other,
        clean=todo.clean,
        corrupted=todo.corrupted,
        tokens=tuple(tuple(words) for words in lens.text_tokens(list(todo.clean))),
        window=todo.metric if isinstance(todo.metric, Window) else None,
        frame_rate=lens.config.frame_rate,
        method=method,
        steps=steps if along else 1,
        towards=towards,
        agreement=agreement,
    )


def default_sites(lens: AudioLens, text: bool = False) -> list[str]:
    """Return the default sites that the model family has.

    These are the residual stream, the outputs added to it, the heads and, with `text`, the text states.
    """
    wanted = ["resid_post", "attn_out", "cross_attn_out", "mlp_out", "attn.z", "cross_attn.z"]
    if lens.config.has_prefix:
        return [site for site in wanted if "cross" not in site]
    return [*wanted, "text_states"] if text else wanted


def _stacked(parts: Sequence[Part], group: Sequence[GridSite], order: np.ndarray) -> Scores:
    """Return one site's attributions for all layers and batches, with shorter texts zero-padded."""
    stacked = [np.stack([part.cells[site.name] for site in group]) for part in parts]
    longest = max(grid.shape[3] for grid in stacked)
    padded = [np.pad(grid, [(0, 0)] * 3 + [(0, longest - grid.shape[3]), (0, 0)]) for grid in stacked]
    values = np.moveaxis(np.concatenate(padded, axis=2)[:, :, order], 1, 2)
    layers = tuple(-1 if site.layer is None else site.layer for site in group)
    return Scores(values, layers, group[0].cell_unit, group[0].heads)
