"""A sweep or study that stops at any write resumes and ends with the same bytes; only one process writes to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from small_runs import bare_pages, played, studied
from stops import Write, assert_same, full_disk, killed

from audiolens.errors import BusyError, StoppedError
from audiolens.files.atomic import UNFINISHED


@dataclass(frozen=True)
class Kind:
    """A kind of run, what another process says that it does, and what is said to be kept when the disk is full."""

    run: Callable[[Any, Path], object]
    busy: str
    full_after: int
    kept: str
    kept_files: str


KINDS = {
    "sweep": Kind(played, "is sweeping into this folder", 14, "2 of 4 batches are kept", "batches/00001.parquet"),
    "study": Kind(studied, "is at work on this study", 14, "Finished stages are kept", "stages/directions-*"),
}
# Sweep: the plan, a sound and the Parquet of a baseline batch; its Parquet, codes and a sound; the table at the end.
KILLS: dict[str, list[list[tuple[Write, int]]]] = {
    "sweep": [[("cut", 0), ("cut", 3), ("cut", 5)], [("replace", 6), ("replace", 4), ("replace", 3)], [("cut", 25)]],
    "study": [[("replace", 0), ("fsync", 2), ("replace", 7), ("fsync", 12)], [("replace", 31)]],
}


@pytest.fixture(scope="module", autouse=True)
def _bare_pages() -> Iterator[None]:
    with bare_pages():
        yield


@pytest.fixture(scope="module")
def wholes(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that nothing interrupted, by kind."""
    made: dict[str, Path] = {}

    def whole(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("whole") / kind
            KINDS[kind].run(lens, made[kind])
        return made[kind]

    return whole


@pytest.mark.parametrize(("kind", "kills"), [(kind, kills) for kind, listed in KILLS.items() for kills in listed])
def test_killed_at_any_write_it_ends_with_the_same_bytes(
    lens: Any, wholes: Any, tmp_path: Path, kind: str, kills: list[tuple[Write, int]]
) -> None:
    out = tmp_path / kind
    for write, at in kills:
        killed(lambda: KINDS[kind].run(lens, out), at, write)
    KINDS[kind].run(lens, out)
    assert_same(out, wholes(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_said_and_loses_nothing(lens: Any, wholes: Any, tmp_path: Path, kind: str) -> None:
    out, own = tmp_path / kind, KINDS[kind]
    with full_disk(after=own.full_after), pytest.raises(StoppedError, match=f"the disk is full. {own.kept}"):
        own.run(lens, out)
    assert list(out.glob(own.kept_files))
    assert not list(out.rglob(f"{UNFINISHED}*"))
    own.run(lens, out)
    assert_same(out, wholes(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_at_a_time(lens: Any, tmp_path: Path, kind: str) -> None:
    out = tmp_path / kind
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(BusyError, match=f"another process {KINDS[kind].busy}; wait for it"):
        KINDS[kind].run(lens, out)
