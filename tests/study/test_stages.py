"""A study stopped at any point resumes and ends with the same tables; another study's folder is refused."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock
from small_runs import TINY

from analysis import study
from analysis.study import pipeline, stages
from analysis.study.settings import Settings
from analysis.sweep import ledger, playing
from audiolens.directions import pole_reader
from audiolens.errors import BusyError, InputError, StoppedError
from audiolens.files.integrity import read_json, sealed_json


def ran(lens: Any, out: Path, settings: Settings = TINY, **more: Any) -> study.Study:
    return study.run(lens, "tempo", out, settings=settings, progress=False, command="audiolens study tempo", **more)


@pytest.fixture(scope="module", autouse=True)
def _bare_page() -> Any:
    """Pages have tests of their own: here they are tables alone, which is what must not change."""
    from analysis import report

    def tables_alone(found: study.Study, folder: Path, *, command: str = "") -> None:
        (folder / "tables").mkdir()
        for name, table in report.writer.tables(found).items():
            table.to_csv(folder / "tables" / f"{name}.csv", index=False)
        found.clips.to_parquet(folder / "clips.parquet", index=False)
        found.directions.save(folder / "directions.safetensors")
        (folder / "audio").mkdir()
        for sound, samples in enumerate(found.sounds.values()):
            (folder / "audio" / f"{sound}").write_bytes(samples.tobytes())
        facts = {**report.writer.summary(found, command), "seconds": None}
        (folder / "summary.json").write_bytes(sealed_json(facts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", tables_alone)
        yield


@pytest.fixture(scope="module")
def whole(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "tempo"
    ran(lens, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file to the byte, but for how long things took."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("seconds.json", ".lock")))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(out: Path, whole: Path) -> None:
    mine, theirs = contents(out), contents(whole)
    assert set(mine) == set(theirs)
    assert [name for name in theirs if mine[name] != theirs[name]] == []


class Stopped(Exception):
    """What a test stops a study with."""


def stopped_at_once(lens: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a study in the place of the one that is there, and stop before its first stage."""

    def stop(*_: Any) -> Any:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("analysis.study.experiment._run", stop)
        with pytest.raises(Stopped):
            ran(lens, out, overwrite=True)


def test_stopped_before_every_stage_it_ends_with_the_same_bytes(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told, left = tmp_path / "tempo", [], [0]
    tell = pipeline.Teller.tell

    def stopping(teller: pipeline.Teller, line: str) -> None:
        told.append(line)
        tell(teller, line)
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    monkeypatch.setattr(pipeline.Teller, "tell", stopping)
    stops = 0
    while True:
        left[0] = stops + 1
        try:
            ran(lens, out)
        except Stopped:
            stops += 1
        else:
            break
    assert stops >= 9
    assert sum("kept from before" in line for line in told) >= 8
    assert_same(out, whole)


def killed(work: Callable[[], object], at: int, watched: str) -> None:
    """Run `work` in a process that kills itself (-9) just before its n-th `os.replace` or `os.fsync`."""
    child = os.fork()
    if child:
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        return
    calls, own = iter(range(1_000)), getattr(os, watched)

    def or_die(*arguments: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*arguments)

    setattr(os, watched, or_die)
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("kills", [[("replace", 0), ("fsync", 2), ("replace", 7), ("fsync", 12)], [("replace", 31)]])
def test_killed_at_any_write_it_ends_with_the_same_bytes(
    lens: Any, whole: Path, tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    out = tmp_path / "tempo"
    for watched, at in kills:
        killed(lambda: ran(lens, out), at, watched)
    ran(lens, out)
    assert_same(out, whole)


def test_a_finished_study_is_not_made_again(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    (out / "notes.txt").write_text("mine")

    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model ran")

    monkeypatch.setattr(playing.Making, "generate", none)
    monkeypatch.setattr(pole_reader.PoleReader, "__init__", none)
    again = ran(lens, out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert_same(out, whole)
    assert again.seconds.keys() == {"directions", "patching", "placement", "strength", "dose-response", "lost"}
    assert min(again.seconds.values()) > 0


def test_only_what_follows_from_a_change_is_made_again(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    made: list[str] = []
    generate = playing.Making.generate

    def noted(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        made.append(batch[0][0].labels["split"])
        return generate(making, lens, plan, batch)

    monkeypatch.setattr(playing.Making, "generate", noted)
    changed = replace(TINY, n_random=2)
    with pytest.raises(InputError, match="finished study with n_random=1, but this one has 2.*--force"):
        ran(lens, out, changed)
    assert_same(out, whole)
    assert not made
    ran(lens, out, changed, overwrite=True)
    assert set(made) == {"test"}
    assert json.loads((out / "summary.json").read_text())["settings"]["n_random"] == 2
    ran(lens, out, overwrite=True)
    made.clear()
    # What changes nothing but the time it takes is no other study.
    ran(lens, out, replace(TINY, n_jobs=1))
    ran(lens, out)
    assert not made
    before = {name: content for name, content in contents(whole).items() if not name.startswith("stages")}
    after = contents(out)
    assert [name for name, content in before.items() if after[name] != content] == []


def test_a_damaged_stage_is_made_again(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    files = ("directions-*/samples.safetensors", "patching-*/facts.json", "placement-*/evidence.parquet",
             "lost-*/lost.parquet")  # fmt: skip
    for file in files:
        (path,) = (out / "stages").glob(file)
        path.write_bytes(path.read_bytes()[:-20])
    ran(lens, out)
    assert_same(out, whole)


def test_other_code_weights_or_settings_are_other_stages(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = stages.common_of(lens)
    first = stages.Stages(Path("x"), own).stage("directions", {"seconds": 1.0}).place
    assert first == stages.Stages(Path("x"), stages.common_of(lens)).stage("directions", {"seconds": 1.0}).place
    others = [{**own, "weights": "0"}, {**own, "code": "0"}, {**own, "versions": {**own["versions"], "torch": "0"}}]
    places = [stages.Stages(Path("x"), other).stage("directions", {"seconds": 1.0}).place for other in others]
    places.append(stages.Stages(Path("x"), own).stage("directions", {"seconds": 2.0}).place)
    assert len({first, *places}) == 5
    weight = lens.model.decoder.model.decoder.layers[1].fc1.weight
    with torch.no_grad():
        kept = float(weight[3, 5])
        weight[3, 5] += 0.5
        try:
            assert stages.common_of(lens)["weights"] != own["weights"]
        finally:
            weight[3, 5] = kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concept": "timbre"}, "holds a study of 'timbre', not 'tempo'"),
        ({"weights": "0" * 64, "model": "mine"}, "of another model ('mine'; this is"),
        ({"versions": {"torch": "1.0"}}, "was begun with"),
        ({"format": "audiolens.run.0"}, "of format audiolens.run.0"),
        ({"versions": None}, "damaged"),
    ],
)
def test_another_study_is_refused_and_replaced_only_when_asked(
    lens: Any, whole: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out = tmp_path / "tempo"
    (out / "stages" / "scan-0123").mkdir(parents=True)
    (out / "stages" / "scan-0123" / "clips.parquet").write_bytes(b"hours")
    (out / "study.json").write_bytes(sealed_json({**read_json(whole / "study.json"), **change}))
    before = contents(out)
    with pytest.raises(InputError, match="replace it with --force") as refused:
        ran(lens, out)
    assert message in str(refused.value)
    assert contents(out) == before
    if "concept" in change:
        ran(lens, out, overwrite=True)
        assert_same(out, whole)


@pytest.mark.parametrize("old", [{"concept": "timbre"}, {"weights": "0" * 64}, None])
def test_a_replaced_study_shows_nothing_until_the_new_one_is_done(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, str] | None
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    for name in ("index.html", "notes.txt"):
        (out / name).write_text("mine" if name == "notes.txt" else "bright")
    if old is None:
        # A study of an earlier version says what it is in its summary alone.
        (out / "study.json").unlink()
        (out / "summary.json").write_text(json.dumps({"format": "audiolens.study.1"}))
    else:
        (out / "study.json").write_bytes(sealed_json({**read_json(whole / "study.json"), **old}))
    stopped_at_once(lens, out, monkeypatch)
    assert {path.name for path in out.iterdir()} == {"study.json", "stages", ".lock", "notes.txt"}
    assert json.loads((out / "study.json").read_text())["concept"] == "tempo"
    ran(lens, out)
    (out / "notes.txt").unlink()
    assert_same(out, whole)


def test_repeating_a_study_leaves_its_page_until_the_new_one_is_done(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    stopped_at_once(lens, out, monkeypatch)
    assert_same(out, whole)


def test_no_two_processes_write_one_study(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "tempo"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(BusyError, match="another process is at work"):
        ran(lens, out)


def test_a_full_disk_is_said_and_loses_nothing(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, number = tmp_path / "tempo", iter(range(1_000))
    replace_ = os.replace

    def full(source: Any, target: Any) -> None:
        if next(number) == 6:
            raise OSError(28, "No space left on device")
        replace_(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StoppedError, match="disk is full"):
            ran(lens, out)
    assert list((out / "stages").glob("directions-*"))
    ran(lens, out)
    assert_same(out, whole)


def test_in_memory_and_in_a_folder_are_the_same_study(lens: Any, whole: Path) -> None:
    found = study.run(lens, "tempo", settings=TINY, progress=False)
    kept = pd.read_parquet(whole / "clips.parquet")
    pd.testing.assert_frame_equal(found.clips, kept, check_dtype=False, check_exact=True)
    assert ledger.finished(next(path for path in (whole / "stages").glob("strength-*") if path.is_dir()))
