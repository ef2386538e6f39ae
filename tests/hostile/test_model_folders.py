"""An untrusted model folder runs no code, opens no pickle, and is rejected in one line before it takes memory."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch
from ends import ends
from safetensors.torch import load_file, save_file

import audiolens as al
from audiolens.errors import AudioLensError, InputError, ModelFilesError, UnsupportedModelError
from audiolens.measure import clap
from audiolens.model import model_files


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists only if foreign code has run; prompts for consent are answered with yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return tmp_path / "ran"


def changed(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    change(values)
    path.write_text(json.dumps(values))


def set_in(*keys: str, value: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values.setdefault(key, {})
        values[keys[-1]] = value

    return change


def refused(folder: Path, match: str) -> None:
    with ends(), pytest.raises(AudioLensError, match=match) as caught:
        al.AudioLens.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def write_code(folder: Path, ran: Path) -> None:
    classes = "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    (folder / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(ran)!r}).touch()\n{classes}"
    )


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


NESTED = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda values: values.update(model_type="own", auto_map={"AutoConfig": "own.Own"})),
        ("config.json", lambda values: values.update(auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})),
        ("config.json", lambda values: values["text_encoder"].update(NESTED)),
        ("config.json", lambda values: values["audio_encoder"].update(auto_map={"AutoModel": "own.Own"})),
        (
            "config.json",
            lambda values: values["text_encoder"].update(auto_map={"AutoModelForTextEncoding": "own.Own"}),
        ),
        ("config.json", lambda values: values["decoder"].update(_attn_implementation="someone/kernels")),
        ("tokenizer_config.json", lambda values: values.update(auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})),
        ("tokenizer_config.json", lambda values: values.update(auto_map=["own.Own", None])),
        ("generation_config.json", set_in("custom_generate", value="someone/generate")),
        ("processor_config.json", set_in("auto_map", "AutoProcessor", value="own.Own")),
    ],
)
def test_code_that_a_configuration_names_is_not_run(
    folder: Path, ran: Path, name: str, change: Callable[[Any], None]
) -> None:
    write_code(folder, ran)
    changed(folder / name, change)
    refused(folder, f"{name} names code to run")
    assert not ran.exists()


def test_nobody_is_asked_whether_code_may_run(folder: Path, ran: Path) -> None:
    write_code(folder, ran)
    changed(folder / "config.json", lambda values: values.update(model_type="own", auto_map={"AutoConfig": "own.Own"}))
    command = [sys.executable, "-m", "analysis.cli", "generate", "fast", "-m", str(folder), "-o", str(ran.parent / "o")]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode
    assert "names code to run" in " ".join((done.stdout + done.stderr).split())
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_in("model_type", value="llama"), "model_type='llama'"),
        (set_in("text_encoder", "model_type", value="rag"), "model_type='rag' of text_encoder"),
        (set_in("audio_encoder", "model_type", value="wav2vec2"), "model_type='wav2vec2' of audio_encoder"),
        (set_in("audio_encoder", value=[1]), "model_type='list' of audio_encoder"),
        (set_in("architectures", value=["os.system"]), "os.system is not a model the lens can open"),
        (set_in("architectures", value="MusicgenForConditionalGeneration"), "is not a model the lens can open"),
    ],
)
def test_the_family_is_told_from_the_json(folder: Path, change: Callable[[Any], None], match: str) -> None:
    changed(folder / "config.json", change)
    with pytest.raises(UnsupportedModelError, match=match):
        al.AudioLens.from_pretrained(folder)


def test_transformers_sees_the_checked_files_alone(folder: Path) -> None:
    for name in ("adapter_config.json", "own.py", ".metadata", "chat_template.jinja", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit")
    with model_files.staged(folder) as files:
        there = {path.name for path in files.folder.iterdir()}
    assert there == {
        "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors",
    }  # fmt: skip
    assert not files.folder.exists()
    assert al.AudioLens.from_pretrained(folder).config.n_layers == 3


def test_weights_that_were_not_checked_are_not_opened(folder: Path, lens: Any) -> None:
    # transformers prefers such a file to model.safetensors.
    (folder / "shard-00001-model-00001-of-00001.safetensors").symlink_to("/dev/zero")
    with ends():
        found = al.AudioLens.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), lens.model.parameters(), strict=True))


def sharded(folder: Path, name: str) -> None:
    """Split the weights into two files, and list the second one as `name` in the index."""
    tensors = load_file(folder / "model.safetensors")
    keys = sorted(tensors)
    parts = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    for part, names in parts.items():
        save_file({key: tensors[key] for key in names}, folder / part, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    places = {key: part if part == "model-1.safetensors" else name for part, names in parts.items() for key in names}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_several_files_are_those_in_one(folder: Path, lens: Any) -> None:
    sharded(folder, "model-2.safetensors")
    found = al.AudioLens.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), lens.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "name", ["w.bin", "../other.safetensors", "/dev/zero", "sub/w.safetensors", "..safetensors", "w.safetensors\n", ""]
)
def test_an_index_names_files_of_its_folder_alone(folder: Path, ran: Path, name: str) -> None:
    sharded(folder, name)
    torch.save({"decoder.w": _Touch(ran)}, folder / "w.bin")
    refused(folder, r"model\.safetensors\.index\.json names .* expected names of \.safetensors files")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_pipes_and_devices_are_not_opened(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name} cannot be read: it is not a regular file")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, f"{name} cannot be read: it is not a regular file")


def test_a_shard_may_be_no_device_either(folder: Path) -> None:
    sharded(folder, "model-2.safetensors")
    (folder / "model-2.safetensors").unlink()
    refused(folder, r"has no model-2\.safetensors")
    (folder / "model-2.safetensors").symlink_to("/dev/zero")
    refused(folder, r"model-2\.safetensors cannot be read: it is not a regular file")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("decoder", "num_hidden_layers"), 10**18),
        (("decoder", "num_hidden_layers"), 5_000),
        (("decoder", "hidden_size"), 10**6),
        (("decoder", "hidden_size"), 10**5),
        (("decoder", "ffn_dim"), 10**9),
        (("decoder", "ffn_dim"), 10**6),
        (("decoder", "vocab_size"), 10**12),
        (("decoder", "num_codebooks"), 10**6),
        (("decoder", "max_position_embeddings"), 10**10),
        (("decoder", "max_position_embeddings"), 10**6 * 4),
        (("text_encoder", "num_layers"), 10**9),
        (("text_encoder", "d_model"), 10**6),
        (("text_encoder", "num_labels"), 10**8),
        (("audio_encoder", "num_residual_layers"), 10**7),
        (("audio_encoder", "num_lstm_layers"), 10**7),
        (("audio_encoder", "dilation_growth_rate"), 10**6),
        (("audio_encoder", "target_bandwidths"), [1e6]),
        (("audio_encoder", "target_bandwidths"), [1e39]),
        (("audio_encoder", "codebook_size"), 10**15),
        (("num_labels",), 10**9),
        (("decoder", "num_hidden_layers"), float("nan")),
        (("decoder", "num_hidden_layers"), float("inf")),
        (("decoder", "hidden_size"), -(10**18)),
    ],
)
def test_numbers_are_held_against_the_weights(folder: Path, keys: tuple[str, ...], value: Any) -> None:
    changed(folder / "config.json", set_in(*keys, value=value))
    refused(folder, rf"config\.json(: {keys[-1]}=| describes )")


def test_a_melody_prefix_is_held_to_a_length(tmp_path: Path) -> None:
    folder = conftest.write_model(tmp_path, melody=True)
    changed(folder / "config.json", set_in("chroma_length", value=10**6))
    refused(folder, r"config\.json: chroma_length=1000000")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": ' * 100_000, "is nested too deeply|cannot be read: it is not JSON"),
        ('{"a": ' * 200 + "1" + "}" * 200, "is nested too deeply"),
        ("[" * 900 + "]" * 900, "is nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "a number of 5,000 digits"),
        ('{"a": 1, "a": 2}', "contains the key 'a' twice"),
        ("[]", "contains a list"),
        ("{", "cannot be read: it is not JSON"),
        ("\0", "cannot be read: it is not JSON"),
    ],
)
def test_json_is_bounded_in_every_file(folder: Path, name: str, text: str, match: str) -> None:
    (folder / name).write_text(text)
    refused(folder, rf"{name}(:)? .*({match})")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4), ("num_return_sequences", 3), ("max_time", 1e-6), ("stop_strings", ["x"]),
        ("penalty_alpha", 0.5), ("prompt_lookup_num_tokens", 3),
    ],
)  # fmt: skip
def test_a_generation_that_is_no_plain_draw_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    changed(folder / "generation_config.json", set_in(key, value=value))
    lens = al.AudioLens.from_pretrained(folder)
    with pytest.raises(InputError, match=f"generation_config sets {key}="):
        lens.generate("calm", 0.32)


@pytest.mark.parametrize("value", ["abc", [1], -5, 10**5, 2.5])
def test_a_start_token_is_a_code(folder: Path, value: Any) -> None:
    changed(folder / "generation_config.json", set_in("decoder_start_token_id", value=value))
    with pytest.raises(AudioLensError) as caught:
        al.AudioLens.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("distance", [8, 1, 0, -5])
def test_relative_positions_of_the_text_encoder_are_defined(folder: Path, distance: int) -> None:
    # At a quarter of the 32 buckets the logarithm is 0 and divides by it; below, it does not exist.
    changed(folder / "config.json", set_in("text_encoder", "relative_attention_max_distance", value=distance))
    with pytest.raises(AudioLensError, match=f"relative_attention_max_distance={distance}: expected") as caught:
        al.AudioLens.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub model in the client's cache: links to blobs, in a folder named after the commit."""
    from huggingface_hub import constants

    commit = "a" * 40
    kept = tmp_path / "cache" / "models--someone--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    (kept / "blobs").mkdir()
    snapshot = kept / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in checkpoint.iterdir():
        shutil.copy(path, kept / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_model_of_the_hub_goes_the_same_way(hub: Path, lens: Any, ran: Path) -> None:
    found = al.AudioLens.from_pretrained("someone/model")
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), lens.model.parameters(), strict=True))
    assert (found.name, found.model.config.name_or_path) == ("someone/model", "someone/model")
    assert found.model.config._commit_hash == hub.name
    write_code(hub, ran)
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").unlink()
    (hub / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(ModelFilesError, match="names code to run"):
        al.AudioLens.from_pretrained("someone/model")
    assert not ran.exists()


def test_clap_folders_are_checked_alike(folder: Path, ran: Path) -> None:
    with pytest.raises(AudioLensError, match=r"could not be loaded.* is not the configuration of a CLAP model"):
        clap.opened(folder)
    write_code(folder, ran)
    changed(folder / "config.json", lambda values: values.update(NESTED))
    with pytest.raises(AudioLensError, match=r"could not be loaded.* names code to run"):
        clap.opened(folder)
    assert not ran.exists()


def test_a_file_of_text_on_the_hub_is_refused_for_its_size_before_it_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub.hf_api import ModelInfo

    told = ModelInfo(id="someone/model", siblings=[{"rfilename": "config.json", "size": 10**12}], sha="a" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: told)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was downloaded"))
    with pytest.raises(ModelFilesError, match=r"config\.json has 1,000,000,000,000 bytes.*not downloaded"):
        al.AudioLens.from_pretrained("someone/model")


def test_a_folder_without_a_configuration_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelFilesError, match=r"contains no config\.json"), model_files.staged(folder):
        pass
