"""Write and check `made.json`, which ties a finished study's stages, its summary and `study.json` together.

The files' own hashes show that each file is intact. This record also shows that the files belong to the same study.
`experiment.write` writes it, and `finished` checks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.study.stages import BEGUN, MADE, STAGES, SUMMARY
from analysis.sweep.ledger import read_facts
from analysis.sweep.planned import PLAN, plan_hash
from audiolens.errors import DamagedError
from audiolens.files.bounded import MOST_BYTES
from audiolens.files.integrity import MANIFEST, check_bytes, check_manifest, content_of, digest, read_json, sealed_json
from audiolens.files.json_shapes import refuse_other

_SHAPE = {"stages": {str: str}, "hashes": {str: str}, "study": {}}


def made_of(folder: Path, work: Path, used: Iterable[str]) -> bytes:
    """Return the contents of `stages.MADE` for a study that used the stages `used`, and whose page is in `work`."""
    entries = {entry.rpartition("-")[0]: entry for entry in sorted(used)}
    marks = {entry: _mark(folder / STAGES / entry) for entry in entries.values()}
    summary = digest((work / SUMMARY).read_bytes())
    return sealed_json({"stages": entries, "hashes": {SUMMARY: summary, **marks}, "study": _facts(folder)})


def check_made(folder: Path, made: Mapping[str, Any]) -> None:
    """Compare a finished study's record (`stages.MADE`) with the contents of its folder.

    Raises:
        DamagedError: if a file is missing, has changed, or belongs to another study. The error names the file.
    """
    refuse_other(folder / MADE, made, _SHAPE)
    entries = made["stages"].values()
    refuse_other(folder / MADE, made["hashes"], {name: str for name in (SUMMARY, *entries)})
    if _facts(folder) != made["study"]:
        raise DamagedError(f"{folder / BEGUN} is damaged: it belongs to another study.")
    check_bytes(folder / SUMMARY, made["hashes"][SUMMARY])
    for entry in entries:
        path = folder / STAGES / entry
        if _mark(path) != made["hashes"][entry]:
            raise DamagedError(f"{path} is damaged: its content has changed.")
        if not (path / PLAN).is_file():
            check_manifest(path, entry)


def _mark(path: Path) -> str:
    """Return the hash that identifies a stage. It is the hash of the stage's manifest or, for a sweep, of its plan."""
    if (path / PLAN).is_file():
        return plan_hash(read_facts(path))
    if not (path / MANIFEST).is_file():
        raise DamagedError(f"{path / MANIFEST} is missing.")
    return digest(content_of(path / MANIFEST, MOST_BYTES))


def _facts(folder: Path) -> dict[str, Any]:
    """Return the contents of `study.json` without the name by which the model was opened."""
    return {name: value for name, value in read_json(folder / BEGUN).items() if name != "model"}
