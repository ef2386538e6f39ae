"""Tiny checkpoints with a concept planted at a known site, and all other pathways silenced.

The text encoder encodes each word separately and cross-attention weights all words equally. The output of a planted
head is therefore linear in the words that occur: the features of two words add up, without an interaction.
"""

from itertools import product
from typing import Any

import torch

N_LAYERS = 4
POLES = (("fast", "slow"), ("bright", "dark"))
FILLERS = ("calm", "piano", "guitar", "drums", "music", "song", "jazz", "loud", "soft")


def prompts(count: int) -> list[str]:
    """Prompts of each of the four corners, "fast bright piano calm", corner after corner, all different."""
    fillers = [f"{first} {second}" for first, second in product(FILLERS, FILLERS)][:count]
    return [f"{tempo} {timbre} {words}" for tempo, timbre in product(*POLES) for words in fillers]


def quiet(model: Any) -> Any:
    """A model whose text reaches nothing, and whose blocks above the first write nothing."""
    with torch.no_grad():
        model.enc_to_dec_proj.bias.zero_()
        for block in model.text_encoder.encoder.block:
            block.layer[0].SelfAttention.o.weight.zero_()
        for place, layer in enumerate(model.decoder.model.decoder.layers):
            layer.encoder_attn.out_proj.weight.zero_()
            layer.encoder_attn.k_proj.weight.zero_()
            if place:
                layer.self_attn.out_proj.weight.zero_()
                layer.fc2.weight.zero_()
    return model


def axes(width: int) -> torch.Tensor:
    """Three orthogonal unit vectors of zero mean, which a layer norm leaves where they are: "axis d_model"."""
    drawn = torch.randn(3, width, generator=torch.Generator().manual_seed(5))
    drawn = drawn - drawn.mean(1, keepdim=True)
    return torch.linalg.qr(drawn.T)[0].T


def words(lens: Any, block: int, *, head: int = 1, pair: int = 0, strength: float = 6.0, axis: int = 0) -> None:
    """One head of a block's cross-attention writes +-strength along an axis, as the words are of this pair."""
    model = lens.model
    one, other = (_state(lens, word) for word in POLES[pair])
    # What no other word has, and what the two poles do not share: nothing but the pair is read, around zero.
    rest = torch.stack([_state(lens, word) for word in (*FILLERS, *POLES[1 - pair], "</s>")] + [one + other]).T
    reader = one - rest @ torch.linalg.lstsq(rest, one[:, None]).solution[:, 0]
    attention = model.decoder.model.decoder.layers[block].encoder_attn
    place = head * lens.config.d_head
    with torch.no_grad():
        attention.v_proj.weight[place : place + lens.config.d_head] = 0
        # The text is projected to the decoder's width first.
        attention.v_proj.weight[place] = torch.linalg.pinv(model.enc_to_dec_proj.weight.T) @ reader / (reader @ one)
        attention.out_proj.weight[:, place] = axes(lens.config.d_model)[axis] * strength * N_TOKENS


N_TOKENS = 5
"""Of each prompt: two poles, two fillers, the end."""


def exclusive_or(lens: Any, block: int, *, strength: float = 6.0) -> None:
    """A block's MLP writes along the third axis whether the first two agree: two units, |a + b| = r(a+b) + r(-a-b)."""
    layer = lens.model.decoder.model.decoder.layers[block]
    first, second, third = axes(lens.config.d_model)
    with torch.no_grad():
        layer.fc1.weight[:2] = 4 * torch.stack([first + second, -first - second])
        layer.fc2.weight[:, :2] = strength * third[:, None]


def _state(lens: Any, word: str) -> torch.Tensor:
    """What the text encoder makes of a word, wherever it stands."""
    tokens = lens.tokenizer.convert_tokens_to_ids([word])
    with torch.no_grad():
        return lens.model.text_encoder(input_ids=torch.tensor([tokens])).last_hidden_state[0, 0]
