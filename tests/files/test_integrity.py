"""A changed byte in a stored file is detected on reading and the file is named; files without hashes still open."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import audiolens as al
from audiolens import ActivationCache
from audiolens.errors import DamagedError, InputError
from audiolens.files import integrity
from audiolens.model.provenance import Provenance


@pytest.fixture
def directions() -> al.Directions:
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    return al.Directions(vectors, (0, 1, 2), torch.ones(3), Provenance("mine", "0" * 16, 3, label="tempo"))


def tensors_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["audiolens"])  # noqa: SIM118


def test_a_flipped_bit_anywhere_in_a_directions_file_is_noticed(directions: al.Directions, tmp_path: Path) -> None:
    path = directions.save(tmp_path / "d.safetensors")
    whole, accepted, refused = path.read_bytes(), [], set()
    for place in random.Random(0).sample(range(8 * len(whole)), 600):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            accepted.append(al.Directions.load(path))
        except InputError as error:
            refused.add(str(path) in str(error))
    assert refused == {True}
    # What is left is no content: how the header writes its blanks.
    assert len(accepted) < 20
    assert all(torch.equal(one.vectors, directions.vectors) and one.meta == directions.meta for one in accepted)


def test_changed_vectors_are_refused_by_name(directions: al.Directions, tmp_path: Path) -> None:
    path = directions.save(tmp_path / "d.safetensors")
    tensors, facts = tensors_of(path)
    for changed in ({"vectors": -tensors["vectors"]}, {"vectors": tensors["vectors"].flip(0)}):
        save_file({**tensors, **changed}, path, {"audiolens": json.dumps(facts)})
        with pytest.raises(DamagedError, match=r"d.safetensors is damaged: the values of vectors"):
            al.Directions.load(path)
    save_file({**tensors, "evidence/auc": torch.ones(3)}, path, {"audiolens": json.dumps(facts)})
    with pytest.raises(DamagedError, match="its tensors are not the ones listed in its header"):
        al.Directions.load(path)
    facts["meta"]["site"] = "resid_mid"
    save_file(tensors, path, {"audiolens": json.dumps(facts)})
    with pytest.raises(DamagedError, match="its header is not what was written"):
        al.Directions.load(path)


def test_files_of_the_format_before_still_open(directions: al.Directions, tmp_path: Path) -> None:
    path = directions.save(tmp_path / "d.safetensors")
    tensors, facts = tensors_of(path)
    old = {name: value for name, value in facts.items() if name not in ("tensors", "sha256")}
    save_file(tensors, path, {"audiolens": json.dumps({**old, "format": "audiolens.directions.1"})})
    assert torch.equal(al.Directions.load(path).vectors, directions.vectors)
    # Without a hash in the format that has one, somebody took it out.
    save_file(tensors, path, {"audiolens": json.dumps(old)})
    with pytest.raises(DamagedError, match="its header is not what was written"):
        al.Directions.load(path)


@pytest.fixture
def cache() -> ActivationCache:
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    generator = torch.Generator().manual_seed(0)
    return ActivationCache(
        tensors={name: torch.randn(2, 5, 4, generator=generator).bfloat16() for name in names},
        axes={name: ("row", "step", "d_model") for name in names},
        branch="cond",
        first_step=0,
        frame_rate=25.0,
        prompts=("a", "b"),
    )


def test_a_caches_tensor_is_compared_when_it_is_read(cache: ActivationCache, tmp_path: Path) -> None:
    path = cache.save(tmp_path / "c.safetensors")
    whole = path.read_bytes()
    assert torch.equal(ActivationCache.load(path)["resid_post", 1], cache["resid_post", 1])
    # The values of the last tensor lie last.
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    loaded = ActivationCache.load(path)
    assert torch.equal(loaded["resid_post", 0], cache["resid_post", 0])
    with pytest.raises(DamagedError, match=r"c.safetensors is damaged: the values of blocks.1.hook_resid_post"):
        loaded["resid_post", 1]
    path.write_bytes(whole.replace(b'"cond', b'"null', 1).replace(b'\\"cond', b'\\"null', 1))
    with pytest.raises(DamagedError, match="its header is not what was written"):
        ActivationCache.load(path)


def test_a_cache_of_the_format_before_still_opens(cache: ActivationCache, tmp_path: Path) -> None:
    path = cache.save(tmp_path / "c.safetensors")
    tensors, labels = tensors_of(path)
    old = {name: value for name, value in labels.items() if name not in ("tensors", "sha256")}
    save_file(tensors, path, {"audiolens": json.dumps({**old, "format": "audiolens.activations.1"})})
    assert torch.equal(ActivationCache.load(path)["resid_post", 1], cache["resid_post", 1])


def test_a_hash_is_of_type_shape_and_values() -> None:
    one = torch.arange(6.0)
    others = [one.reshape(2, 3), one.double(), one.view(torch.int32), -one, one + 0.0]
    found = [integrity.tensor_hash(other) for other in (one, *others)]
    assert len(set(found)) == 5
    assert found[0] == found[-1]
    assert integrity.tensor_hash(torch.tensor(1)) != integrity.tensor_hash(torch.tensor([1]))
    assert integrity.tensor_hash(torch.zeros(2, 3).T) == integrity.tensor_hash(torch.zeros(3, 2))


def test_any_flipped_bit_of_sealed_bytes_is_noticed(tmp_path: Path) -> None:
    content = integrity.seal(b"before " + integrity.OPEN_SEAL.encode() + b" after")
    integrity.check_seal("x", content)
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError, match="x is damaged"):
            integrity.check_seal("x", bytes(flipped))
    with pytest.raises(DamagedError):
        integrity.check_seal("x", b"none")


def test_json_holds_what_was_written(tmp_path: Path) -> None:
    path, facts = tmp_path / "f.json", {"format": "two", "values": [1.5, None, "ä"], "nested": {"a": float("inf")}}
    path.write_bytes(integrity.sealed_json(facts))
    assert integrity.read_json(path) == facts
    whole, rng, refused = path.read_bytes(), random.Random(0), set()
    for place in rng.sample(range(8 * len(whole)), 300):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            assert integrity.read_json(path, former=("one",)) == facts
        except DamagedError as error:
            refused.add(str(path) in str(error))
    assert refused == {True}
    path.write_text('{"format": "one"}')
    assert integrity.read_json(path, former=("one",)) == {"format": "one"}
    with pytest.raises(DamagedError, match="it is not what was written"):
        integrity.read_json(path)
    path.write_text("[]")
    with pytest.raises(DamagedError, match="contains a list"):
        integrity.read_json(path)


def test_a_manifest_accounts_for_every_file_and_reads_none_outside(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_bytes(b"one")
    (folder / "inner" / "b").write_bytes(b"two")
    integrity.write_manifest(folder, "mine")
    integrity.check_manifest(folder, "mine")
    with pytest.raises(DamagedError, match="belongs to mine"):
        integrity.check_manifest(folder, "another")
    (folder / "inner" / "b").write_bytes(b"twp")
    with pytest.raises(DamagedError, match=r"inner/b is damaged"):
        integrity.check_manifest(folder, "mine")
    (folder / "inner" / "b").unlink()
    with pytest.raises(DamagedError, match=r"inner/b is gone"):
        integrity.check_manifest(folder, "mine")
    (tmp_path / "secret").write_bytes(b"")
    for outside in ("../secret", "/dev/zero", "inner/../../secret"):
        with pytest.raises(DamagedError, match="its list of files is damaged"):
            integrity.check_files(folder, {outside: integrity.digest(b"")})


def test_a_saved_generation_says_the_hash_of_every_file(lens: Any, tmp_path: Path) -> None:
    folder = lens.generate(["a calm song", "fast piano"], 0.4, seeds=[1, 2]).save(tmp_path / "clips")
    facts = integrity.read_json(folder / "generation.json")
    assert set(facts["files"]) == {path.name for path in folder.iterdir()} - {"generation.json"}
    integrity.check_files(folder, facts["files"])
    (folder / facts["rows"][0]["file"]).write_bytes(np.zeros(100).tobytes())
    with pytest.raises(DamagedError, match="000-a-calm-song"):
        integrity.check_files(folder, facts["files"])
