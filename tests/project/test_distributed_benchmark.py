"""The benchmark of killed sweeps counts what was generated again, and gives no speeds of a busy machine."""

from pathlib import Path

import distributed as script


def test_batches_that_were_generated_again_are_counted_and_stored_ones_apart(tmp_path: Path) -> None:
    one = script.Swept(tmp_path / "sweep")
    (one.folder / "batches").mkdir(parents=True)
    assert (one.again, one.stored_again, one.done) == (0, 0, False)
    with one.counting():
        for number in (0, 1):
            script.noted(lambda *_: None, str(script.log_of(one.folder)), None, None, number, None)
    (one.folder / "batches" / "00000.parquet").touch()
    # Batch 1 was begun, but not stored, when its worker was killed.
    with one.counting():
        script.log_of(one.folder).open("a").write("1\n2\n")
    assert (one.again, one.stored_again) == (1, 0)
    with one.counting():
        script.log_of(one.folder).open("a").write("0\n")
    assert (one.again, one.stored_again) == (2, 1)


def test_the_table_has_no_speeds_if_other_programs_were_running() -> None:
    killed = {"kills": 2, "sweeps": 1, "unequal": 0, "batches": 16, "again": 3, "stored again": 0}
    facts = {"clips": 64, "seconds": 1.0, "batch_size": 8, "others": 0.5, "kills": {"worker": killed}}
    medians = {"one process": 10.0, "2 processes": 5.0}
    busy = script.tabled(facts, medians)
    assert "| 2 processes | as one process | | not measured |" in busy
    assert "| Ray, the worker killed 2 times in 1 sweeps | as one process | 3 of 16 | |" in busy
    assert "| 2 processes | as one process | | 2.00x |" in script.tabled({**facts, "others": 0.05}, medians)
