"""A tiny CLAP of random weights, written as a user would meet it."""

from pathlib import Path

import conftest
import torch


def write_clap(folder: Path, *, fusion: bool) -> Path:
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, ClapTextConfig

    torch.manual_seed(0)
    text = ClapTextConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=48, pad_token_id=0,
    )  # fmt: skip
    audio = ClapAudioConfig(
        spec_size=64, num_mel_bins=16, patch_size=4, patch_stride=[4, 4], window_size=4, patch_embeds_hidden_size=8,
        depths=[1, 1], num_attention_heads=[2, 2], hidden_size=16, enable_fusion=fusion, num_classes=4,
    )  # fmt: skip
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=12)
    model = ClapModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        feature_size=16, max_length_s=2, truncation="fusion" if fusion else "rand_trunc", padding="repeatpad"
    )
    ClapProcessor(feature_extractor=extractor, tokenizer=conftest.write_tokenizer(folder)).save_pretrained(folder)
    return folder
