"""Models in which it is known where a word is heard: small checkpoints whose text reaches the stream by one head."""

import copy
from typing import Any

import torch

import audiolens as al

CLEAN = ["fast piano", "fast dark guitar music", "a fast song", "the fast calm jazz", "fast loud drums"]
CORRUPTED = [prompt.replace("fast", "slow") for prompt in CLEAN]


def listening_head(lens: Any, layer: int, head: int, gain: float = 40.0) -> Any:
    """The same model, but of its cross-attentions one head alone writes: how fast the text is, into one direction.

    Its values read the difference of "fast" and "slow" in the text's states; its output lies where the first
    codebook's head reads most.
    """
    planted = al.AudioLens(copy.deepcopy(lens.model), lens.tokenizer, name="planted")
    states = [planted.run_with_cache(p, None, sites="text_states")[1]["hook_text_states"][0] for p in ("fast", "slow")]
    difference = (states[0] - states[1])[0]
    width, size = planted.config.d_model, planted.config.d_head
    written = torch.linalg.svd(planted.W_U[0].T, full_matrices=False).Vh[0]
    with torch.no_grad():
        for block in planted.model.decoder.model.decoder.layers:
            block.encoder_attn.out_proj.weight.zero_()
        attention = planted.model.decoder.model.decoder.layers[layer].encoder_attn
        attention.v_proj.weight[size * head : size * (head + 1)] = 0
        attention.v_proj.weight[size * head] = difference / difference.square().sum()
        attention.out_proj.weight[:, size * head] = gain * written
        assert attention.out_proj.weight.shape == (width, width)
    return planted


def deaf(lens: Any) -> Any:
    """The same model with no cross-attention that writes: its text says nothing."""
    planted = al.AudioLens(copy.deepcopy(lens.model), lens.tokenizer, name="deaf")
    with torch.no_grad():
        for block in planted.model.decoder.model.decoder.layers:
            block.encoder_attn.out_proj.weight.zero_()
    return planted
