"""Create the folders for `damage.py`, which are stored sweeps and studies, finished, unfinished or barely begun."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import audiolens as al
from analysis import listening, pca, placement, report, resampling, similarity, study, sweep
from analysis.patching import PatchingResult
from analysis.report import writer
from analysis.study import pipeline, side_effects, test_result, where
from analysis.study.settings import Settings
from analysis.sweep import Condition, response
from audiolens import measure
from audiolens.files.atomic import remove
from audiolens.files.integrity import sealed_json, tensor_hash
from audiolens.model import weight_hash

MAKING: dict[str, Any] = {"seconds": 0.4, "batch_size": 4, "measures": ("brightness", "loudness"), "n_jobs": 0}
TINY = Settings(
    poles=2, reading_seconds=0.5, development=2, development_seeds=1, test=2, test_seeds=1,
    strengths={"one-to-all": (0.5,)}, doses=(1.0,), n_random=1, n_shuffled=1, seconds=1.0, shown=1, pairs=2,
    batch_size=8, n_jobs=0,
)  # fmt: skip
FEW_DRAWS = 20
"""The number of bootstrap draws: intervals take most of a study's time, and their number does not matter here."""

Facts = dict[Any, str]


@dataclass(frozen=True)
class Kept:
    """A folder to damage.

    Attributes:
        name: its name in the counts.
        start: the folder before the damage.
        whole: the finished folder with which the repeated call must end.
        other: a finished folder of another sweep or study, as a source of wrong files.
        read: returns the contents of a folder by item, and whether they are complete.
        go_on: repeats the call that made the folder on another folder; with True, with `--force`.
    """

    name: str
    start: Path
    whole: Path
    other: Path
    read: Callable[[Path], tuple[Facts, bool]]
    go_on: Callable[[Path, bool], object]


def sweeps(lens: Any, work: Path) -> list[Kept]:
    """A sweep in four states of completion; `other` is a sweep of another vector."""
    width = lens.config.d_model

    def play(out: Path, _: bool = False, seed: int = 0) -> None:
        one = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        todo = [
            Condition("baseline", labels={"strength": 0.0}),
            Condition("up", (al.Add(one, strength=1.0),), labels={"strength": 1.0}),
        ]
        sweep.play(lens, todo, sweep.clips(["a calm song", "fast piano"], 4), out=out, sound="flac", **MAKING)

    whole, other = work / "sweep", work / "other-sweep"
    play(whole)
    play(other, seed=1)
    starts = {
        "finished sweep": whole,
        "unfinished sweep": _first_batches(whole, work / "begun-sweep", 3),
        "sweep of one batch": _first_batches(whole, work / "first-sweep", 1),
        "sweep of no batch": _first_batches(whole, work / "planned-sweep", 0),
    }
    return [Kept(name, start, whole, other, read_sweep, play) for name, start in starts.items()]


def _first_batches(whole: Path, place: Path, batches: int) -> Path:
    """A sweep in the state in which `batches` of its four batches of four clips were finished."""
    begun = shutil.copytree(whole, place)
    (begun / "clips.parquet").unlink()
    for path in (*begun.glob("batches/*"), *begun.glob("audio/*")):
        if int(path.stem) // (1 if path.parent.name == "batches" else 4) >= batches:
            path.unlink()
    return begun


def read_sweep(folder: Path) -> tuple[Facts, bool]:
    """The contents of a sweep's folder: rows, codes and sound, by clip."""
    found = sweep.load_folder(folder)
    keys = found.table[["condition", "prompt", "seed"]]
    codes = {name: iter(found.codes(name).numpy()) for name in keys["condition"].unique()}
    told = {}
    for row, key in enumerate(keys.itertuples(index=False, name=None)):
        sound = found.sound(row)
        values = [found.table.iloc[row].to_json(), next(codes[key[0]]), np.zeros(0) if sound is None else sound]
        told[key] = _digest(*values)
    return told, found.whole


def studies(lens: Any, work: Path) -> list[Kept]:
    """A study in three states of completion; `other` is a study of other prompts. To be used within `quickly`."""

    def run(out: Path, force: bool = False, settings: Settings = TINY) -> None:
        study.run(lens, "tempo", out, settings=settings, progress=False, overwrite=force)

    whole, other = work / "study", work / "other-study"
    run(whole)
    run(other, settings=Settings(**{**vars(TINY), "poles": 3, "seconds": 1.2}))
    begun = _without(whole, work / "begun-study", "lost")
    for file in ("clips.parquet", "batches/00000.parquet"):
        (next(path for path in begun.glob("stages/dose-response-*") if path.is_dir()) / file).unlink()
    later = ("lost", "controls", "others", "dose-response", "strength", "placement", "patching")
    first = _without(whole, work / "first-study", *later)
    starts = {"finished study": whole, "unfinished study": begun, "study of one stage": first}
    return [Kept(name, start, whole, other, read_study, run) for name, start in starts.items()]


def _without(whole: Path, place: Path, *stages: str) -> Path:
    """A copy of a study without its outputs and without these stages."""
    begun = shutil.copytree(whole, place)
    lacking = [entry for stage in stages for entry in begun.glob(f"stages/{stage}-*")]
    for entry in (*lacking, *(entry for entry in begun.iterdir() if entry.name not in ("stages", "study.json"))):
        remove(entry)
    return begun


@contextmanager
def quickly(lens: Any) -> Iterator[None]:
    """Speed up studies: no pages, which are never read, few bootstrap draws, and no computation made twice."""
    draws = resampling._Groups.draws
    changes: list[tuple[Any, str, Any]] = [
        (report, "write", tables_alone),
        (resampling._Groups, "draws", lambda self, count, seed: draws(self, min(count, FEW_DRAWS), seed)),
    ]
    numbers = [(response, "effects"), (test_result, "cross_effects"), (side_effects, "table"), (pca, "fit"),
               (where, "evidence"), (similarity, "cosine_map"), (PatchingResult, "to_frame"),
               (listening, "hear")]  # fmt: skip
    asked = [(type(lens), "generate"), (type(lens), "decode_codes"), (pipeline, "difference_in_means"), (where, "find"),
             (placement, "place"), (measure, "code_nats"), (measure, "codec_features")]  # fmt: skip
    changes += [(place, name, remembered(getattr(place, name), lens)) for place, name in (*numbers, *asked)]
    # Weights and packages do not change during a run.
    constant = [(metadata, "version"), (weight_hash, "content_hash")]
    changes += [(place, name, cache(getattr(place, name))) for place, name in constant]
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    try:
        for place, name, new in changes:
            setattr(place, name, new)
        yield
    finally:
        for place, name, old in before:
            setattr(place, name, old)


def remembered(function: Callable[..., Any], lens: Any) -> Callable[..., Any]:
    """Cache a function's results by the full content of its arguments; calls return copies.

    The lens never changes, so instead of it only the number of threads, which changes bits, is part of the key.
    """
    known: dict[bytes, bytes] = {}

    @wraps(function)
    def asked(*arguments: Any, **named: Any) -> Any:
        told = [None if one is lens else one for one in arguments]
        key = _key((told, named, torch.get_num_threads()))
        if key not in known:
            known[key] = pickle.dumps(function(*arguments, **named))
        return pickle.loads(known[key])

    return asked


class _Content(pickle.Pickler):
    """A pickler that gives equal bytes for equal values: tensors by their hash, no references between objects."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.fast = True

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str, (f"{value.dtype} {tuple(value.shape)} {tensor_hash(value)}",)
        return NotImplemented


def _key(values: Any) -> bytes:
    buffer = io.BytesIO()
    _Content(buffer).dump(values)
    return hashlib.sha256(buffer.getvalue()).digest()


def read_study(folder: Path) -> tuple[Facts, bool]:
    """The contents of the folder of a finished study."""
    found = study.load_folder(folder)
    told = {name: _digest(table.to_csv(index=False)) for name, table in writer.tables(found).items()}
    told["clips"] = _digest(found.clips.to_csv(index=False))
    told["samples"] = _digest(found.directions.vectors.numpy(), found.directions.samples.values.numpy())  # pyright: ignore[reportOptionalMemberAccess]
    told["sounds"] = _digest(*found.sounds.values())
    facts = {**writer.summary(found, ""), "versions": None}
    return {**told, "summary": _digest(json.dumps(facts, sort_keys=True))}, True


def tables_alone(found: study.Study, folder: Path, *, command: str = "", **_: Any) -> None:
    """Write the outputs of a study except for figures and the page."""
    (folder / "tables").mkdir()
    for name, table in writer.tables(found).items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    found.clips.to_parquet(folder / "clips.parquet", index=False)
    found.directions.save(folder / "directions.safetensors")
    facts = {**writer.summary(found, command), "seconds": {}}
    (folder / "summary.json").write_bytes(sealed_json(facts))


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
