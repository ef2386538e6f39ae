"""How a family is told its text: attended to from beside, or standing before the audio steps as a prefix.

Each function makes, of encoded prompts, the keyword arguments of transformers' forward and `generate`, with the null
half of the guidance behind the conditional one, bit for bit as `generate` would make them itself.
"""

from typing import Any

import torch
from torch import Tensor

from audiolens.errors import InputError
from audiolens.model.text import Text


def attended(model: Any, text: Text, guided: bool) -> dict[str, Any]:  # noqa: ARG001 - one signature for all families
    """Cross-attention: the text's states and mask. The null half is zero states under a zero mask."""
    states, mask = text.states, text.mask
    if guided:
        states, mask = _with_null(states), _with_null(mask)
    return {"encoder_outputs": (states,), "attention_mask": mask}


@torch.no_grad()
def prefixed(model: Any, text: Text, guided: bool) -> dict[str, Any]:
    """A prefix: frames of null chroma (no melody), then the text's states. The null half has zeros for its text.

    The decoder gets no mask, and would read padding as text: the prompts of a batch must be of one length.
    """
    config = model.config
    states, mask = _projected(model, "enc_to_dec_proj", text.states), text.mask
    if guided:
        states, mask = _with_null(states), _with_null(mask)
    chroma = torch.zeros(len(states), 1, config.num_chroma, device=states.device, dtype=model.dtype)
    chroma[:, :, 0] = 1
    chroma = _projected(model, "audio_enc_to_dec_proj", chroma).expand(-1, config.chroma_length, -1)
    # The mask only has transformers' `generate` not guess one: what it says is in the states already.
    return {
        "encoder_hidden_states": torch.cat([chroma, states * mask[..., None]], dim=1),
        "attention_mask": text.mask,
    }


def refuse_melody(melody: Any) -> None:
    """Raise if a melody was given.

    Raises:
        InputError: saying what can be done without.
    """
    if melody is not None:
        raise InputError("melody=: conditioning on a melody is not supported yet. Leave it out: text alone works.")


def _with_null(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, torch.zeros_like(tensor)])


def _projected(model: Any, name: str, tensor: Tensor) -> Tensor:
    """`tensor` in the decoder's width; a model whose widths agree has no projection."""
    projection = getattr(model, name, None)
    return tensor if projection is None else projection(tensor)
