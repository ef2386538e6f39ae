"""étude's decoder: a stock MusicGen language model over codes, trained so that words are heard.

Plain next-code training ignores the words, for a second of music already tells tempo and brightness. Three means make
them matter, and none of them favours a block, so that *where* a concept lives is the model's own affair:
the text encoder comes pre-trained (`text.pretrain`); clips are cropped at random, mostly short, so that many
beginnings are seen; and in a share of the rows part of the history is hidden, so that only the words can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from audiolens.etude import checkpoint, synth, text
from audiolens.etude.codec import CODEBOOK_SIZE, N_CODEBOOKS
from audiolens.etude.rates import warm_cosine
from audiolens.timeline import delay, delays_of

START = CODEBOOK_SIZE
"""The start token, the delay's filler and the padding: one past the last code, as in every MusicGen."""
DELAYS = delays_of(N_CODEBOOKS, channels=1)


def build(text_encoder: T5EncoderModel, codec: EncodecModel) -> MusicgenForConditionalGeneration:
    """A MusicGen with an untrained decoder of width 192, 8 blocks and 6 heads (5.12 M parameters)."""
    config = MusicgenDecoderConfig(
        vocab_size=CODEBOOK_SIZE, max_position_embeddings=1024, num_hidden_layers=8, hidden_size=192, ffn_dim=768,
        num_attention_heads=6, num_codebooks=N_CODEBOOKS, audio_channels=1, dropout=0.0, tie_word_embeddings=False,
        pad_token_id=START, bos_token_id=START,
    )  # fmt: skip
    decoder: Any = MusicgenForCausalLM(config)
    model: Any = MusicgenForConditionalGeneration(text_encoder=text_encoder, audio_encoder=codec, decoder=decoder)
    # Built from parts, the decoder's attention is left unset, and unset attention sees the future.
    decoder.set_attn_implementation("sdpa")
    for embedding in decoder.model.decoder.embed_tokens:
        torch.nn.init.normal_(embedding.weight, std=0.4)
    torch.nn.init.normal_(model.enc_to_dec_proj.weight, std=0.125)
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = generation.decoder_start_token_id = START
    generation.do_sample, generation.guidance_scale, generation.max_length = True, 3.0, 131
    return model


@dataclass(frozen=True)
class Schedule:
    """How long the decoder is trained, and on what."""

    steps: int = 3400
    batch_size: int = 24
    learning_rate: float = 2e-3
    warmup: int = 300
    crop_frames: tuple[int, ...] = (32, 48, 64, 128)
    crop_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    text_dropout: float = 0.12
    history_dropout: float = 0.25
    codebook_weights: tuple[float, ...] = (1.4, 1.1, 0.8, 0.7)


def code_losses(
    model: Any,
    columns: Int[Tensor, "row codebook column"],
    tokens: dict[str, Tensor],
    text_kept: Bool[Tensor, " row"],
    history_kept: Bool[Tensor, "row step"] | None = None,
) -> tuple[Float[Tensor, "row codebook step"], Bool[Tensor, "row codebook step"]]:
    """Nats of every predicted code, and which of them are real codes rather than filler.

    Rows without text get zero states and a zero mask, exactly what guidance's null half gets.
    """
    inputs, targets = columns[..., :-1], columns[..., 1:]
    if history_kept is not None:
        inputs = torch.where(history_kept[:, None], inputs, START)
    states = model.enc_to_dec_proj(model.text_encoder(**tokens).last_hidden_state)
    mask = tokens["attention_mask"] * text_kept[:, None]
    logits = model.decoder(
        input_ids=inputs.reshape(-1, inputs.shape[-1]),
        encoder_hidden_states=states * mask[..., None],
        encoder_attention_mask=mask,
        use_cache=False,
    ).logits
    losses = F.cross_entropy(
        logits.transpose(1, 2), targets.reshape(-1, targets.shape[-1]) % CODEBOOK_SIZE, reduction="none"
    )
    return losses.view(targets.shape), targets != START


def train(
    model: MusicgenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    codes: Integer[np.ndarray, "clip codebook frame"],
    corpus_seed: int,
    out: Path,
    schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
    report: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    save_every: int = 250,
    stop_at: int | None = None,
    device: str = "cpu",
) -> MusicgenForConditionalGeneration:
    """Train decoder and text encoder together on the first clips of a set, resuming from `out`; writes as it goes.

    `stop_at` ends the run early, at the learning rate that `schedule` has there: a later call goes on from it.
    """
    torch.manual_seed(0)
    captions = [synth.label(index, corpus_seed)[1].text for index in range(len(codes))]
    moved: Any = model
    moved.to(device)
    trained = {"text_encoder": model.text_encoder, "decoder": model.decoder, "projection": model.enc_to_dec_proj}
    parameters = [p for module in trained.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    step = checkpoint.load(out, trained, optimizer)
    weights = torch.tensor(schedule.codebook_weights, device=device)[:, None]
    model.train()
    last = schedule.steps if stop_at is None else min(stop_at, schedule.steps)
    while step < last:
        for group in optimizer.param_groups:
            group["lr"] = warm_cosine(step, schedule.steps, schedule.learning_rate, schedule.warmup, floor=0.02)
        rng = np.random.default_rng([13, step])
        columns, texts = _crop(codes, captions, rng, schedule)
        tokens = text.tokenize(tokenizer, texts).to(device)
        text_kept = torch.from_numpy(rng.random(schedule.batch_size) >= schedule.text_dropout).to(device)
        history = _history(rng, schedule, columns.shape[-1] - 1).to(device)
        losses, real = code_losses(model, columns.to(device), dict(tokens), text_kept, history)
        loss = (losses * real * weights).sum() / (real * weights).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            report(step, schedule.steps, {"nats": float(loss.detach())})
        if step % save_every == 0 or step == last:
            checkpoint.save(out, trained, step, optimizer)
    return model.eval()


def _crop(
    codes: Integer[np.ndarray, "clip codebook frame"],
    captions: list[str],
    rng: np.random.Generator,
    schedule: Schedule,
) -> tuple[Int[Tensor, "row codebook column"], list[str]]:
    length = int(rng.choice(schedule.crop_frames, p=schedule.crop_shares))
    rows = rng.integers(len(codes), size=schedule.batch_size)
    starts = rng.integers(codes.shape[-1] - length + 1, size=schedule.batch_size)
    cut = np.stack([codes[row, :, start : start + length] for row, start in zip(rows, starts, strict=True)])
    columns = delay(torch.from_numpy(cut).long(), DELAYS, START)
    return columns, [text.scatter_unknown(captions[row], rng) for row in rows]


def _history(rng: np.random.Generator, schedule: Schedule, steps: int) -> Bool[Tensor, "row step"]:
    """Which columns each row may read: all of them, but in a share of rows a random part, down to none."""
    hidden_share = np.where(
        rng.random(schedule.batch_size) < schedule.history_dropout, rng.uniform(0.2, 1.0, schedule.batch_size), 0.0
    )
    return torch.from_numpy(rng.random((schedule.batch_size, steps)) >= hidden_share[:, None])
