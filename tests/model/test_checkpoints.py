"""The memory formulas of the checkpoints page match real tensors, and its table matches the script."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import CHROMA, benchmark_script

from audiolens.model.loading import HUB
from audiolens.tracing.clock import CACHE_NAMES


@pytest.fixture(scope="module")
def checkpoints() -> ModuleType:
    return benchmark_script("checkpoints")


def test_every_known_name_has_its_size(checkpoints: ModuleType) -> None:
    assert {size.name for size in checkpoints.SIZES} == set(HUB)


@pytest.mark.parametrize("name", ["lens", "stereo_lens", "melody_lens"])
def test_keys_and_values_take_what_the_formula_says(
    request: Any, checkpoints: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = request.getfixturevalue(name)
    config, steps = lens.config, 9
    monkeypatch.setattr(checkpoints, "CHROMA", CHROMA)
    prefixed = config.conditioning == "prefix"
    size = checkpoints.Size("tiny", config.n_layers, config.d_model, stereo=config.channels == 2, melody=prefixed)
    text = lens.tokenizer(["fast piano", "slow drums"], return_tensors="pt")
    columns = torch.zeros(2 * config.n_codebooks, steps, dtype=torch.long)
    with torch.no_grad():
        out = lens.model(**text, decoder_input_ids=columns, use_cache=True)
    kept = next(out[name] for name in CACHE_NAMES if name in out)
    sides = [kept.self_attention_cache, kept.cross_attention_cache]
    held = sum(part.numel() * part.element_size() for side in sides for layer in side.layers
               for part in (layer.keys, layer.values) if part is not None)  # fmt: skip
    tokens = text["input_ids"].shape[1]
    assert held == 2 * checkpoints.cache_bytes(size, steps, tokens, branches=1, item=4)


def test_a_recording_takes_what_the_formula_says(lens: Any, codes: torch.Tensor, checkpoints: ModuleType) -> None:
    _, cache = lens.run_with_cache(["calm"] * 5, codes)
    held = sum(value.numel() * value.element_size() for value in cache.tensors.values())
    size = checkpoints.Size("tiny", lens.config.n_layers, lens.config.d_model)
    assert held == 5 * checkpoints.recording_bytes(size, lens.timeline(codes.shape[-1]).steps, item=4)


def test_the_smallest_model_counts_as_published_and_stands_in_the_page(checkpoints: ModuleType) -> None:
    size = checkpoints.SIZES[0]
    model = checkpoints.shell(size)
    assert all(parameter.is_meta for parameter in model.parameters())
    # Blocks of two attentions (4 x width^2 each) and an MLP (8 x width^2) with three norms, embeddings of 2,049 codes,
    # heads of 2,048, and the last norm.
    width = size.width
    block = 16 * width**2 + 6 * width
    expected = size.blocks * block + 4 * 2049 * width + 4 * 2048 * width + 2 * width
    assert checkpoints.parameters(model.decoder) == expected
    row = next(line for line in checkpoints.PAGE.read_text("utf-8").splitlines() if f"`{size.name}`" in line)
    assert f"{checkpoints.parameters(model) / 1e9:.2f} B" in row
