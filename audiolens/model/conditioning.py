"""How text reaches the decoder: by cross-attention, or as a prefix before the audio steps.

Each function converts encoded prompts to keyword arguments for transformers' `forward` and `generate`. The arguments
are bit-identical to those that `generate` would compute. With guidance, the unconditional (null) half of the batch
follows the conditional half.
"""

from typing import Any

import torch
from torch import Tensor

from audiolens.errors import InputError
from audiolens.model.text import Text


def attended(model: Any, text: Text, guided: bool) -> dict[str, Any]:  # noqa: ARG001 - one signature for all families
    """Return the text states and mask for cross-attention. In the unconditional (null) half, both are zero."""
    states, mask = text.states, text.mask
    if guided:
        states, mask = _with_null(states), _with_null(mask)
    return {"encoder_outputs": (states,), "attention_mask": mask}


@torch.no_grad()
def prefixed(model: Any, text: Text, guided: bool) -> dict[str, Any]:
    """Return the prefix: frames of null chroma (no melody), then the text states (zero in the unconditional half).

    The decoder receives no mask and would read padding as text, so all prompts of a batch must have the same length.
    """
    config = model.config
    states, mask = _projected(model, "enc_to_dec_proj", text.states), text.mask
    if guided:
        states, mask = _with_null(states), _with_null(mask)
    chroma = torch.zeros(len(states), 1, config.num_chroma, device=states.device, dtype=model.dtype)
    chroma[:, :, 0] = 1
    chroma = _projected(model, "audio_enc_to_dec_proj", chroma).expand(-1, config.chroma_length, -1)
    # The states are already masked. Passing the mask only keeps transformers' `generate` from guessing a mask.
    return {
        "encoder_hidden_states": torch.cat([chroma, states * mask[..., None]], dim=1),
        "attention_mask": text.mask,
    }


def refuse_melody(melody: Any) -> None:
    """Reject a melody, which is not supported yet.

    Raises:
        InputError: if a melody is given; the message states what to do instead.
    """
    if melody is not None:
        raise InputError("melody=: conditioning on a melody is not supported yet. Leave it out: text alone works.")


def _with_null(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, torch.zeros_like(tensor)])


def _projected(model: Any, name: str, tensor: Tensor) -> Tensor:
    """Project a tensor to the decoder's width, or return it unchanged if the model has no projection of this name."""
    projection = getattr(model, name, None)
    return tensor if projection is None else projection(tensor)
