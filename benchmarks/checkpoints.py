"""Compute parameters and memory of MusicGen models from published sizes: `python benchmarks/checkpoints.py [--update]`.

This does not download or time any model. Each model is built on torch's meta device, which stores shapes but no values,
from the sizes in transformers' conversion scripts (blocks, width, heads, codebooks), with the T5-base and 32 kHz
EnCodec that all checkpoints share. Parameters are counted on this device. Memory is computed from shapes
(`cache_bytes`, `recording_bytes`), and `tests/model/test_checkpoints.py` compares the results with real tensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from pages import renewed

PAGE = Path(__file__).parent.parent / "docs" / "checkpoints.md"
SECONDS, RATE, TOKENS, CHROMA = 30, 50, 16, 235
TEXT = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
CODEC = {
    "target_bandwidths": [2.2], "sampling_rate": 32000, "audio_channels": 1, "num_filters": 64, "hidden_size": 128,
    "codebook_dim": 128, "codebook_size": 2048, "upsampling_ratios": [8, 5, 4, 4], "num_lstm_layers": 2,
    "normalize": False, "chunk_length_s": None, "use_causal_conv": False, "use_conv_shortcut": False,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """The sizes in which the family's checkpoints differ. Heads have 64 features in all of them."""

    name: str
    blocks: int
    width: int
    stereo: bool = False
    melody: bool = False

    @property
    def codebooks(self) -> int:
        return 8 if self.stereo else 4


_SMALL, _MEDIUM, _LARGE = (24, 1024), (48, 1536), (48, 2048)
SIZES = (
    Size("facebook/musicgen-small", *_SMALL),
    Size("facebook/musicgen-medium", *_MEDIUM),
    Size("facebook/musicgen-large", *_LARGE),
    Size("facebook/musicgen-stereo-small", *_SMALL, stereo=True),
    Size("facebook/musicgen-stereo-medium", *_MEDIUM, stereo=True),
    Size("facebook/musicgen-stereo-large", *_LARGE, stereo=True),
    Size("facebook/musicgen-melody", *_MEDIUM, melody=True),
    Size("facebook/musicgen-melody-large", *_LARGE, melody=True),
    Size("facebook/musicgen-stereo-melody", *_MEDIUM, stereo=True, melody=True),
    Size("facebook/musicgen-stereo-melody-large", *_LARGE, stereo=True, melody=True),
)


def shell(size: Size) -> Any:
    """The model without values, on the meta device."""
    kind = "MusicgenMelody" if size.melody else "Musicgen"
    decoder = getattr(transformers, f"{kind}DecoderConfig")(
        hidden_size=size.width, ffn_dim=4 * size.width, num_hidden_layers=size.blocks,
        num_attention_heads=size.width // 64, num_codebooks=size.codebooks, audio_channels=1 + size.stereo,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        text_encoder=transformers.T5Config(**TEXT), audio_encoder=transformers.EncodecConfig(**CODEC), decoder=decoder
    )
    with torch.device("meta"):
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cache_bytes(size: Size, steps: int, tokens: int, *, branches: int = 2, item: int = 2) -> int:
    """Bytes of one row's keys and values: 2 x blocks x width per position and branch, `item` bytes each.

    Cross-attention also caches the text tokens; Melody has chroma and text in the sequence itself.
    """
    positions = steps + tokens + (CHROMA if size.melody else 0)
    return branches * 2 * size.blocks * size.width * positions * item


def recording_bytes(size: Size, steps: int, *, item: int = 2) -> int:
    """Bytes of one row's recording of a site with one vector per step (such as `resid_post`) in every block."""
    return size.blocks * steps * size.width * item


def rows() -> list[str]:
    lines = [
        "| checkpoint | blocks | width | codebooks | parameters: total, decoder | weights in float32 | in bfloat16 "
        "| keys and values per row | `resid_post` of all blocks, per row |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    steps = SECONDS * RATE + 3
    for size in SIZES:
        model = shell(size)
        whole, decoder = parameters(model), parameters(model.decoder)
        lines.append(
            f"| `{size.name}` | {size.blocks} | {size.width} | {size.codebooks} | {whole / 1e9:.2f} B, "
            f"{decoder / 1e9:.2f} B | {whole * 4 / 2**30:.1f} GiB | {whole * 2 / 2**30:.1f} GiB | "
            f"{cache_bytes(size, steps, TOKENS) / 2**20:.0f} MiB | {recording_bytes(size, steps) / 2**20:.0f} MiB |"
        )
    return lines


def main(update: Annotated[bool, typer.Option(help=f"Write the table into docs/{PAGE.name}.")] = False) -> None:
    """Count parameters and bytes, and print or update the table."""
    table = "\n".join(rows()) + "\n"
    print(table)
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "sizes", table), "utf-8")


if __name__ == "__main__":
    typer.run(main)
