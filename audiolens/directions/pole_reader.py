"""Read one vector per prompt and layer for two poles, batch by batch, while the model generates or runs on given codes.

Only one batch is in memory at a time, and the lens averages over time while the model runs. Positive prompt i and
negative prompt i share a seed. If the model generates music for each prompt, however, the readings of the two prompts
differ in the music as well as in the text. If the model instead runs on the same codes for both prompts, only the text
differs. The caller gives these codes, or they are generated from neutral prompts (`audiolens.directions.shared_codes`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import checked_flags, checked_seed, in_order, one_or_listed, shown
from audiolens.directions.samples import halves
from audiolens.directions.shared_codes import SharedClips, checked_neutral
from audiolens.errors import InputError, InputTypeError, PromptError
from audiolens.interventions import Branch, checked_branch
from audiolens.lens import AudioLens
from audiolens.model import text, tokens
from audiolens.model.timeline import Span, checked_span, clip_timeline
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import Fitting, reading_fit
from audiolens.tracing.given_sound import codes_of
from audiolens.tracing.recording import refuse_prefix
from audiolens.tracing.sampling import checked_settings

_HEADS = ("row", "step", "head", "d_head")
Position = Literal["mean", "first", "last", "eos"] | Span
Codes = Int[Tensor, "row codebook frame"]
CodesSource = Literal["own", "shared"]
"""The generated clips on which the model runs: each prompt's own clip, or clips of neutral prompts, which both poles
share.
"""


@dataclass(frozen=True)
class ReadBatch:
    """The vectors read for one batch of rows; `index` gives the index of each row in `Samples`."""

    values: Float[Tensor, "layer row d_model"]
    norms: Float[Tensor, "layer row"]
    positive: Bool[Tensor, " row"]
    index: Int[Tensor, " row"]


class PoleReader:
    """Reads the activations of two poles. The arguments are checked before the model runs, and iteration yields
    batches.
    """

    def __init__(
        self,
        lens: AudioLens,
        positive: Sequence[str | None],
        negative: Sequence[str | None],
        *,
        site: str,
        layers: int | Sequence[int] | None,
        position: Position,
        branch: Branch,
        guidance_scale: float,
        codes: CodesSource | Codes | tuple[Codes, Codes] | None,
        audio: Any,
        seeds: int | Sequence[int] | None,
        seconds: float,
        batch_size: int,
        progress: bool,
        prefix: bool = False,
        neutral: Sequence[str | None] | None = None,
    ) -> None:
        checked_flags(progress=progress, prefix=prefix)
        self.lens = lens
        self.positive, self.negative = _checked_poles(positive, negative)
        self.site, self.layers, self.n_heads = checked_site(lens, site, layers)
        self.position = checked_position(position, lens)
        if self.position == "eos" and None in self.prompts:
            raise PromptError("position='eos' is the end of the text, and a prompt of None has no text: give texts.")
        if prefix:
            refuse_prefix(lens.config, "prefix=True")
            if self.position != "mean":
                raise InputError(
                    f"prefix=True includes the prefix in a mean, so it needs position='mean', not {shown(position)}."
                )
        self.prefix = prefix
        checked_branch(branch)
        self.branch: Branch = branch
        if audio is not None and codes is not None:
            raise InputError("codes and audio were both given: give one of them.")
        self.guidance_scale, self.seconds = guidance_scale, seconds
        self.batch_size, self.progress = whole_batch_size(batch_size), progress
        asked = _checked_source(codes, neutral)
        given = None if isinstance(codes, str) else codes
        self.codes = self._checked_codes(_encoded(lens, audio) if audio is not None else given)
        self.clips: SharedClips | None = None
        if asked == "shared" and not self.starts:
            if branch == "null":
                raise InputError(
                    "branch='null' does not see the text, so with shared codes both poles would give the same "
                    "activations: read the branch 'cond' or 'both', or give codes='own'."
                )
            self.clips = SharedClips.of(checked_neutral(neutral), (len(self.positive), len(self.negative)))
        if self.plays:
            # The duration is checked before the progress bar is shown.
            clip_timeline(seconds, lens.config)
        checked_settings(guidance_scale, 1.0, None)
        self.seeds = _checked_seeds(seeds, max(len(self.positive), len(self.negative)))
        if self.plays and isinstance(self.position, tuple) and self.position[1] > seconds:
            raise InputError(
                f"position={self.position} ends after the clips, which last {seconds:g} s: raise seconds=."
            )

    def check_text(self) -> None:
        """Check the tokenised prompts before the model runs.

        Raises:
            PromptError: if a prompt is too long, or if both poles have the same tokens, because the poles would then
                differ only in their seeds or not at all.
        """
        model, tokenizer = self.lens.model, self.lens.tokenizer
        apart = self.codes is not None and not torch.equal(*self.codes)
        if not apart and text.read_alike(self.positive, self.negative, tokenizer):
            words = ", ".join(map(repr, tokens.unread(self.prompts, tokenizer)))
            reason = f": it does not know {words}" if words else ""
            raise PromptError(f"the model reads both poles alike{reason}. Give prompts that differ in words it knows.")
        text.checked(self.prompts, model, tokenizer)
        if self.neutral:
            try:
                text.checked(self.neutral, model, tokenizer)
            except PromptError as error:
                raise PromptError(f"neutral: {error}") from None

    @property
    def plays(self) -> bool:
        """Whether clips have to be generated, from the poles' prompts or from neutral ones."""
        return self.source in ("generation", "shared codes")

    @property
    def neutral(self) -> tuple[str | None, ...]:
        """The neutral prompts of the clips that both poles share; empty unless the codes are shared."""
        return () if self.clips is None else self.clips.neutral

    @property
    def played_seeds(self) -> tuple[int, ...]:
        """The seeds of the clips that are generated, one per pair of prompts or one per shared clip."""
        if not self.plays:
            return ()
        return tuple(self.seeds if self.clips is None else self.seeds[: self.clips.count])

    @property
    def starts(self) -> bool:
        """Whether the start token is the only code needed. Step 0 and the end of the text attend to no other code."""
        return self.position in ("first", "eos")

    @property
    def source(self) -> str:
        if self.starts:
            return "start"
        if self.clips is not None:
            return "shared codes"
        return "generation" if self.codes is None else "codes"

    @property
    def prompts(self) -> tuple[str | None, ...]:
        return (*self.positive, *self.negative)

    def __iter__(self) -> Iterator[ReadBatch]:
        order = [row for half in halves(len(self.positive), len(self.negative)) for row in half]
        size = self.batch_size if self.clips is None else max(1, self.batch_size // max(self.clips.each))
        if self.clips is not None:
            # The shared clips are generated first, so that their progress bar does not interrupt the one below.
            _ = self._shared
        fit = self._fitting(size)
        with tqdm(total=len(order), desc="reading", unit="row", disable=not self.progress) as bar:
            for part, (values, norms) in fit.run(len(order), lambda part: self._read(order[part])):
                index = torch.tensor(order[part], device="cpu")
                yield ReadBatch(values, norms, index < len(self.positive), index)
                bar.update(len(index))

    def _fitting(self, size: int) -> Fitting:
        """Return what divides the batches, so that later ones begin with what fitted in earlier ones."""
        frames = 1 if self.starts else round(self.seconds * self.lens.config.frame_rate)
        if self.codes is not None:
            frames = self.codes[0].shape[-1]
        both = self.branch != "cond" or self.source == "generation"
        return reading_fit(
            self.lens.traced_model, self.prompts, frames, size, rows="rows of the poles", branches=2 if both else 1
        )

    def _read(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Return the vectors ("layer row d_model") and mean norms ("layer row") of the given rows."""
        if self.clips is None:
            return self._read_over(rows, None if self.codes is None else self._rows_of(self.codes, rows))
        # If the poles differ in size, a row's vector is the mean of its readings over several clips.
        over = [self.clips.read_by(int(row >= len(self.positive)), self._index_in_pole(row)) for row in rows]
        readings = [(row, clip) for row, clips in zip(rows, over, strict=True) for clip in clips]
        read: tuple[list[Tensor], list[Tensor]] = ([], [])
        for start in range(0, len(readings), self.batch_size):
            some, clips = zip(*readings[start : start + self.batch_size], strict=True)
            for parts, part in zip(read, self._read_over(list(some), self._shared[list(clips)]), strict=True):
                parts.append(part)
        each = [torch.cat(parts, dim=1).split([len(clips) for clips in over], dim=1) for parts in read]
        values, norms = (torch.stack([one.mean(1) for one in rows_of], dim=1) for rows_of in each)
        return values, norms

    @cached_property
    def _shared(self) -> Codes:
        """The codes of the neutral clips, which are generated only once."""
        assert self.clips is not None
        return self.lens.generate(
            self.clips.prompts, self.seconds, seeds=list(self.played_seeds), guidance_scale=self.guidance_scale,
            batch_size=self.batch_size, decode=False, progress=self.progress,
        ).codes.cpu()  # fmt: skip

    def _read_over(self, rows: list[int], codes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read activations on the given codes (one clip per prompt), or on the start token or generated clips."""
        span = self.position if isinstance(self.position, tuple) else None
        reduce = self.position if self.position in ("last", "eos") else "mean"
        what: dict[str, Any] = {
            "sites": self.site,
            "layers": self.layers,
            "branch": self.branch,
            "reduce": reduce,
            "prefix": self.prefix,
        }
        prompts = [self.prompts[row] for row in rows]
        if self.source == "generation":
            seeds = [self.seeds[self._index_in_pole(row)] for row in rows]
            cache: Any = self.lens.generate(
                prompts, self.seconds, seeds=seeds, guidance_scale=self.guidance_scale, span=span, decode=False,
                cache_device="cpu", **what,
            ).cache  # fmt: skip
        else:
            # With given codes, the conditional branch does not depend on the null branch, so skipping the null branch
            # halves the cost.
            scale = 1.0 if self.branch == "cond" else self.guidance_scale
            _, cache = self.lens.run_with_cache(
                prompts,
                None if self.starts else codes,
                guidance_scale=scale,
                seconds=span,
                device="cpu",
                stop_at_layer=self.layers[-1] + 1,
                **what,
            )
        return vectors_of(cache, self.site, self.branch, reduced=reduce == "mean", heads=self.n_heads > 0)

    def _index_in_pole(self, row: int) -> int:
        return row if row < len(self.positive) else row - len(self.positive)

    def _rows_of(self, codes: tuple[Codes, Codes], rows: list[int]) -> Tensor:
        return torch.stack([codes[int(row >= len(self.positive))][self._index_in_pole(row)] for row in rows])

    def _checked_codes(self, codes: Codes | tuple[Codes, Codes] | None) -> tuple[Codes, Codes] | None:
        if codes is None:
            return None
        sides = (codes, codes) if isinstance(codes, Tensor) else tuple(codes)
        if len(sides) != 2 or not all(isinstance(side, Tensor) and side.ndim == 3 for side in sides):
            raise InputTypeError(
                "codes: expected a tensor 'row codebook frame', or a pair of tensors (positive pole, negative pole)."
            )
        for pole, side, prompts in zip(("positive", "negative"), sides, (self.positive, self.negative), strict=True):
            if len(side) != len(prompts):
                raise InputError(
                    f"codes of {len(side)} rows for {len(prompts)} {pole} prompts: give one row per prompt."
                )
        if sides[0].shape[1:] != sides[1].shape[1:]:
            raise InputError(
                f"codes of shapes {tuple(sides[0].shape)} and {tuple(sides[1].shape)}: expected the same number of "
                "codebooks and frames for both poles."
            )
        return sides[0], sides[1]


def vectors_of(
    cache: ActivationCache, site: str, branch: Branch, *, reduced: bool, heads: bool
) -> tuple[Float[Tensor, "layer row d_model"], Float[Tensor, "layer row"]]:
    """Return the vectors in a cache of one vector per row, and the norms of the activations. `reduced` caches contain
    means over steps, with the mean norm of these steps. The two branches are averaged, if both were read.

    The vectors of the `heads` of a site are put one after the other. The norm is then the root of the summed squares of
    the heads' mean norms.
    """
    values = cache.stack(site).float()
    norms = cache.stack_norms(site).float() if reduced else values.norm(dim=-1)
    if heads:
        values, norms = rearrange(values, "... head d -> ... (head d)"), norms.norm(dim=-1)
    return (values.mean(1), norms.mean(1)) if branch == "both" else (values, norms)


def _checked_source(codes: Any, neutral: Any) -> CodesSource | None:
    """Return which clips to generate (by default each prompt's own), or `None` if codes were given."""
    asked = codes if isinstance(codes, str) else "own" if codes is None else None
    if asked not in ("own", "shared", None):
        raise InputError(f"codes={codes!r}: expected 'own', 'shared', or a tensor 'row codebook frame'.")
    if neutral is not None and asked != "shared":
        raise InputError("neutral= gives the prompts of the clips that both poles share: give codes='shared' as well.")
    return asked


def _checked_poles(positive: Any, negative: Any) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    sides = []
    for name, prompts in (("positive", positive), ("negative", negative)):
        listed = in_order(name, prompts, "prompts")
        if not listed:
            raise PromptError(f"no {name} prompts: a difference of means needs both poles.")
        sides.append(listed)
    shared = sorted({prompt for prompt in sides[0] if prompt is not None} & set(sides[1]))
    if shared:
        raise PromptError(
            f"{len(shared)} prompts are in both poles, such as {shown(shared[0])}, and would cancel: keep each in one "
            "pole."
        )
    return sides[0], sides[1]


def checked_position(position: Any, lens: AudioLens) -> Position:
    if position == "eos":
        refuse_prefix(lens.config, "position='eos'", "Use 'first' or 'last'.")
    if isinstance(position, tuple | list):
        start, stop = checked_span(position)
        return start, stop
    if position not in ("mean", "first", "last", "eos"):
        raise InputError(
            f"position={shown(position)}: expected 'mean', 'first', 'last', 'eos', or (from, to) in seconds."
        )
    return position


def checked_site(lens: AudioLens, site: Any, layers: Any) -> tuple[str, tuple[int, ...], int]:
    """Return the short name, the layers and the number of heads of a site with one vector per step and, if it has
    heads, per head. Without heads, the number is 0. A full name includes the layer."""
    found = lens.find_sites(site, layers)
    if any(one.layer is None for one in found):
        raise InputError(
            f"site={shown(site)} is not in a block, but a direction needs one vector per layer: use 'resid_post'."
        )
    if any("head" in one.axes and one.axes != _HEADS for one in found):
        raise InputError(
            f"site={shown(site)} has the axes {', '.join(found[0].axes)}: read a site with one vector per step and "
            "head, such as 'attn.z', or with one per step, such as 'attn_out'."
        )
    if len({one.hook for one in found}) != 1:
        raise InputError(f"site={shown(site)}: expected one site; read the directions of several sites one at a time.")
    heads = lens.config.n_heads if found[0].axes == _HEADS else 0
    return found[0].short, tuple(one.layer for one in found if one.layer is not None), heads


def _checked_seeds(seeds: Any, count: int) -> list[int]:
    if seeds is None:
        return list(range(count))
    given = one_or_listed("seeds", seeds)
    listed = [checked_seed(seed) for seed in (given if isinstance(given, list) else [given] * count)]
    if len(listed) != count:
        raise InputError(
            f"{len(listed)} seeds for {count} prompts per pole: give one per pair, because prompt i of each pole uses "
            "seed i."
        )
    return listed


def _encoded(lens: AudioLens, audio: Any) -> Codes | tuple[Codes, Codes]:
    """Encode (waveform, sample_rate), or a pair of such tuples (positive pole, negative pole), as codes."""
    if isinstance(audio, tuple | list) and len(audio) == 2 and isinstance(audio[0], tuple | list):
        return codes_of(audio[0], lens.traced_model), codes_of(audio[1], lens.traced_model)
    return codes_of(audio, lens.traced_model)
