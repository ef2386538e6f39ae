"""Models with a planted concept: where it is read, where it is written, and what measures it are all known.

Each function takes a tiny lens, rewrites its weights in place, and returns what was planted where.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audiolens import AudioLens

CLEAN = ["fast piano", "fast dark guitar music", "a fast song", "the fast calm jazz", "fast loud drums"]
CORRUPTED = [prompt.replace("fast", "slow") for prompt in CLEAN]
AMPLITUDE = 50.0
"""Of what is planted, beside a stream of about five: the blocks' norms then see it at a fixed length."""


@dataclass(frozen=True)
class Plant:
    """A concept: the block and heads that read it out of the text, and the block whose part writes `direction`.

    `direction` is of unit length, and what the output heads hear. Prompts of `positive` have it, of `negative` its
    opposite.
    """

    lens: AudioLens
    direction: Tensor
    read_at: int
    heads: tuple[int, ...]
    written_at: int
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def copied(lens: AudioLens) -> AudioLens:
    """The same model, to be planted in while others go on with the first."""
    return AudioLens(copy.deepcopy(lens.model), lens.tokenizer, name="planted")


def deaf(lens: AudioLens) -> AudioLens:
    """A copy with no cross-attention that writes: its text says nothing."""
    planted = copied(lens)
    _silence(planted)
    return planted


def head_plant(lens: AudioLens, layer: int, head: int) -> Plant:
    """One head of one cross-attention is the only one whose output is not zero.

    Its values read which of "fast" and "slow" the text has, and it writes a direction that the output heads hear. All
    other parts stay as random as they are.
    """
    positive = ("fast piano", "fast guitar music", "the fast song")
    negative = tuple(prompt.replace("fast", "slow") for prompt in positive)
    (direction,) = _directions(lens, 1)
    _silence(lens)
    with torch.no_grad():
        signs = torch.tensor([1.0] * 3 + [-1.0] * 3)
        _read(lens, layer, head, (*positive, *negative), signs, direction)
        _hear(lens, direction)
    return Plant(lens, direction, layer, (head,), layer, positive, negative)


def xor_plant(lens: AudioLens, read_at: int, written_at: int, heads: tuple[int, int] = (0, 2)) -> Plant:
    """An MLP that writes a direction if two features agree, and its opposite if they do not.

    Two heads of an earlier cross-attention read "fast" or "slow", and "bright" or "dark"; nothing else writes anything.
    Neither feature tells the concept, nor does any sum of them: nothing before the MLP is linearly there.
    """
    positive, negative = ("fast bright", "slow dark"), ("fast dark", "slow bright")
    tempo, timbre, direction = _directions(lens, 3)
    with torch.no_grad():
        for block in _blocks(lens):
            for projection in (block.self_attn.out_proj, block.encoder_attn.out_proj, block.fc2):
                projection.weight.zero_()
        prompts = (*positive, *negative)
        _read(lens, read_at, heads[0], prompts, torch.tensor([1.0, -1, 1, -1]), tempo)
        _read(lens, read_at, heads[1], prompts, torch.tensor([1.0, -1, -1, 1]), timbre)
        mlp = _blocks(lens)[written_at]
        # gelu(x) + gelu(-x) is about |x|, and |a + b| - |a - b| the product of two signs: no bias is needed.
        both, either = tempo + timbre, tempo - timbre
        mlp.fc1.weight[:4] = torch.stack([both, -both, either, -either])
        mlp.fc2.weight[:, :4] = AMPLITUDE * direction[:, None] * torch.tensor([1.0, 1, -1, -1]) / 10
        for head in lens.model.decoder.lm_heads:
            # As random as they come, they would hear each feature by itself.
            for feature in (tempo, timbre):
                head.weight -= (head.weight @ feature)[:, None] * feature
        _hear(lens, direction)
    return Plant(lens, direction, read_at, heads, written_at, positive, negative)


def _silence(lens: AudioLens) -> None:
    with torch.no_grad():
        for block in _blocks(lens):
            block.encoder_attn.out_proj.weight.zero_()


def _blocks(lens: AudioLens) -> Any:
    return lens.model.decoder.model.decoder.layers


def _directions(lens: AudioLens, count: int) -> Tensor:
    """Orthonormal directions without a mean, which a norm would take away: "direction d_model"."""
    drawn = torch.randn(lens.config.d_model, count, generator=torch.Generator().manual_seed(7))
    return torch.linalg.qr(drawn - drawn.mean(0)).Q.T


def _read(lens: AudioLens, layer: int, head: int, prompts: tuple[str, ...], signs: Tensor, direction: Tensor) -> None:
    """Have a head look at all tokens alike, read a prompt's sign in its first value, and write `direction`."""
    means = []
    for prompt in prompts:
        _, cache = lens.run_with_cache(prompt, sites="hook_text_states")
        means.append(cache["hook_text_states"][0].mean(0))
    reader = torch.linalg.lstsq(torch.stack(means), signs[:, None], driver="gelsd").solution[:, 0]
    attention, own = _blocks(lens)[layer].encoder_attn, head * lens.config.d_head
    rows = slice(own, own + lens.config.d_head)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[rows] = 0
    attention.v_proj.weight[own] = reader
    attention.out_proj.weight[:, own] = AMPLITUDE * direction


def _hear(lens: AudioLens, direction: Tensor) -> None:
    """Have every codebook's output prefer half of the codes along the direction, and the other half against it."""
    generator = torch.Generator().manual_seed(8)
    for head in lens.model.decoder.lm_heads:
        signs = torch.randn(head.weight.shape[0], generator=generator).sign()
        head.weight += 0.3 * signs[:, None] * direction
