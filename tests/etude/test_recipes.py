"""Every recipe trains from nothing, resumes after a kill at every stage, and is stored as what it computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import EncodecModel, MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

from audiolens import AudioLens
from audiolens.errors import InputError
from audiolens.etude.training import card, codec, corpus, evaluate, export, recipes, subwords, train
from audiolens.etude.training.codec_quality import codec_quality


def tiny(name: str) -> recipes.Recipe:
    """A recipe whose every stage takes a second: short clips, few steps, and two narrow blocks."""
    recipe = recipes.named(name)
    schedule = replace(
        recipe.material.schedule, autoencoder=2, joint=2, decoder=2, bands_from=3, batch_size=2, segment_frames=8
    )
    rows = None if recipe.schedule.crop_rows is None else (3, 2)
    return replace(
        recipe,
        material=replace(recipe.material, seconds=1.28, schedule=schedule, codec_clips=3, clips=6),
        reading=replace(recipe.reading, steps=min(recipe.reading.steps, 4)),
        form=replace(recipe.form, blocks=2, width=32, heads=2, frames=32),
        schedule=replace(
            recipe.schedule, steps=4, batch_size=3, crop_frames=(8, 16), crop_shares=(0.5, 0.5), crop_rows=rows
        ),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render few clips at a time, without starting processes."""
    monkeypatch.setattr(corpus, "CHUNK", 4)
    monkeypatch.setattr(corpus, "_workers", lambda: ThreadPoolExecutor(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by its recipe; all are trained in one working folder."""
    folder = tmp_path_factory.mktemp("recipes")
    finished: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in finished:
            finished[name] = train.train(tiny(name), folder / "work", folder / name)
        return finished[name]

    return model


@pytest.mark.parametrize("name", ["etude-0", "etude", "etude-melody"])
def test_a_recipe_makes_a_model_that_the_lens_plays(made: Callable[[str], Path], name: str) -> None:
    lens = AudioLens.from_pretrained(made(name))
    out = lens.generate(["a slow tune", "allegro please"], seconds=0.4, seeds=[1, 2])
    assert out.codes.shape == (2, recipes.named(name).form.codebooks, 10)
    assert out.audio is not None
    assert torch.isfinite(out.audio).all()


def test_models_of_one_material_share_codec_and_codes(made: Callable[[str], Path]) -> None:
    folders = [made("etude"), made("etude-melody")]
    states = [load_file(folder / "model.safetensors") for folder in folders]
    shared = [key for key in states[0] if key.startswith("audio_encoder")]
    assert shared
    assert all(torch.equal(states[0][key], states[1][key]) for key in shared)
    assert len(list((folders[0].parent / "work" / "etudes" / "codes").iterdir())) == 1


def test_a_model_in_half_precision_is_loaded_as_float32_and_computes_what_was_trained(
    made: Callable[[str], Path],
) -> None:
    for name, kind in (("etude", MusicgenForConditionalGeneration),
                       ("etude-melody", MusicgenMelodyForConditionalGeneration)):  # fmt: skip
        stored = load_file(made(name) / "model.safetensors")
        assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
        loaded: Any = kind.from_pretrained(made(name))
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert AudioLens.from_pretrained(made(name)).model.dtype == torch.float32
        key = "decoder.model.decoder.layers.0.fc1.weight"
        assert torch.equal(loaded.state_dict()[key], stored[key].float())


def test_the_codec_of_the_corpus_is_the_stored_one(made: Callable[[str], Path]) -> None:
    shared = made("etude").parent / "work" / "etudes"
    stored = EncodecModel.from_pretrained(shared / "codec")
    (folder,) = (shared / "codes").iterdir()
    assert folder.name == corpus._fingerprint(stored)
    material = tiny("etude").material
    sound = corpus.rendered(0, material.seed, material.seconds, material.music)[None]
    kept = np.load(sorted(folder.iterdir())[0])
    assert np.array_equal(corpus._encode(stored, sound, "cpu")[0], kept[0])


@pytest.mark.parametrize(("stage", "step"), [("codec", 3), ("text", 3), ("decoder", 3)])
@pytest.mark.parametrize("name", ["etude-melody"])
def test_a_run_killed_at_any_stage_ends_like_an_uninterrupted_one(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, stage: str, step: int
) -> None:
    recipe = tiny(name)
    parts = {"codec": codec.train, "text": train.text.pretrain, "decoder": train.decoder.train}
    owner = {"codec": train.codec, "text": train.text, "decoder": train.decoder}[stage]
    verb = parts[stage].__name__
    saved = train.checkpoint.save
    count = 0

    def killing(*arguments: Any) -> None:
        nonlocal count
        saved(*arguments)
        count += 1
        if count == step:
            raise KeyboardInterrupt

    def killed(*arguments: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(train.checkpoint, "save", killing)
            return parts[stage](*arguments, **more)

    monkeypatch.setattr(owner, verb, killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "work", tmp_path / "cut", save_every=1)
    monkeypatch.setattr(owner, verb, parts[stage])
    train.train(recipe, tmp_path / "work", tmp_path / "cut", save_every=1)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (made(name), tmp_path / "cut"))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_a_finished_codec_is_used_as_it_is(made: Callable[[str], Path], tmp_path: Path) -> None:
    shared = made("etude").parent / "work" / "etudes"
    again = train.train(tiny("etude"), tmp_path / "work", tmp_path / "out", codec_from=shared / "codec")
    assert not (tmp_path / "work" / "etudes" / "audio.npy").exists()
    first, second = (load_file(folder / "model.safetensors") for folder in (made("etude"), again))
    assert all(torch.equal(second[key], value) for key, value in first.items())
    from_state = export.rounded(export.read_codec(shared / "codec.safetensors", 8))
    assert corpus._fingerprint(from_state) == corpus._fingerprint(export.read_codec(shared / "codec", 8))


def test_a_codec_of_another_form_is_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("etude").parent / "work" / "etudes" / "codec"
    with pytest.raises(InputError, match=r"target_bandwidths=\[1.6\], but the recipe needs \[0.8\]"):
        export.read_codec(folder, 4)
    with pytest.raises(InputError, match="no codec at"):
        export.read_codec(tmp_path / "none", 4)


def test_a_folder_of_another_recipe_is_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("etude").parent / "work"
    other = tiny("etude")
    with pytest.raises(InputError, match="contains a run by another recipe"):
        train.train(replace(other, weights_seed=9), folder, tmp_path / "out")
    longer = replace(other.material, schedule=replace(other.material.schedule, joint=3))
    with pytest.raises(InputError, match="contains a run by another recipe"):
        train.train(replace(other, material=longer), folder, tmp_path / "out")


def test_recipes_differ_in_what_their_names_say() -> None:
    base = recipes.BASE
    for name in ("etude-2", "etude-3", "etude-plain", "etude-melody", "etude-deep"):
        recipe = recipes.named(name)
        assert recipe.material == base.material
        assert (recipe.schedule.seed != base.schedule.seed) == (name in ("etude-2", "etude-3"))
        assert (recipe.schedule.listening_weight == 0 and recipe.reading.steps == 0) == (name == "etude-plain")
        assert (recipe.form.chroma_frames is not None) == (name == "etude-melody")
        assert (recipe.form.blocks == 24) == (name == "etude-deep")
    assert {recipes.named(name).schedule.seed for name in ("etude", "etude-2", "etude-3")} == {0, 2, 3}
    with pytest.raises(InputError, match="no recipe 'etude-4'"):
        recipes.named("etude-4")


def test_the_card_has_every_table(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "FRAMES", evaluate.FRAMES[:2])
    monkeypatch.setattr(card, "FRAMES", evaluate.FRAMES)
    monkeypatch.setattr(card, "abilities", partial(evaluate.abilities, n_neutral=4, n_reference=24))
    heard = card.write(made("etude"), tiny("etude"), n_seeds=1)
    assert heard.unseen is not None
    assert len(heard.clips) == 2 * (2 * len(evaluate.POLES) + 4) + 4
    written = (made("etude") / "README.md").read_text("utf-8")
    assert written.startswith("---\nlibrary_name: transformers")
    assert "| architecture | `MusicgenForConditionalGeneration`: decoder of 2 blocks" in written
    for table in (heard.to_frame(), heard.neutral(), heard.leaks(), heard.synonyms(), heard.acceptance()):
        assert f"| {' | '.join(column.replace('_', ' ') for column in table.columns)} |" in written
    assert heard.unseen.word.isin(subwords.held_out_words(tiny("etude").reading.wording)).all()


def test_the_codec_in_the_repository_is_the_one_that_the_recipes_need() -> None:
    folder = train.KEPT_CODEC
    kept = train.kept_codec(recipes.BASE)
    assert kept == folder
    assert all(train.kept_codec(recipes.named(name)) == folder for name in recipes.RECIPES if name != "etude-0")
    assert train.kept_codec(recipes.BUNDLED) is None
    assert train.kept_codec(tiny("etude")) is None
    stored = load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    read: Any = export.read_codec(folder, recipes.BASE.material.codebooks)
    assert read.dtype == torch.float32
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6 * 2**20
    material = recipes.BASE.material
    quality = codec_quality(read, material.music, material.seconds, n=4)
    # the card states the mean of 16 clips
    stated = (folder / "README.md").read_text("utf-8")
    mean = float(re.search(r"SI-SDR of the waveform \| ([\d.]+) dB", stated)[1])
    assert abs(quality.si_sdr_db - mean) < 3
    assert quality.si_sdr_db > 3
