"""The recipe of the bundled étude produces what it produced when étude was trained.

The values were recorded from the code before it had other recipes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from audiolens.etude import synth
from audiolens.etude.training import codec, corpus, decoder, recipes, text
from audiolens.etude.training.train import WEIGHTS

RECIPE = recipes.BUNDLED
DECODER = {"nats": 5.562272, "beat": 1.039348, "attributes": 1.318949, "mode": 0.856028}


def test_a_clip_has_the_same_samples() -> None:
    clip = corpus.rendered(3, 1, RECIPE.material.seconds, RECIPE.material.music)
    expected = [3842, -3968, 4017, 415, 4629, -4796, -2719, -3862, 3023, 1629, -4889]
    # another release of numpy or scipy may round the last bit differently
    assert np.abs(clip[5::8191].astype(int) - expected).max() <= 1
    assert np.abs(clip.astype(float)).mean() == pytest.approx(2925.684, rel=1e-5)


def test_a_clip_has_the_same_label_and_caption() -> None:
    drawn = synth.draw(3, 1, RECIPE.material.music, RECIPE.reading.wording)
    assert drawn.caption.text == "a middle simple dim sad loop on chimes taking its time"
    assert drawn.attributes.tempo_bpm == pytest.approx(61.024951450020126)
    assert (drawn.attributes.instrument, drawn.attributes.meter, drawn.attributes.tonic) == ("bells", 4, 2)
    assert synth.label(3, 1)[:2] == (drawn.attributes, drawn.caption)


def test_a_caption_has_the_same_tokens() -> None:
    ids = RECIPE.reading.tokenizer()("a middle simple dim sad loop on chimes taking its time xylophone")["input_ids"]
    assert ids == [3, 92, 134, 38, 130, 83, 109, 28, 152, 73, 157, 2, 1]


def test_training_has_the_same_losses(tmp_path: Path) -> None:
    clips = np.stack([corpus.rendered(index, 1) for index in range(2)])
    heard: list[dict[str, float]] = []
    short = codec.TrainingSchedule(autoencoder=1, joint=1, decoder=1, bands_from=0, batch_size=2, segment_frames=8)
    trained = codec.train(
        clips, tmp_path / "codec.safetensors", short, lambda *a: heard.append(a[2]), report_every=1,
        n_codebooks=RECIPE.material.codebooks,
    )  # fmt: skip
    assert [step["log_magnitude"] for step in heard] == pytest.approx([1.509957, 1.436656, 1.628058], rel=1e-3)
    assert [step["waveform"] for step in heard] == pytest.approx([1.029741, 1.115140, 0.767329], rel=1e-3)
    tokenizer = RECIPE.reading.tokenizer()
    reader = RECIPE.reading.encoder(tokenizer)
    read: list[float] = []
    text.pretrain(
        reader, tokenizer, tmp_path / "text.safetensors", 20, 4, lambda *a: read.append(a[2]["unexplained"]),
        RECIPE.reading, RECIPE.schedule.seed,
    )  # fmt: skip
    assert read == pytest.approx([1.320089], rel=1e-3)
    model = decoder.build(reader, trained, RECIPE.form)
    codes = np.random.default_rng(0).integers(0, 256, (8, 4, 24)).astype(np.uint8)
    played: list[dict[str, float]] = []
    brief = decoder.TrainingSchedule(steps=20, batch_size=4, crop_frames=(8, 16), crop_shares=(0.5, 0.5))
    decoder.train(
        model, tokenizer, codes, 2, tmp_path / "decoder.safetensors", brief, lambda *a: played.append(a[2]),
        reading=RECIPE.reading, music=RECIPE.material.music,
    )  # fmt: skip
    assert played[0] == pytest.approx(DECODER, rel=1e-3)


def test_the_schedules_are_those_of_the_bundled_weights() -> None:
    assert RECIPE.material.schedule == codec.TrainingSchedule(700, 3400, 500, 1600, 16, 32, 1e-3)
    rates = [RECIPE.material.schedule.rate(step) for step in (0, 99, 2300)]
    assert rates == pytest.approx([1e-5, 0.998914e-3, 0.525e-3], rel=1e-4)
    schedule = RECIPE.schedule
    assert (schedule.steps, schedule.batch_size, schedule.rows(64), schedule.crop_frames) == (17_000, 16, 16, (64, 128))
    assert (RECIPE.material.clips, RECIPE.material.seed, RECIPE.material.codec_clips) == (24_576, 2, 2000)
    model = decoder.build(RECIPE.reading.encoder(RECIPE.reading.tokenizer()), codec.build(), RECIPE.form)
    shapes = {key: value.shape for key, value in load_file(WEIGHTS / "model.safetensors").items()}
    built = model.state_dict()
    assert all(built[key].shape == shape for key, shape in shapes.items())
    assert model.generation_config.max_length == 131
