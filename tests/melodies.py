"""Helpers for the MusicGen Melody tests: prompts of equal and different lengths, and bare transformers as oracle."""

from typing import Any

import torch
from conftest import CHROMA

from audiolens.model.timeline import delay

ALIKE = ["fast bright piano", "slow dark guitar", "calm soft jazz", "loud drums song", "a fast song"]
TOKENS = 4  # three words and </s>
PREFIX = CHROMA + TOKENS
MIXED = ["calm", "slow dark guitar music", "fast piano", "loud drums with piano", "calm song"]
SECONDS = 0.6
FRAMES, STEPS = 15, 18
D = 48


def bare_forward(lens: Any, prompts: list[str], codes: torch.Tensor, guided: bool = False) -> Any:
    """transformers' forward over given codes, behind the prefix that its own `generate` makes."""
    inputs = lens.tokenizer(prompts, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1].flatten(0, 1)
    if not guided:
        with torch.no_grad():
            return lens.model(**inputs, decoder_input_ids=columns, output_hidden_states=True)
    config = lens.model.generation_config
    with torch.no_grad():
        made = lens.model._prepare_encoder_hidden_states_kwargs_for_generation(
            inputs.input_ids, {"attention_mask": inputs.attention_mask}, "input_ids", config
        )
        return lens.model(**made, decoder_input_ids=columns.repeat(2, 1), output_hidden_states=True)


def hooked(lens: Any, vector: torch.Tensor, branch: str, layers: list[int], prefix: int) -> list[Any]:
    """Steering with raw forward hooks that leave the first `prefix` positions of the first forward alone."""

    def hook(module: Any, inputs: Any, output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        changed = output[0].clone()
        half = len(changed) // 2
        rows = {"cond": slice(0, half), "null": slice(half, None), "both": slice(None)}[branch]
        first = prefix if changed.shape[1] > 1 else 0
        changed[rows, first:] = changed[rows, first:] + 1.5 * vector
        return changed, output[1]

    blocks = lens.model.decoder.model.decoder.layers
    return [blocks[layer].register_forward_hook(hook) for layer in layers]
