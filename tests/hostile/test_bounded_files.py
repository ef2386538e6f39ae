"""Untrusted text, tables, directions and caches are rejected in one line, however deeply nested or large they are."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ends import ends
from safetensors.torch import save, save_file

import audiolens as al
from analysis.probing import table
from analysis.store.folder import is_study
from analysis.study import finished
from analysis.sweep import ledger
from audiolens import prompts
from audiolens.cache.activation_cache import ActivationCache
from audiolens.errors import InputError
from audiolens.files import bounded as files
from audiolens.prompts import balance

DEEP = {
    "deep arrays": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a": ' * 500 + "1" + "}" * 500,
    "unfinished": '{"a": ' * 100_000,
    "digits": '{"a": ' + "1" * 10_000 + "}",
    "text": json.dumps({"positive": ["x" * 10**6], "negative": ["y"]}),
    "key": json.dumps({"x" * 10**6: 1}),
    "twice": '{"positive": ["a"], "positive": ["b"], "negative": ["c"]}',
}


def refused(act: Callable[[], object], path: Path) -> None:
    with ends(), pytest.raises(InputError) as caught:
        act()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("text", DEEP.values(), ids=list(DEEP))
def test_json_of_any_shape_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    refused(lambda: prompts.from_file(path), path)
    refused(lambda: files.read_json(path), path)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 500 + "]" * 500,
        "a" + ".a" * 100_000 + " = 1",
        '"a"' + ' . "a"' * 100_000 + " = 1",
        "['a'" + ".'a'" * 100_000 + "]",
        "a = {" + "a = {" * 500 + "}" * 501,
        "a = " + "1" * 10_000,
        "a = 0x" + "f" * 100_000,
        'positive = ["' + "x" * 10**6 + '"]\nnegative = ["y"]',
        "x" * 10**6 + " = 1",
    ],
)
def test_toml_of_any_shape_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    refused(lambda: prompts.from_file(path), path)


def test_dots_in_prompts_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    dotted = "... ".join(f"tune {n}" for n in range(100))
    path.write_text(f'positive = ["fast {dotted}"]\nnegative = ["slow {dotted}"]\n')
    assert prompts.from_file(path).positive == (f"fast {dotted}",)


@pytest.mark.parametrize(
    "text", ["fast,slow\n" + "x" * 10**6 + ",y\n", "fast," * 10**5 + "slow\n", '"' + "x\n" * 10**6, "\0,\0\n" * 5]
)
def test_csv_of_any_shape_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    with ends(), pytest.raises(InputError) as caught:
        prompts.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_never_ends_is_not_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    for name, read in {
        "own.csv": prompts.from_file,
        "own.json": prompts.from_file,
        "own.toml": prompts.from_file,
        "own.txt": lambda path: prompts.from_files(path, path),
        "own.safetensors": al.Directions.load,
        "cache": ActivationCache.load,
        "labels.csv": lambda path: table.read_columns(path, filled=["a"]),
        "study.json": files.read_object,
        "plan.json": lambda path: ledger.read_facts(path.parent),
    }.items():
        make(tmp_path / name)
        with ends(), pytest.raises(InputError, match=name):
            read(tmp_path / name)
    make(tmp_path / "summary.json")
    with ends():
        assert not is_study(tmp_path)
        with pytest.raises(InputError):
            finished.load_folder(tmp_path)


def test_a_file_larger_than_any_of_ours_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    with open(path, "wb") as file:
        file.truncate(2**40)
    refused(lambda: prompts.from_file(path), path)


def header(entries: Any, size: int = 8, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(size)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_reading_a_small_file_reserves_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_bytes(b"calm")
    tracemalloc.start()
    try:
        assert files.read_bytes(path, most=2**31) == b"calm"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        header({"a": ENTRY}, length=2**63),
        header({"a": ENTRY}, length=2**40),
        header({"a": ENTRY}, 7),
        header({"a": ENTRY}, 9),
        header({"a": ENTRY, "b": ENTRY}),
        header({"a": {**ENTRY, "data_offsets": [8, 16]}}, 16),
        header({"a": {**ENTRY, "shape": [10**18]}}),
        header({"a": {**ENTRY, "shape": [-2]}}),
        header({"a": {**ENTRY, "shape": [1] * 1000 + [2]}}),
        header({"a": {**ENTRY, "dtype": "pickle"}}),
        header({"a": {**ENTRY, "dtype": 7}}),
        header({"a": {**ENTRY, "dtype": []}}),
        header({"a": {**ENTRY, "data_offsets": [0]}}),
        header({"a": 3}),
        header({"__metadata__": {"audiolens": 3}, "a": ENTRY}),
        header({"__metadata__": [], "a": ENTRY}),
        header([]),
        header(b"{" * 1000),
        header(b'{"a": ' + b"[" * 100_000),
        header(b"\xff\xfe"),
        header(b'{"a": ' + b"9" * 5000 + b"}"),
        header({"__metadata__": {"audiolens": "[" * 100_000}, "a": ENTRY}),
        header({"__metadata__": {"audiolens": '{"format": ' + "9" * 10_000 + "}"}, "a": ENTRY}),
        header({"__metadata__": {"audiolens": "[]"}, "a": ENTRY}),
        b"",
        b"\1",
    ],
)
def test_headers_are_bounded_and_describe_every_byte(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(content)
    for read in (al.Directions.load, ActivationCache.load):
        refused(lambda read=read: read(path), path)


def test_a_header_says_what_safetensors_wrote(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16,
             torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]  # fmt: skip
    shapes = [(), (0,), (3,), (2, 5), (1, 2, 3), (7, 0, 2)]
    tensors = {f"{kind}{shape}": torch.zeros(shape).to(kind) for kind in kinds for shape in shapes}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"audiolens": "x" * 300_000})
    found = files.read_header(path)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert found.metadata == {"audiolens": "x" * 300_000}
    assert found.elements == sum(tensor.numel() for tensor in tensors.values())
    assert found.data_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    path.write_bytes(save({"a": torch.zeros(3)}))
    assert files.read_header(path).metadata == {}


def naive_auc(positive: list[str], negative: list[str]) -> float:
    lengths = [[len(text.split()) for text in side] for side in (positive, negative)]
    wins = [(a > b) + 0.5 * (a == b) for a in lengths[0] for b in lengths[1]]
    return sum(wins) / len(wins)


def test_the_auc_of_lengths_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sizes = torch.randint(1, 40, (2,), generator=generator).tolist()
        positive, negative = (
            ["word " * n for n in torch.randint(1, 9, (size,), generator=generator).tolist()] for size in sizes
        )
        assert balance.measure(positive, negative).length_auc == naive_auc(positive, negative)


def test_a_hundred_thousand_prompts_a_pole_are_read(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("fast,slow\n" + "".join(f"fast tune {n},slow tune {n}\n" for n in range(100_000)))
    with ends(), pytest.warns(UserWarning, match="'fast' occurs in 100%"):
        found = prompts.from_file(path)
    assert (len(found.positive), found.balance().length_auc) == (100_000, 0.5)
    # The repeated prompt comes last; finding it must not take quadratic time.
    path.write_text("fast,slow\n" + "".join(f"fast tune {min(n, 99_998)},slow tune {n}\n" for n in range(100_000)))
    with ends(), pytest.raises(InputError, match="'fast tune 99998' more than once"):
        prompts.from_file(path)
    with ends(), pytest.raises(InputError, match="contains the key 'k99998' twice"):
        files.json_of(path, "{" + ",".join(f'"k{min(n, 99_998)}": 1' for n in range(100_000)) + "}")
