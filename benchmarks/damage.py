"""Damage every file and folder of stored sweeps and studies in every way: `python benchmarks/damage.py`.

A folder is copied, and one file or folder in the copy is damaged (`damage_kinds`). The copy is then read, and the call
that created it is repeated to resume it. Four kinds of faults are counted, and all counts must be 0:

- *used in silence*: the data read, or the result of the call, differ from the original without an error;
- *dead end*: the call raises an error, and following its advice does not help;
- *foreign error*: the call raises another exception, or makes no progress for a minute;
- *no name*: the error does not name the folder in one line.

A stopped run resumes from its log if the code has not changed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

# Must come before anything that imports nnsight, which adds a method to `object` that beartype cannot hash.
import beartype  # noqa: F401
import pandas as pd
import typer
from damage_folders import Facts, Kept, quickly, studies, sweeps
from damage_kinds import Damage, damages
from ends import ends

import audiolens as al
from analysis import study, sweep
from analysis.store.code import code_of
from audiolens.errors import InputError
from audiolens.files.atomic import remove

FAULTS = ("used in silence", "dead end", "foreign error", "no name")
_UNCOUNTED = (".lock", ".seconds.json")
_PATIENCE_SECONDS = 60
_TRIES = 4


@dataclass
class Case:
    """The outcome of one kind of damage: how the read and the repeated call ended, and any faults."""

    folder: str
    file: str
    kind: str
    where: str
    read: str = ""
    call: str = ""
    faults: list[tuple[str, str]] = field(default_factory=list)
    cpu_seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.folder}, {self.file}, {self.kind} {self.where}".rstrip()

    def fault(self, kind: str, told: object) -> None:
        self.faults.append((kind, " ".join(str(told).split())[:400]))


@dataclass
class Found:
    """The outcomes of all cases."""

    cases: list[Case] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        counts = Counter({"cases": len(self.cases)})
        for case in self.cases:
            counts.update([f"read: {case.read}", f"call: {case.call}", *(kind for kind, _ in case.faults)])
        return counts

    @property
    def faults(self) -> list[str]:
        return [f"{kind}: {case.name}: {told}" for case in self.cases for kind, told in case.faults]

    def table(self) -> pd.DataFrame:
        """Cases and faults by kind of damage (rows) and folder (columns)."""
        rows = [
            {"kind": case.kind, "folder": case.folder, "faults": len(case.faults), "cases": 1} for case in self.cases
        ]
        counted = pd.DataFrame(rows).pivot_table(["cases", "faults"], "kind", "folder", "sum", 0, margins=True)
        return counted.astype(int)


def damaged(
    kept: Kept,
    work: Path,
    flips: int = 3,
    seed: int = 0,
    chosen: Callable[[Damage], bool] = lambda _: True,
    done: Callable[[Case], object] = lambda _: None,
) -> Found:
    """Apply every damage for which `chosen` is true, then read and resume the folder; `done` is called per case."""
    found, truth, last = Found(), kept.read(kept.whole)[0], _contents(kept.whole)
    copy = work / "copy"
    for damage in damages(kept.start, kept.other, flips, random.Random(seed)):
        if not chosen(damage):
            continue
        case, started = Case(kept.name, damage.file, damage.kind, damage.where), time.process_time()
        shutil.copytree(kept.start, copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            damage.change(copy)
            _read(kept, copy, truth, damage, case)
            _gone_on(kept, copy, last, damage, case)
        remove(copy)
        remove(copy.with_name("copy-aside"))
        case.cpu_seconds = round(time.process_time() - started, 3)
        found.cases.append(case)
        done(case)
    return found


def _read(kept: Kept, copy: Path, truth: Facts, damage: Damage, case: Case) -> None:
    try:
        with ends(_PATIENCE_SECONDS):
            told, whole = kept.read(copy)
    except InputError as error:
        case.read = "refused"
        _check_told(error, copy, case)
    except Exception as error:
        case.read = "failed"
        case.fault("foreign error", f"read: {error!r}")
    else:
        case.read = "right"
        # Changes in a format without hashes cannot be detected.
        if not damage.forged and (not told.items() <= truth.items() or (whole and told != truth)):
            case.fault("used in silence", "read")


def _gone_on(kept: Kept, copy: Path, last: dict[str, bytes], damage: Damage, case: Case) -> None:
    force, told = False, ""
    for _ in range(_TRIES):
        try:
            with ends(_PATIENCE_SECONDS):
                kept.go_on(copy, force)
        except InputError as error:
            case.call = case.call or "refused first"
            _check_told(error, copy, case)
            told = str(error)
            if "--force" in told and not force:
                force = True
            elif "remove it" in told and (named := _named(copy, damage.file, told)) is not None:
                remove(named)
            elif "remove the folder" in told and copy.exists():
                remove(copy)
            else:
                break
        except Exception as error:
            case.call = "failed"
            case.fault("foreign error", f"call: {error!r}")
            return
        else:
            case.call = case.call or "as if nothing had been"
            # Stages of another study may be left in the folder: the study's own do not depend on them.
            others = _contents(kept.other)
            now = {name: one for name, one in _contents(copy).items() if name in last or others.get(name) != one}
            unlike = sorted(name for name in {*now, *last} if now.get(name) != last.get(name))
            if unlike:
                case.fault("used in silence", f"ended with other {unlike}")
            return
    case.call = "refused"
    case.fault("dead end", told)


def _named(copy: Path, file: str, told: str) -> Path | None:
    """The damaged file, or a folder above it, that an error names."""
    around = [copy / one for one in (Path(file), *Path(file).parents) if one.name]
    return next((one for one in around if f"{one} is " in told and os.path.lexists(one)), None)


def _check_told(error: InputError, copy: Path, case: Case) -> None:
    if str(copy) not in str(error) or "\n" in str(error):
        case.fault("no name", error)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(_UNCOUNTED))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _logged(log: Path, of: dict[str, Any]) -> dict[str, Case]:
    """The cases in a log, if it belongs to the same code and options; otherwise start a new log."""
    lines = log.read_text().splitlines() if log.is_file() else []
    if not lines or json.loads(lines[0]) != of:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps(of) + "\n")
        return {}
    cases = [Case(**json.loads(line)) for line in lines[1:]]
    return {case.name: case for case in cases}


def _tiny(place: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import conftest  # pyright: ignore[reportMissingImports]

    return conftest.write_model(place)


def main(
    model: Annotated[str, typer.Option(help="A model, such as etude (default: a tiny one with random weights).")] = "",
    flips: Annotated[int, typer.Option(help="Bits flipped in each file, in addition to the first and last.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the bits to flip.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file for the counts and faults.")] = Path("runs/damage.json"),
    log: Annotated[Path, typer.Option(help="Log of the cases, to resume a stopped run.")] = Path("runs/damage.jsonl"),
    every: Annotated[int, typer.Option(help="Try only one case in this many.")] = 1,
    only: Annotated[str, typer.Option(help="'sweep' or 'study' (default: both).")] = "",
    kind: Annotated[str, typer.Option(help="Only kinds of damage that contain this text.")] = "",
) -> None:
    """Damage every file and folder, and print the outcomes."""
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    code = code_of(study.run, sweep.play, damaged).digest
    before = _logged(log, {"code": code, "model": model, "flips": flips, "seed": seed})
    with ExitStack() as until_the_end:
        work = Path(until_the_end.enter_context(TemporaryDirectory()))
        lines = until_the_end.enter_context(open(log, "a"))
        lens = al.AudioLens.from_pretrained(model or _tiny(work / "model"))
        until_the_end.enter_context(quickly(lens))
        found, rng = Found(), random.Random(seed)

        def done(case: Case) -> None:
            lines.write(json.dumps(asdict(case)) + "\n")
            lines.flush()

        def chosen(damage: Damage, folder: str) -> bool:
            if rng.randrange(every) or kind not in damage.kind:
                return False
            known = before.get(f"{folder}, {damage.name}")
            if known is not None:
                found.cases.append(known)
            return known is None

        for name, make in {"sweep": sweeps, "study": studies}.items():
            for kept in make(lens, work) if name in only or not only else ():
                mine = damaged(kept, work, flips, seed, lambda damage, name=kept.name: chosen(damage, name), done)
                found.cases += mine.cases
                typer.echo(f"{kept.name}: {len(mine.cases)} cases, {len(mine.faults)} faults; "
                           f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    typer.echo("\n".join(found.faults))
    typer.echo(found.table().to_string())
    counts = {one: found.counts[one] for one in FAULTS}
    typer.echo(f"{len(found.cases)} cases, {counts}, {sum(case.cpu_seconds for case in found.cases):.0f} s of CPU")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"counts": found.counts, "faults": found.faults}, indent=1))
    if found.faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
