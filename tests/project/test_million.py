"""The benchmark of the store writes, resumes and reads a whole sweep, and its table states what was measured."""

from pathlib import Path
from typing import Any

import million
import numpy as np
import pytest

from analysis import sweep
from analysis.sweep import batch_files


def test_the_steps_store_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MOST_CLIPS", 256)
    folder, rows = tmp_path / "sweep", 2_000
    for name, (_, step) in million.STEPS.items():
        if name not in ("summarise", "page"):
            assert set(step(folder, rows)) == {"seconds", "wall"}
    found, todo = sweep.load_folder(folder), million.plan(rows)
    assert found.whole
    # Two clips of each of the 962 conditions.
    assert len(found.table) == len(todo) == 2 * (8 * 6 * (1 + 19) + 2)
    assert len(found.table[["condition", "prompt", "seed"]].drop_duplicates()) == len(todo)
    columns = million.columns()
    for batch in (0, 7, len(todo.batches) - 1):
        size, start = len(todo.batches[batch]), todo.starts[batch]
        own = np.random.default_rng(batch).lognormal(size=(size, len(columns)))
        assert np.array_equal(found.table[columns[0]][start : start + size], own[:, 0])
    names = {path.name for path in (folder / "batches").glob("*.parquet")}
    # The batch of the baseline's two clips, and four of 62 clips.
    assert "00000-00004.parquet" in names
    assert len(names) < len(todo.batches) / 2
    with pytest.raises(RuntimeError, match="32 batches are finished of 32, of which 8 are left"):
        million.resume(folder, rows)


def test_the_table_has_a_column_of_seconds_and_of_memory_for_each_size() -> None:
    def measured(size: int) -> dict[str, Any]:
        steps = {name: {"seconds": size / 1000, "memory": 1e9 + size} for name in million.STEPS}
        return {**steps, "sizes": {"files": size, "folder": 2e6, "page": 3e6}}

    lines = million.table({10: measured(10), 20_000: measured(20_000)}).splitlines()
    assert lines[0] == "| step | 10 clips [s] | [GB] | 20,000 clips [s] | [GB] |"
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| write all but 8 batches | 0.0 | 1.00 | 20.0 | 1.00 |"
    assert lines[-3:] == [
        "| files | 10 | | 20,000 | |", "| folder | 2.0 MB | | 2.0 MB | |", "| page | 3.0 MB | | 3.0 MB | |",
    ]  # fmt: skip
