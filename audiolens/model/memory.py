"""Recognise that a device ran out of memory, and estimate how much a model and its clips need."""

import gc
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from audiolens.errors import TooLittleMemoryError
from audiolens.model.config import LensConfig
from audiolens.model.devices import memory_of

_TOLD = (
    "DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate",
    "MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""Parts of the messages of other errors that mean the same as `torch.OutOfMemoryError`."""
_STREAMS = 8
"""Values as wide as the residual stream that a block keeps at once: its input, norms, queries, keys, values, output."""
_LOGITS = 4
"""Copies of the logits in float32 while a code is drawn: guided, divided, masked, and with noise."""
_SOUNDS = 3
"""Values at the sample rate, each as wide as the codec's last layer, that the codec keeps at once."""


def ran_out(error: BaseException) -> bool:
    """Return whether an exception means that a device has too little memory left."""
    if isinstance(error, TooLittleMemoryError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _TOLD)


def freed(device: torch.device) -> None:
    """Return memory that is no longer used to the device, after a run that failed."""
    # The frames of a traceback refer to each other, and to the tensors of the run.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@dataclass(frozen=True)
class Need:
    """The estimated memory in bytes that one row of a run takes, and that of the model's weights.

    Attributes:
        weights: the parameters and buffers of the whole model.
        kept: the keys and values of all positions, in the branches that run.
        passing: the activations of one block (or of several, if they are kept), the logits, and the codec's values
            while it decodes.
    """

    weights: int
    kept: int
    passing: int

    @classmethod
    def of(
        cls,
        model: Any,
        config: LensConfig,
        *,
        positions: int,
        at_once: int = 1,
        branches: int = 1,
        tokens: int = 0,
        samples: int = 0,
        kept_blocks: int = 1,
    ) -> "Need":
        """Estimate what one row needs.

        Args:
            positions: the positions whose keys and values are kept, including a prefix.
            at_once: the largest number of positions in one forward pass.
            tokens: the text tokens to which a decoder with cross-attention attends.
            samples: the samples of a decoded clip; 0 if the codec does not run.
            kept_blocks: the blocks whose activations are kept at once; gradients keep those of all blocks.
        """
        width = model.decoder.dtype.itemsize
        attended = positions + (0 if config.has_prefix else tokens)
        kept = branches * 2 * config.n_layers * config.d_model * attended * width
        block = at_once * (_STREAMS * config.d_model + config.d_mlp) * width
        scores = config.n_heads * at_once * positions * width
        logits = _LOGITS * config.n_codebooks * config.vocab_size * at_once * 4
        filters = int(getattr(model.audio_encoder.config, "num_filters", 1))
        sound = _SOUNDS * samples * filters * model.audio_encoder.dtype.itemsize
        return cls(weight_bytes(model), kept, branches * (kept_blocks * (block + scores) + logits) + sound)

    def plus(self, more: float) -> "Need":
        """Return the need of a row that takes more bytes while it passes."""
        return replace(self, passing=self.passing + round(more))

    def __str__(self) -> str:
        return (
            f"about {amount(self.weights + self.kept + self.passing)} (weights {amount(self.weights)}, keys and values "
            f"{amount(self.kept)}, activations {amount(self.passing)})"
        )


def weight_bytes(model: nn.Module) -> int:
    """Return the size of a model's parameters and buffers in bytes."""
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def amount(n_bytes: float) -> str:
    """Return a number of bytes as text, such as "6.4 GiB"."""
    for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {name}"
    return f"{n_bytes:.0f} bytes"


def memory_text(device: torch.device) -> str:
    """Return a device with its memory in words, such as "cuda:0, which has 140 GiB"."""
    total = memory_of(device)
    return str(device) + ("" if total is None else f", which has {amount(total)}")
