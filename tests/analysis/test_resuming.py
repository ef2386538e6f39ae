"""A sweep stopped at any point resumes and ends with the same table; another sweep's folder is refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch
from small_runs import conditions, played
from stops import contents, killed

import audiolens as al
from analysis import sweep
from analysis.sweep import Condition, experiment, ledger, planned, playing
from analysis.sweep.batches import Batches
from audiolens.errors import DamagedError, DamageWarning, InputError, StoppedError
from audiolens.files.integrity import read_json, sealed_json
from audiolens.tracing.sampling import Sampling


@pytest.fixture(scope="module")
def whole(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    played(lens, out)
    return out


def test_what_is_there_is_not_generated_again(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    killed(lambda: played(lens, out), 1 + 3 * 6)
    assert ledger.finished(out) == {0, 1, 2}
    generated: list[int] = []
    generate = playing.Making.generate

    def counted(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        generated.append(len(batch))
        return generate(making, lens, plan, batch)

    monkeypatch.setattr(playing.Making, "generate", counted)
    played(lens, out)
    assert generated == [4]
    played(lens, out)
    assert generated == [4]
    assert contents(out)["clips.parquet"] == contents(whole)["clips.parquet"]


def test_a_reader_sees_whole_batches_at_every_write(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table, seen = tmp_path / "sweep", sweep.load_folder(whole).table, []
    replace_ = os.replace

    def read() -> None:
        if not ledger.finished(out):
            with pytest.raises(InputError, match=r"no batch is finished yet|contains no sweep"):
                sweep.load_folder(out)
            return
        found = sweep.load_folder(out)
        assert len(found.table) % 4 == 0
        pd.testing.assert_frame_equal(found.table, table.iloc[: len(found.table)], check_dtype=False)
        assert len(found.codes("baseline")) == 4
        assert all((out / file).is_file() for file in found.table["file"])
        seen.append(len(found.table))

    def watched(source: Any, target: Any) -> None:
        read()
        replace_(source, target)
        read()

    monkeypatch.setattr(ledger.os, "replace", watched)
    played(lens, out)
    assert set(seen) == {4, 8, 12, 16}


def test_the_folder_holds_what_memory_does(lens: Any, whole: Path) -> None:
    mine = played(lens, None, keep_audio=lambda *_: True)
    theirs = sweep.load_folder(whole)
    pd.testing.assert_frame_equal(mine.table, theirs.table.drop(columns="file"), check_dtype=False)
    for name in ("baseline", "late"):
        assert torch.equal(mine.codes(name), theirs.codes(name))
    with pytest.raises(InputError, match="Did you mean 'late'"):
        theirs.codes("lat")
    sound, rate = soundfile.read(whole / theirs.table["file"][9])
    assert rate == theirs.sample_rate
    np.testing.assert_allclose(sound, np.clip(mine.audio[9][0], -1, 1), atol=2 / 2**15)


def test_all_conditions_are_compared_while_each_batch_is_read_once(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the three batches, of 4, 6 and 6 rows, the last two contain rows of two conditions each.
    mine, theirs = (played(lens, out, batch_size=6) for out in (None, tmp_path / "sweep"))
    opened: list[int] = []
    read = Batches.codes

    def counted(self: Batches, batch: int) -> np.ndarray:
        opened.append(batch)
        return read(self, batch)

    def distance(codes: torch.Tensor, own: torch.Tensor) -> float:
        return float((codes != own).double().mean())

    monkeypatch.setattr(Batches, "codes", counted)
    pd.testing.assert_frame_equal(theirs.compared(distance).distances, mine.compared(distance).distances)
    assert opened == [0, 1, 2]


def test_codes_that_are_damaged_after_they_were_read_are_seen(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(whole, out)
    result = sweep.load_folder(out)
    result.codes("baseline")
    for part in (out / "batches").glob("*.safetensors"):
        part.write_bytes(part.read_bytes()[:-2] + b"\x01\x01")
    with pytest.raises(DamagedError, match="is damaged"):
        result.codes("baseline")


def test_another_sweep_is_refused_with_the_reason(lens: Any, whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    for changes, message in (
        ({"seconds": 0.6}, "begun with seconds 0.4, but this one has 0.6"),
        ({"batch_size": 5}, "batch_size 4, but this one has 5"),
        ({"measures": ("brightness",)}, "measures"),
        ({"conditions": conditions(lens.config.d_model)[:3]}, "has a condition that this one lacks: 'late'"),
        ({"conditions": conditions(lens.config.d_model, seed=1)}, "it adds other vectors in condition 'up'"),
    ):
        with pytest.raises(InputError, match=message):
            played(lens, whole, **changes)
    weight = lens.model.decoder.model.decoder.layers[1].fc1.weight
    with torch.no_grad():
        kept = float(weight[3, 5])
        weight[3, 5] += 0.5
        try:
            with pytest.raises(InputError, match="begun with other weights"):
                played(lens, whole)
        finally:
            weight[3, 5] = kept
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: {**plan, "format": "audiolens.sweep.0"}, "format audiolens.sweep.0"),
        (lambda plan: {**plan, "versions": {**plan["versions"], "torch": "1.0"}}, "begun with torch 1.0"),
        (lambda plan: {**plan, "clips": plan["clips"][:1]}, "its clips differ"),
        (lambda plan: {"a": 1}, "does not describe a sweep"),
    ],
)
def test_a_plan_of_another_version_is_refused(
    lens: Any, whole: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    out = tmp_path / "sweep"
    own = read_json(whole / "plan.json")
    changed, theirs = change(own), ledger.batches_of(whole, own)
    (out / "batches").mkdir(parents=True)
    for batch in theirs.done if "model" in changed else ():
        rows, schema = theirs.rows(batch), pa.Schema.from_pandas(theirs.rows(batch), preserve_index=False)
        mine = replace(theirs, folder=out, plan=planned.plan_hash(changed), schema=schema)
        mine.keep(batch, rows, theirs.codes(batch), {})
    (out / "plan.json").write_bytes(sealed_json(changed))
    with pytest.raises(InputError, match=message):
        played(lens, out)


def test_a_sweep_that_was_begun_before_a_setting_existed_resumes_at_the_settings_default(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, generated = tmp_path / "sweep", []
    killed(lambda: played(lens, out), 1 + 3 * 6)
    facts, generate = experiment._facts, playing.Making.generate

    @dataclass(frozen=True)
    class Later(Sampling):
        min_p: float = 0.0

    def counted(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        generated.append(len(batch))
        return generate(making, lens, plan, batch)

    def asking(min_p: float) -> None:
        def stated(lens: Any, todo: Any, settings: Any, *rest: Any, **more: Any) -> Any:
            return facts(lens, todo, {**settings, "min_p": min_p}, *rest, **more)

        monkeypatch.setattr(experiment, "_facts", stated)

    monkeypatch.setattr("audiolens.tracing.sampling.Sampling", Later)
    monkeypatch.setattr(playing.Making, "generate", counted)
    asking(0.1)
    with pytest.raises(InputError, match=r"begun with min_p 0\.0, but this one has 0\.1"):
        played(lens, out)
    asking(0.0)
    found = played(lens, out)
    assert generated == [4]
    assert contents(out)["clips.parquet"] == contents(whole)["clips.parquet"]
    assert found.settings["min_p"] == 0.0
    assert "min_p" not in read_json(out / "plan.json")["settings"]
    # A sweep that is begun with the setting records it.
    asking(0.1)
    new = played(lens, tmp_path / "new")
    assert new.settings["min_p"] == 0.1
    monkeypatch.setattr(experiment, "_facts", facts)
    with pytest.raises(InputError, match=r"begun with min_p 0\.1, but this one has 0\.0"):
        played(lens, tmp_path / "new")


def test_a_plan_that_nothing_was_drawn_by_is_replaced(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    # Killed at its first batch, of another length.
    killed(lambda: played(lens, out, seconds=0.6), 1, "cut")
    assert (out / "plan.json").is_file()
    with pytest.raises(InputError, match="no batch is finished yet"):
        sweep.load_folder(out)
    assert played(lens, out).whole
    assert contents(out)["clips.parquet"] == contents(whole)["clips.parquet"]
    with pytest.raises(InputError, match="seconds="):
        played(lens, tmp_path / "never", seconds=float("nan"))
    assert not (tmp_path / "never").exists()


def test_a_folder_that_is_no_sweep_is_left_alone(lens: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something other than a sweep"):
        played(lens, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        played(lens, tmp_path / "thesis.txt")
    with pytest.raises(InputError, match="contains no sweep"):
        sweep.load_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_batch_is_named(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    killed(lambda: played(lens, out), 1 + 3 * 6)
    part = out / "batches" / "00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=r"00001.parquet is damaged: .* Run the same sweep again"):
        sweep.load_folder(out)
    assert contents(out).keys() != contents(whole).keys()
    with pytest.warns(DamageWarning, match=r"00001.parquet is damaged: .* batch 1 is made again"):
        assert played(lens, out).whole
    assert contents(out)["clips.parquet"] == contents(whole)["clips.parquet"]


def test_a_table_of_fewer_rows_than_planned_is_never_written(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, generate = tmp_path / "sweep", playing.Making.generate

    def losing(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        if batch[0][0].name == "late":
            for path in (out / "batches").glob("00001.*"):
                path.unlink()
        return generate(making, lens, plan, batch)

    with monkeypatch.context() as patch:
        patch.setattr(playing.Making, "generate", losing)
        with pytest.raises(StoppedError, match=r"batches/00001.parquet was removed while .* Start the same run again"):
            played(lens, out)
    assert not (out / "clips.parquet").exists()
    played(lens, out)
    assert contents(out) == contents(whole)


def test_damaged_codes_of_the_baseline_are_made_again(lens: Any, whole: Path, tmp_path: Path) -> None:
    """What is steered is measured beside them: other codes would be other numbers."""
    out = shutil.copytree(whole, tmp_path / "sweep")
    for file in ("clips.parquet", "batches/00003.parquet"):
        (out / file).unlink()
    codes = out / "batches" / "00000.safetensors"
    content = bytearray(codes.read_bytes())
    content[-3] ^= 4
    codes.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match=r"00000.safetensors is damaged"):
        sweep.load_folder(out).codes("baseline")
    with pytest.warns(DamageWarning, match=r"00000.safetensors is damaged.*batch 0 is made again"):
        played(lens, out)
    assert contents(out) == contents(whole)


def test_a_folder_of_the_format_before_is_read_and_not_gone_on_with(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "sweep")
    facts = {**read_json(whole / "plan.json"), "format": "audiolens.sweep.1"}
    (out / "plan.json").write_text(json.dumps(facts))
    for path in (out / "clips.parquet", *(out / "batches").glob("*.parquet")):
        pd.read_parquet(path).to_parquet(path, index=False)
    found, theirs = sweep.load_folder(out), sweep.load_folder(whole)
    pd.testing.assert_frame_equal(found.table, theirs.table)
    assert torch.equal(found.codes("late"), theirs.codes("late"))
    with pytest.raises(InputError, match="format audiolens.sweep.1, but this version writes audiolens.sweep.2"):
        played(lens, out)


def test_a_disk_that_is_too_small_is_seen_at_the_door(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1_000})
    monkeypatch.setattr(ledger.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="0 MB are free"):
        played(lens, tmp_path / "sweep")


def test_what_was_heard_before_an_error_is_kept(lens: Any, tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(_: Any, made: Any) -> list[float]:
        calls.append(len(made))
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return [float(seed) for seed in made.seeds]

    out = tmp_path / "sweep"
    with pytest.raises(RuntimeError, match="out of memory"):
        played(lens, out, also={"seed_again": broken})
    found = sweep.load_folder(out)
    assert len(found.table) == 12
    assert (found.table["seed_again"] == found.table["seed"]).all()
    assert "12 clips of 16 so far" in repr(found)
    assert not found.whole


def test_functions_that_cannot_be_told_apart_are_not_resumed(lens: Any, tmp_path: Path) -> None:
    doing = [Condition("baseline"), Condition("own", (al.Apply(lambda value: value * 2, layers=[0]),))]
    with pytest.raises(InputError, match="Sweep it without out="):
        played(lens, tmp_path / "sweep", conditions=doing)


def test_the_hash_of_a_condition_is_that_of_every_version_before() -> None:
    """A kept sweep resumes only while its conditions hash as they did; another value needs another format."""
    vector = torch.arange(3.0)
    edits = (
        al.Add(vector, layers=[1], strength=0.5, seconds=(0.2, 0.4)),
        al.Clamp(torch.ones(3), 0.5, branch="cond", schedule=[1.0, 0.5]),
    )
    condition = Condition("up", edits, labels={"strength": 1.0})
    assert planned.condition_hash(condition, np.arange(2) / 25) == "2b389a7cf7b5d3d9"


def test_another_gate_is_another_condition() -> None:
    def hashed(**changes: Any) -> str:
        gate = al.Gate(**{"weights": torch.arange(2000.0), "layer": 1, **changes})
        return planned.condition_hash(Condition("up", (al.Add(torch.ones(3), gate=gate),)), np.arange(2) / 25)

    other = torch.arange(2000.0)
    other[1000] = 0
    assert hashed() == hashed(meta=None)
    assert len({hashed(), hashed(weights=other), hashed(threshold=-1.0), hashed(layer=2), hashed(smoothing=0.1)}) == 5
