"""Settings for the smallest study and sweep that have every part of a large one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import audiolens as al
from analysis import report, study, sweep
from analysis.study.settings import Settings
from analysis.sweep import Condition

TINY = Settings(
    poles=2, reading_seconds=0.5, development=2, development_seeds=1, test=2, test_seeds=1,
    strengths={"one-to-all": (0.5,)}, doses=(1.0,), n_random=1, n_shuffled=1, seconds=1.0, shown=1, pairs=2,
    batch_size=8, n_jobs=0,
)  # fmt: skip
CLIPS = sweep.clips(["a calm song", "fast piano"], 2)
MAKING: dict[str, Any] = {"seconds": 0.4, "batch_size": 4, "measures": ("brightness", "loudness"), "n_jobs": 0}


def conditions(width: int, seed: int = 0) -> list[Condition]:
    one = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return [
        Condition("baseline", labels={"strategy": None, "strength": 0.0}),
        Condition("up", (al.Add(one, strength=1.0),), labels={"strategy": "one-to-all", "strength": 1.0}),
        Condition("down", (al.Add(one, strength=-1.0),), labels={"strategy": "one-to-all", "strength": -1.0}),
        Condition("late", (al.Add(one, layers=[1], schedule=lambda seconds: 2.0 * (seconds > 0.2)),)),
    ]


def played(lens: Any, out: Path | None, **changes: Any) -> sweep.SweepResult:
    asked = {**MAKING, **({} if out is None else {"sound": "flac"}), **changes}
    return sweep.play(lens, asked.pop("conditions", conditions(lens.config.d_model)), CLIPS, out=out, **asked)


def studied(lens: Any, out: Path, settings: Settings = TINY, **more: Any) -> study.Study:
    return study.run(lens, "tempo", out, settings=settings, progress=False, command="audiolens study tempo", **more)


@contextmanager
def bare_pages() -> Iterator[None]:
    """Write the tables of a study without its page, which has tests of its own."""
    from damage_folders import tables_alone

    with patch.object(report, "write", tables_alone):
        yield
