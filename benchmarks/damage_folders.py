"""Folders to damage: sweeps and studies as they are kept, finished, unfinished and barely begun, for `damage.py`."""

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
from analysis.study import pipeline, side_effects, stages, test_result, where
from analysis.study.settings import Settings
from analysis.sweep import Condition, ledger, response
from audiolens import measure
from audiolens.files.atomic import remove
from audiolens.files.integrity import sealed_json, tensor_hash

MAKING: dict[str, Any] = {"seconds": 0.4, "batch_size": 4, "measures": ("brightness", "loudness"), "n_jobs": 0}
TINY = Settings(
    poles=2, reading_seconds=0.5, development=2, development_seeds=1, test=2, test_seeds=1,
    strengths={"one-to-all": (0.5,)}, doses=(1.0,), n_random=1, seconds=1.0, shown=1, pairs=2, batch_size=8, n_jobs=0,
)  # fmt: skip
FEW_DRAWS = 20
"""Of a bootstrap: most of a study's time goes into intervals, which are the same bits or not whatever their number."""

Facts = dict[Any, str]


@dataclass(frozen=True)
class Kept:
    """A folder to damage.

    Attributes:
        name: what it is called in the counts.
        start: the folder as it is before the damage.
        whole: the finished one that the same call must end with.
        other: a finished folder of another sweep or study, that files are exchanged with.
        read: what a folder says, item by item, and whether that is all of it.
        go_on: the call that made it, on another place; with True, with `--force`.
    """

    name: str
    start: Path
    whole: Path
    other: Path
    read: Callable[[Path], tuple[Facts, bool]]
    go_on: Callable[[Path, bool], object]


def sweeps(lens: Any, work: Path) -> list[Kept]:
    """A sweep at four moments; the other is of another vector."""
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
    """A sweep as it was when so many of its four batches of four clips were finished."""
    begun = shutil.copytree(whole, place)
    (begun / "clips.parquet").unlink()
    for path in (*begun.glob("batches/*"), *begun.glob("audio/*")):
        if int(path.stem) // (1 if path.parent.name == "batches" else 4) >= batches:
            path.unlink()
    return begun


def read_sweep(folder: Path) -> tuple[Facts, bool]:
    """All that a sweep's folder says: rows, codes and sound, by clip."""
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
    """A study at three moments; the other is of other prompts. To be made and used `quickly`."""

    def run(out: Path, force: bool = False, settings: Settings = TINY) -> None:
        study.run(lens, "tempo", out, settings=settings, progress=False, overwrite=force)

    whole, other = work / "study", work / "other-study"
    run(whole)
    run(other, settings=Settings(**{**vars(TINY), "poles": 3, "seconds": 1.2}))
    begun = _without(whole, work / "begun-study", "lost")
    for file in ("clips.parquet", "batches/00000.parquet"):
        (next(path for path in begun.glob("stages/dose-response-*") if path.is_dir()) / file).unlink()
    first = _without(whole, work / "first-study", "lost", "dose-response", "strength", "placement", "patching")
    starts = {"finished study": whole, "unfinished study": begun, "study of one stage": first}
    return [Kept(name, start, whole, other, read_study, run) for name, start in starts.items()]


def _without(whole: Path, place: Path, *stages: str) -> Path:
    """A study that shows nothing yet, and lacks these stages."""
    begun = shutil.copytree(whole, place)
    lacking = [entry for stage in stages for entry in begun.glob(f"stages/{stage}-*")]
    for entry in (*lacking, *(entry for entry in begun.iterdir() if entry.name not in ("stages", "study.json"))):
        remove(entry)
    return begun


@contextmanager
def quickly(lens: Any) -> Iterator[None]:
    """Without pages, which nothing reads, with few draws, and with what follows from equal values made once."""
    draws = resampling._Groups.draws
    changes: list[tuple[Any, str, Any]] = [
        (report, "write", tables_alone),
        (resampling._Groups, "draws", lambda self, count, seed: draws(self, min(count, FEW_DRAWS), seed)),
    ]
    numbers = [(response, "effects"), (test_result, "cross_effects"), (side_effects, "table"), (pca, "fit"),
               (where, "evidence"), (similarity, "cosine_map"), (PatchingResult, "to_frame"),
               (listening, "_hear")]  # fmt: skip
    asked = [(type(lens), "generate"), (type(lens), "decode_codes"), (pipeline, "difference_in_means"), (where, "find"),
             (placement, "place"), (measure, "code_nats"), (measure, "codec_features")]  # fmt: skip
    changes += [(place, name, remembered(getattr(place, name), lens)) for place, name in (*numbers, *asked)]
    # Neither weights nor packages change meanwhile.
    constant = [(metadata, "version"), (stages, "version"), (stages, "content_hash"), (ledger, "content_hash")]
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
    """A function whose results are kept by the whole content of its arguments, and handed out as copies.

    Of a lens, which is the same throughout, only the threads count, which change bits.
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
    """Equal values are equal bytes: tensors by what they hold, and nothing by where else it stands."""

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
    """All that the folder of a finished study says."""
    found = study.load_folder(folder)
    told = {name: _digest(table.to_csv(index=False)) for name, table in writer.tables(found).items()}
    told["clips"] = _digest(found.clips.to_csv(index=False))
    told["samples"] = _digest(found.directions.vectors.numpy(), found.directions.samples.values.numpy())  # pyright: ignore[reportOptionalMemberAccess]
    told["sounds"] = _digest(*found.sounds.values())
    facts = {**writer.summary(found, ""), "versions": None}
    return {**told, "summary": _digest(json.dumps(facts, sort_keys=True))}, True


def tables_alone(found: study.Study, folder: Path, *, command: str = "") -> None:
    """What a study shows, but for pictures and page."""
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
