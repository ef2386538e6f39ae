"""CLAP score and FAD agree with bare transformers, on a tiny CLAP with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from clap_models import write_clap
from scipy.signal import resample_poly

from audiolens import measure
from audiolens.errors import InputError, InputTypeError, ModelNotFoundError

RATE = 16_000


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("clap"), fusion=False)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("fused"), fusion=True)


@pytest.fixture(scope="module")
def sounds() -> np.ndarray:
    rng = np.random.default_rng(0)
    seconds = np.arange(2 * RATE) / RATE
    rows = [np.sin(2 * np.pi * hz * seconds) * np.exp(-3 * (seconds % 0.5)) for hz in (220, 1500)]
    return np.stack([*rows, rng.standard_normal(len(seconds))])[:, None].astype(np.float32) * 0.2


TEXTS = ["slow dark piano", "fast bright guitar", "loud drums"]


def bare(folder: Path, wave_48k: np.ndarray, text: str) -> float:
    """The cosine as transformers' own forward gives it."""
    from transformers import ClapModel, ClapProcessor

    model: Any = ClapModel.from_pretrained(folder).eval()
    processor = ClapProcessor.from_pretrained(folder)
    mel = processor.feature_extractor(wave_48k, sampling_rate=48_000, return_tensors="pt")
    tokens = processor.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            input_features=mel["input_features"],
            is_longer=torch.tensor([[False]]),
        )
        return float(out.logits_per_audio / model.logit_scale_a.exp())


@pytest.mark.parametrize("kind", ["clap", "fused"])
def test_scores_are_those_of_bare_transformers(kind: str, sounds: np.ndarray, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(kind)
    found = measure.clap_score(sounds, TEXTS, RATE, model=folder, batch_size=2)
    expected = [
        bare(folder, resample_poly(sound[0], 3, 1).astype(np.float32), text)
        for sound, text in zip(sounds, TEXTS, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 1e-3
    one = measure.clap_score(sounds, TEXTS[0], RATE, model=folder)
    assert one[0] == pytest.approx(found[0], abs=1e-5)


def test_texts_are_padded_behind_their_end_whatever_the_tokenizer_says(clap: Path, sounds: np.ndarray):
    from transformers import ClapModel, ClapProcessor

    model, processor = ClapModel.from_pretrained(clap).eval(), ClapProcessor.from_pretrained(clap)
    processor.tokenizer.padding_side = "left"
    uneven = ["slow dark piano with drums", "fast", "loud drums"]
    expected = [measure.clap_score(sounds[i : i + 1], uneven[i], RATE, model=clap)[0] for i in range(3)]
    np.testing.assert_allclose(measure.clap_score(sounds, uneven, RATE, model=(model, processor)), expected, atol=1e-5)
    assert processor.tokenizer.padding_side == "left"


def test_a_text_that_clap_would_cut_and_texts_in_no_order_are_refused(clap: Path, sounds: np.ndarray):
    with pytest.raises(InputError, match="a text has 46 tokens, but CLAP reads at most 40"):
        measure.clap_score(sounds, "drums " * 45, RATE, model=clap)
    with pytest.raises(TypeError, match="in order"):
        measure.clap_score(sounds, set(TEXTS), RATE, model=clap)  # type: ignore[arg-type]


def test_a_score_depends_on_its_clip_alone_and_leaves_the_random_state(fused: Path, sounds: np.ndarray):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    together = measure.clap_score(sounds, TEXTS, RATE, model=fused)
    alone = [measure.clap_score(sounds[i], TEXTS[i], RATE, model=fused)[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_a_long_clip_is_the_mean_of_its_windows(clap: Path, sounds: np.ndarray):
    long = np.concatenate([sounds[0], sounds[1], sounds[2][:, : RATE // 4]], axis=-1)
    at_48k = resample_poly(long[0], 3, 1).astype(np.float32)
    # The last quarter of a second is left out.
    expected = np.mean([bare(clap, at_48k[part * 96_000 : (part + 1) * 96_000], TEXTS[0]) for part in range(2)])
    assert measure.clap_score(long, TEXTS[0], RATE, model=clap)[0] == pytest.approx(expected, abs=1e-5)
    (windows,) = measure.clap_embeddings(long, RATE, model=clap)
    assert windows.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(windows, axis=1), 1, rtol=1e-5)


def test_files_and_a_loaded_pair_score_alike(clap: Path, sounds: np.ndarray, tmp_path: Path):
    from transformers import ClapModel, ClapProcessor

    soundfile.write(tmp_path / "a.wav", sounds[0].T, RATE, subtype="FLOAT")
    pair = (ClapModel.from_pretrained(clap).eval(), ClapProcessor.from_pretrained(clap))
    from_file = measure.clap_score([tmp_path / "a.wav"], TEXTS[0], model=pair)
    np.testing.assert_allclose(from_file, measure.clap_score(sounds[0], TEXTS[0], RATE, model=clap), atol=1e-6)


def test_distances_are_those_of_the_features_of_bare_transformers(clap: Path, fused: Path, sounds: np.ndarray):
    from transformers import ClapModel, ClapProcessor

    rng = np.random.default_rng(2)
    others = sounds[[1, 0, 1]] + 0.01 * rng.standard_normal(sounds.shape).astype(np.float32)
    for folder in (clap, fused):
        model: Any = ClapModel.from_pretrained(folder).eval()
        processor = ClapProcessor.from_pretrained(folder)
        found = measure.clap_distance(sounds, others, RATE, model=folder, batch_size=2)
        for row in range(3):
            read = []
            for sound in (sounds[row, 0], others[row, 0]):
                wave = resample_poly(sound, 3, 1).astype(np.float32)
                mel = processor.feature_extractor(wave, sampling_rate=48_000, return_tensors="pt")
                with torch.no_grad():
                    out = model.audio_model(
                        mel["input_features"], is_longer=torch.tensor([[False]]), output_hidden_states=True
                    )
                    read.append((model.audio_projection(out.pooler_output)[0], [one[0] for one in out.hidden_states]))
            (a, of_a), (b, of_b) = read
            # One embedding of patches, and one output of each of the two stages.
            assert len(of_a) == 3
            assert found.clap[row] == pytest.approx(1 - float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)
            # The squared distance of unit vectors is 2 - 2 x their cosine.
            apart = [2 - 2 * torch.cosine_similarity(x, y, dim=0).mean() for x, y in zip(of_a, of_b, strict=True)]
            assert found.lpaps[row] == pytest.approx(float(torch.stack(apart).mean()), abs=1e-5)
        assert found.lpaps.min() > 1e-3
        same = measure.clap_distance(sounds, sounds, RATE, model=folder)
        np.testing.assert_allclose(same, 0, atol=1e-6)


def test_a_long_clip_is_as_far_as_its_windows_and_references_must_match(clap: Path, sounds: np.ndarray):
    long, other = (np.concatenate([sounds[i], sounds[j]], axis=-1) for i, j in ((0, 1), (2, 1)))
    halves = measure.clap_distance(sounds[[0, 1]], sounds[[2, 1]], RATE, model=clap)
    whole = measure.clap_distance(long, other, RATE, model=clap)
    np.testing.assert_allclose(whole.iloc[0], halves.mean(), atol=1e-4)
    with pytest.raises(InputError, match="3 clips and 2 references: give one reference per clip"):
        measure.clap_distance(sounds, sounds[:2], RATE, model=clap)
    with pytest.raises(InputError, match="clip 1 is 2.00 s long, and its reference 1.50 s: cut them to one length"):
        measure.clap_distance(list(sounds[:2]), [sounds[0], sounds[1][:, : RATE * 3 // 2]], RATE, model=clap)


def test_equal_clips_are_at_no_distance_in_half_precision(clap: Path, sounds: np.ndarray):
    from transformers import ClapModel, ClapProcessor

    half: Any = ClapModel.from_pretrained(clap).eval().to(torch.bfloat16)
    found = measure.clap_distance(sounds, sounds, RATE, model=(half, ClapProcessor.from_pretrained(clap)))
    np.testing.assert_allclose(found, 0, atol=1e-6)
    assert (found >= 0).all(axis=None)


def test_a_pair_that_is_cut_into_other_windows_is_refused(clap: Path):
    # Two seconds are a window, and half a second more is another one, but ten samples less are not.
    whole = np.zeros((1, 1, 120_000), np.float32)
    whole[..., ::100] = 0.1
    with pytest.raises(InputError, match="cut into different numbers of windows"):
        measure.clap_distance(whole, whole[..., :-10], 48_000, model=clap)


def test_fad_is_the_frechet_distance_of_the_embeddings(clap: Path, sounds: np.ndarray):
    from audiolens.measure.frechet import between

    rng = np.random.default_rng(1)
    a = sounds[0][None] * rng.uniform(0.3, 1, (13, 1, 1)) + 0.02 * rng.standard_normal((13, 1, 2 * RATE))
    b = a + 0.3 * rng.standard_normal(a.shape)
    embedded = [np.concatenate(measure.clap_embeddings(clips, RATE, model=clap)) for clips in (a, b)]
    distance = measure.fad(a, b, RATE, model=clap, least=1)
    assert distance == pytest.approx(between(*embedded, least=1), rel=1e-3)
    assert measure.fad(*embedded, least=1) == pytest.approx(distance, rel=1e-3)
    assert distance > 10 * abs(measure.fad(a, a, RATE, model=clap, least=1))
    with pytest.raises(InputError, match="each set needs more than 60"):
        measure.fad(a, b, RATE, model=clap)


def test_what_does_not_fit_is_refused(clap: Path, sounds: np.ndarray, tmp_path: Path):
    for texts, error, message in (
        (TEXTS[:2], InputError, "2 texts for 3 clips"),
        ([], InputTypeError, "expected a text"),
        (["a", "", "b"], InputTypeError, "expected a text"),
    ):
        with pytest.raises(error, match=message):
            measure.clap_score(sounds, texts, RATE, model=clap)
    with pytest.raises(ModelNotFoundError, match="could not be loaded"):
        measure.clap_score(sounds, TEXTS, RATE, model=tmp_path / "nothing")
    with pytest.raises(InputTypeError, match="a pair"):
        measure.clap_score(sounds, TEXTS, RATE, model=3)  # type: ignore[arg-type]
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in clap.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="could not be loaded"):
        measure.clap_score(sounds, TEXTS, RATE, model=pickled)
