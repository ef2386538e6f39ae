"""If a folder or its files disappear during a run, the run stops at its next write with a one-line error."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY, played

from analysis import study
from analysis.store import folder as folders
from analysis.study import pipeline, stages
from audiolens.errors import StoppedError
from audiolens.files import atomic

FACTS = {"concept": "tempo", "weights": "0", "model": "m", "versions": {}}


def kept(stages_: stages.Stages, name: str) -> str:
    """A stage that is made, written and read back."""

    def write(made: str, folder: Path) -> None:
        (folder / "made").write_text(made)

    return stages_.stage(name, {}, lambda: name, write, lambda folder: (folder / "made").read_text()).kept()


def begun_then(work: Callable[[stages.Stages, Path], object], place: Path) -> None:
    with stages.begun(place, FACTS, {}) as found:
        work(found, place)


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    place = tmp_path / "study"

    def in_stages(found: stages.Stages, place: Path) -> None:
        shutil.rmtree(place)
        kept(found, "directions")

    def under_a_lock() -> None:
        with stages.locked(place):
            shutil.rmtree(place)
            (place / "page").write_text("")

    def beside() -> None:
        with folders.fresh(place) as work:
            shutil.rmtree(work)
            (work / "table.csv").write_text("")

    with pytest.raises(StoppedError, match=f"{place} was removed"):
        begun_then(in_stages, place)
    with pytest.raises(StoppedError, match=f"{place} was removed"):
        under_a_lock()
    with pytest.raises(StoppedError, match="write it again"):
        beside()
    with pytest.raises(StoppedError, match=f"{place} is gone"):
        atomic.put(place / "x", b"")
    assert not list(tmp_path.iterdir())


def test_a_study_that_loses_a_stage_or_its_place_stops(tmp_path: Path) -> None:
    place = tmp_path / "study"

    def losing(found: stages.Stages, place: Path) -> None:
        assert [kept(found, name) for name in ("directions", "patching")] == ["directions", "patching"]
        next(place.glob("stages/directions-*/made")).unlink()
        kept(found, "lost")

    def moved(found: stages.Stages, place: Path) -> None:
        place.rename(tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", place)
        kept(found, "lost")

    with pytest.raises(StoppedError, match=r"directions-\w+/made was removed while this run was writing"):
        begun_then(losing, place)
    with pytest.raises(StoppedError, match="was removed or replaced by another folder while"):
        begun_then(moved, place)
    assert not list(tmp_path.rglob("lost-*"))


def test_the_page_of_a_study_that_lost_a_stage_is_not_written(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tell = tmp_path / "tempo", pipeline.Teller.tell

    def losing(teller: pipeline.Teller, line: str) -> None:
        tell(teller, line)
        if line.startswith("dose-response"):
            shutil.rmtree(next(path for path in out.glob("stages/strength-*") if path.is_dir()))

    monkeypatch.setattr(pipeline.Teller, "tell", losing)
    with pytest.raises(StoppedError, match=r"strength-\w+/.* was removed while this run was writing"):
        study.run(lens, "tempo", out, settings=TINY, progress=False)
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize("loss", ["folder", "batches/00000.parquet", "batches/00000.safetensors", "plan.json", "audio"])
def test_a_sweep_that_loses_what_it_wrote_stops_at_the_next_batch(lens: Any, tmp_path: Path, loss: str) -> None:
    out, calls = tmp_path / "sweep", []

    def losing(_: Any, clips: Any) -> list[float]:
        calls.append(len(clips))
        if len(calls) == 4:
            atomic.remove(out if loss == "folder" else out / loss)
        return [0.0] * len(clips)

    with pytest.raises(StoppedError, match="was removed.* while this run was writing: nothing more is written"):
        played(lens, out, also={"lost": losing})
    assert not (out / "clips.parquet").exists()
    assert out.exists() == (loss != "folder")
