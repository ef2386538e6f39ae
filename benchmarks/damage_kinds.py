"""Define the kinds of damage that `damage.py` does to each file and each folder of a copy.

A file is removed, emptied, truncated or replaced by another file, a folder, a link or a pipe, or some of its bits are
flipped. A folder is removed, emptied or replaced. In a file with a hash, an entry is also removed and the hash updated
to match, which would not happen by accident. This is done to every entry at the top level, and to a random few of the
lower ones, which are alike.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from audiolens.files.atomic import remove
from audiolens.files.integrity import OPEN_SEAL, SEAL, seal, sealed_json

BEFORE = {"audiolens.sweep.2": "audiolens.sweep.1", "audiolens.run.2": "audiolens.run.1",
          "audiolens.study.2": "audiolens.study.1"}  # fmt: skip
"""Formats with hashes, and the previous formats without them."""
FEW_ENTRIES = 4
_LOCK = ".lock"
_KEY = re.compile(r"-[0-9a-f]{16}")


@dataclass(frozen=True)
class Damage:
    """One way to damage a file or folder.

    Attributes:
        file: the path of the file or folder within the study or sweep.
        kind: the kind of damage, a row of the table.
        where: the byte, bit or entry that is changed.
        change: a function that damages a copy of the folder.
        forged: whether the hash was updated or is absent, so that the contents cannot be compared.
    """

    file: str
    kind: str
    change: Callable[[Path], object]
    where: str = ""
    forged: bool = False

    @property
    def name(self) -> str:
        return f"{self.file}, {self.kind} {self.where}".rstrip()


def damages(folder: Path, other: Path, flips: int, rng: random.Random) -> Iterator[Damage]:
    """Yield every damage to every file and folder; replacement files come from `other`, a finished folder."""
    entries = sorted(folder.rglob("*"))
    files = [path for path in entries if path.is_file() and path.name != _LOCK]
    named = {_KEY.sub("", str(path.relative_to(other))): path for path in other.rglob("*")}
    for path in entries:
        file = str(path.relative_to(folder))
        theirs = named.get(_KEY.sub("", file))
        yield Damage(file, "removed", lambda copy, file=file: remove(copy / file))
        yield from _exchanged(file, path.is_dir())
        if path.is_dir():
            yield Damage(file, "emptied", partial(_emptied, file=file))
            if theirs is not None:
                yield Damage(file, "another's", partial(_other_folder, file=file, new=theirs))
        elif path in files:
            yield from _of_bytes(file, path.read_bytes(), flips, rng)
            for kind, new in (("sibling's", _sibling(path, files)), ("another's", theirs)):
                if new is not None and new.read_bytes() != path.read_bytes():
                    yield Damage(file, kind, partial(_put, file=file, new=new.read_bytes()))
            yield from _forged(file, path.read_bytes(), rng)


def _of_bytes(file: str, content: bytes, flips: int, rng: random.Random) -> Iterator[Damage]:
    put = partial(_put, file=file)
    yield Damage(file, "emptied", partial(put, new=b""))
    yield Damage(file, "cut", partial(put, new=content[: len(content) // 2]))
    yield Damage(file, "last byte cut", partial(put, new=content[:-1]))
    for place in [0, 8 * len(content) - 1, *(rng.randrange(8 * len(content)) for _ in range(flips))]:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield Damage(file, "bit flipped", partial(put, new=bytes(flipped)), str(place))


def _exchanged(file: str, is_folder: bool) -> Iterator[Damage]:
    """Replace a file or folder by something else of the same name; the original is moved aside as a link's target."""

    def other_kind(copy: Path, make: Callable[[Path, Path], object]) -> None:
        aside = copy.with_name(f"{copy.name}-aside")
        remove(aside)
        (copy / file).rename(aside)
        make(copy / file, aside)

    def link(path: Path, aside: Path) -> None:
        path.symlink_to(aside)

    def full(path: Path, aside: Path) -> None:
        path.mkdir()
        shutil.copy(aside, path / "kept")

    exchanges: dict[str, Callable[[Path, Path], object]] = {
        "by a link": link,
        "by a pipe": lambda path, _: os.mkfifo(path),
    }
    if is_folder:
        exchanges["by a file"] = lambda path, _: path.write_bytes(b"mine")
    else:
        exchanges |= {"by an empty folder": lambda path, _: path.mkdir(), "by a folder": full}
    for kind, make in exchanges.items():
        yield Damage(file, f"replaced {kind}", partial(other_kind, make=make))


def _forged(file: str, content: bytes, rng: random.Random) -> Iterator[Damage]:
    """Remove or change an entry of a well-formed file, with a matching hash or in a format without hashes."""
    put = partial(_put, file=file)
    if file.endswith(".parquet") and OPEN_SEAL.split(":")[0].encode() in content:
        told = json.loads(pq.read_metadata(io.BytesIO(content)).metadata[b"audiolens"])
        del told["seal"]
        for name in told:
            yield Damage(file, "entry gone, sealed anew", partial(put, new=_retold(content, told, name)), name, True)
        yield Damage(file, "entries exchanged, sealed anew", partial(put, new=_retold(content, [told])), "", True)
    if not file.endswith(".json"):
        return
    facts = json.loads(content)
    if not isinstance(facts, dict) or SEAL not in facts:
        return
    del facts[SEAL]
    yield Damage(file, "hash gone", partial(put, new=json.dumps(facts).encode()))
    for name, fewer in _lacking(facts, rng):
        yield Damage(file, "entry gone, sealed anew", partial(put, new=sealed_json(fewer)), name, True)
        if (before := BEFORE.get(str(fewer.get("format")))) is not None:
            old = json.dumps({**fewer, "format": before}).encode()
            yield Damage(file, "entry gone, in the format before", partial(put, new=old), name, True)
    for name in facts:
        for wrong in (None, "x", [1]):
            if type(wrong) is not type(facts[name]):
                new = sealed_json({**facts, name: wrong})
                yield Damage(file, "entry wrong, sealed anew", partial(put, new=new), f"{name}={wrong}", True)


def _lacking(facts: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield copies of `facts` that lack one entry at the first or second level, with the name of that entry."""
    for name, value in facts.items():
        yield name, {key: one for key, one in facts.items() if key != name}
        # A manifest with fewer files is valid, because hashes do not show who wrote it.
        parts = list(value) if isinstance(value, dict) and facts.get("format") != "audiolens.manifest.1" else []
        for part in rng.sample(parts, min(FEW_ENTRIES, len(parts))):
            yield f"{name}.{part}", {**facts, name: {key: one for key, one in value.items() if key != part}}


def _retold(content: bytes, told: Any, without: str | None = None) -> bytes:
    """A Parquet file with other metadata and a matching hash."""
    table = pq.read_table(io.BytesIO(content))
    if isinstance(told, dict):
        told = {**{key: one for key, one in told.items() if key != without}, "seal": OPEN_SEAL}
    else:
        told = [*told, OPEN_SEAL]
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"audiolens": json.dumps(told)}), buffer)
    return seal(buffer.getvalue())


def _put(copy: Path, file: str, new: bytes) -> None:
    (copy / file).write_bytes(new)


def _emptied(copy: Path, file: str) -> None:
    remove(copy / file)
    (copy / file).mkdir()


def _other_folder(copy: Path, file: str, new: Path) -> None:
    remove(copy / file)
    shutil.copytree(new, copy / file)


def _sibling(path: Path, paths: list[Path]) -> Path | None:
    """Another file of the same kind in the folder."""
    alike = [one for one in paths if one.suffix == path.suffix and one.read_bytes() != path.read_bytes()]
    same = [one for one in alike if one.name == path.name or one.parent == path.parent]
    return next(iter((*same, *alike)), None)
