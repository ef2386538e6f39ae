"""Nothing in a received folder redirects a write outside it, and only files are ever replaced."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Run
from safetensors.torch import save_file

import audiolens as al
from analysis import study, sweep
from analysis.report import index
from analysis.store import folder as folders
from analysis.store import resumable
from analysis.store.versions import versions
from analysis.study import assembly, stages
from analysis.sweep import batches, ledger
from analysis.sweep.planned import SWEEP
from audiolens.errors import InputError, InputTypeError
from audiolens.etude.training import checkpoint as training
from audiolens.etude.training import codec, export
from audiolens.files import atomic
from audiolens.files.integrity import sealed_json
from audiolens.sound import soundfiles

SECRET = b"what the sender must not change"
FACTS = {"format": SWEEP.format, "batches": [1]}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The user's own folder, which must not change."""
    own = tmp_path / "own"
    (own / "batches").mkdir(parents=True)
    for name in ("victim", "00000.parquet", "batches/notes"):
        (own / name).write_bytes(SECRET)
    return own


@pytest.fixture(autouse=True)
def _unharmed(outside: Path) -> Iterator[None]:
    before = contents(outside)
    yield
    assert contents(outside) == before


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """A folder that claims to hold a study."""
    place = tmp_path / "received"
    place.mkdir()
    facts = {"format": stages.STUDY.format, "concept": "tempo", "weights": "0", "versions": versions()}
    (place / "study.json").write_bytes(sealed_json(facts))
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(place: Path) -> Path:
    (place / "summary.json").write_bytes(sealed_json({"format": folders.STUDY, "concept": "tempo", "settings": {}}))
    (place / "made.json").write_bytes(sealed_json({"stages": {}}))
    return place


def linked(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


PLANTED = (
    ".unfinished-.written", ".unfinished-summary.json", ".unfinished-study.json", ".lock", "stages/.unfinished-x",
    "audio/1.wav", "stages/directions-0123/samples.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_commands_refuse_a_study_with_a_link_and_write_nothing(
    run: Run,  # noqa: F811
    received: Path,
    outside: Path,
    name: str,
) -> None:
    linked(received / name, outside / "victim")
    finished(received)
    for command in (("study", "tempo", "--out", received), ("study", "tempo", "--out", received, "--force"),
                    ("report", received)):  # fmt: skip
        code, told, err = run(*command)
        assert (code, told, err.count("\n")) == (2, "", 1)
        assert f"{received / name} is a symbolic link" in err
    assert not [path for path in received.rglob("*") if path.name == ".lock" and not path.is_symlink()]


@pytest.mark.parametrize("name", ["stages", "stages/dose-response-0123", "audio", "figures"])
def test_a_folder_that_is_a_link_is_neither_filled_nor_emptied(received: Path, outside: Path, name: str) -> None:
    linked(received / name, outside)
    facts = {"concept": "timbre", "weights": "1", "model": "m", "versions": {}}
    with (
        pytest.raises(InputError, match=f"{name} is a symbolic link"),
        stages.begun(received, facts, {}, overwrite=True),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "target"),
    [(".unfinished-plan.json", "victim"), (".lock", "victim"), ("plan.json", "victim"), ("batches", "."),
     ("audio", "."), ("batches/.unfinished-00000.parquet", "victim")],
)  # fmt: skip
def test_a_sweep_is_not_begun_in_a_folder_with_a_link(tmp_path: Path, outside: Path, name: str, target: str) -> None:
    place = tmp_path / "sweep"
    linked(place / name, outside / target)
    with (
        pytest.raises(InputError, match=f"{name} is a symbolic link"),
        ledger.ledger(place, FACTS, pd.DataFrame({"condition": ["a"]}), ["brightness"]),
    ):
        pass
    assert {path.name for path in place.rglob("*")} <= {*Path(name).parts, "batches"}


def test_no_write_goes_through_a_name_that_can_be_guessed(tmp_path: Path, outside: Path) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    for name in (".unfinished-summary.json", ".unfinished-page", ".unfinished-00000"):
        linked(place / name, outside / "victim")
    for put in (stages.put, batches.put, resumable.put, atomic.put):
        put(place / "summary.json", b"{}")
    assert (place / "summary.json").read_bytes() == b"{}"
    assert all((place / name).is_symlink() for name in (".unfinished-summary.json", ".unfinished-page"))


def test_names_are_random_and_opened_for_this_writer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    opening = os.open

    def watched(path: Any, flags: int, *mode: Any) -> int:
        seen.append((str(path), flags))
        return opening(path, flags, *mode)

    monkeypatch.setattr(os, "open", watched)
    for _ in range(3):
        atomic.put(tmp_path / "x", b"")
    assert len({path for path, _ in seen}) == 3
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in seen)
    assert [path.name for path in tmp_path.iterdir() if path.name != "own"] == ["x"]


def test_a_hard_link_under_the_name_of_a_lock_is_not_emptied(received: Path, outside: Path) -> None:
    os.link(outside / "victim", received / ".lock")
    with pytest.raises(InputError, match=r"\.lock is a file with another hard link"), stages.locked(received):
        pass


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/", "a\0b", 3, None, ["tempo"]])
def test_studies_that_are_named_by_a_path_are_not_drawn(tmp_path: Path, received: Path, name: Any) -> None:
    place = received / "studies"
    place.mkdir()
    (place / "summary.json").write_bytes(sealed_json({"format": index.FORMAT, "concepts": [name]}))
    finished(received)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="names no studies"):
        study.redraw(place)
    (received / "made.json").write_bytes(sealed_json({"stages": {"directions": name}}))
    with pytest.raises(InputError, match="names no stages"):
        study.load_folder(received)
    assert contents(tmp_path).keys() == before.keys()


def test_a_study_that_is_a_link_inside_several_is_not_drawn(
    tmp_path: Path, received: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "studies"
    place.mkdir()
    (place / "summary.json").write_bytes(sealed_json({"format": index.FORMAT, "concepts": ["tempo"]}))
    linked(place / "tempo", finished(received))
    before = contents(received)
    with pytest.raises(InputError, match="tempo is a symbolic link, and links inside a folder are not followed"):
        study.redraw(place)
    assert contents(received) == before


def test_all_studies_are_looked_at_before_the_first_is_drawn(
    tmp_path: Path, outside: Path, received: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "studies"
    for name in ("tempo", "timbre"):
        shutil.copytree(finished(received), place / name)
    (place / "summary.json").write_bytes(sealed_json({"format": index.FORMAT, "concepts": ["tempo", "timbre"]}))
    monkeypatch.setattr(study.finished, "load_folder", lambda _: pytest.fail("one was read to be drawn"))
    linked(place / "timbre" / "figures", outside)
    with pytest.raises(InputError, match="figures is a symbolic link"):
        study.redraw(place)
    (place / "timbre" / "figures").unlink()
    linked(place / "cosines.svg", outside / "victim")
    with pytest.raises(InputError, match=r"cosines\.svg is a symbolic link"):
        study.redraw(place)


@pytest.mark.parametrize("file", ["../own/victim", "/etc/hostname", "audio/../../own/victim", "batches/0.flac"])
def test_a_table_names_no_sound_outside_its_folder(tmp_path: Path, outside: Path, file: str) -> None:
    soundfiles.write(tmp_path / "sound.wav", np.zeros((1, 99), dtype=np.float32), 16000)
    table = pd.DataFrame({"condition": ["a"], "prompt": ["b"], "seed": [0], "file": [file]})
    place = tmp_path / "sweep"
    theirs = batches.Batches(place, (1,), None)
    tested = sweep.SweepResult(table, ("brightness",), {}, 16000, folder=place, _batches=theirs)
    with pytest.raises(InputError, match="which is not a sound file of this sweep"):
        assembly._sounds(tested)


def test_a_sweep_is_not_read_through_links(tmp_path: Path, outside: Path) -> None:
    linked(tmp_path / "sweep" / "batches" / "00000.parquet", outside / "00000.parquet")
    (tmp_path / "sweep" / "plan.json").write_bytes(sealed_json(FACTS))
    with pytest.raises(InputError, match=r"00000\.parquet is a symbolic link"):
        sweep.load_folder(tmp_path / "sweep")


# Anything that is not a file


def pipe(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    try:
        os.mknod(place, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("devices cannot be made here")


def in_use(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place))


def link(place: Path) -> None:
    place.symlink_to("elsewhere")


SAVES: dict[str, Callable[[Any, Path], Any]] = {
    "directions": lambda made, place: made["directions"].save(place),
    "cache": lambda made, place: made["cache"].save(place),
    "clips": lambda made, place: made["clips"].save(place),
    "sound": lambda made, place: soundfiles.write(place, np.zeros((1, 99), dtype=np.float32), 16000),
    "training": lambda made, place: training.save(place, {"one": torch.nn.Linear(2, 2)}, 1),
    "put": lambda made, place: atomic.put(place, b"new"),
    "command": lambda made, place: folders.check_file(place, overwrite=True),
    "folder": lambda made, place: folders.check(place, overwrite=None),
    "study": lambda made, place: stages.check(place, overwrite=True),
    "sweep": lambda made, place: ledger.check(place),
}


@pytest.fixture(scope="module")
def made(lens: Any) -> dict[str, Any]:
    clips = lens.generate("fast piano", 0.3, seeds=0, sites="resid_post")
    directions = al.difference_in_means(lens, ["fast"], ["slow"], seconds=0.3, progress=False)
    return {"directions": directions, "cache": clips.cache, "clips": clips}


@pytest.mark.parametrize("special", [pipe, device, in_use, link])
@pytest.mark.parametrize("save", SAVES)
def test_what_is_no_file_is_not_replaced(made: Any, tmp_path: Path, save: str, special: Any) -> None:
    place = tmp_path / "out"
    special(place)
    before = os.lstat(place)
    with pytest.raises(InputError, match=f"{place} (is a|exists)") as refused:
        SAVES[save](made, place)
    assert "\n" not in str(refused.value)
    after = os.lstat(place)
    assert (after.st_mode, after.st_ino, after.st_size) == (before.st_mode, before.st_ino, before.st_size)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "own"}


@pytest.mark.parametrize("save", ["directions", "cache", "clips"])
@pytest.mark.parametrize("path", [3, None, b"out", "a\0b"])
def test_what_is_no_path_is_said(made: Any, save: str, path: Any) -> None:
    kind = InputError if isinstance(path, str) else InputTypeError
    with pytest.raises(kind, match="path="):
        SAVES[save](made, path)


def test_a_file_whose_writing_fails_leaves_the_old_one_and_nothing_else(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    for save in ("directions", "cache", "sound", "training"):
        SAVES[save](made, tmp_path / save)
    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    for save in ("directions", "cache", "sound", "training", "clips"):
        with pytest.raises(InputError, match="cannot be written: No space left"):
            SAVES[save](made, tmp_path / save)
    assert contents(tmp_path) == before
    assert not (tmp_path / "clips").exists()


def test_results_are_as_readable_as_the_umask_says(made: Any, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for save in ("directions", "cache", "sound", "clips"):
            SAVES[save](made, tmp_path / save)
    finally:
        os.umask(before)
    assert (tmp_path / "clips").stat().st_mode & 0o777 == 0o750
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "own" not in path.parts]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o640}


def test_whole_folders_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    # safetensors creates files that only their owner can read.
    before = os.umask(0o027)
    try:
        with folders.fresh(tmp_path / "study") as work:
            (work / "samples").mkdir()
            save_file({"values": torch.ones(2)}, work / "samples" / "samples.safetensors")
        export.trained_codec(codec.build(1), tmp_path / "codec", half=True)
    finally:
        os.umask(before)
    written = [path for name in ("study", "codec") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(written) > 2
    assert {path.stat().st_mode & 0o777 for path in written} == {0o640}
