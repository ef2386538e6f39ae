"""The bundled étude matches its model card: it is small, stock, and follows the words of its prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, MusicgenForConditionalGeneration

from audiolens import AudioLens, measure
from audiolens.etude import captions, synth
from audiolens.etude.training import evaluate
from audiolens.etude.training.train import WEIGHTS


@pytest.fixture(scope="module")
def etude() -> AudioLens:
    return AudioLens.from_pretrained("etude")


def heard(lens: AudioLens, concept: str, column: str, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A measure of clips asked for the low and for the high pole in held-out words, the same seeds on both sides."""
    values = []
    for level in evaluate.POLES[concept]:
        prompts = evaluate.held_out_captions(concept, level, n)
        out = lens.generate(prompts, seconds=5.0, seeds=list(range(n)))
        assert out.audio is not None
        values.append(measure.table(out.audio, out.sample_rate, [column])[column].to_numpy())
    return values[0], values[1]


def test_it_is_small_and_holds_no_pickle() -> None:
    files = [path for path in WEIGHTS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}


def test_transformers_alone_loads_and_plays_it() -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(WEIGHTS)
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    inputs = processor(text=["a fast little tune", "dark"], padding=True, return_tensors="pt")
    alone = tokenizer(["a fast little tune", "dark"], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], alone["input_ids"])
    audio = model.generate(**inputs, guidance_scale=3.0, max_new_tokens=28)
    assert audio.shape == (2, 1, 25 * 640)
    assert audio.dtype == torch.float32
    assert 0.001 < audio.std() < 0.5


def test_its_dictionary_is_the_grammars() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    assert set(captions.vocabulary()) <= set(tokenizer.get_vocab())


def test_held_out_captions_cannot_be_training_captions() -> None:
    words = set(captions.vocabulary())
    for concept, levels in captions.ADJECTIVES.items():
        for level in levels:
            texts = evaluate.held_out_captions(concept, level)
            assert len(set(texts)) >= 20
            assert all(set(text.split()) - words for text in texts)


@pytest.mark.slow
def test_fast_words_are_heard_as_fast(etude: AudioLens) -> None:
    slow, fast = heard(etude, "tempo", "tempo_ioi")
    assert np.nanmedian(fast) > 1.4 * np.nanmedian(slow)


@pytest.mark.slow
def test_bright_words_are_heard_as_bright(etude: AudioLens) -> None:
    dark, bright = heard(etude, "timbre", "brightness")
    assert np.median(bright) > 1.4 * np.median(dark)


@pytest.mark.slow
def test_words_of_register_are_heard_as_high_and_low(etude: AudioLens) -> None:
    low, high = heard(etude, "register", "pitch")
    assert np.nanmedian(high) > 1.4 * np.nanmedian(low)


def test_the_codec_keeps_tempo_and_brightness(etude: AudioLens) -> None:
    clips = list(synth.labelled_clips(24, seed=8))
    raw = np.stack([clip.audio for clip in clips])[:, None]
    coded = etude.decode_codes(etude.encode_audio(raw, synth.SAMPLE_RATE)).numpy()
    before, after = (measure.table(audio, synth.SAMPLE_RATE, ["tempo", "brightness"]) for audio in (raw, coded))
    assert np.mean(np.abs(after.tempo / before.tempo - 1) < 0.04) > 0.9
    assert np.corrcoef(np.log(before.brightness), np.log(after.brightness))[0, 1] > 0.9


def test_the_weights_are_where_the_package_says() -> None:
    assert Path(WEIGHTS, "README.md").read_text("utf-8").startswith("---\nlibrary_name: transformers")
