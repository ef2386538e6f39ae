"""Made: what a finished study was made of, which ties its stages, its summary and `study.json` to one another.

Each of these files is whole by its own hash; here it is seen that they are of one study. `experiment.write` writes it,
`finished` compares with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.study.stages import BEGUN, MADE, STAGES, SUMMARY
from analysis.sweep.ledger import PLAN, plan_hash, read_facts
from audiolens.errors import DamagedError
from audiolens.files.integrity import MANIFEST, check_bytes, check_manifest, digest, read_json, sealed_json
from audiolens.files.json_shapes import refuse_other

_SHAPE = {"stages": {str: str}, "hashes": {str: str}, "study": {}}


def made_of(folder: Path, work: Path, used: Iterable[str]) -> bytes:
    """`stages.MADE` of a folder whose page, in `work`, was made of the stages `used`."""
    entries = {entry.rpartition("-")[0]: entry for entry in sorted(used)}
    marks = {entry: _mark(folder / STAGES / entry) for entry in entries.values()}
    summary = digest((work / SUMMARY).read_bytes())
    return sealed_json({"stages": entries, "hashes": {SUMMARY: summary, **marks}, "study": _told(folder)})


def check_made(folder: Path, made: Mapping[str, Any]) -> None:
    """Compare what a finished study was made of, as its `stages.MADE` says, with what the folder holds.

    Raises:
        DamagedError: naming what is gone, is not what was written, or is another study's.
    """
    refuse_other(folder / MADE, made, _SHAPE)
    entries = made["stages"].values()
    refuse_other(folder / MADE, made["hashes"], {name: str for name in (SUMMARY, *entries)})
    if _told(folder) != made["study"]:
        raise DamagedError(f"{folder / BEGUN} is damaged: it is of another study.")
    check_bytes(folder / SUMMARY, made["hashes"][SUMMARY])
    for entry in entries:
        place = folder / STAGES / entry
        if _mark(place) != made["hashes"][entry]:
            raise DamagedError(f"{place} is damaged: it is not what was written.")
        if not (place / PLAN).is_file():
            check_manifest(place, entry)


def _mark(place: Path) -> str:
    """What a stage is recognised by: the hash of its manifest, or of a sweep's plan."""
    if (place / PLAN).is_file():
        return plan_hash(read_facts(place))
    if not (place / MANIFEST).is_file():
        raise DamagedError(f"{place / MANIFEST} is gone.")
    return digest((place / MANIFEST).read_bytes())


def _told(folder: Path) -> dict[str, Any]:
    """What `study.json` says, but for the name by which the model was opened."""
    return {name: value for name, value in read_json(folder / BEGUN).items() if name != "model"}
