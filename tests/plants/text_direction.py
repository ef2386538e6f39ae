"""A model whose text reaches the stream in block 1 alone, along one direction that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import audiolens as al


def text_along_one_direction(checkpoint: Path, factor: float = 1.0) -> tuple[Any, torch.Tensor]:
    """Return the lens and the direction; `factor` is how strongly the text writes along it."""
    lens = al.AudioLens.from_pretrained(checkpoint)
    direction = torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(5)), dim=0)
    blocks = lens.model.decoder.model.decoder.layers
    with torch.no_grad():
        for block in blocks:
            block.encoder_attn.out_proj.weight.zero_()
        reader = torch.randn(48, generator=torch.Generator().manual_seed(6))
        blocks[1].encoder_attn.out_proj.weight.copy_(factor * torch.outer(direction, reader))
        blocks[1].fc2.weight.zero_()
    return lens, direction
