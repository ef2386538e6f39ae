"""The log-likelihood of given codes within a time window, a metric shared by patching and attribution.

Step s predicts frame s of codebook 0, and frame s - k of a codebook that is delayed by k steps. This module undoes the
delays, so that a window in seconds covers the same sound in every codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.errors import InputError, PromptError
from audiolens.lens import AudioLens
from audiolens.model import text
from audiolens.model.text import Prompt
from audiolens.model.timeline import Span
from audiolens.sound.codec import checked_codes
from audiolens.tracing.overflow import checked_logits

FIRST_SECOND: Span = (0.0, 1.0)
"""The default window, in seconds. After the first second, the earlier music already reveals what the text asked for."""


@dataclass(frozen=True)
class Window:
    """Frames `first` to `end` (exclusive) of a clip, and the steps that predict them.

    Calling a window with logits and codes returns the log-likelihood of the codes in it.
    """

    first: int
    end: int
    frame_rate: float
    delays: tuple[int, ...]

    @classmethod
    def of(cls, lens: AudioLens, codes: Int[Tensor, "row codebook frame"], seconds: Span | None = None) -> Window:
        """Return the window that covers a span given in seconds.

        `None` means the first second, or the whole clip if it is shorter.

        Raises:
            InputError: if the span contains no frame or ends after the clip.
        """
        timeline = lens.timeline(codes.shape[-1])
        if seconds is None:
            seconds = (0.0, min(FIRST_SECOND[1], timeline.seconds))
        first, end = timeline.select(seconds)
        return cls(first, end, timeline.frame_rate, timeline.delays)

    @property
    def seconds(self) -> Span:
        return self.first / self.frame_rate, self.end / self.frame_rate

    @property
    def n_codes(self) -> int:
        """Number of codes scored per row, over all codebooks."""
        return (self.end - self.first) * len(self.delays)

    def cropped(self, codes: Int[Tensor, "row codebook frame"]) -> Int[Tensor, "row codebook _"]:
        """Return the codes on which the window depends.

        These codes extend past `end`, because delayed codebooks are predicted later.
        """
        return codes[..., : self.end + max(*self.delays, 1) - 1]

    def __call__(
        self, logits: Float[Tensor, "row codebook step vocab"], codes: Int[Tensor, "row codebook _"]
    ) -> Float[Tensor, "row codebook"]:
        """Return the log-likelihood of the codes in the window, summed over its frames, in nats."""
        return self.each(logits, codes).sum(-1)

    def each(
        self, logits: Float[Tensor, "row codebook step vocab"], codes: Int[Tensor, "row codebook _"]
    ) -> Float[Tensor, "row codebook frame"]:
        """Return the log-likelihood of every code in the window, in nats.

        Raises:
            ActivationOverflow: if a logit is NaN or infinite.
        """
        checked_logits(logits, self.frame_rate)
        aligned = by_frame(logits[..., self.first :, :], self.delays, self.end - self.first)
        return log_probability(aligned, codes[..., self.first : self.end].to(aligned.device))


def log_probability(logits: Float[Tensor, "*row vocab"], codes: Int[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """Return the log-probability of one code per row, in at least single precision.

    The full log-softmax is never stored.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.gather(-1, codes[..., None])[..., 0] - wide.logsumexp(-1)


def checked_rows(
    lens: AudioLens, prompts: Any, codes: Any
) -> tuple[tuple[Prompt, ...], Int[Tensor, "row codebook frame"]]:
    """Check prompts and codes, and return both with one prompt per row. A single prompt is repeated for every row.

    Raises:
        PromptError, InputError: if a prompt or code is not valid for this model, or if there are several prompts but
            not one per row of codes.
    """
    codes = checked_codes(codes, lens.config)
    listed, _ = text.checked(prompts, lens.model, lens.tokenizer, len(codes))
    return listed, checked_codes(codes, lens.config, len(listed))


def by_frame(
    values: Float[Tensor, "*lead codebook step vocab"], delays: Sequence[int], frames: int
) -> Float[Tensor, "*lead codebook frame vocab"]:
    """Turn values per step into values per frame, by shifting each codebook back by its delay."""
    if values.shape[-2] < frames + max(delays):
        raise InputError(
            f"{values.shape[-2]} steps for {frames} frames: expected {frames + max(delays)}, including the tail."
        )
    return torch.stack(
        [values[..., codebook, shift : shift + frames, :] for codebook, shift in enumerate(delays)], dim=-3
    )


def refuse_unequal(sizes: Sequence[Sequence[int]], what: str) -> None:
    """Raise `PromptError` if the prompts of a pair differ in length, because their tokens would not line up.

    Args:
        sizes: for each of the two sides, the number of tokens of each prompt.
        what: the operation that needs equal lengths; the error message starts with it.
    """
    apart = [row for row, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b]
    if apart:
        a, b = sizes[0][apart[0]], sizes[1][apart[0]]
        raise PromptError(
            f"{what}: {len(apart)} of {len(sizes[0])} pairs have prompts of different lengths, such as pair "
            f"{apart[0]} with {a} and {b} tokens. Reword them (lens.text_tokens shows the tokens), leave them out, "
            "or use patching.pairs(..., same_length=True)."
        )
