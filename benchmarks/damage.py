"""Damage every file of a sweep and of a study, then read and resume the folder: `python benchmarks/damage.py`.

Finished and unfinished folders are copied, and one file of the copy is cut, emptied, removed, exchanged for another, or
has a bit flipped. Then the folder is read, and the same call resumes in it. *Used in silence* counts results that
differ from the truth without an error. *Dead end* counts calls that are refused and still fail after doing what the
message says (`--force`). Both counts must be 0.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer

import audiolens as al
from analysis import report, study, sweep
from analysis.report import writer
from analysis.study.settings import Settings
from analysis.sweep import Condition
from audiolens.errors import InputError
from audiolens.files.integrity import sealed_json

MAKING: dict[str, Any] = {"seconds": 0.4, "batch_size": 4, "measures": ("brightness", "loudness"), "n_jobs": 0}
TINY = Settings(
    poles=2, reading_seconds=0.5, development=2, development_seeds=1, test=2, test_seeds=1,
    strengths={"one-to-all": (0.5,)}, doses=(1.0,), n_random=1, seconds=1.0, shown=1, pairs=2, batch_size=8, n_jobs=0,
)  # fmt: skip
_UNCOUNTED = (".lock", ".seconds.json")
_KEY = re.compile(r"-[0-9a-f]{16}")

Change = Callable[[Path], object]
Facts = dict[Any, str]


@dataclass(frozen=True)
class Kept:
    """A folder to damage.

    Attributes:
        name: its name in the counts.
        start: the folder before the damage.
        whole: the finished folder that the same call must end with.
        other: a finished folder of another sweep or study, to exchange files with.
        read: returns the folder's contents, item by item, and whether they are complete.
        go_on: the call that made it, on another folder; with True, with `--force`.
    """

    name: str
    start: Path
    whole: Path
    other: Path
    read: Callable[[Path], tuple[Facts, bool]]
    go_on: Callable[[Path, bool], object]


@dataclass
class Found:
    """Counts of the outcomes, and the faults found."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, kind: str, case: str, told: object) -> None:
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {case}: {' '.join(str(told).split())[:300]}")


def changes(folder: Path, other: Path, flips: int, rng: random.Random) -> Iterator[tuple[str, str, Change]]:
    """Every damage to every file: (file, kind of damage, function that applies it to a copy of the folder)."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    for path in paths:
        file, content = str(path.relative_to(folder)), path.read_bytes()
        yield file, "removed", lambda copy, file=file: (copy / file).unlink()
        put = lambda copy, new, file=file: (copy / file).write_bytes(new)  # noqa: E731
        yield file, "emptied", partial(put, new=b"")
        yield file, "cut", partial(put, new=content[: len(content) // 2])
        yield file, "last byte cut", partial(put, new=content[:-1])
        for place in [0, 8 * len(content) - 1, *(rng.randrange(8 * len(content)) for _ in range(flips))]:
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            yield file, f"bit {place}", partial(put, new=bytes(flipped))
        for kind, new in (("sibling's", _sibling(path, paths)), ("another's", _counterpart(file, other))):
            if new is not None and new != content:
                yield file, kind, partial(put, new=new)


def damaged(
    kept: Kept, work: Path, flips: int = 3, seed: int = 0, chosen: Callable[[str, str], bool] = lambda *_: True
) -> Found:
    """Apply every damage that is `chosen` by file and kind, then read and resume the folder."""
    found, truth, last = Found(), kept.read(kept.whole)[0], _contents(kept.whole)
    for file, kind, change in changes(kept.start, kept.other, flips, random.Random(seed)):
        if not chosen(file, kind):
            continue
        case, copy = f"{kept.name}, {file}, {kind}", shutil.copytree(kept.start, work / "copy")
        found.counts["cases"] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(copy)
            _read(kept, copy, truth, case, found)
            _gone_on(kept, copy, last, case, found)
        shutil.rmtree(copy)
    return found


def _read(kept: Kept, copy: Path, truth: Facts, case: str, found: Found) -> None:
    try:
        told, whole = kept.read(copy)
    except InputError as error:
        found.counts["read: refused"] += 1
        if str(copy) not in str(error) or "\n" in str(error):
            found.fault("no name", case, error)
    except Exception as error:
        found.fault("foreign error", case, repr(error))
    else:
        found.counts["read: right"] += 1
        if not told.items() <= truth.items() or (whole and told != truth):
            found.fault("used in silence", case, "read")


def _gone_on(kept: Kept, copy: Path, last: dict[str, bytes], case: str, found: Found) -> None:
    for force in (False, True):
        try:
            kept.go_on(copy, force)
        except InputError as error:
            found.counts["call: refused"] += not force
            if force or "--force" not in str(error):
                found.fault("dead end", case, error)
                return
        except Exception as error:
            found.fault("foreign error", case, repr(error))
            return
        else:
            found.counts["call: as if nothing had been"] += 1
            unlike = sorted(name for name, content in _contents(copy).items() if last.get(name) != content)
            unlike += sorted(set(last) - set(_contents(copy)))
            if unlike:
                found.fault("used in silence", case, f"ended with other {unlike}")
            return


def sweeps(lens: Any, work: Path) -> list[Kept]:
    """A finished and an unfinished sweep; the other sweep adds another vector."""
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
    begun = shutil.copytree(whole, work / "begun-sweep")
    for file in ("clips.parquet", "batches/00003.parquet", "batches/00003.safetensors"):
        (begun / file).unlink()
    for row in range(12, 16):
        (begun / f"audio/{row:06d}.flac").unlink()
    return [
        Kept("finished sweep", whole, whole, other, read_sweep, play),
        Kept("unfinished sweep", begun, whole, other, read_sweep, play),
    ]


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
    """A finished and an unfinished study; the other has other prompts. Pages are left out: nothing reads them."""
    report.write = tables_alone

    def run(out: Path, force: bool = False, settings: Settings = TINY) -> None:
        study.run(lens, "tempo", out, settings=settings, progress=False, overwrite=force)

    whole, other = work / "study", work / "other-study"
    run(whole)
    run(other, settings=Settings(**{**vars(TINY), "poles": 3, "seconds": 1.2}))
    begun = shutil.copytree(whole, work / "begun-study")
    for entry in (*begun.glob("stages/lost-*"), *begun.glob("*")):
        if entry.name not in ("stages", "study.json"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for file in ("clips.parquet", "batches/00000.parquet"):
        (next(path for path in begun.glob("stages/dose-response-*") if path.is_dir()) / file).unlink()
    return [
        Kept("finished study", whole, whole, other, read_study, run),
        Kept("unfinished study", begun, whole, other, read_study, run),
    ]


def read_study(folder: Path) -> tuple[Facts, bool]:
    """The contents of a finished study's folder."""
    found = study.load_folder(folder)
    told = {name: _digest(table.to_csv(index=False)) for name, table in writer.tables(found).items()}
    told["clips"] = _digest(found.clips.to_csv(index=False))
    told["samples"] = _digest(found.directions.vectors.numpy(), found.directions.samples.values.numpy())  # pyright: ignore[reportOptionalMemberAccess]
    told["sounds"] = _digest(*found.sounds.values())
    facts = {**writer.summary(found, ""), "versions": None}
    return {**told, "summary": _digest(json.dumps(facts, sort_keys=True))}, True


def tables_alone(found: study.Study, folder: Path, *, command: str = "") -> None:
    """Write the outputs of a study, without figures and page."""
    (folder / "tables").mkdir()
    for name, table in writer.tables(found).items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    found.clips.to_parquet(folder / "clips.parquet", index=False)
    found.directions.save(folder / "directions.safetensors")
    facts = {**writer.summary(found, command), "seconds": {}}
    (folder / "summary.json").write_bytes(sealed_json(facts))


def _sibling(path: Path, paths: list[Path]) -> bytes | None:
    """The content of another file of the same type in the folder."""
    alike = [one for one in paths if one.suffix == path.suffix and one.read_bytes() != path.read_bytes()]
    same = [one for one in alike if one.name == path.name or one.parent == path.parent]
    return next((one.read_bytes() for one in (*same, *alike)), None)


def _counterpart(file: str, other: Path) -> bytes | None:
    """The file of the same name in the other folder, regardless of the stage's key."""
    named = {_KEY.sub("", str(path.relative_to(other))): path for path in other.rglob("*") if path.is_file()}
    found = named.get(_KEY.sub("", file))
    return None if found is None else found.read_bytes()


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(_UNCOUNTED))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def main(
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    flips: Annotated[int, typer.Option(help="Bits flipped in each file, in addition to the first and the last.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed for choosing the bits.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/damage.json"),
    every: Annotated[int, typer.Option(help="Apply only one in this many damages.")] = 1,
    only: Annotated[str, typer.Option(help="'sweep' or 'study' (default: both).")] = "",
) -> None:
    """Apply all damages and print the outcomes."""
    warnings.simplefilter("ignore")
    lens = al.AudioLens.from_pretrained(model)
    with TemporaryDirectory() as place:
        made = {"sweep": sweeps, "study": studies}
        kept = [one for name, make in made.items() if name in only or not only for one in make(lens, Path(place))]
        rng = random.Random(seed)
        found = {one.name: damaged(one, Path(place), flips, seed, lambda *_: rng.randrange(every) == 0) for one in kept}
    for one in found.values():
        typer.echo("\n".join(one.faults))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({name: {**one.counts, "faults": one.faults} for name, one in found.items()}, indent=1))
    if any(one.faults for one in found.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
