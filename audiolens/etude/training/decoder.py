"""étude's decoder: a stock MusicGen language model over codes, trained to follow the words of a prompt.

A model trained only to predict the next code ignores the words, because one second of music already reveals tempo and
brightness. It also learns the beat late, because beats are rare among codes that are mostly noise. Five changes help.
They do not favour any block, so training does not impose *where* a concept is represented. The text encoder is
pre-trained (`text.pretrain`). Some crops are short, so that the model sees many beginnings. Beginnings have a higher
weight in the loss, because only the words are informative there. In some rows part of the history is hidden, so that
the model must rely on the words. An auxiliary head on the final state, discarded after training, predicts beat and
attributes (`listener`).

In MusicGen Melody's form, text does not reach the decoder by cross-attention: it stands in the decoder's own sequence,
after frames of null chroma. Without a mask the decoder would read padding as text. Rows are therefore padded on the
left with masked positions, and a batch has captions of similar length, because padding moves the audio to later
positions.
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
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForCausalLM,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from audiolens.etude import synth
from audiolens.etude.form import Music
from audiolens.etude.training import checkpoint, listener, text
from audiolens.etude.training.codec import CODEBOOK_SIZE, N_CODEBOOKS
from audiolens.etude.training.rates import warm_cosine
from audiolens.model.timeline import delay, delays_of

START = CODEBOOK_SIZE
"""The start token, one past the last code as in every MusicGen; it also fills padding and delayed positions."""
DELAYS = delays_of(N_CODEBOOKS, channels=1)


Etude = MusicgenForConditionalGeneration | MusicgenMelodyForConditionalGeneration
SORTED_FROM = 4
"""In Melody's form, captions of similar length are chosen among this many times the batch size."""


@dataclass(frozen=True)
class Form:
    """The form of a decoder.

    Attributes:
        blocks, width, heads: the sizes of the transformer; the MLPs are four times as wide.
        codebooks: the number of codebooks.
        frames: the longest clip that the generation settings of the model allow, in frames.
        chroma_frames: the frames of null chroma before the text in Melody's form. `None` stands for MusicGen's form,
            in which the decoder attends to the text.
        masks_text: whether the text encoder ignores padding while the decoder is trained. The bundled étude's text
            encoder attended to it, because a model built from parts has no attention implementation set.
    """

    blocks: int = 8
    width: int = 192
    heads: int = 6
    codebooks: int = N_CODEBOOKS
    frames: int = 128
    chroma_frames: int | None = None
    masks_text: bool = False


def build(text_encoder: T5EncoderModel, codec: EncodecModel, form: Form = Form()) -> Etude:  # noqa: B008 (frozen)
    """A MusicGen with an untrained decoder; by default of width 192, with 8 blocks and 6 heads (5.12 M parameters)."""
    settings = {
        "vocab_size": CODEBOOK_SIZE, "max_position_embeddings": 1024, "num_hidden_layers": form.blocks,
        "hidden_size": form.width, "ffn_dim": 4 * form.width, "num_attention_heads": form.heads,
        "num_codebooks": form.codebooks, "audio_channels": 1, "dropout": 0.0, "tie_word_embeddings": False,
        "pad_token_id": START, "bos_token_id": START,
    }  # fmt: skip
    decoder: Any
    model: Any
    if form.chroma_frames is None:
        decoder = MusicgenForCausalLM(MusicgenDecoderConfig(**settings))
        model = MusicgenForConditionalGeneration(text_encoder=text_encoder, audio_encoder=codec, decoder=decoder)
    else:
        decoder = MusicgenMelodyForCausalLM(MusicgenMelodyDecoderConfig(**settings))
        parts = {"text_encoder": text_encoder.config, "audio_encoder": codec.config, "decoder": decoder.config}
        config: Any = MusicgenMelodyConfig(**parts, chroma_length=form.chroma_frames)
        model = MusicgenMelodyForConditionalGeneration(config, text_encoder, codec, decoder)
    # A model built from parts has no attention implementation set, and would then attend to the future.
    decoder.set_attn_implementation("sdpa")
    if form.masks_text:
        model.text_encoder.set_attn_implementation("sdpa")
    for embedding in decoder.model.decoder.embed_tokens:
        torch.nn.init.normal_(embedding.weight, std=0.4)
    torch.nn.init.normal_(model.enc_to_dec_proj.weight, std=0.125)
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = generation.decoder_start_token_id = START
    generation.do_sample, generation.guidance_scale = True, 3.0
    generation.max_length = form.frames + form.codebooks - 1
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
    crop_rows: tuple[int, ...] | None = None
    """The number of crops in a batch for each length of crop; `None` stands for `batch_size`."""
    text_dropout: float = 0.12
    history_dropout: float = 0.12
    codebook_weights: tuple[float, ...] = (2.0, 1.0, 0.6, 0.4)
    beginning: tuple[int, float] = (6, 3.0)
    """The number of steps at the start of a crop that have a higher weight in the loss, and the weight."""
    listening_weight: float = 0.6
    """The weight of the auxiliary head; 0 leaves it out."""
    bfloat16: bool = False
    """Whether matrix products are computed in bfloat16 (autocast), if the GPU or the CPU has instructions for it."""
    seed: int = 0
    """The seed of the order of the data, and of the auxiliary head."""

    def rows(self, length: int) -> int:
        """The number of crops in a batch of crops of `length` frames."""
        return self.batch_size if self.crop_rows is None else self.crop_rows[self.crop_frames.index(length)]


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
    if model.config.model_type == "musicgen_melody":
        given, mask = prefix(model, states, tokens["attention_mask"], text_kept)
    else:
        mask = tokens["attention_mask"] * text_kept[:, None]
        given = states * mask[..., None]
    out = model.decoder.model(
        input_ids=inputs.reshape(-1, inputs.shape[-1]),
        encoder_hidden_states=given,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return out[:, -inputs.shape[-1] :]


def prefix(
    model: Any,
    states: Float[Tensor, "row token width"],
    mask: Int[Tensor, "row token"],
    text_kept: Bool[Tensor, " row"],
) -> tuple[Float[Tensor, "row position width"], Int[Tensor, "row position"]]:
    """What stands before the audio in Melody's form, with its mask: padding, frames of null chroma, then the text.

    Rows without text have zero states in the place of its tokens, which the decoder does attend to, as in the
    unconditional half of a guided batch.
    """
    chroma = states.new_zeros(len(states), 1, model.config.num_chroma)
    chroma[..., 0] = 1
    chroma = model.audio_enc_to_dec_proj(chroma).to(states.dtype).expand(-1, model.config.chroma_length, -1)
    kept = (mask * text_kept[:, None])[..., None]
    whole = torch.cat([chroma, states * kept], dim=1)
    attended = torch.cat([mask.new_ones(chroma.shape[:2]), mask], dim=1)
    # Padding on the right becomes padding on the left: the text must end where the audio begins.
    padding = (1 - mask).sum(1, keepdim=True)
    order = (torch.arange(whole.shape[1], device=mask.device) - padding) % whole.shape[1]
    return whole.gather(1, order[..., None].expand_as(whole)), attended.gather(1, order)


def code_losses(
    model: Any, states: Float[Tensor, "row step width"], columns: Int[Tensor, "row codebook column"]
) -> tuple[Float[Tensor, "row codebook step"], Bool[Tensor, "row codebook step"]]:
    """The loss in nats of every code predicted from `states`, and a mask of real codes (as opposed to filler)."""
    targets = columns[..., 1:]
    logits = torch.stack([head(states) for head in model.decoder.lm_heads], dim=1)
    losses = F.cross_entropy(logits.permute(0, 3, 1, 2), targets % CODEBOOK_SIZE, reduction="none")
    return losses, targets != START


def train(
    model: Etude,
    tokenizer: PreTrainedTokenizerFast,
    codes: Integer[np.ndarray, "clip codebook frame"],
    corpus_seed: int,
    out: Path,
    schedule: TrainingSchedule = TrainingSchedule(),  # noqa: B008 (frozen)
    report: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    save_every: int = 250,
    stop_at: int | None = None,
    device: str = "cpu",
    reading: text.Reading = text.BUNDLED,
    music: Music = synth.BUNDLED,
) -> Etude:
    """Train decoder and text encoder jointly on the first clips of a set, resuming from checkpoints in `out`.

    `stop_at` ends the run early without changing the learning rates of `schedule`; a later call resumes there.
    """
    torch.manual_seed(schedule.seed)
    labels = listener.Labels.of(len(codes), corpus_seed, music, reading.wording)
    delays = delays_of(codes.shape[1], channels=1)
    moved: Any = model
    moved.to(device)
    head = listener.build_head(moved.config.decoder.hidden_size).to(device)
    trained = trained_parts(model, head)
    parameters = [p for module in trained.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    step = checkpoint.load(out, trained, optimizer)
    weights = torch.tensor(schedule.codebook_weights, device=device)[:, None]
    lower = precision(moved, schedule, device)
    sizes = None
    if moved.config.model_type == "musicgen_melody":
        sizes = np.array([len(ids) for ids in tokenizer(labels.captions)["input_ids"]])
    model.train()
    last = schedule.steps if stop_at is None else min(stop_at, schedule.steps)
    while step < last:
        for group in optimizer.param_groups:
            group["lr"] = warm_cosine(step, schedule.steps, schedule.learning_rate, schedule.warmup, floor=0.02)
        rng = np.random.default_rng([13, step, schedule.seed] if schedule.seed else [13, step])
        clips, starts, length = _crop(codes, rng, schedule, sizes)
        columns = _columns(codes, clips, starts, length, delays).to(device)
        texts = [reading.scatter(labels.captions[clip], rng) for clip in clips]
        targets = labels.targets(clips, starts, length).to(device)
        tokens = text.tokenize(tokenizer, texts).to(device)
        text_kept = torch.from_numpy(rng.random(len(clips)) >= schedule.text_dropout).to(device)
        history = _history(rng, schedule, len(clips), columns.shape[-1] - 1).to(device)
        with lower:
            states = final_states(model, columns[..., :-1], dict(tokens), text_kept, history)
            losses, real = code_losses(model, states, columns)
            # Step t predicts frame t of the first codebook; the last steps only complete the delayed codebooks.
            said = head(states[:, : targets.shape[1]]).float()
        weight = real * weights
        weight[..., : schedule.beginning[0]] *= schedule.beginning[1]
        nats = (losses * weight).sum() / weight.sum()
        unheard = listener.unheard(said, targets)
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
    moved.decoder.set_attn_implementation("sdpa")
    return model.eval()


def precision(model: Any, schedule: TrainingSchedule, device: str) -> torch.autocast:
    """The precision of matrix products in training, as a context.

    On a CPU in bfloat16, attention is computed as plain matrix products, because torch's fused attention has a backward
    pass there that is four times as slow as in float32.
    """
    kind = torch.device(device).type
    able = kind == "cuda" or (kind == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False))
    if schedule.bfloat16 and able and kind == "cpu":
        model.decoder.set_attn_implementation("eager")
    return torch.autocast(kind, torch.bfloat16, enabled=schedule.bfloat16 and able)


def trained_parts(model: Any, head: torch.nn.Linear) -> dict[str, torch.nn.Module]:
    """The modules that are trained with the decoder, by their names in a checkpoint."""
    parts = {
        "text_encoder": model.text_encoder,
        "decoder": model.decoder,
        "projection": model.enc_to_dec_proj,
        "head": head,
    }
    chroma = getattr(model, "audio_enc_to_dec_proj", None)
    return parts if chroma is None else {**parts, "chroma": chroma}


def _crop(
    codes: Integer[np.ndarray, "clip codebook frame"],
    rng: np.random.Generator,
    schedule: TrainingSchedule,
    sizes: Int[np.ndarray, " clip"] | None = None,
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"], int]:
    """The clips of a batch, and the frames at which their crops start, and the length of the crops.

    `sizes` are the lengths of captions in tokens; if given, the clips of a batch have captions of similar length.
    """
    length = int(rng.choice(schedule.crop_frames, p=schedule.crop_shares))
    rows = schedule.rows(length)
    if sizes is None:
        clips = rng.integers(len(codes), size=rows)
    else:
        drawn = rng.integers(len(codes), size=SORTED_FROM * rows)
        drawn = drawn[np.argsort(sizes[drawn], kind="stable")]
        clips = drawn.reshape(SORTED_FROM, -1)[rng.integers(SORTED_FROM)]
    return clips, rng.integers(codes.shape[-1] - length + 1, size=rows), length


def _columns(
    codes: Integer[np.ndarray, "clip codebook frame"],
    clips: Int[np.ndarray, " row"],
    starts: Int[np.ndarray, " row"],
    length: int,
    delays: tuple[int, ...],
) -> Int[Tensor, "row codebook column"]:
    cut = np.stack([codes[clip, :, start : start + length] for clip, start in zip(clips, starts, strict=True)])
    return delay(torch.from_numpy(cut).long(), delays, START)


def _history(rng: np.random.Generator, schedule: TrainingSchedule, rows: int, steps: int) -> Bool[Tensor, "row step"]:
    """A mask of the columns that each row may read: in most rows all of them, in the others a random part or none."""
    hidden_share = np.where(rng.random(rows) < schedule.history_dropout, rng.uniform(0.2, 1.0, rows), 0.0)
    return torch.from_numpy(rng.random((rows, steps)) >= hidden_share[:, None])
