"""Drift: how far steered codes are from what the unsteered model would generate, in nats per code.

Drift is two-sided, because silence and loops are more likely than music without being better. The reference level is
the negative log-likelihood of the model's own samples for the same prompts and seeds, scored in the same way. This
module needs torch, so `audiolens.measure` imports it only on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.measure.pairing import SAMPLING, refuse_unpaired
from audiolens.model import text
from audiolens.model.timeline import Real
from audiolens.model.tokens import named_once
from audiolens.sound.codec import checked_codes
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.overflow import checked_logits
from audiolens.tracing.sampling import checked_settings

if TYPE_CHECKING:
    import pandas as pd

    from audiolens.lens import AudioLens
    from audiolens.model.text import Prompt
    from audiolens.tracing.generation import Generation


@guarded
@dataclass(frozen=True, eq=False)
class Drift:
    """How far clips drifted from the unsteered model, as returned by `drift`.

    Attributes:
        nats: the mean negative log-likelihood per code of each clip under the unsteered model, by codebook.
        level: the same quantity for the model's own sample with the prompt (and seed) of the same row.
        outside: the fraction of each clip's codes that the unsteered model could not have sampled because they are
            outside its top-k; it is 0 without top-k.
        spread: the mean absolute difference in level between two of the model's own samples. It uses pairs with the
            same prompt if some prompt has several seeds, and otherwise all pairs of rows. It is NaN for a single row. A
            drift below this value is within seed-to-seed variation.
        prompts, seeds: the prompts and seeds of the rows.
        guidance_scale, temperature, top_k: the sampling settings. Scores use the guided logits at that temperature over
            all codes, because a steered code outside the top-k would otherwise cost infinitely many nats.

    Drift does not measure quality: a clip can be as likely as the model's own samples and sound worse, or it can sound
    good in a style that the model rarely plays.
    """

    nats: Float[np.ndarray, "row codebook"]
    level: Float[np.ndarray, "row codebook"]
    outside: Float[np.ndarray, " row"]
    spread: float
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...] | None
    guidance_scale: float
    temperature: float
    top_k: int | None

    @property
    def difference(self) -> Float[np.ndarray, " row"]:
        """Nats per code minus the level; if negative, the clip is more likely than the model's own sample."""
        return self.nats.mean(axis=1) - self.level.mean(axis=1)

    @property
    def rows(self) -> Float[np.ndarray, " row"]:
        """The drift of each row: |difference|."""
        return np.abs(self.difference)

    @property
    def value(self) -> float:
        """The mean drift of the rows, in nats per code."""
        return float(self.rows.mean())

    def to_frame(self) -> pd.DataFrame:
        """Return one row per clip: `prompt`, `seed`, `nats`, `level`, `difference`, `drift`, `outside`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "prompt": list(self.prompts),
                "seed": list(self.seeds) if self.seeds is not None else [None] * len(self.prompts),
                "nats": self.nats.mean(axis=1),
                "level": self.level.mean(axis=1),
                "difference": self.difference,
                "drift": self.rows,
                "outside": self.outside,
            }
        )

    def __repr__(self) -> str:
        mean = self.difference.mean()
        side = "likelier" if mean < 0 else "less likely" if mean > 0 else "no more or less likely"
        return (
            f"Drift({self.value:.3f} nats per code over {len(self.prompts)} clips, {side} than the model's own at "
            f"{self.level.mean():.3f}, which differ by {self.spread:.3f}; guidance {self.guidance_scale:g}, "
            f"temperature {self.temperature:g}, top-k {self.top_k or 'all'})"
        )


@guarded
@named_once
def drift(
    lens: AudioLens,
    out: Generation,
    baseline: Generation | None = None,
    *,
    guidance_scale: Real | None = None,
    temperature: Real | None = None,
    batch_size: int = 16,
) -> Drift:
    """Return how far the clips of `out` drift from what `lens` generates without steering: |nats per code - level|.

    Args:
        out: what `lens.generate(..., interventions=...)` returned. Its codes are scored without the interventions, each
            row under its own prompt. The codes of an audio prompt are context and are not scored.
        baseline: the model's unsteered clips for the same prompts, seeds and settings; by default this function
            generates them (with seeds 0, 1, ... if `out` has none). If `out` is also unsteered, the drift is exactly 0,
            provided that `out` and the baseline were generated in batches of the same size. With other batch sizes, the
            drift is 0 up to rounding, which changes about one code in several thousand.
        guidance_scale, temperature: the settings used for scoring; by default those of `out`, and temperature 1 for
            greedy clips.
        batch_size: the number of rows generated and scored at a time.

    Raises:
        InputError: if the rows of `out` and `baseline` do not correspond, if the baseline was steered or generated with
            other settings, or if settings are out of range.
    """
    for name, clips in (("out", out), ("baseline", baseline)):
        if clips is not None and not all(hasattr(clips, field) for field in ("codes", "prompts", "seeds", "settings")):
            raise InputTypeError(f"{name}={type(clips).__name__}: expected what lens.generate returned.")
    sampling = {name: out.settings.get(name) for name in SAMPLING}
    guidance_scale = _stated("guidance_scale", guidance_scale, sampling)
    if temperature is None:
        # At temperature 0, every code of a greedy clip would cost either 0 or infinitely many nats.
        temperature = _stated("temperature", None, sampling) or 1.0
    given = round(out.settings.get("audio_prompt_seconds", 0.0) * out.frame_rate)
    if baseline is None:
        baseline = _own(lens, out, given, batch_size)
    refuse_unpaired(out, baseline, "out", by_order=True)
    text.checked(out.prompts, lens.model, lens.tokenizer)
    top_k = sampling["top_k"]
    scored = [
        _score(lens, clips.prompts, clips.codes, guidance_scale, temperature, batch_size) for clips in (out, baseline)
    ]
    (nats, rank), (level, _) = scored
    n_out = rank[..., given:] >= top_k if top_k else torch.zeros_like(rank[..., given:], dtype=torch.bool)
    level_of = level[..., given:].mean(-1).numpy()
    return Drift(
        nats=nats[..., given:].mean(-1).numpy(),
        level=level_of,
        outside=n_out.float().mean((1, 2)).numpy(),
        spread=_spread(level_of.mean(axis=1), out.prompts),
        prompts=tuple(out.prompts),
        seeds=out.seeds,
        guidance_scale=float(guidance_scale),
        temperature=float(temperature),
        top_k=top_k,
    )


@guarded
@named_once
def code_nats(
    lens: AudioLens,
    prompts: Prompt | Sequence[Prompt],
    codes: Int[Tensor, "row codebook frame"],
    *,
    guidance_scale: Real = 3.0,
    temperature: Real = 1.0,
    batch_size: int = 16,
) -> Float[Tensor, "row codebook frame"]:
    """Return the negative log-likelihood of each code under the unsteered `lens`, given the previous codes, in nats.

    Probabilities are the softmax over all codes of the guided logits, null + guidance_scale x (cond - null), divided by
    the temperature. Frame f of codebook k is predicted at step f + the delay of k. The result is a float32 tensor on
    the CPU.

    Raises:
        InputError: if the codes are not those of this model, or settings are out of range.
        ActivationOverflow: if a logit is NaN or +inf.
    """
    listed, _ = text.checked(prompts, lens.model, lens.tokenizer)
    codes = checked_codes(codes, lens.config)
    listed = listed * len(codes) if len(listed) == 1 else listed
    return _score(lens, listed, codes, guidance_scale, temperature, batch_size)[0]


def _score(
    lens: AudioLens,
    prompts: Sequence[Prompt],
    codes: Tensor,
    guidance_scale: Real,
    temperature: Real,
    batch_size: int,
) -> tuple[Float[Tensor, "row codebook frame"], Int[Tensor, "row codebook frame"]]:
    """Return the nats of each code, and how many other codes were more likely."""
    checked_settings(guidance_scale, temperature, None)
    guidance_scale, temperature = float(guidance_scale), float(temperature)
    if temperature == 0:
        raise InputError("temperature=0: under greedy sampling every other code has probability 0; score at 1.")
    codes = checked_codes(codes, lens.config, len(prompts))
    frames, guided = codes.shape[-1], guidance_scale > 1

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        mine = codes[rows]
        logits, _ = lens.run_with_cache(
            prompts[rows], mine, sites=(), branch="both" if guided else "cond", guidance_scale=guidance_scale
        )
        for branch in logits if guided else (logits,):
            checked_logits(branch, lens.config.frame_rate, range(rows.start, rows.stop))
        if guided:
            cond, null = logits.float()
            logits = null + (cond - null) * guidance_scale
        books = [logits[:, book, delay : delay + frames] for book, delay in enumerate(lens.config.delays)]
        scores = torch.stack(books, dim=1).float() / temperature
        own = scores.gather(-1, mine.to(scores.device)[..., None])
        nats = scores.logsumexp(-1) - own[..., 0]
        return nats.cpu(), (scores > own).sum(-1).cpu()

    # The logits over all codes take the most memory, and there are several copies of them.
    fit = reading_fit(
        lens.traced_model, prompts, frames, whole_batch_size(batch_size), rows="clips being scored",
        branches=2 if guided else 1,
    )  # fmt: skip
    nats, rank = (torch.cat(side) for side in zip(*(found for _, found in fit.run(len(codes), part)), strict=True))
    return nats, rank


def _own(lens: AudioLens, out: Generation, given: int, batch_size: int) -> Generation:
    settings = {name: out.settings[name] for name in SAMPLING if name in out.settings}
    missing = [name for name in SAMPLING if name not in settings]
    if missing:
        raise InputError(f"out does not state its {', '.join(missing)}: give the model's own clips as baseline=.")
    return lens.generate(
        out.prompts,
        out.seconds,
        seeds=list(out.seeds) if out.seeds is not None else range(len(out.prompts)),
        exact=bool(out.settings.get("exact", False)) and out.seeds is not None,
        audio_prompt=out.codes[..., :given] if given else None,
        batch_size=batch_size,
        decode=False,
        window=out.settings.get("window"),
        overlap=out.settings.get("overlap"),
        **settings,
    )


def _stated(name: str, given: Real | None, sampling: dict[str, Any]) -> Real:
    value = sampling[name] if given is None else given
    if value is None:
        raise InputError(f"out does not state its {name}: give {name}=.")
    return value


def _spread(level: Float[np.ndarray, " row"], prompts: Sequence[str | None]) -> float:
    pairs = list(combinations(range(len(level)), 2))
    alike = [pair for pair in pairs if prompts[pair[0]] == prompts[pair[1]]]
    chosen = alike or pairs
    return float(np.mean([abs(level[a] - level[b]) for a, b in chosen])) if chosen else float("nan")
