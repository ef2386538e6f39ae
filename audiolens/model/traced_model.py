"""TracedModel: an open model with everything that reading and changing it needs."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from audiolens.model.config import LensConfig
from audiolens.model.families import Family


@dataclass(eq=False)
class TracedModel:
    """What `AudioLens` opens, and what the modules below it take.

    Attributes:
        model: the transformers model, as it was given.
        tokenizer: its tokenizer.
        config: sizes, rates and delays.
        family: where its sites and parts are.
        nnsight: its envoy tree, `audiolens.tracing.nnsight_source.Model`.
        name: what results call it.
    """

    model: Any
    tokenizer: Any
    config: LensConfig
    family: Family
    nnsight: Any
    name: str

    @property
    def device(self) -> torch.device:
        """Where the decoder is; under a `device_map`, its first part."""
        return next(self.model.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return next(self.model.decoder.parameters()).dtype

    @property
    def body(self) -> Any:
        """The module that runs the blocks."""
        return self.family.body(self.model)

    @property
    def blocks(self) -> Any:
        return self.family.blocks(self.model)

    @property
    def final_norm(self) -> Any:
        return self.family.final_norm(self.model)

    @property
    def heads(self) -> Any:
        """One head per codebook, which makes its logits."""
        return self.family.heads(self.model)


class HasModel(Protocol):
    """A lens, to modules that come before it."""

    @property
    def traced_model(self) -> TracedModel: ...
