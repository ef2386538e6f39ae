"""Harvested activations are those of `run_with_cache`, and an interrupted harvest ends with the same bytes."""

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from stops import assert_same, contents, killed
from torch.utils.data import DataLoader

import audiolens as al
from analysis import harvest, probing
from analysis.harvest import planned, shards
from analysis.harvest.planned import Prepared
from analysis.harvest.shards import Shards
from audiolens.errors import DamagedError, DamageWarning, InputError

PROMPTS = ["fast song", "slow song", "calm piano", "jazz", "a dark guitar song"]
ASKED: dict[str, Any] = {
    "sites": ["resid_post", "attn.z"], "layers": [0, 2], "seconds": 0.4, "batch_size": 2, "progress": False,
}  # fmt: skip
SITE = "blocks.2.hook_resid_post"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch per shard, so that five clips are three shards."""
    monkeypatch.setattr(planned, "SHARD_BATCHES", 1)


@pytest.fixture(scope="module")
def folder(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A harvest that nothing interrupted."""
    out = tmp_path_factory.mktemp("harvest") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planned, "SHARD_BATCHES", 1)
        harvest.harvest(lens, PROMPTS, out=out, **ASKED)
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> harvest.Harvest:
    return harvest.Harvest.load(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def test_activations_equal_run_with_cache_bit_for_bit(lens: Any, found: harvest.Harvest) -> None:
    assert found.prompts == tuple(PROMPTS)
    assert found.seeds == tuple(range(5))
    whole = found.cache()
    for first in range(0, 5, 2):
        rows = list(range(5))[first : first + 2]
        mine = [PROMPTS[row] for row in rows]
        codes = lens.generate(mine, 0.4, seeds=rows, decode=False).codes
        assert torch.equal(found.codes(rows), codes)
        _, read = lens.run_with_cache(mine, codes, sites=ASKED["sites"], layers=[0, 2])
        part = found.cache(rows)
        assert list(part) == list(read) == list(whole)
        assert part.prompts == read.prompts
        for name in read:
            assert part.axes[name] == read.axes[name]
            assert torch.equal(part[name], read[name])
            assert torch.equal(whole[name][rows], read[name])


def test_every_shard_is_a_cache_and_the_tables_list_every_tensor_and_clip(folder: Path, found: harvest.Harvest) -> None:
    files = sorted((folder / "shards").glob("*"))
    assert [len(cache.prompts) for cache in found] == [2, 2, 1]
    for file, cache in zip(files, found, strict=True):
        assert torch.equal(al.ActivationCache.load(file)[SITE], cache[SITE])
    rows = found.index[found.index["name"] == SITE]
    assert rows[["site", "layer", "dtype", "first_step", "steps"]].drop_duplicates().values.tolist() == [
        ["resid_post", 2, "float32", 0, found.steps]
    ]
    assert rows["first_clip"].tolist() == [0, 2, 4]
    assert rows["sha256"].str.len().eq(64).all()
    assert found.to_frame()[["prompt", "seed", "shard"]].values.tolist() == [
        [prompt, row, row // 2] for row, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize(("at", "write"), [(1, "cut"), (3, "fsync"), (5, "replace")])
def test_a_harvest_killed_at_any_write_ends_with_the_same_bytes(
    lens: Any, folder: Path, tmp_path: Path, at: int, write: Any
) -> None:
    out = tmp_path / "out"
    killed(lambda: harvest.harvest(lens, PROMPTS, out=out, **ASKED), at, write)
    assert not {"index.parquet", "clips.parquet"} <= set(contents(out))
    with pytest.raises(InputError, match=r"contains \d of 5 clips|is gone"):
        harvest.Harvest.load(out)
    harvest.harvest(lens, PROMPTS, out=out, **ASKED)
    assert_same(out, folder)


def test_finished_shards_are_kept_and_no_activations_of_an_earlier_shard_are_in_memory(
    lens: Any, folder: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "shards" / "000001.safetensors").unlink()
    living: list[weakref.ref[Any]] = []
    peaks: list[int] = []
    read: Callable[..., Any] = Prepared.read

    def watched(self: Prepared, rows: range, *fit: Any) -> Any:
        peaks.append(sum(one() is not None for one in living))
        cache, codes = read(self, rows, *fit)
        living.extend(weakref.ref(tensor) for tensor in cache.tensors.values())
        return cache, codes

    monkeypatch.setattr(Prepared, "read", watched)
    harvest.harvest(lens, PROMPTS, out=copied, **ASKED)
    assert peaks == [0]
    assert_same(copied, folder)
    harvest.harvest(lens, PROMPTS[:3], out=copied.with_name("new"), **{**ASKED, "batch_size": 1})
    assert peaks == [0] * 4


def test_vectors_are_the_steps_of_the_clips_and_every_shard_is_read_once_an_epoch(
    found: harvest.Harvest, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = found.vectors(layer=2, held=2)
    whole = found.cache()[SITE].flatten(0, 1)
    assert len(data) == len(whole) == 5 * found.steps
    assert torch.equal(data[:], whole)
    assert torch.equal(data[-1], whole[-1])
    assert torch.equal(data[[3, 60, 3]], whole[[3, 60, 3]])
    assert data.place(found.steps + 3) == (1, 3)
    heads = found.vectors("attn.z", 0)
    assert torch.equal(heads[:], found.cache()["attn.z", 0].flatten(2).flatten(0, 1))

    data = found.vectors(layer=2, held=2)
    reads: list[int] = []
    read = harvest.Harvest._shard_vectors

    def counted(self: harvest.Harvest, number: int, name: str) -> Any:
        reads.append(number)
        assert len(data._kept) <= 1
        return read(self, number, name)

    monkeypatch.setattr(harvest.Harvest, "_shard_vectors", counted)
    order = data.order(seed=1)
    first, second = list(order), list(order)
    assert sorted(first) == sorted(second) == list(range(len(data)))
    assert first != second
    assert not reads
    order.set_epoch(0)
    drawn = list(DataLoader(data, batch_size=7, sampler=order))
    assert torch.equal(torch.cat(drawn), whole[first])
    assert sorted(reads) == [0, 1, 2]
    with pytest.raises(InputError, match="holds 2 shards"):
        data.order(shards=3)
    with pytest.raises(InputError, match="vectors 0 to"):
        data[len(data)]


def test_a_cache_is_read_on_first_use_and_a_reduced_harvest_is_probed(
    lens: Any, found: harvest.Harvest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    tensor = Shards.tensor

    def counted(self: Shards, number: int, stored: Any, name: str) -> Any:
        reads.append(name)
        return tensor(self, number, stored, name)

    monkeypatch.setattr(Shards, "tensor", counted)
    part = found.cache([4, 1]).seconds((0, 0.2)).at_layers(2)
    assert not reads
    assert part["resid_post", 2].shape == (2, 5, 48)
    assert reads == [SITE] * 2
    for reduce, span in (("mean", None), ("last", None), ("first", (0.2, 0.4)), ("first", None)):
        out = tmp_path / f"{reduce}{span}"
        asked = {**ASKED, "sites": "resid_post", "batch_size": 5, "reduce": reduce, "span": span}
        made = harvest.harvest(lens, PROMPTS, out=out, **asked)
        started = (reduce, span) == ("first", None)
        codes = None if started else made.codes()
        options: dict[str, Any] = {"reduce": reduce} if reduce != "first" else {"seconds": span}
        _, read = lens.run_with_cache(PROMPTS, codes, layers=[0, 2], **options)
        expected = read[SITE] if reduce != "first" else read[SITE][:, 0]
        assert made.cache().reduce == reduce
        assert torch.equal(made.cache()[SITE], expected.float())
        assert made.steps == 1
        assert torch.equal(made.vectors(layer=2)[:], expected.float())
    labels = ["low", "high", "low", "high", "low"]
    probed = probing.probe(lens, harvest.Harvest.load(tmp_path / "meanNone").cache(), labels, folds=2, n_shuffles=2)
    assert len(probed.sites) == 2
    with pytest.raises(InputError, match="every step"):
        probing.probe(lens, found.cache(), labels, folds=2)
    with pytest.raises(InputError, match="no codes"):
        harvest.Harvest.load(tmp_path / "firstNone").codes()


def test_the_size_is_stated_before_and_a_full_disk_is_refused_in_one_line(
    lens: Any, found: harvest.Harvest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = harvest.plan(lens, PROMPTS, **ASKED)
    assert (told.rows, told.shards, told.shard_rows, told.steps) == (5, 3, 2, found.steps)
    assert told.n_bytes == pytest.approx(found.n_bytes, rel=0.05)
    assert harvest.plan(lens, PROMPTS, out=found.folder, **ASKED).finished == 5
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: SimpleNamespace(free=told.n_bytes - 1))
    with pytest.raises(InputError, match=r"needs about 5.* kB, but only 5.* kB are free"):
        harvest.harvest(lens, PROMPTS, out=tmp_path / "out", **ASKED)
    assert not (tmp_path / "out").exists()
    harvest.harvest(lens, PROMPTS, out=found.folder, **ASKED)


def test_other_harvests_and_foreign_folders_are_refused(
    lens: Any, folder: Path, tmp_path: Path, codes: torch.Tensor
) -> None:
    before = contents(folder)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"layers": [0, 1]}, "begun with sites"),
        ({"seconds": 0.44}, "begun with seconds 0.4, but this one has 0.44"),
        ({"batch_size": 3}, "begun with batch_size 2"),
        ({"seeds": [7]}, "its seeds differ"),
        ({"codes": codes}, "clips from generation"),
        ({"dtype": "float16"}, "begun with dtype None"),
    ]
    for change, reason in changes:
        with pytest.raises(InputError, match=reason):
            harvest.harvest(lens, PROMPTS, out=folder, **{**ASKED, **change})
    with pytest.raises(InputError, match="its prompts differ"):
        harvest.harvest(lens, [*PROMPTS[:4], "loud song"], out=folder, **ASKED)
    assert contents(folder) == before
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="something other than a harvest"):
        harvest.harvest(lens, PROMPTS, out=tmp_path, **ASKED)
    with pytest.raises(InputError, match="contains no harvest"):
        harvest.Harvest.load(tmp_path)
    for wrong, reason in (({"sites": "attn.pattern"}, "one value per step"), ({"reduce": "sum"}, "expected one of")):
        with pytest.raises(InputError, match=reason):
            harvest.plan(lens, PROMPTS, **{**ASKED, **wrong})


def test_damage_is_named_and_repaired(lens: Any, folder: Path, copied: Path) -> None:
    shard = copied / "shards" / "000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    harvested = harvest.Harvest.load(copied)
    with pytest.raises(DamagedError, match=r"000001\.safetensors is damaged"):
        harvested.check()
    with pytest.warns(DamageWarning, match="shard 1 is made again"):
        harvest.harvest(lens, PROMPTS, out=copied, verify=True, **ASKED)
    assert_same(copied, folder)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"000001\.safetensors is damaged"):
        harvested.cache([2])[SITE]
    (copied / "harvest.json").write_text('{"format": "audiolens.harvest.1", "sha256": "0"}')
    (copied / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="harvest.json is damaged"):
        harvest.Harvest.load(copied)
    with pytest.warns(DamageWarning):
        harvest.harvest(lens, PROMPTS, out=copied, **ASKED)
    assert_same(copied, folder)
    (copied / "shards" / "000000.safetensors").write_bytes(shard.read_bytes())
    with pytest.raises(DamagedError, match="belongs to another harvest or place"):
        list(harvest.Harvest.load(copied))


def test_prompts_of_any_length_are_harvested_from_a_model_whose_text_is_a_prefix(
    melody_lens: Any, tmp_path: Path
) -> None:
    made = harvest.harvest(melody_lens, PROMPTS, out=tmp_path / "out", layers=[1], seeds=2, batch_size=10, seconds=0.4,
                           progress=False)  # fmt: skip
    assert (len(made), made.seeds[:4]) == (10, (0, 1, 2, 3))
    _, read = melody_lens.run_with_cache([prompt for prompt in PROMPTS for _ in range(2)], made.codes(), layers=[1])
    assert torch.equal(made.cache()["resid_post", 1], read["resid_post", 1])
    assert made.cache().prefixes == read.prefixes


def test_the_command_harvests_prompts_and_generated_clips(
    run: Any, checkpoint: Path, lens: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("fast song\n\nslow song\n")
    tiny = ("--model", checkpoint, "--layers", "1-2")
    code, out, err = run("harvest", "mine.txt", *tiny, "--seconds", 0.4, "--seeds", 2, "-o", "h", "--plan")
    assert (code, err) == (0, "")
    assert "4 clips of 0.4 s, 13 steps, 2 sites" in out
    assert not (tmp_path / "h").exists()
    code, out, _ = run("harvest", "mine.txt", *tiny, "--seconds", 0.4, "--seeds", 2, "-o", "h")
    assert code == 0
    assert out.startswith("h: Harvest(4 clips of")
    assert harvest.Harvest.load(tmp_path / "h").prompts == ("fast song", "fast song", "slow song", "slow song")
    clips = lens.generate(["jazz", "calm song"], 0.4, seeds=[3, 9])
    clips.save(tmp_path / "clips")
    code, *_ = run("harvest", "clips", *tiny, "--reduce", "mean", "--store", "float16", "-o", "c")
    made = harvest.Harvest.load(tmp_path / "c")
    assert (code, made.seeds) == (0, (3, 9))
    assert torch.equal(made.codes(), clips.codes)
    assert made.cache()["resid_post", 1].dtype == torch.float16
    (tmp_path / "clips" / "codes.safetensors").write_bytes(b"")
    code, _, err = run("harvest", "clips", *tiny, "-o", "d")
    assert (code, err.count("\n")) == (2, 1)
    assert "codes.safetensors is damaged" in err


@pytest.mark.parametrize("name", ["reduce", "branch", "engine"])
def test_a_table_in_place_of_a_word_is_refused_in_our_own_words(lens: Any, name: str) -> None:
    """It is compared with a word item by item."""
    with pytest.raises(InputError, match=f"{name}=.*expected"):
        harvest.plan(lens, PROMPTS, **{**{key: ASKED[key] for key in ("sites", "layers")}, name: pd.DataFrame()})
