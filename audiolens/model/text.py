"""Check, tokenise and encode prompts for the decoder.

This module encodes the text once, and the encoder states are then passed to transformers (`conditioning.py`), so that
reading and generation use exactly the same states. A prompt of `None` is unconditional and is encoded as zero states
with a zero mask, as in the null branch of guidance and in transformers' own unconditional inputs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.checks import in_order, shown
from audiolens.errors import InputTypeError, PromptError
from audiolens.model import tokens

Prompt = str | None
BUCKET = 16
"""With `exact=True`, each prompt is padded to the next multiple of this number of tokens, regardless of its batch."""


@dataclass(frozen=True)
class Text:
    """The encoded prompts of one batch, before guidance."""

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    states: Float[Tensor, "row token d_text"]


def checked_prompts(prompts: Prompt | Sequence[Prompt], rows: int | None = None) -> tuple[Prompt, ...]:
    """Return prompts as a tuple, one per row. A single prompt is repeated for `rows` rows.

    Raises:
        PromptError: if the list or a prompt is empty, or if a prompt is neither text nor `None`.
    """
    if prompts is None or isinstance(prompts, str):
        listed: tuple[Prompt, ...] = (prompts,) * (rows or 1)
    else:
        try:
            listed = in_order("prompts", prompts, "prompts")
        except InputTypeError:
            raise PromptError(f"prompts={shown(prompts)}: expected text, None, or a list of them, in order.") from None
    if not listed:
        raise PromptError("no prompt given: give at least one, or [None] to generate without one.")
    for row, prompt in enumerate(listed):
        if prompt is None:
            continue
        if not isinstance(prompt, str):
            raise PromptError(f"prompt {row} is {type(prompt).__name__}: expected text, or None for no prompt.")
        if not prompt.strip():
            raise PromptError(f"prompt {row} is empty: use None to generate without a prompt.")
    return listed


def checked(
    prompts: Prompt | Sequence[Prompt], model: Any, tokenizer: Any, rows: int | None = None
) -> tuple[tuple[Prompt, ...], list[int]]:
    """Check prompts, and return one prompt per row together with the prompts' lengths in tokens."""
    listed = checked_prompts(prompts, rows)
    return listed, lengths(listed, tokenizer, token_limit(model, tokenizer))


def lengths(prompts: Sequence[Prompt], tokenizer: Any, limit: int) -> list[int]:
    """Return the length of each prompt in tokens (1 for `None`), or raise an error if a prompt is too long for the text
    encoder."""
    read = iter(tokens.ids([prompt for prompt in prompts if prompt is not None], tokenizer))
    found = [1 if prompt is None else len(next(read)) for prompt in prompts]
    for row, (prompt, count) in enumerate(zip(prompts, found, strict=True)):
        if count > limit:
            raise PromptError(
                f"prompt {row} has {count} tokens, but the text encoder reads at most {limit}: shorten it "
                f"({str(prompt)[:40]!r}...)."
            )
        if prompt is not None and not count:
            raise PromptError(f"prompt {row} ({shown(prompt)}) has no token in this model's vocabulary.")
    tokens.note_unread(prompts, tokenizer)
    return found


def token_limit(model: Any, tokenizer: Any) -> int:
    """The largest number of tokens that the text encoder can read, which is the smaller of the tokenizer's limit and
    the encoder's."""
    declared = [
        getattr(model.config.text_encoder, "n_positions", None),
        getattr(model.config.text_encoder, "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    return min((int(value) for value in declared if value and value < 10**6), default=512)


@torch.no_grad()
def encode(prompts: Sequence[Prompt], model: Any, tokenizer: Any, length: int | None = None) -> Text:
    """Tokenise and encode prompts, padded on the right to the longest prompt, or to `length` tokens.

    The tokenizer's own padding and truncation settings are ignored, because token positions must count from the left.

    Gradients are disabled, as in transformers' `generate`. With gradients, attention would use a different kernel,
    whose results differ in the last bits.
    """
    tokens.tell_unread()
    device = model.text_encoder.device
    spoken = [row for row, prompt in enumerate(prompts) if prompt is not None]
    if not spoken:
        ids = torch.full((len(prompts), length or 1), _pad(model, tokenizer), dtype=torch.long, device=device)
        states = torch.zeros(*ids.shape, model.config.text_encoder.d_model, device=device, dtype=model.dtype)
        return Text(ids, torch.zeros_like(ids), states)
    encoded = tokens.ids([str(prompts[row]) for row in spoken], tokenizer)
    read = [torch.tensor(row, dtype=torch.long, device=device) for row in encoded]
    ids = torch.full(
        (len(spoken), length or max(map(len, read))), _pad(model, tokenizer), dtype=torch.long, device=device
    )
    mask = torch.zeros_like(ids)
    for row, own in enumerate(read):
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
    states = model.text_encoder(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
    if len(spoken) == len(prompts):
        return Text(ids, mask, states)
    indices = torch.tensor(spoken, device=device)
    whole = [
        tensor.new_zeros(len(prompts), *tensor.shape[1:]).index_copy(0, indices, tensor)
        for tensor in (ids, mask, states)
    ]
    return Text(*whole)


def read_alike(first: Prompt | Sequence[Prompt], second: Prompt | Sequence[Prompt], tokenizer: Any) -> bool:
    """Whether two prompts, or two lists of prompts in any order, have the same tokens.

    Different prompts can have the same tokens if the tokenizer knows none of the words in which they differ.
    """
    sides = [checked_prompts(side) for side in (first, second)]
    counts = [Counter(map(tuple, tokens.ids([text for text in side if text is not None], tokenizer))) for side in sides]
    return counts[0] == counts[1] and sides[0].count(None) == sides[1].count(None)


def _pad(model: Any, tokenizer: Any) -> int:
    """The number of the padding token, which is masked. It is 0 if neither tokenizer nor model defines one."""
    own = (getattr(tokenizer, "pad_token_id", None), getattr(model.config.text_encoder, "pad_token_id", None), 0)
    return next(number for number in own if number is not None)
