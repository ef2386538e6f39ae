"""étude's decoder: a stock MusicGen language model over codes, trained to follow the words of a prompt.

A model trained only to predict the next code ignores the words, because one second of music already reveals tempo and
brightness. It also learns the beat late, because beats are rare among codes that are mostly noise. Five changes help.
They do not favour any block, so training does not impose *where* a concept is represented. The text encoder is
pre-trained (`text.pretrain`). Some crops are short, so that the model sees many beginnings. Beginnings have a higher
weight in the loss, because only the words are informative there. In some rows part of the history is hidden, so that
the model must rely on the words. An auxiliary head on the final state, discarded after training, predicts beat and
attributes (`listener`).
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

from audiolens.etude.training import checkpoint, listener, text
from audiolens.etude.training.codec import CODEBOOK_SIZE, N_CODEBOOKS
from audiolens.etude.training.rates import warm_cosine
from audiolens.model.timeline import delay, delays_of

START = CODEBOOK_SIZE
"""The start token, one past the last code as in every MusicGen; it also fills padding and delayed positions."""
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
    # A model built from parts has no attention implementation set, and would then attend to the future.
    decoder.set_attn_implementation("sdpa")
    for embedding in decoder.model.decoder.embed_tokens:
        torch.nn.init.normal_(embedding.weight, std=0.4)
    torch.nn.init.normal_(model.enc_to_dec_proj.weight, std=0.125)
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = generation.decoder_start_token_id = START
    generation.do_sample, generation.guidance_scale, generation.max_length = True, 3.0, 131
    return model


@dataclass(frozen=True)
class TrainingSchedule:
    """The length of the decoder's training, the shape of its batches, and the weights of its loss."""

    steps: int = 17_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup: int = 300
    crop_frames: tuple[int, ...] = (64, 128)
    crop_shares: tuple[float, ...] = (0.3, 0.7)
    text_dropout: float = 0.12
    history_dropout: float = 0.12
    codebook_weights: tuple[float, ...] = (2.0, 1.0, 0.6, 0.4)
    beginning: tuple[int, float] = (6, 3.0)
    """The number of steps at the start of a crop that have a higher weight in the loss, and the weight."""
    listening_weight: float = 0.6


def final_states(
    model: Any,
    inputs: Int[Tensor, "row codebook step"],
    tokens: dict[str, Tensor],
    text_kept: Bool[Tensor, " row"],
    history_kept: Bool[Tensor, "row step"] | None = None,
) -> Float[Tensor, "row step width"]:
    """The decoder's final state at every step, from which the next codes are predicted.

    Rows without text get zero states and a zero mask, exactly as in the unconditional (null) half of a guided batch.
    """
    if history_kept is not None:
        inputs = torch.where(history_kept[:, None], inputs, START)
    states = model.enc_to_dec_proj(model.text_encoder(**tokens).last_hidden_state)
    mask = tokens["attention_mask"] * text_kept[:, None]
    return model.decoder.model(
        input_ids=inputs.reshape(-1, inputs.shape[-1]),
        encoder_hidden_states=states * mask[..., None],
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state


def code_losses(
    model: Any, states: Float[Tensor, "row step width"], columns: Int[Tensor, "row codebook column"]
) -> tuple[Float[Tensor, "row codebook step"], Bool[Tensor, "row codebook step"]]:
    """The loss in nats of every code predicted from `states`, and a mask of real codes (as opposed to filler)."""
    targets = columns[..., 1:]
    logits = torch.stack([head(states) for head in model.decoder.lm_heads], dim=1)
    losses = F.cross_entropy(logits.permute(0, 3, 1, 2), targets % CODEBOOK_SIZE, reduction="none")
    return losses, targets != START


def train(
    model: MusicgenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    codes: Integer[np.ndarray, "clip codebook frame"],
    corpus_seed: int,
    out: Path,
    schedule: TrainingSchedule = TrainingSchedule(),  # noqa: B008 (frozen)
    report: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    save_every: int = 250,
    stop_at: int | None = None,
    device: str = "cpu",
) -> MusicgenForConditionalGeneration:
    """Train decoder and text encoder jointly on the first clips of a set, resuming from checkpoints in `out`.

    `stop_at` ends the run early without changing the learning rates of `schedule`; a later call resumes there.
    """
    torch.manual_seed(0)
    labels = listener.Labels.of(len(codes), corpus_seed)
    moved: Any = model
    moved.to(device)
    head = listener.build_head(moved.config.decoder.hidden_size).to(device)
    trained = trained_parts(model, head)
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
        columns, texts, targets = _crop(codes, labels, rng, schedule)
        columns, targets = columns.to(device), targets.to(device)
        tokens = text.tokenize(tokenizer, texts).to(device)
        text_kept = torch.from_numpy(rng.random(schedule.batch_size) >= schedule.text_dropout).to(device)
        history = _history(rng, schedule, columns.shape[-1] - 1).to(device)
        states = final_states(model, columns[..., :-1], dict(tokens), text_kept, history)
        losses, real = code_losses(model, states, columns)
        weight = real * weights
        weight[..., : schedule.beginning[0]] *= schedule.beginning[1]
        nats = (losses * weight).sum() / weight.sum()
        # Step t predicts frame t of the first codebook; the last steps only complete the delayed codebooks.
        unheard = listener.unheard(head(states[:, : targets.shape[1]]), targets)
        optimizer.zero_grad()
        (nats + schedule.listening_weight * (unheard.beat + unheard.attributes)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            lost = {name: float(value.detach()) for name, value in unheard._asdict().items()}
            report(step, schedule.steps, {"nats": float(nats.detach()), **lost})
        if step % save_every == 0 or step == last:
            checkpoint.save(out, trained, step, optimizer)
    return model.eval()


def trained_parts(model: Any, head: torch.nn.Linear) -> dict[str, torch.nn.Module]:
    """The modules that are trained with the decoder, by their names in a checkpoint."""
    return {
        "text_encoder": model.text_encoder,
        "decoder": model.decoder,
        "projection": model.enc_to_dec_proj,
        "head": head,
    }


def _crop(
    codes: Integer[np.ndarray, "clip codebook frame"],
    labels: listener.Labels,
    rng: np.random.Generator,
    schedule: TrainingSchedule,
) -> tuple[Int[Tensor, "row codebook column"], list[str], Float[Tensor, "row crop_frame target"]]:
    length = int(rng.choice(schedule.crop_frames, p=schedule.crop_shares))
    clips = rng.integers(len(codes), size=schedule.batch_size)
    starts = rng.integers(codes.shape[-1] - length + 1, size=schedule.batch_size)
    cut = np.stack([codes[clip, :, start : start + length] for clip, start in zip(clips, starts, strict=True)])
    columns = delay(torch.from_numpy(cut).long(), DELAYS, START)
    texts = [text.scatter_unknown(labels.captions[clip], rng) for clip in clips]
    return columns, texts, labels.targets(clips, starts, length)


def _history(rng: np.random.Generator, schedule: TrainingSchedule, steps: int) -> Bool[Tensor, "row step"]:
    """A mask of the columns that each row may read: in most rows all of them, in the others a random part or none."""
    hidden_share = np.where(
        rng.random(schedule.batch_size) < schedule.history_dropout, rng.uniform(0.2, 1.0, schedule.batch_size), 0.0
    )
    return torch.from_numpy(rng.random((schedule.batch_size, steps)) >= hidden_share[:, None])
