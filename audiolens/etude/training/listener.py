"""The auxiliary task in training the decoder: predict the beat phase and the attributes of the next frame.

A beat is a rare event among codes that are mostly noise, so the decoder learns it late from a loss over codes alone. A
linear head on the decoder's *final* state predicts it at every frame, and is discarded after training. The final state
is the sum of what all blocks write, so the head does not favour any block or impose where a concept is represented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.etude import synth
from audiolens.etude.captions import PLAIN, Wording
from audiolens.etude.form import Music
from audiolens.etude.training import text
from audiolens.etude.training.codec import FRAME_RATE

BEAT_TARGETS = 4
"""Cosine and sine of the phase within the beat, and of the phase within the bar."""
MODE_WEIGHT = 3.0
"""The weight of the mode. It is higher, because only the third of a chord reveals the mode, whereas every frame reveals
the other attributes."""


@dataclass(frozen=True)
class Labels:
    """The labels of the first clips in a set: captions, beat and bar times, and the attributes as numbers."""

    captions: list[str]
    beat_seconds: Float[np.ndarray, " clip"]
    bar_seconds: Float[np.ndarray, " clip"]
    bar_start: Float[np.ndarray, " clip"]
    attributes: Float[np.ndarray, "clip attribute"]

    @classmethod
    def of(cls, n_clips: int, seed: int, music: Music = synth.BUNDLED, wording: Wording = PLAIN) -> Labels:
        """The labels of the first `n_clips` clips of the set with this seed, sampled again exactly as in `synth`."""
        captions, times, numbers = [], [], []
        for index in range(n_clips):
            drawn = synth.draw(index, seed, music, wording)
            attributes = drawn.attributes
            beat_seconds = 60 / attributes.tempo_bpm
            captions.append(drawn.caption.text)
            times.append((beat_seconds, attributes.meter * beat_seconds, synth.bar_start(attributes, drawn.rng)))
            numbers.append([value for _, value in attributes.targets()])
        beat, bar, start = np.array(times).T
        return cls(captions, beat, bar, start, np.array(numbers))

    def targets(
        self, clips: Int[np.ndarray, " row"], starts: Int[np.ndarray, " row"], n_frames: int
    ) -> Float[Tensor, "row frame target"]:
        """The head's targets at each frame of the crops that begin at frames `starts` of `clips`."""
        seconds = (starts[:, None] + np.arange(n_frames) + 0.5) / FRAME_RATE + self.bar_start[clips, None]
        turns = (seconds / self.beat_seconds[clips, None], seconds / self.bar_seconds[clips, None])
        circles = [f(2 * np.pi * turn) for turn in turns for f in (np.cos, np.sin)]
        constant = np.repeat(self.attributes[clips, None], n_frames, axis=1)
        return torch.from_numpy(np.concatenate([np.stack(circles, axis=-1), constant], axis=-1)).float()


class Unheard(NamedTuple):
    """The shares of the variance that the head does not explain; about 1 at the start of training."""

    beat: Float[Tensor, ""]
    attributes: Float[Tensor, ""]
    mode: Float[Tensor, ""]


def unheard(said: Float[Tensor, "row frame target"], targets: Float[Tensor, "row frame target"]) -> Unheard:
    """The shares of the variance that the head's predictions do not explain; mode has a higher weight than the other
    attributes."""
    error = ((said - targets) ** 2).mean(dim=(0, 1))
    beat, attributes = error[:BEAT_TARGETS], error[BEAT_TARGETS:]
    weight = torch.ones_like(attributes)
    weight[text.TARGETS.index("mode")] = MODE_WEIGHT
    # A sine has a variance of one half, and the attributes have nearly the same.
    return Unheard(
        2 * beat.mean(), 2 * (weight * attributes).sum() / weight.sum(), attributes[text.TARGETS.index("mode")]
    )


def build_head(width: int) -> torch.nn.Linear:
    """The linear head from a state of `width` to the targets."""
    return torch.nn.Linear(width, BEAT_TARGETS + len(text.TARGETS))
