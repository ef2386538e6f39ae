"""Training in MusicGen Melody's form computes what transformers and the lens compute, and padding has no effect."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from audiolens import AudioLens
from audiolens.etude.training import codec, decoder, text
from audiolens.etude.training.recipes import named
from audiolens.model.timeline import delay, delays_of

RECIPE = named("etude-melody")
DELAYS = delays_of(8, channels=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return RECIPE.reading.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(0)
    built: Any = decoder.build(RECIPE.reading.encoder(tokenizer), codec.build(8), RECIPE.form)
    with torch.no_grad():
        # louder than fresh weights, so that the text matters
        for layer in built.decoder.model.decoder.layers:
            layer.self_attn.v_proj.weight.mul_(4)
    return built.eval()


def columns(rows: int, frames: int = 6) -> torch.Tensor:
    codes = torch.randint(256, (rows, 8, frames), generator=torch.Generator().manual_seed(3))
    return delay(codes, DELAYS, decoder.START)


def states(model: Any, tokens: dict[str, torch.Tensor], read: torch.Tensor, kept: bool = True) -> torch.Tensor:
    with torch.no_grad():
        return decoder.final_states(model, read[..., :-1], tokens, torch.full((len(read),), kept))


def test_losses_are_those_of_the_bare_model(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = dict(text.tokenize(tokenizer, ["a slow tune", "a fast song"]))
    assert tokens["attention_mask"].all()
    read = columns(2)
    losses, real = decoder.code_losses(model, states(model, tokens, read), read)
    with torch.no_grad():
        chroma = torch.zeros(2, 1, 12)
        chroma[..., 0] = 1
        steps = read.shape[-1] - 1
        bare = model(decoder_input_ids=read[..., :-1].reshape(16, -1), input_features=chroma, **tokens).logits
        logits = bare[:, -steps:].reshape(2, 8, steps, -1)
    expected = -logits.log_softmax(-1).gather(-1, (read[..., 1:] % 256)[..., None])[..., 0]
    assert torch.allclose(losses[real], expected[real], atol=1e-5)


@pytest.mark.parametrize("branch", ["cond", "null"])
def test_the_lens_reads_the_same_states(model: Any, tokenizer: PreTrainedTokenizerFast, branch: str) -> None:
    prompts = ["a slow tune", "a fast song"]
    read = torch.randint(256, (2, 8, 6), generator=torch.Generator().manual_seed(3))
    # the lens wraps the modules of its model, and the other tests replace a method of one
    lens = AudioLens(deepcopy(model), tokenizer)
    tokens = dict(text.tokenize(tokenizer, prompts))
    ours = states(model, tokens, delay(read, DELAYS, decoder.START), kept=branch == "cond")
    guidance = 3.0 if branch == "null" else 1.0
    _, cache = lens.run_with_cache(
        prompts, codes=read, sites=["ln_final.hook_normalized"], branch=branch, guidance_scale=guidance
    )
    theirs = cache["ln_final.hook_normalized"]
    assert theirs.shape[1] >= 6
    assert torch.allclose(ours[:, : theirs.shape[1]], theirs, atol=1e-4)


def test_padding_only_moves_the_audio_to_later_positions(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row that is padded must equal the same row alone, if both begin at the same position."""
    short, long = "a slow tune", "a fast little song with drums from the studio"
    both = dict(text.tokenize(tokenizer, [short, long]))
    padding = int((both["attention_mask"][0] == 0).sum())
    assert padding > 0
    read = columns(2)
    together = states(model, both, read)
    alone = dict(text.tokenize(tokenizer, [short]))
    positions = model.decoder.model.decoder.embed_positions
    plain = type(positions).forward

    def later(self: Any, inputs: torch.Tensor, past: int = 0) -> torch.Tensor:
        return plain(self, inputs, past + padding)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(positions), "forward", later)
        expected = states(model, alone, read[:1])
    assert torch.isfinite(together).all()
    assert torch.allclose(together[:1], expected, atol=1e-5)
    assert not torch.allclose(together[:1], states(model, alone, read[:1]), atol=1e-3)


def test_batches_have_captions_of_similar_length_and_every_clip_equally_often() -> None:
    sizes = np.arange(400) % 40
    schedule = RECIPE.schedule
    counts = np.zeros(400)
    for step in range(1500):
        codes = np.zeros((400, 1, 256), dtype=np.uint8)
        clips, _, length = decoder._crop(codes, np.random.default_rng(step), schedule, sizes)
        assert len(clips) == schedule.rows(length)
        assert np.ptp(sizes[clips]) < 30
        np.add.at(counts, clips, 1)
    by_size = np.array([counts[sizes == size].mean() for size in range(40)])
    assert by_size.max() / by_size.min() < 1.5


@pytest.mark.parametrize("name", ["etude", "etude-melody"])
def test_padding_does_not_reach_the_text_encoder_in_training(name: str) -> None:
    recipe = named(name)
    tokenizer = recipe.reading.tokenizer()
    built: Any = decoder.build(recipe.reading.encoder(tokenizer), codec.build(8), recipe.form)
    both = dict(text.tokenize(tokenizer, ["a slow tune", "a fast little song with drums from the studio"]))
    alone = dict(text.tokenize(tokenizer, ["a slow tune"]))
    with torch.no_grad():
        padded, own = (built.text_encoder(**tokens).last_hidden_state[0] for tokens in (both, alone))
    assert torch.allclose(padded[: len(own)], own, atol=1e-5)


@pytest.mark.parametrize("name", ["etude", "etude-melody"])
def test_training_in_bfloat16_has_the_gradient_of_float32(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = named(name)
    torch.manual_seed(0)
    built: Any = decoder.build(recipe.reading.encoder(tokenizer), codec.build(8), recipe.form)
    tokens = dict(text.tokenize(tokenizer, ["a slow tune", "a fast song with a long name", "music"]))
    read, kept = columns(3), torch.tensor([True, True, False])

    def gradient(bfloat16: bool) -> torch.Tensor:
        built.zero_grad()
        with decoder.precision(built, replace(recipe.schedule, bfloat16=bfloat16), "cpu"):
            out = decoder.final_states(built, read[..., :-1], tokens, kept)
            losses, real = decoder.code_losses(built, out, read)
        losses[real].mean().backward()
        assert losses.dtype == torch.float32
        return torch.cat([p.grad.flatten() for p in built.parameters() if p.grad is not None]).double()

    exact, low = gradient(False), gradient(True)
    assert torch.cosine_similarity(exact, low, 0) > 0.999
    if torch.cpu.get_capabilities().get("avx512_bf16", False):
        assert built.decoder.config._attn_implementation == "eager"
        assert not torch.equal(exact, low)
