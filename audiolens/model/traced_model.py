"""TracedModel: an opened model, with everything needed to read and change its activations."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from audiolens.model.config import LensConfig
from audiolens.model.families import Family


@dataclass(eq=False)
class TracedModel:
    """The model that an `AudioLens` opened, in the form that lower-level modules expect.

    Attributes:
        model: the transformers model, unchanged.
        tokenizer: the model's tokenizer.
        config: the model's sizes, rates and delays.
        family: the model's family, which states where the sites and modules are.
        nnsight: the model's envoy tree, `audiolens.tracing.nnsight_source.Model`.
        name: the name by which results refer to the model.
    """

    model: Any
    tokenizer: Any
    config: LensConfig
    family: Family
    nnsight: Any
    name: str

    @property
    def device(self) -> torch.device:
        """The device of the decoder or, with a `device_map`, the device of the decoder's first part."""
        return next(self.model.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the decoder computes."""
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
        """The output heads, one per codebook, which produce the logits."""
        return self.family.heads(self.model)


@runtime_checkable
class HasModel(Protocol):
    """Any object with a `traced_model`: the type of a lens, for modules that `lens.py` itself imports."""

    @property
    def traced_model(self) -> TracedModel: ...
