"""Damaged files of sweeps and studies are never used silently, and every damaged folder can be recovered.

This runs a sample of the cases in `benchmarks/damage.py`.
"""

import io
import json
import random
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import damage
import damage_folders
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from analysis import sweep
from analysis.study import stages, study_set
from analysis.sweep import ledger
from analysis.sweep.planned import SWEEP
from audiolens.errors import DamagedError, DamageWarning, InputError
from audiolens.files.atomic import remove
from audiolens.files.integrity import OPEN_SEAL, check_manifest, read_json, seal, sealed_json

SWEPT = ("plan.json", "clips.parquet", "batches", "batches/00000.parquet", "batches/00000.safetensors",
         "batches/00002.parquet", "audio/000005.flac")  # fmt: skip


def few(share: float, seed: int = 0) -> Any:
    rng = random.Random(seed)
    return lambda *_: rng.random() < share


def assert_accounted_for(found: damage.Found, at_least: int) -> None:
    assert found.faults == []
    assert found.counts["cases"] >= at_least
    gone_on = found.counts["call: as if nothing had been"] + found.counts["call: refused first"]
    assert gone_on == found.counts["cases"]


@pytest.fixture(scope="module")
def sweeps(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> list[damage.Kept]:
    return damage.sweeps(lens, tmp_path_factory.mktemp("sweeps"))


@pytest.fixture
def swept(sweeps: list[damage.Kept], tmp_path: Path) -> Path:
    """A copy of a finished sweep."""
    return shutil.copytree(sweeps[0].whole, tmp_path / "sweep")


@pytest.mark.parametrize("state", range(4), ids=["finished", "unfinished", "one-batch", "no-batch"])
def test_no_damage_of_a_sweep_is_used_in_silence_or_a_dead_end(
    sweeps: list[damage.Kept], tmp_path: Path, state: int
) -> None:
    some = few(0.06 if state == 3 else 0.02, seed=4 + state)
    found = damage.damaged(sweeps[state], tmp_path, flips=1, chosen=lambda one: one.file in SWEPT and some())
    assert_accounted_for(found, at_least=1)


def test_what_has_the_name_of_another_kind_is_named_and_made_again_once_removed(
    sweeps: list[damage.Kept], tmp_path: Path
) -> None:
    places = {"plan.json": "a folder", "clips.parquet": "an empty folder", "batches": "a file", "audio": "a file",
              "batches/00001.parquet": "a folder", "batches/00001.safetensors": "a folder", ".lock": "a folder",
              "audio/000005.flac": "an empty folder"}  # fmt: skip
    chosen = {(file, f"replaced by {kind}") for file, kind in places.items()}
    found = damage.damaged(sweeps[0], tmp_path, chosen=lambda one: (one.file, one.kind) in chosen)
    assert_accounted_for(found, at_least=len(places))
    # Anything but a file is refused and not replaced, since a folder may hold the only copy of something.
    assert found.counts["call: refused first"] == len(places)


def test_a_plan_that_does_not_say_what_every_plan_says_is_damaged(swept: Path) -> None:
    path = swept / ledger.PLAN
    facts = read_json(path)
    told = rf"^{path} (is damaged|cannot be used).* To restore it, repeat the command that wrote the sweep\.$"
    wrong = [("format", "x"), ("batches", [4, 0]), ("rows", None), ("sample_rate", "x")]
    wrong += [("settings", {**facts["settings"], "measures": "x"})]
    wrong += [("model", {**facts["model"], "threads": threads}) for threads in (0, True, 10**6, None)]
    for name, value in wrong:
        for changed in ({**facts, name: value}, {key: one for key, one in facts.items() if key != name}):
            path.write_bytes(sealed_json(changed))
            with pytest.raises(InputError, match=told):
                sweep.load_folder(swept)
            if name != "format":
                path.write_text(json.dumps({**changed, "format": SWEEP.unsealed}))
                with pytest.raises(InputError, match=told):
                    sweep.load_folder(swept)
    # The bad plan is neither used nor a reason to discard the batches, which identify their sweep.
    with pytest.warns(DamageWarning, match="is written again"):
        assert ledger.refuse_begun(swept, facts) == facts


def test_a_plan_that_says_more_or_other_threads_is_not_taken_for_that_of_its_batches(swept: Path) -> None:
    path = swept / ledger.PLAN
    facts = read_json(path)
    other = {**facts["model"], "threads": facts["model"]["threads"] + 1}
    for changed in ({**facts, "sample_rate": 7}, {**facts, "rows": 15}, {**facts, "model": other}):
        path.write_bytes(sealed_json(changed))
        with pytest.warns(DamageWarning, match="is written again"):
            assert ledger.refuse_begun(swept, facts) == facts
    assert ledger.threads_of(swept) == facts["model"]["threads"]


@pytest.mark.parametrize("told", [
    "[]", "{}", '{"batch": 0, "plan": PLAN, "threads": 1}', '{"batch": 0, "plan": PLAN, "files": {}}',
    '{"plan": null, "threads": 10000000}',
])  # fmt: skip
def test_a_batch_that_does_not_say_what_belongs_to_it_is_damaged(swept: Path, told: str) -> None:
    own = ledger.read_facts(swept)
    kept, path = ledger.batches_of(swept, own), swept / "batches" / "00000.parquet"
    told = told.replace("PLAN", f'"{kept.plan}"')
    # The seal is a hash of the whole file, regardless of its position in the file.
    content = {b"audiolens": told, b"seal": OPEN_SEAL}
    table, buffer = pq.read_table(path), io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **content}), buffer)
    path.write_bytes(seal(buffer.getvalue()))
    for ask in (kept.rows, kept.codes, kept.check):
        with pytest.raises(DamagedError, match=r"00000.parquet is damaged"):
            ask(0)
    assert set(ledger.plans_of(swept)) == {kept.plan}


def test_batches_of_another_sweep_are_named(sweeps: list[damage.Kept], tmp_path: Path) -> None:
    only = {"chosen": lambda one: (one.file, one.kind) == ("batches", "another's")}
    found = damage.damaged(sweeps[1], tmp_path, **only)
    assert_accounted_for(found, at_least=1)


FACTS = {"concept": "tempo", "weights": "0", "model": "m", "versions": {}}


def staged(place: Path, name: str = "directions", **more: Any) -> Path:
    """The folder of a stage in a study with one stage, made or read here."""

    def write(made: str, folder: Path) -> None:
        (folder / "made").write_text(made)

    with stages.begun(place, FACTS, {}, **more) as found:
        stage = found.stage(name, {}, lambda: name, write, lambda folder: (folder / "made").read_text())
        assert stage.kept() == name
        assert stage.place is not None
        return stage.place


def test_a_stage_that_is_no_folder_is_made_again(tmp_path: Path) -> None:
    place = staged(tmp_path / "study")
    shutil.rmtree(place)
    place.write_text("a file")
    with pytest.warns(DamageWarning, match="is not a folder: directions is made again"):
        assert staged(tmp_path / "study") == place
    assert (place / "made").read_text() == "directions"


@pytest.mark.parametrize("name", ["study.json", "summary.json", "made.json", "clips.parquet", "STAGE.seconds.json"])
def test_a_folder_in_the_place_of_a_studys_file_is_named_and_left(tmp_path: Path, name: str) -> None:
    stage = staged(tmp_path / "study")
    place = tmp_path / "study" / name if "STAGE" not in name else stage.with_name(f"{stage.name}.seconds.json")
    place.unlink(missing_ok=True)
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=rf"^{place} is a folder, but a file belongs there: remove it, or"):
        staged(tmp_path / "study")
    assert (place / "thesis.txt").is_file()
    shutil.rmtree(place)
    assert staged(tmp_path / "study", overwrite=name == "study.json") == stage


@pytest.mark.parametrize("name", ["stages", "tables", "audio"])
def test_a_file_in_the_place_of_a_studys_folder_is_named_and_left(tmp_path: Path, name: str) -> None:
    place = tmp_path / "study" / name
    staged(tmp_path / "study")
    remove(place)
    place.write_text("years of work")
    with pytest.raises(InputError, match=rf"^{place} is a file, but a folder belongs there: remove it, or"):
        staged(tmp_path / "study")
    assert place.read_text() == "years of work"


def test_an_index_whose_summary_is_damaged_is_replaced_when_asked(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("an index, or a page of someone else")
    (tmp_path / "summary.json").write_text('{"form')
    with pytest.raises(InputError, match=rf"^{tmp_path / 'index.html'} exists.*replace it with --force"):
        study_set._check_index(tmp_path, False)
    study_set._check_index(tmp_path, True)


@pytest.mark.parametrize("settings", [["poles"], "poles", None, 7])
def test_a_summary_whose_settings_are_none_is_no_other_study(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "summary.json").write_bytes(sealed_json({"settings": settings}))
    stages.refuse_other_settings(tmp_path, {"poles": 2})


def test_a_manifest_is_one_by_its_format(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(sealed_json({"of": "stage", "files": {}}))
    with pytest.raises(DamagedError, match="is not a manifest"):
        check_manifest(tmp_path, "stage")


@pytest.mark.slow
def test_no_damage_of_a_study_is_used_in_silence_or_a_dead_end(lens: Any, tmp_path: Path) -> None:
    with damage.quickly(lens):
        for kept in damage.studies(lens, tmp_path):
            number = count()
            found = damage.damaged(kept, tmp_path, flips=1, chosen=lambda _, n=number: next(n) % 150 == 7)
            assert_accounted_for(found, at_least=1)


def test_what_is_remembered_follows_from_every_bit_of_what_was_given(lens: Any) -> None:
    made = []

    def add(_: Any, table: Any, more: Any = 0) -> Any:
        made.append(table)
        return table + more

    asked, table = damage_folders.remembered(add, lens), pd.DataFrame({"a": [1.0, 2.0]})
    mine = asked(lens, table)
    mine.loc[0, "a"] = 7.0
    assert asked(lens, table.copy()).equals(table)
    assert len(made) == 1
    for changed in (table + 1e-12, table.rename(columns={"a": "b"}), torch.zeros(2), -torch.zeros(2)):
        asked(lens, changed)
    asked(lens, table, more=1)
    assert len(made) == 6


def test_a_battery_that_finds_nothing_would_say_so(sweeps: list[damage.Kept], tmp_path: Path) -> None:
    """The checks can fail: a reader that returns other rows, and calls that end wrongly or not at all, are detected."""

    def nowhere(_: Path, __: bool) -> None:
        raise InputError("choose another folder.")

    kept = sweeps[0]
    blind = damage.Kept("blind", kept.start, kept.whole, kept.other, lambda folder: ({"row": str(folder)}, True),
                        lambda *_: None)  # fmt: skip
    only = {"chosen": lambda one: (one.file, one.kind) == ("plan.json", "emptied")}
    assert damage.damaged(blind, tmp_path, **only).counts["used in silence"] == 2
    lost = damage.Kept("lost", kept.start, kept.whole, kept.other, kept.read, nowhere)
    assert damage.damaged(lost, tmp_path, **only).counts["dead end"] == 1
