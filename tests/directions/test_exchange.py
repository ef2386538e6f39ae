"""Directions travel to other libraries, to GGUF files and to a hub, and come back as they were."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hub import Hub, running

import audiolens as al
from audiolens import Directions
from audiolens.directions import card
from audiolens.errors import DamagedError, InputError, InputTypeError
from audiolens.model.provenance import of_lens


@pytest.fixture(scope="module")
def directions(lens: Any) -> Directions:
    vectors = torch.randn(3, lens.config.d_model, generator=torch.Generator().manual_seed(0))
    meta = of_lens(lens, label="tempo", estimator="difference in means", n_prompts=(4, 4), source="codes")
    return Directions(vectors, (0, 1, 2), torch.ones(3), meta)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub to which nothing but this test speaks, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@dataclass
class ControlVector:
    """As in repeng 0.4."""

    model_type: str
    directions: dict[int, np.ndarray]


@dataclass
class SteeringVector:
    """As in steering-vectors 0.12."""

    layer_activations: dict[int, torch.Tensor]
    layer_type: str = "decoder_block"
    more: list[int] = field(default_factory=list)


def test_vectors_of_other_libraries_steer_as_our_own(lens: Any, directions: Directions) -> None:
    layers = directions.to_layers()
    others = (ControlVector("musicgen", {k: v.numpy() for k, v in layers.items()}), SteeringVector(layers), layers)
    for other in others:
        found = Directions.from_layers(other, lens, label="theirs")
        assert torch.equal(found.vectors, directions.vectors)
        assert found.layers == directions.layers
    steered, own = (
        lens.generate("a song", seconds=0.3, seeds=0, interventions=al.steer(one, layer=1, strength=2.0))
        for one in (found, directions)
    )
    assert torch.equal(steered.codes, own.codes)
    with pytest.raises(InputError, match="norms of the residual stream are unknown"):
        al.steer(found, layer=1, unit="residual")


def test_imported_directions_are_saved_and_loaded(lens: Any, directions: Directions, tmp_path: Path) -> None:
    found = Directions.from_layers(directions.to_layers(), lens)
    again = Directions.load(found.save(tmp_path / "found.safetensors"), lens)
    assert torch.equal(again.vectors, found.vectors)
    assert again.residual_norms.isnan().all()


def test_vectors_that_do_not_fit_are_refused(lens: Any, directions: Directions) -> None:
    width = lens.config.d_model
    for given, kind, words in (
        ({0: np.ones(width + 1)}, InputError, f"the residual stream of .* has {width}"),
        ({lens.config.n_layers: np.ones(width)}, InputError, "has blocks 0 to"),
        ({-1: np.ones(width)}, InputError, "-1 is no block"), ({True: np.ones(width)}, InputError, "True is no block"),
        ({0: np.ones((1, width))}, InputError, "expected one axis"),
        ({0: np.ones(width), 1: np.ones(2)}, InputError, "different lengths"),
        ({0: np.full(width, np.nan)}, InputError, "NaN"), ({}, InputTypeError, "expected a mapping"),
        ("vectors", InputTypeError, "expected a mapping"),
        (SteeringVector(directions.to_layers(), "mlp"), InputError, "only those of whole blocks"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            Directions.from_layers(given, lens)
    inside = replace(directions, meta=replace(directions.meta, site="attn_out"))
    with pytest.raises(InputError, match="attn_out"):
        inside.to_layers()


def test_a_gguf_file_holds_the_directions_and_where_they_come_from(
    lens: Any, stereo_lens: Any, directions: Directions, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    path = directions.to_gguf(tmp_path / "tempo.gguf")
    found = Directions.from_gguf(path, lens)
    assert torch.equal(found.vectors, directions.vectors)
    assert found.meta == directions.meta
    with pytest.raises(InputError, match="a direction means nothing in another model"):
        Directions.from_gguf(path, stereo_lens)
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == ["direction.0", "direction.1", "direction.2"]
    np.testing.assert_array_equal(reader.tensors[1].data, directions[1].numpy())
    whole = path.read_bytes()
    for size in (3, 40, 200, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="not a complete GGUF file"):
            Directions.from_gguf(tmp_path / "cut.gguf", lens)


def test_a_control_vector_of_another_library_needs_its_lens(lens: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")

    def written(name: str, architecture: str, tensor: str, values: np.ndarray) -> Path:
        writer = gguf.GGUFWriter(str(tmp_path / name), architecture)
        writer.add_string("controlvector.model_hint", "musicgen")
        writer.add_tensor(tensor, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    vector = np.arange(lens.config.d_model, dtype=np.float16)
    path = written("theirs.gguf", "controlvector", "direction.1", vector)
    found = Directions.from_gguf(path, lens)
    assert (found.layers, found.meta.label, found.meta.estimator) == ((1,), "musicgen", "imported")
    assert torch.equal(found[1], torch.from_numpy(vector).float())
    with pytest.raises(InputError, match="give that model's lens"):
        Directions.from_gguf(path)
    for architecture, tensor, values, words in (
        ("llama", "direction.1", vector, "is no control vector"),
        ("controlvector", "weights", vector, "0 tensors named"),
        ("controlvector", "direction.x", vector, "names no block"),
        ("controlvector", "direction.1", vector.astype(np.int32), "stored as I32"),
    ):
        with pytest.raises(InputError, match=words):
            Directions.from_gguf(written("other.gguf", architecture, tensor, values), lens)
    with pytest.raises(InputError, match="no such file|No such file"):
        Directions.from_gguf(tmp_path / "missing.gguf", lens)


def test_directions_are_pushed_to_a_hub_and_pulled(lens: Any, directions: Directions, hub: Hub) -> None:
    address = directions.push_to_hub("user/tempo", private=True, token="hf_secret")
    assert address == f"{hub.address}/user/tempo"
    assert set(hub.files["models/user/tempo"]) == {"directions.safetensors", "README.md"}
    assert hub.private["models/user/tempo"] is True
    assert set(hub.tokens) == {"Bearer hf_secret"}
    again = Directions.from_hub("user/tempo", lens)
    assert torch.equal(again.vectors, directions.vectors)
    # Of the path of a local model, only its last part is uploaded.
    assert again.meta == replace(directions.meta, model=Path(directions.meta.model).name)
    assert "hf_secret" not in hub.files["models/user/tempo"]["README.md"].decode()
    # A second push replaces the files.
    (-directions).push_to_hub("user/tempo")
    assert b"-(tempo)" in hub.files["models/user/tempo"]["directions.safetensors"]


def test_every_failure_of_the_hub_is_one_line(lens: Any, directions: Directions, hub: Hub, monkeypatch: Any) -> None:
    for call, words in (
        (lambda: Directions.from_hub("user/none", lens), "there is no model 'user/none' on http"),
        (lambda: Directions.from_hub("user", lens), "expected a name such as 'user/tempo'"),
        (lambda: directions.push_to_hub("forbidden/tempo"), "refused the request"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    directions.push_to_hub("user/tempo")
    with pytest.raises(InputError, match="lacks a file"):
        Directions.from_hub("user/tempo", filename="other.safetensors")
    hub.files["models/user/tempo"]["directions.safetensors"] = b"no safetensors"
    with pytest.raises(InputError):
        Directions.from_hub("user/tempo")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        directions.push_to_hub("user/tempo")


def test_hostile_text_stays_text_in_a_card(directions: Directions) -> None:
    meta = replace(directions.meta, label="[x](javascript:alert(1)) <img src=x>\\`", model="a: b\\n- c")
    text = card.written(meta, (0, 2), "none", "user/tempo")
    front = text.split("---")[1]
    assert "base_model" not in front
    assert "<img" not in text
    assert "](javascript" not in text
    assert "| blocks | 0, 2 |" in text
