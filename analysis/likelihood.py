"""The metric that patching and attribution share: how likely the model finds given codes, within a window of time.

Step s predicts frame s of codebook 0 and frame s - k of a codebook delayed by k: here every codebook is put back on
its own frames, so that a window in seconds means the same sound for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.model import text
from audiolens.model.text import Prompt
from audiolens.model.timeline import Span
from audiolens.sound.codec import checked_codes
from audiolens.tracing.overflow import checked_logits

FIRST_SECOND: Span = (0.0, 1.0)
"""The default window: later, a second of audio history already tells what the text said."""


@dataclass(frozen=True)
class Window:
    """The frames `first` to `end` of a clip, and how to find their predictions. Called, it is the metric."""

    first: int
    end: int
    frame_rate: float
    delays: tuple[int, ...]

    @classmethod
    def of(cls, lens: AudioLens, codes: Int[Tensor, "row codebook frame"], seconds: Span | None = None) -> Window:
        """The frames of a span in seconds; `None` is the first second, or the whole of a shorter clip.

        Raises:
            InputError: if the span holds no frame, or ends after the clip.
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
        """Codes scored in a row, all codebooks together."""
        return (self.end - self.first) * len(self.delays)

    def cropped(self, codes: Int[Tensor, "row codebook frame"]) -> Int[Tensor, "row codebook _"]:
        """What the window depends on: a delayed codebook's last frames are said after others' later ones."""
        return codes[..., : self.end + max(*self.delays, 1) - 1]

    def __call__(
        self, logits: Float[Tensor, "row codebook step vocab"], codes: Int[Tensor, "row codebook _"]
    ) -> Float[Tensor, "row codebook"]:
        """Log-likelihood of the codes in the window, summed over its frames, in nats."""
        return self.each(logits, codes).sum(-1)

    def each(
        self, logits: Float[Tensor, "row codebook step vocab"], codes: Int[Tensor, "row codebook _"]
    ) -> Float[Tensor, "row codebook frame"]:
        """Log-likelihood of every code in the window, in nats.

        Raises:
            ActivationOverflow: if a logit is NaN or infinite.
        """
        checked_logits(logits, self.frame_rate)
        told = by_frame(logits[..., self.first :, :], self.delays, self.end - self.first)
        return log_probability(told, codes[..., self.first : self.end].to(told.device))


def log_probability(logits: Float[Tensor, "*row vocab"], codes: Int[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """Of one code each, in at least single precision, without a table of all."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.gather(-1, codes[..., None])[..., 0] - wide.logsumexp(-1)


def checked_rows(
    lens: AudioLens, prompts: Any, codes: Any
) -> tuple[tuple[Prompt, ...], Int[Tensor, "row codebook frame"]]:
    """Prompts (a single one stands for all rows) and the codes that each goes on with.

    Raises:
        PromptError, InputError: for what is no prompt or no code of this model, or a different number of them.
    """
    codes = checked_codes(codes, lens.config)
    listed, _ = text.checked(prompts, lens.model, lens.tokenizer, len(codes))
    return listed, checked_codes(codes, lens.config, len(listed))


def by_frame(
    values: Float[Tensor, "*lead codebook step vocab"], delays: Sequence[int], frames: int
) -> Float[Tensor, "*lead codebook frame vocab"]:
    """What is said of each frame: every codebook's steps without its delay, the tail's predictions in their place."""
    if values.shape[-2] < frames + max(delays):
        raise InputError(
            f"{values.shape[-2]} steps for {frames} frames: expected {frames + max(delays)}, the tail too."
        )
    return torch.stack(
        [values[..., codebook, shift : shift + frames, :] for codebook, shift in enumerate(delays)], dim=-3
    )
