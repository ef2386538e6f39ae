"""Damaged files of sweeps and studies are never used silently, and every damaged folder can be recovered.

A slice of `benchmarks/damage.py`, which damages every file in every way.
"""

import random
from pathlib import Path
from typing import Any

import damage
import pytest

from analysis import report
from audiolens.errors import InputError

SWEPT = ("plan.json", "clips.parquet", "batches/00000.parquet", "batches/00000.safetensors", "batches/00002.parquet",
         "audio/000005.flac")  # fmt: skip


def few(share: float, seed: int = 0) -> Any:
    rng = random.Random(seed)
    return lambda *_: rng.random() < share


def assert_accounted_for(found: damage.Found, at_least: int) -> None:
    assert found.faults == []
    assert found.counts["cases"] >= at_least
    assert found.counts["call: as if nothing had been"] == found.counts["cases"]


@pytest.fixture(scope="module")
def sweeps(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> list[damage.Kept]:
    return damage.sweeps(lens, tmp_path_factory.mktemp("sweeps"))


@pytest.mark.parametrize("state", [0, 1], ids=["finished", "unfinished"])
def test_no_damage_of_a_sweep_is_used_in_silence_or_a_dead_end(
    sweeps: list[damage.Kept], tmp_path: Path, state: int
) -> None:
    some = few(0.3, seed=state)
    found = damage.damaged(sweeps[state], tmp_path, flips=1, chosen=lambda file, kind: file in SWEPT and some())
    assert_accounted_for(found, at_least=8)
    assert found.counts["read: refused"] > 0


@pytest.mark.slow
def test_no_damage_of_a_study_is_used_in_silence_or_a_dead_end(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Put back afterwards: `studies` leaves pages out.
    monkeypatch.setattr(report, "write", report.write)
    for kept in damage.studies(lens, tmp_path):
        found = damage.damaged(kept, tmp_path, flips=1, chosen=few(0.01, seed=len(kept.name)))
        assert_accounted_for(found, at_least=1)


def test_a_battery_that_finds_nothing_would_say_so(sweeps: list[damage.Kept], tmp_path: Path) -> None:
    """The counts can fail: a reader that sees other rows, and a call that ends otherwise or nowhere, are found."""

    def nowhere(_: Path, __: bool) -> None:
        raise InputError("choose another folder.")

    kept = sweeps[0]
    blind = damage.Kept("blind", kept.start, kept.whole, kept.other, lambda folder: ({"row": str(folder)}, True),
                        lambda *_: None)  # fmt: skip
    only = {"chosen": lambda file, kind: (file, kind) == ("plan.json", "emptied")}
    assert damage.damaged(blind, tmp_path, **only).counts["used in silence"] == 2
    lost = damage.Kept("lost", kept.start, kept.whole, kept.other, kept.read, nowhere)
    assert damage.damaged(lost, tmp_path, **only).counts["dead end"] == 1
