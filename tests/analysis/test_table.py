"""Labelled tables are read as text unless a whole column is numeric, and required values must not be blank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import audiolens as al
from analysis import pca, statistics
from analysis.probing import Dataset, probe
from analysis.probing.table import column, numbers_or_text, read_columns
from analysis.reading_comparison import within_poles
from audiolens.errors import InputError, InputTypeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sounds of half a second."""
    made = tmp_path_factory.mktemp("sounds")
    for place in range(4):
        soundfile.write(made / f"{place}.wav", 0.1 * np.random.default_rng(place).normal(size=8000), 16_000)
    return made


def written(tmp_path: Path, *rows: str, ends: str = "\n", encoding: str = "utf-8") -> Path:
    table = tmp_path / "labels.csv"
    table.write_bytes(ends.join(rows).encode(encoding))
    return table


def read(lens: al.AudioLens, folder: Path, tmp_path: Path, labels: list[str], **options: Any) -> Dataset:
    table = written(tmp_path, "file,label", *(f"{place}.wav,{label}" for place, label in enumerate(labels)))
    return Dataset.from_folder(lens, folder, table, "label", **options)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", "2", "1", "2"], [1, 2, 1, 2]),
        (["-1", "0", "12", "0"], [-1, 0, 12, 0]),
        (["120.5", "98", "-2.25", "1e-05"], [120.5, 98, -2.25, 1e-5]),
        (["01", "1", "01", "1"], ["01", "1", "01", "1"]),
        (["01", "02", "01", "02"], ["01", "02", "01", "02"]),
        (["1.0", "1", "1.0", "1"], ["1.0", "1", "1.0", "1"]),
        (["None", "NA", "None", "NA"], ["None", "NA", "None", "NA"]),
        (["nan", "null", "nan", "null"], ["nan", "null", "nan", "null"]),
        (["True", "False", "True", "False"], ["True", "False", "True", "False"]),
        (["1", "x", "1", "x"], ["1", "x", "1", "x"]),
        (["1_0", "2_0", "1_0", "2_0"], ["1_0", "2_0", "1_0", "2_0"]),
        (["1e999", "inf", "1e999", "inf"], ["1e999", "inf", "1e999", "inf"]),
        (["9223372036854775808", "1"] * 2, ["9223372036854775808", "1"] * 2),
        (["9007199254740993.0", "9007199254740992.0"] * 2, ["9007199254740993.0", "9007199254740992.0"] * 2),
    ],
)
def test_labels_are_text_unless_all_are_numbers_and_none_is_lost(
    lens: al.AudioLens, folder: Path, tmp_path: Path, labels: list[str], expected: list[Any]
) -> None:
    found = read(lens, folder, tmp_path, labels).labels
    assert found.tolist() == expected
    assert len(set(found.tolist())) == len(set(labels))


def test_a_blank_prompt_is_none_and_the_word_none_is_a_prompt(lens: al.AudioLens, folder: Path, tmp_path: Path) -> None:
    prompts = ["a song", "", "None", "nan"]
    table = written(tmp_path, "file,label,text", *(f"{i}.wav,{'ab'[i % 2]},{text}" for i, text in enumerate(prompts)))
    data = Dataset.from_folder(lens, folder, table, "label", prompt="text")
    assert data.prompts == ("a song", None, "None", "nan")


def test_groups_are_text(lens: al.AudioLens, folder: Path, tmp_path: Path) -> None:
    groups = ["01", "1", "NA", "None"]
    table = written(tmp_path, "file,label,piece", *(f"{i}.wav,{'ab'[i % 2]},{name}" for i, name in enumerate(groups)))
    data = Dataset.from_folder(lens, folder, table, "label", group="piece")
    assert len(set(np.asarray(data.groups).tolist())) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0.wav,a,x", "1.wav,b,", "2.wav,a,y"], "line 3 has an empty 'piece'"),
        (["0.wav,a,x", "1.wav,,x"], "line 3 has an empty 'label'"),
        (["0.wav,a,x", ",b,x"], "line 3 has an empty 'file'"),
        (["0.wav,a,x", "1.wav,b,y", ",,"], "line 4 has an empty 'file'"),
        (["0.wav,a,x", "1.wav,b"], "line 3 has 2 cells, expected 3"),
        (["0.wav,a,x", "1.wav,b,y,"], "line 3 has 4 cells, expected 3"),
        (['0.wav,a,"x', "1.wav,b,y"], "line 2: unexpected end of data"),
    ],
)
def test_what_is_missing_from_a_table_is_refused_with_its_line(
    lens: al.AudioLens, folder: Path, tmp_path: Path, rows: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Dataset.from_folder(lens, folder, written(tmp_path, "file,label,piece", *rows), "label", group="piece")


def test_lines_are_counted_over_empty_ones_and_cells_of_several_lines(tmp_path: Path) -> None:
    table = written(tmp_path, "file,label", "", '"a', 'b",x', "", "c,")
    with pytest.raises(InputError, match="line 6 has an empty 'label'"):
        read_columns(table, filled=["file", "label"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_any_line_ends_are_no_part_of_a_cell(tmp_path: Path, ends: str, encoding: str) -> None:
    rows = ("file, label", 'a.wav,"x, ""y"""', "b.wav, z ", "c.wav,page\x0ctwo\u2028three", "")
    table = written(tmp_path, *rows, ends=ends, encoding=encoding)
    found = read_columns(table, filled=["file", "label"])
    assert found == {"file": ["a.wav", "b.wav", "c.wav"], "label": ['x, "y"', "z", "page\x0ctwo\u2028three"]}


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than one column 'label': it has file, label, label"):
        read_columns(written(tmp_path, "file,label,label", "a,b,c"), filled=["file", "label"])
    with pytest.raises(InputError, match="no such file; expected a CSV with columns 'file' and 'label'"):
        read_columns(tmp_path / "none.csv", filled=["file", "label"])
    with pytest.raises(InputError, match="not UTF-8"):
        read_columns(written(tmp_path, "file,label", "a,é", encoding="latin-1"), filled=["file"])


def test_numbers_have_the_kind_that_they_are_written_in() -> None:
    assert numbers_or_text(["1", "2"]).dtype == np.int64
    assert numbers_or_text(["1", "2.5"]).dtype == np.float64
    assert numbers_or_text(["1", "01"]).dtype.kind == "U"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "1", 2, "2"], "labels mix numbers and text"),
        ([True, 1, False, 0], "labels mix Booleans and numbers"),
        (np.array([1, "1", 2, "2"], dtype=object), "labels mix numbers and text"),
        (["a", float("nan"), "b", "c"], "the label of row 1 is missing"),
        (["a", None, "b", "c"], "the label of row 1 is missing"),
        ([1.0, 2.0, float("inf"), 3.0], "the label of row 2 is missing"),
        ({"a", "b", "c", "d"}, "in order"),
        (np.ma.masked_array([1, 2, 1, 2], mask=[0, 1, 0, 0]), "labels is a masked array"),
        (np.ma.masked_array(["a", "b", "a", "b"], mask=[0, 1, 0, 0]), "labels is a masked array"),
    ],
)
def test_labels_and_groups_are_of_one_kind_and_whole(lens: al.AudioLens, values: Any, message: str) -> None:
    with pytest.raises((InputError, TypeError), match=message):
        Dataset(values, ("a", "b", "c", "d"))
    with pytest.raises((InputError, TypeError), match=message.replace("label", "group")):
        Dataset(np.array([1, 2, 1, 2]), ("a", "b", "c", "d"), groups=values)
    activations = np.random.default_rng(0).normal(size=(1, 4, 3))
    with pytest.raises((InputError, TypeError), match=message):
        pca.fit(activations, values)
    with pytest.raises((InputError, TypeError), match=message):
        probe(None, activations, values)


def test_a_column_keeps_the_kind_of_its_array() -> None:
    for values in ([1, 2], [1.5, 2.5], ["a", "b"], [True, False]):
        assert column("labels", values, 2).tolist() == values
        assert column("labels", np.array(values), 2).dtype == np.array(values).dtype
    assert column("labels", (str(n) for n in range(2)), 2).tolist() == ["0", "1"]


def test_rows_of_different_lengths_are_no_labels() -> None:
    ragged: Any = [[1, 2], [3]]
    for call in (
        lambda: column("groups", ragged, 2),
        lambda: statistics.auc(ragged, [0, 1]),
        lambda: statistics.auc([0.0, 1.0], ragged),
        lambda: statistics.effect([1.0, 2.0], [1.0, 1.0], ragged),
        lambda: within_poles(np.arange(2.0), np.arange(2.0), ragged),
    ):
        with pytest.raises(InputTypeError, match="different lengths"):
            call()


def test_a_name_is_text() -> None:
    for names in ({"name": 10**5000}, {"unit": None}):
        with pytest.raises(InputTypeError, match=f"{next(iter(names))}=.*: expected text"):
            Dataset(np.array([1, 2]), ("a", "b"), **names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.bool])
def test_a_column_may_be_a_tensor_or_hold_tensors(dtype: torch.dtype) -> None:
    values = torch.tensor([1, 0, 1], dtype=dtype)
    for given in (values, [*values]):
        assert column("labels", given, 3).tolist() == [1, 0, 1]
    if dtype.is_floating_point:
        assert column("labels", values.requires_grad_(), 3).tolist() == [1, 0, 1]


def test_prompts_and_labels_of_a_set_have_no_order_to_pair_them_by(lens: al.AudioLens) -> None:
    for prompts, labels in (({"a", "b"}, [0, 1]), (["a", "b"], {0, 1}), (["a", "b"], {"x": 0, "y": 1})):
        with pytest.raises(TypeError, match="in order"):
            Dataset.from_prompts(lens, prompts, labels)  # type: ignore[arg-type]
    data = Dataset.from_prompts(lens, (p for p in ("fast", "slow")), iter("xy"), seconds=0.4)  # type: ignore[arg-type]
    assert (data.prompts, data.labels.tolist()) == (("fast", "slow"), ["x", "y"])
