"""Finished: a study read again from its folder, from the stages that its page was made of; no model is opened."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import sweep
from analysis.folder import UNSEALED_STUDY
from analysis.study import experiment, keeping, lost, stages, where
from analysis.study.assembly import Parts, assembled
from analysis.study.experiment import Study
from analysis.study.made import check_made
from analysis.study.settings import Settings
from analysis.sweep import SweepResult
from audiolens.errors import DamagedError, InputError
from audiolens.integrity import read_json

_UNSEALED = (stages.UNSEALED, UNSEALED_STUDY, "audiolens.studies.1")
_AGAIN = "the command that made the study makes it again."

if TYPE_CHECKING:
    from analysis.study.several import Several


def load_folder(folder: str | os.PathLike[str]) -> Study:
    """The study that a folder holds, as `study.run` gave it.

    Raises:
        InputError: if it holds none, it is not finished, or what it was made of is gone or damaged.
    """
    place = Path(folder)
    told = _summary(place)
    entries = _entries(place)
    try:
        if _is_sealed(place):
            check_made(place, _object(place / stages.MADE))
        at = {name: place / stages.STAGES / entry for name, entry in entries.items()}
        directions = keeping.read_directions(at["directions"])
        parts = Parts(
            directions=directions,
            where=where.read(at["patching"]) if "patching" in at else None,
            placement=keeping.read_placement(at["placement"], directions) if "placement" in at else None,
            tried={name: _swept(at[name]) for name in ("scan", "strength") if name in at},
            tested=_swept(at["dose-response"]),
            scored=lost.read(at["lost"]),
        )
        high, low = told["poles"]
        return assembled(
            parts, told["concept"], (high, low), _settings(told["settings"]), told["model"], told["seconds"]
        )
    except stages.DAMAGE as error:
        told = " ".join(str(error).split())[:200].rstrip(".")
        raise DamagedError(f"{place}: what its page was made of is gone or damaged ({told}): {_AGAIN}") from None


def redraw(folder: str | os.PathLike[str]) -> Study | Several:
    """Draw the page of a finished study anew, and its tables and figures; or of several, with the index above them.

    Raises:
        InputError: as `load_folder`, or if the versions are others than those that made it, which the page would name.
        BusyError: if another process is at work in the folder.
    """
    from analysis.report import index
    from analysis.study.several import Several

    place = Path(folder)
    if not index.is_ours(place):
        return _redrawn(place)
    told = _object(place / stages.SUMMARY)
    names = [str(name) for name in told.get("concepts", ())]
    if not names or any(Path(name).name != name for name in names):
        raise InputError(f"{place / stages.SUMMARY} is damaged: it names no studies.")
    found = Several(tuple(_redrawn(place / name) for name in names))
    index.write(found, place, str(told.get("command", "")))
    return found


def _redrawn(place: Path) -> Study:
    told = _summary(place)
    begun = _object(place / stages.BEGUN)
    if begun.get("format") != stages.FORMAT:
        raise InputError(
            f"{place} holds a study of format {begun.get('format')}: load_folder reads it, and a page is drawn of "
            f"{stages.FORMAT} alone. Study again."
        )
    for package, installed in stages.versions().items():
        made = dict(begun.get("versions") or {}).get(package)
        if made != installed:
            raise InputError(
                f"{place} was made with {package} {made}, and this is {installed}: a page drawn now would say so too. "
                "Draw it with that version, or study again."
            )
    with stages.locked(place):
        study = load_folder(place)
        experiment.write(study, place, str(told.get("command", "")), _entries(place).values())
    return study


def _summary(place: Path) -> dict[str, Any]:
    """What the summary of a finished study says."""
    if not (place / stages.BEGUN).is_file():
        raise InputError(f"{place} holds no study that keeps its stages: there is no {stages.BEGUN} in it.")
    if not (place / stages.SUMMARY).is_file():
        raise InputError(f"{place} holds a study that is not finished: the command that began it goes on with it.")
    return _object(place / stages.SUMMARY)


def _entries(place: Path) -> dict[str, str]:
    """The folders of its stages, by name."""
    sealed = _is_sealed(place)
    found = _object(place / stages.MADE, former=() if sealed else (None,))
    found = found.get("stages") if sealed else found
    if not isinstance(found, dict) or any(Path(str(entry)).name != entry for entry in found.values()):
        raise DamagedError(f"{place / stages.MADE} is damaged: it names no stages.")
    return found


def _is_sealed(place: Path) -> bool:
    """Whether its files hold hashes: those of the format before do not."""
    return _object(place / stages.BEGUN).get("format") != stages.UNSEALED


def _swept(place: Path) -> SweepResult:
    found = sweep.load_folder(place)
    if not found.whole:
        raise DamagedError(f"{place} holds {len(found.table)} of {found.planned} rows")
    return found


def _object(path: Path, former: Collection[str | None] = _UNSEALED) -> dict[str, Any]:
    try:
        return read_json(path, former)
    except FileNotFoundError:
        raise DamagedError(f"{path.parent} has no {path.name}: {_AGAIN}") from None
    except DamagedError as error:
        raise DamagedError(f"{str(error).rstrip('.')}: {_AGAIN}") from None


def _settings(told: dict[str, Any]) -> Settings:
    """Settings as a summary says them; what this version does not know is left out."""
    known = {entry.name for entry in fields(Settings)}
    return Settings(**{name: _tuples(value) for name, value in told.items() if name in known})


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
