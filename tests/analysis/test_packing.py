"""Batches of a large sweep are merged into packs, which hold what the batches held, whatever stops or damages them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from damage import Kept, damaged
from damage_folders import read_sweep
from safetensors.numpy import load_file
from small_runs import played
from stops import Write, assert_same, contents, was_killed

from analysis import sweep
from analysis.store.resumable import Held
from analysis.sweep import batch_files, ledger, packing, playing
from analysis.sweep.batch_files import Part
from analysis.sweep.batches import Batches
from audiolens.errors import DamagedError, DamageWarning, InputError, StoppedError
from audiolens.files.atomic import remove
from audiolens.files.integrity import OPEN_SEAL, seal

PACKS = ("batches/00000-00002", "batches/00003-00005")
SINGLES = ("batches/00006", "batches/00007")


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pack have three of the eight batches of two clips. The last group keeps its two batches."""
    monkeypatch.setattr(batch_files, "MOST_CLIPS", 6)


def swept(lens: Any, out: Path, **more: Any) -> sweep.SweepResult:
    return played(lens, out, batch_size=2, **more)


@pytest.fixture(scope="module")
def loose(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose batches were never merged, as those of earlier versions."""
    out = tmp_path_factory.mktemp("loose") / "sweep"
    swept(lens, out)
    return out


@pytest.fixture(scope="module")
def packed(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, whose batches were merged while it ran."""
    out = tmp_path_factory.mktemp("packed") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_files, "MOST_CLIPS", 6)
        swept(lens, out)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "sweep")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The first row of every batch that is generated from now on."""
    found: list[int] = []
    generate = playing.Making.generate

    def counted(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        found.append(plan.batches.index(batch))
        return generate(making, lens, plan, batch)

    monkeypatch.setattr(playing.Making, "generate", counted)
    return found


def unfinished(whole: Path, place: Path, *lost: int) -> Path:
    """A copy without the table of all rows and these batches, which are in files of their own."""
    out = shutil.copytree(whole, place)
    (out / "clips.parquet").unlink()
    for batch in lost:
        for path in (out / "batches").glob(f"{batch:05d}.*"):
            path.unlink()
    return out


def files_of(folder: Path) -> set[str]:
    return {name for name in contents(folder) if name.startswith("batches/")}


def both(*parts: str) -> set[str]:
    return {f"{part}{suffix}" for part in parts for suffix in (".parquet", ".safetensors")}


def test_a_packed_sweep_holds_what_its_batches_held(loose: Path, packed: Path) -> None:
    assert files_of(loose) == both(*(f"batches/{batch:05d}" for batch in range(8)))
    assert files_of(packed) == both(*PACKS, *SINGLES)
    assert contents(packed)["clips.parquet"] == contents(loose)["clips.parquet"]
    for pack, numbers in zip(PACKS, (range(3), range(3, 6)), strict=True):
        # Read by other programs, a pack is the batches one after another.
        singles = [loose / "batches" / f"{batch:05d}" for batch in numbers]
        rows = pd.concat([pd.read_parquet(f"{one}.parquet") for one in singles], ignore_index=True)
        pd.testing.assert_frame_equal(pd.read_parquet(f"{packed / pack}.parquet"), rows)
        codes = np.concatenate([load_file(f"{one}.safetensors")["codes"] for one in singles])
        stored = load_file(f"{packed / pack}.safetensors")["codes"]
        assert stored.dtype == codes.dtype
        assert np.array_equal(stored, codes)
    mine, theirs = (ledger.batches_of(one, ledger.read_facts(one)) for one in (packed, loose))
    for batch in range(8):
        pd.testing.assert_frame_equal(mine.rows(batch), theirs.rows(batch), check_dtype=False)
        assert np.array_equal(mine.codes(batch), theirs.codes(batch))
        mine.check(batch)
    assert read_sweep(packed) == read_sweep(loose)
    ours, before = sweep.load_folder(packed), sweep.load_folder(loose)
    pd.testing.assert_frame_equal(ours.effects("loudness"), before.effects("loudness"))
    for part in ("table", "distances"):
        pair = [one.compared(lambda a, b: float((a != b).float().mean())) for one in (ours, before)]
        pd.testing.assert_frame_equal(*(getattr(one, part) for one in pair))


def test_codes_of_one_batch_are_read_alone(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = batch_files.content_of
    monkeypatch.setattr(batch_files, "content_of", lambda path: (read.append(path), whole(path))[1])
    monkeypatch.setattr(batch_files, "check_bytes", lambda *_: pytest.fail("a whole file of codes was read"))
    mine = ledger.batches_of(packed, ledger.read_facts(packed))
    for batch in range(6):
        mine.codes(batch)
    # The metadata of a pack are read once, and not for every batch.
    assert read == [packed / f"{pack}.parquet" for pack in PACKS]


@pytest.mark.parametrize("write", ["cut", "fsync", "replace", "unlink"])
def test_a_kill_at_any_moment_of_a_merge_loses_nothing(
    lens: Any, loose: Path, packed: Path, tmp_path: Path, write: Write, generated: list[int]
) -> None:
    told, done, at = read_sweep(loose)[0], [], 0
    begun = unfinished(loose, tmp_path / "begun")
    facts = ledger.read_facts(begun)
    whole = contents(packed)
    del whole["clips.parquet"]
    while True:
        out = shutil.copytree(begun, tmp_path / f"{at}")

        def merged(out: Path = out) -> None:
            packing.merge_finished(ledger.batches_of(out, facts))

        if not was_killed(merged, at, write):
            break
        # A reader finds every clip, in whichever files it is.
        assert read_sweep(out) == (told, True)
        done.append(len(files_of(out)))
        labels = sweep.load_folder(out).table
        with ledger.ledger(out, facts, labels, ()) as kept:
            assert kept.done == frozenset(range(8))
        assert contents(out) == whole
        at += 1
    assert at >= {"unlink": 12, "replace": 4}.get(write, 6)
    assert len(set(done)) > 2
    assert contents(out) == whole
    assert generated == []


def test_a_kill_of_a_sweep_while_it_merges_is_resumed_without_repeating_a_clip(
    lens: Any, packed: Path, tmp_path: Path, generated: list[int]
) -> None:
    # The plan, and three batches of two sound files and two files of their own, of which the pack's codes come next.
    out = tmp_path / "sweep"
    assert was_killed(lambda: swept(lens, out), 1 + 3 * 4 + 1, "replace")
    assert files_of(out) >= both("batches/00000", "batches/00001", "batches/00002")
    assert f"{PACKS[0]}.safetensors" in files_of(out)
    assert f"{PACKS[0]}.parquet" not in files_of(out)
    swept(lens, out)
    assert generated == [3, 4, 5, 6, 7]
    assert_same(out, packed)
    swept(lens, out)
    assert generated == [3, 4, 5, 6, 7]


def test_a_sweep_of_an_earlier_version_is_read_and_goes_on(
    lens: Any, loose: Path, packed: Path, tmp_path: Path, generated: list[int]
) -> None:
    out = unfinished(loose, tmp_path / "sweep", 4, 7)
    found = sweep.load_folder(out)
    assert len(found.table) == 12
    assert torch.equal(found.codes("baseline"), sweep.load_folder(loose).codes("baseline"))
    swept(lens, out)
    assert generated == [4, 7]
    assert_same(out, packed)


def test_finished_baselines_are_not_decoded_again(
    lens: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = unfinished(packed, tmp_path / "sweep", 6), []
    codes = Batches.codes
    monkeypatch.setattr(Batches, "codes", lambda own, batch: (read.append(batch), codes(own, batch))[1])
    swept(lens, out)
    assert read == []
    assert_same(out, packed)
    # Earlier versions did not store the numbers that steered clips are compared with.
    older = unfinished(packed, tmp_path / "older", 6)
    path = older / f"{PACKS[0]}.parquet"
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[b"audiolens"])
    assert set(told.pop("levels")) == {"0", "1"}
    content = {**table.schema.metadata, b"audiolens": json.dumps({**told, "seal": OPEN_SEAL})}
    pq.write_table(table.replace_schema_metadata(content), path)
    path.write_bytes(seal(path.read_bytes()))
    swept(lens, older)
    assert read == [0, 1]
    assert contents(older)["clips.parquet"] == contents(packed)["clips.parquet"]


def test_a_result_reads_its_clips_after_they_were_merged(loose: Path, tmp_path: Path) -> None:
    out = unfinished(loose, tmp_path / "sweep")
    found, other = sweep.load_folder(out), sweep.load_folder(loose)
    own = found.codes("baseline")
    packing.merge_finished(ledger.batches_of(out, ledger.read_facts(out)))
    assert files_of(out) == both(*PACKS, *SINGLES)
    for name in ("baseline", "up", "down", "late"):
        assert torch.equal(found.codes(name), other.codes(name))
    assert torch.equal(found.codes("baseline"), own)
    assert np.array_equal(found.sound(3), other.sound(3))


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


FIRST, SECOND = PACKS
LOST = {
    # The last codes of a pack are those of its last batch. Its rows state what else is intact.
    "codes": (lambda out: flipped(out / f"{SECOND}.safetensors", -3), [5], "00003-00005.safetensors is damaged"),
    "header": (lambda out: flipped(out / f"{SECOND}.safetensors", 3), [3, 4, 5], "00003-00005.safetensors is damaged"),
    "cut": (lambda out: os.truncate(out / f"{FIRST}.safetensors", 99), [0, 1, 2], "00002.safetensors is damaged"),
    "no codes": (lambda out: remove(out / f"{FIRST}.safetensors"), [0, 1, 2], "00002.safetensors is gone"),
    "rows": (lambda out: flipped(out / f"{FIRST}.parquet", 90), [0, 1, 2], "00000-00002.parquet is damaged"),
    "no rows": (lambda out: remove(out / f"{SECOND}.parquet"), [3, 4, 5], None),
    "sound": (lambda out: flipped(out / "audio" / "000009.flac", 200), [4], "000009.flac is damaged"),
    "another's": (lambda out: shutil.copy(out / f"{FIRST}.parquet", out / f"{SECOND}.parquet"), [3, 4, 5],
                  r"00003-00005.parquet is damaged \(it belongs to another batch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
def test_damage_of_a_pack_is_named_and_only_what_it_hit_is_made_again(
    lens: Any, packed: Path, copy: Path, kind: str, generated: list[int]
) -> None:
    damage, lost, message = LOST[kind]
    (copy / "clips.parquet").unlink()
    damage(copy)
    if message is not None:
        with pytest.raises(DamagedError, match=rf"{message}.* Run the same sweep again to restore it\.$"):
            read_sweep(copy)
        named = ", ".join(map(str, lost))
        told = f"batches {named} are" if len(lost) > 1 else f"batch {named} is"
        with pytest.warns(DamageWarning, match=rf"{message}.*: {told} made again\.$"):
            swept(lens, copy)
    else:
        assert len(sweep.load_folder(copy).table) == 10
        swept(lens, copy)
    assert generated == lost
    assert_same(copy, packed)


def test_no_damage_of_a_packed_sweep_is_used_in_silence_or_a_dead_end(
    lens: Any, packed: Path, loose: Path, tmp_path: Path
) -> None:
    kept = Kept("packed sweep", packed, packed, loose, read_sweep, lambda out, _: swept(lens, out))
    kinds = ("emptied", "removed", "replaced by a folder")
    chosen = {(f"{FIRST}.parquet", kinds[0]), (f"{SECOND}.safetensors", kinds[1]), (f"{FIRST}.parquet", kinds[2])}
    found = damaged(kept, tmp_path, chosen=lambda one: (one.file, one.kind) in chosen)
    assert found.faults == []
    assert found.counts["cases"] == len(chosen)


def test_a_batch_that_is_damaged_before_it_is_merged_stays_as_it_is_and_is_named(loose: Path, tmp_path: Path) -> None:
    out = unfinished(loose, tmp_path / "sweep")
    flipped(out / "batches" / "00001.safetensors", -3)
    with pytest.warns(DamageWarning, match=r"00001.safetensors is damaged.*batches 0, 1, 2 keep files of their own"):
        packing.merge_finished(ledger.batches_of(out, ledger.read_facts(out)))
    assert files_of(out) == both("batches/00000", "batches/00001", "batches/00002", PACKS[1], *SINGLES)


def test_a_sweep_that_loses_a_pack_stops_at_the_next_batch(lens: Any, tmp_path: Path) -> None:
    out, calls = tmp_path / "sweep", []

    def losing(_: Any, clips: Any) -> list[float]:
        calls.append(len(clips))
        if len(calls) == 5:
            remove(out / f"{PACKS[0]}.parquet")
        return [0.0] * len(clips)

    with pytest.raises(StoppedError, match=r"00000-00002.parquet was removed while this run was writing"):
        swept(lens, out, also={"lost": losing})


@pytest.mark.parametrize("name", ["00000-00009", "00002-00000", "00000-00000", "0-2", "00000-99999"])
def test_files_with_other_names_are_no_packs(packed: Path, copy: Path, name: str) -> None:
    shutil.copy(copy / f"{PACKS[0]}.parquet", copy / "batches" / f"{name}.parquet")
    (copy / "clips.parquet").unlink()
    assert len(ledger.finished(copy)) == 8
    assert read_sweep(copy) == read_sweep(packed)


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_the_longest_runs_that_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(1, 60)).tolist()
    clip_bytes = int(rng.choice([1, packing.MOST_BYTES // 4]))
    most = 6 if clip_bytes == 1 else 4
    groups, first = [], 0
    for last in range(len(sizes)):
        # A run ends where the next batch would not fit. The last run has no such batch.
        if last + 1 < len(sizes) and sum(sizes[first : last + 2]) > most:
            groups.append((first, last))
            first = last + 1
    assert [(one.first, one.last) for one in packing.groups(sizes, clip_bytes)] == [
        (first, last) for first, last in groups if first < last
    ]


def test_a_small_sweep_has_no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert packing.groups([64] * 64, 2000) == []
    assert packing.groups([64] * 65, 2000) == [Part(0, 63)]
    # Clips of five minutes in stereo.
    assert packing.groups([64] * 65, 2 * 8 * 15_000)[:2] == [Part(0, 7), Part(8, 15)]


def test_the_sound_of_a_large_sweep_is_in_several_folders(
    lens: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "MOST_SOUNDS", 5)
    out, small = tmp_path / "sweep", sweep.load_folder(packed)
    found = swept(lens, out)
    assert found.table["file"].tolist() == [f"audio/{row // 5:03d}/{row:06d}.flac" for row in range(16)]
    assert sorted(name for name in contents(out) if name.startswith("audio/")) == found.table["file"].tolist()
    for row in range(16):
        assert np.array_equal(found.sound(row), small.sound(row))
        assert (out / found.table["file"][row]).read_bytes() == (packed / small.table["file"][row]).read_bytes()
    pd.testing.assert_frame_equal(found.table.drop(columns="file"), small.table.drop(columns="file"))
    # Such a folder is checked, tidied up and repaired as another one is.
    before = contents(out)
    (out / "clips.parquet").unlink()
    flipped(out / "audio" / "001" / "000009.flac", 200)
    (out / "audio" / "001" / ".unfinished-0").write_bytes(b"half")
    with pytest.raises(DamagedError, match=r"audio/001/000009.flac is damaged"):
        sweep.load_folder(out).sound(9)
    with pytest.warns(DamageWarning, match=r"audio/001/000009.flac is damaged.*: batch 4 is made again"):
        swept(lens, out)
    assert contents(out) == before
    remove(out / "audio" / "001" / "000009.flac")
    (out / "audio" / "001" / "000009.flac").mkdir()
    with pytest.raises(InputError, match=r"000009.flac is a folder, but a file belongs there"):
        swept(lens, out)


def test_a_sweep_with_more_rows_than_a_folder_can_list_is_refused_at_the_door(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lens), "generate", lambda *_, **__: pytest.fail("the model ran"))
    monkeypatch.setattr(ledger, "MOST", 15)
    with pytest.raises(InputError, match=r"16 clips are too many for .*sweep, which can hold 15"):
        swept(lens, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_folder_is_listed_again_once_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    lock = os.lstat(tmp_path / ".lock")
    held = Held(tmp_path, (lock.st_dev, lock.st_ino))
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        for name in ("1", "2"):
            (place / name).touch()
        os.utime(place, (0, 0))
    held.keep(tmp_path / "a", tmp_path / "b" / "1", tmp_path / "b" / "2")
    held.check()
    assert set(held.complete) == {tmp_path / "a", tmp_path / "b"}
    held.release(tmp_path / "b" / "2")
    (tmp_path / "b" / "2").unlink()
    held.check()
    (tmp_path / "a" / "2").unlink()
    with pytest.raises(StoppedError, match=r"a/2 was removed while this run was writing"):
        held.check()


def test_the_labels_of_a_plan_are_those_of_its_rows() -> None:
    conditions = [
        sweep.Condition("up", labels={"strength": 1, "layer": None, "where": "here"}),
        sweep.Condition("baseline", labels={"strength": 0.0}),
        sweep.Condition("asked", ask=lambda prompt: f"fast {prompt}", labels={"layer": 3, "new": "last"}, reseed=7),
    ]
    plan = sweep.packed(conditions, sweep.clips(["a", "b", "c"], 3), 4)
    rows = []
    for condition, clip in (row for batch in plan.batches for row in batch):
        prompt, seed = plan.clips[clip]
        own = {"condition": condition.name, **condition.labels}
        rows.append({**own, "prompt": prompt, "asked": condition.asked(prompt), "seed": seed})
    pd.testing.assert_frame_equal(plan.labels, pd.DataFrame(rows))
