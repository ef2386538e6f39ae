"""Étude's training recipe in miniature: it learns, resumes, and writes checkpoints that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, MusicgenForConditionalGeneration

from audiolens.etude.training import checkpoint, codec, corpus, decoder, export, listener, recipes, text, train
from audiolens.etude.training.codec import CODEBOOK_SIZE, N_CODEBOOKS
from audiolens.model.timeline import delay


@pytest.fixture(scope="module")
def model() -> MusicgenForConditionalGeneration:
    torch.manual_seed(0)
    return decoder.build(text.build_encoder(len(text.build_tokenizer())), codec.build())


def small_codec_schedule(**changes: int) -> codec.TrainingSchedule:
    sizes = {"autoencoder": 3, "joint": 3, "decoder": 2, "batch_size": 2, "segment_frames": 8}
    return codec.TrainingSchedule(**{**sizes, **changes})


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.stack([corpus.rendered(index, seed=1) for index in range(4)])


@pytest.mark.parametrize("killed_at", [2, 4], ids=["before the codebooks", "while they learn"])
def test_a_killed_codec_run_ends_like_an_uninterrupted_one(clips: np.ndarray, tmp_path: Path, killed_at: int) -> None:
    schedule = small_codec_schedule()
    whole = codec.train(clips, tmp_path / "whole.safetensors", schedule, save_every=1)

    def kill(step: int, *_: object) -> None:
        if step >= killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.train(clips, tmp_path / "cut.safetensors", schedule, save_every=1, report_every=1, report=kill)
    resumed = codec.train(clips, tmp_path / "cut.safetensors", schedule, save_every=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    used = torch.stack([layer.codebook.embed.abs().sum() for layer in whole.quantizer.layers])
    assert (used > 0).all()


def test_quantising_is_what_transformers_encodes_and_decodes(clips: np.ndarray, tmp_path: Path) -> None:
    trained = codec.train(clips, tmp_path / "codec.safetensors", small_codec_schedule())
    audio = torch.from_numpy(clips[:2].astype(np.float32) / 32768)[:, None]
    with torch.no_grad():
        latent = trained.encoder(audio)
        ours = codec.quantize(trained, latent)
        theirs = trained.quantizer.decode(trained.quantizer.encode(latent))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_delay_is_transformers_own(model: MusicgenForConditionalGeneration) -> None:
    codes = torch.randint(CODEBOOK_SIZE, (2, N_CODEBOOKS, 12))
    columns = delay(codes, decoder.DELAYS, decoder.START)
    start = torch.full((2 * N_CODEBOOKS, 1), decoder.START)
    _, pattern = model.decoder.build_delay_pattern_mask(start, decoder.START, max_length=columns.shape[-1])
    forced = pattern.view(2, N_CODEBOOKS, -1) == decoder.START
    assert torch.equal(columns == decoder.START, forced)
    for k in range(N_CODEBOOKS):
        assert torch.equal(columns[:, k, 1 + k : 13 + k], codes[:, k])


def test_code_losses_are_those_of_the_bare_model(model: MusicgenForConditionalGeneration) -> None:
    tokenizer = text.build_tokenizer()
    tokens = dict(text.tokenize(tokenizer, ["a slow tune", "a bright little song with drums"]))
    columns = delay(torch.randint(CODEBOOK_SIZE, (2, N_CODEBOOKS, 6)), decoder.DELAYS, decoder.START)
    with torch.no_grad():
        states = decoder.final_states(model, columns[..., :-1], tokens, torch.ones(2, dtype=torch.bool))
        losses, real = decoder.code_losses(model, states, columns)
        logits = model(decoder_input_ids=columns[..., :-1].reshape(8, -1), **tokens).logits
    for row in range(2):
        for k in range(N_CODEBOOKS):
            for step in range(columns.shape[-1] - 1):
                code = columns[row, k, step + 1]
                assert bool(real[row, k, step]) == (int(code) != decoder.START)
                if code != decoder.START:
                    expected = -logits[row * N_CODEBOOKS + k, step].log_softmax(-1)[code]
                    assert torch.isclose(losses[row, k, step], expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_no_code_is_predicted_from_the_future(model: MusicgenForConditionalGeneration, training: bool) -> None:
    tokens = dict(text.tokenize(text.build_tokenizer(), ["a slow tune"]))
    columns = delay(torch.randint(CODEBOOK_SIZE, (1, N_CODEBOOKS, 12)), decoder.DELAYS, decoder.START)
    later = columns.clone()
    later[..., 9:] = 3
    model.train(training)
    with torch.no_grad():
        before, after = (
            decoder.final_states(model, each[..., :-1], tokens, torch.ones(1, dtype=torch.bool))
            for each in (columns, later)
        )
    model.eval()
    # step 9 reads column 9, the first that differs
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9], after[:, 9])


def test_training_learns_and_resumes(tmp_path: Path) -> None:
    tokenizer = text.build_tokenizer()
    codes = np.random.default_rng(0).integers(0, 4, (8, N_CODEBOOKS, 16)).astype(np.uint8)
    seen: list[float] = []

    def run(steps: int, name: str) -> MusicgenForConditionalGeneration:
        torch.manual_seed(0)
        fresh = decoder.build(text.build_encoder(len(tokenizer)), codec.build())
        schedule = decoder.TrainingSchedule(
            60, 4, learning_rate=3e-4, warmup=5, crop_frames=(8, 16), crop_shares=(0.5, 0.5)
        )
        return decoder.train(
            fresh, tokenizer, codes, 2, tmp_path / name, schedule, lambda *a: seen.append(a[2]["nats"]), save_every=10,
            stop_at=steps,
        )  # fmt: skip

    whole = run(40, "whole.safetensors")
    assert seen[-1] < seen[0] < np.log(CODEBOOK_SIZE)
    run(20, "cut.safetensors")
    resumed = run(40, "cut.safetensors")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    assert checkpoint.load(tmp_path / "none.safetensors", {"m": module}) == 0
    checkpoint.save(tmp_path / "some.safetensors", {"m": module}, 7)
    other = torch.nn.Linear(2, 2)
    assert checkpoint.load(tmp_path / "some.safetensors", {"m": other}) == 7
    assert torch.equal(other.weight, module.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]


def test_transformers_alone_loads_and_plays_what_is_exported(
    model: MusicgenForConditionalGeneration, tmp_path: Path
) -> None:
    export.model(model, text.build_tokenizer(), tmp_path / "etude")
    processor = AutoProcessor.from_pretrained(tmp_path / "etude")
    loaded = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "etude")
    inputs = processor(text=["a slow tune", "fast"], padding=True, return_tensors="pt")
    audio = loaded.generate(**inputs, guidance_scale=3.0, max_new_tokens=9)
    assert audio.shape == (2, 1, 6 * codec.HOP)
    assert not (tmp_path / "etude.partial").exists()


def test_unknown_words_take_the_place_of_neutral_ones_only() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scattered = text.scatter_unknown("a slow little tune at full volume", rng).split()
        kept = [word for word in scattered if word != text.UNKNOWN]
        assert [w for w in kept if w not in {"a", "little", "tune"}] == ["slow", "at", "full", "volume"]


def test_training_goes_on_from_a_finished_model(tmp_path: Path) -> None:
    train._go_on_from(train.WEIGHTS, recipes.BUNDLED, tmp_path)
    finished: Any = MusicgenForConditionalGeneration.from_pretrained(train.WEIGHTS)
    reader = text.build_encoder(len(text.build_tokenizer()))
    fresh: Any = decoder.build(reader, codec.build())
    parts = decoder.trained_parts(fresh, listener.build_head(fresh.config.decoder.hidden_size))
    shared, own = tmp_path / "bundled", tmp_path / "etude-0"
    assert checkpoint.load(shared / "codec.safetensors", {"codec": fresh.audio_encoder}) == 2300
    assert checkpoint.load(own / "decoder.safetensors", parts) == 8500
    assert text.pretrain(reader, text.build_tokenizer(), own / "text.safetensors") is reader
    for name, value in finished.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    # what is under way is not begun again
    checkpoint.save(shared / "codec.safetensors", {"codec": fresh.audio_encoder}, 2400)
    train._go_on_from(train.WEIGHTS, recipes.BUNDLED, tmp_path)
    assert checkpoint.load(shared / "codec.safetensors", {"codec": fresh.audio_encoder}) == 2400
