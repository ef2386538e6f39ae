"""Let a lens describe the model on which it was opened: its parts, sizes, sites, tokens and timeline."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from audiolens.checks import checked_text
from audiolens.door import guarded
from audiolens.model import text, tokens
from audiolens.model.config import LensConfig
from audiolens.model.sites import Site, checked_names
from audiolens.model.text import Prompt
from audiolens.model.timeline import Timeline, checked_frames
from audiolens.model.traced_model import TracedModel


@guarded
class OpenedModel:
    """The properties and methods of a lens that only describe its model."""

    _traced_model: TracedModel

    @property
    def model(self) -> Any:
        """The transformers model of this lens. To use another model, open another lens."""
        return self._traced_model.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._traced_model.tokenizer

    @property
    def config(self) -> LensConfig:
        """The model's sizes, rates and family."""
        return self._traced_model.config

    @property
    def name(self) -> str:
        """The name by which results refer to the model."""
        return self._traced_model.name

    @name.setter
    def name(self, name: str) -> None:
        self._traced_model.name = checked_text("name", name)

    @property
    def traced_model(self) -> TracedModel:
        """The model with its family and nnsight's envoys, in the form that internal modules expect."""
        return self._traced_model

    @property
    def device(self) -> torch.device:
        """The device of the decoder or, with a `device_map`, the device of the decoder's first part."""
        return self._traced_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the decoder and of its activations."""
        return self._traced_model.dtype

    def sites(self) -> dict[str, str]:
        """Return the shape of the values at every site of this model, by full name and in the model's order."""
        return self._traced_model.family.shapes(self.config)

    def find_sites(self, names: str | Sequence[str], layers: int | Iterable[int] | None = None) -> list[Site]:
        """Return the sites that the names and layers select, in the order given.

        Each site has the attributes `name`, `short`, `layer` and `axes`.

        Raises:
            SiteError, InputError: if this model does not have a site or layer, or if no site is named.
        """
        return self.traced_model.family.find(self.config, checked_names("names", names), layers)

    def text_tokens(self, prompts: Prompt | Sequence[Prompt]) -> list[list[str]]:
        """Return each prompt's tokens as strings, as the text encoder reads them. The prompt `None` has no tokens."""
        listed = text.checked_prompts(prompts)
        return [
            [] if prompt is None else self.tokenizer.convert_ids_to_tokens(tokens.ids([prompt], self.tokenizer)[0])
            for prompt in listed
        ]

    def timeline(self, frames: int) -> Timeline:
        """Return the timeline (frames and delayed steps) of a clip of the given number of frames.

        Raises:
            InputTypeError, InputError: if `frames` is not a whole number or is less than 1.
        """
        return Timeline(checked_frames(frames), self.config.frame_rate, self.config.delays)
