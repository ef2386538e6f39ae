"""Read a finished study back from the stages in its folder, and redraw its page, without opening a model."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import sweep
from analysis.store.folder import SUMMARY, UNSEALED_STUDY, refuse_path, studies_in
from analysis.store.resumable import first_difference
from analysis.store.versions import versions
from analysis.study import experiment, placement_storage, side_effects, stages, storage, where
from analysis.study.assembly import StudyParts, assembled
from analysis.study.made import check_made
from analysis.study.result import Study
from analysis.study.settings import Settings
from analysis.study.stages import STUDY
from analysis.sweep import SweepResult
from audiolens.door import guarded
from audiolens.errors import AudioLensWarning, DamagedError, InputError, shortened
from audiolens.files.atomic import as_path, inside, refuse_links, remove_unfinished
from audiolens.files.integrity import read_json
from audiolens.files.json_shapes import refuse_other, tuples
from audiolens.model.tokens import callers_level

_UNSEALED = (STUDY.unsealed, UNSEALED_STUDY, "audiolens.studies.1")
_SHAPE = {
    "concept": str, "poles": [str, str], "model": str, "seconds": {str: float},
    "settings": {
        "poles?": int, "reading_seconds?": float, "strengths?": {str: [float]}, "strengths_at_place?": {str: [float]},
        "doses?": [float], "measured?": (str, None), "measured_by?": {str: str}, "heard_by?": {str: str},
        "seconds?": float, "branch?": str, "guidance_scale?": float, "temperature?": (float, None),
        "top_k?": (int, None), "substitutes?": [str], "verify?": bool, "frechet?": bool, "shown?": int, "seed?": int,
        "control_seeds?": int, "n_random?": int, "n_shuffled?": int,
    },
}  # fmt: skip
"""The types of the fields of a summary from which a study is restored."""
_AGAIN = "to restore it, repeat the command that made the study."

if TYPE_CHECKING:
    from analysis.study.study_set import Several


@guarded
def load_folder(folder: str | os.PathLike[str]) -> Study:
    """Load the study in a folder, as `study.run` returned it.

    Raises:
        InputError: if the folder contains no study, or a study that is unfinished, damaged or incomplete.
    """
    place = as_path(folder)
    summary = _summary(place)
    entries = _entries(place)
    try:
        refuse_other(place / SUMMARY, summary, _SHAPE)
        if _is_sealed(place):
            check_made(place, _object(place / stages.MADE))
        at = {name: place / stages.STAGES / entry for name, entry in entries.items()}
        directions = storage.read_directions(at["directions"])
        parts = StudyParts(
            directions=directions,
            where=where.read(at["patching"]) if "patching" in at else None,
            placement=placement_storage.read_placement(at["placement"], directions) if "placement" in at else None,
            tried={name: _swept(at[name]) for name in ("scan", "strength") if name in at},
            tested=_swept(at["dose-response"]),
            scored=side_effects.read(at["lost"]),
            controlled=_swept(at["controls"]) if "controls" in at else None,
        )
        high, low = summary["poles"]
        return assembled(
            parts, summary["concept"], (high, low), _settings(summary["settings"]), summary["model"], summary["seconds"]
        )
    except stages.DAMAGE as error:
        raise _damaged(place, error) from None


@guarded
def load_tested(folder: str | os.PathLike[str]) -> SweepResult:
    """Load the sweep of a finished study's test clips, from whose codes more of them can be decoded to sound.

    Raises:
        InputError: in the same cases as `load_folder`.
    """
    place = as_path(folder)
    _summary(place)
    try:
        return _swept(place / stages.STAGES / _entries(place)["dose-response"])
    except stages.DAMAGE as error:
        raise _damaged(place, error) from None


@guarded
def redraw(folder: str | os.PathLike[str], *, figures: Sequence[str] = ()) -> Study | Several:
    """Draw the page, tables and figures of a finished study again, or those of several studies and their index.

    `figures` are the kinds of files in which figures are written besides SVG ("pdf", "png").

    Raises:
        InputError: if such a kind is unknown, in the same cases as `load_folder`, or if the installed versions differ
            from those that made the study (the page would then state the wrong versions).
        BusyError: if another process is working in the folder.
    """
    from analysis.report import index, writer
    from analysis.study.study_set import Several

    writer.checked_kinds(figures)

    place = as_path(folder)
    if not index.is_ours(place):
        return _redrawn(place, figures)
    facts = _object(place / SUMMARY)
    index.check(place)
    studies = study_folders(place)
    # All summaries are read before the first page is drawn.
    for one in studies:
        _summary(one)
    found = Several(tuple(_redrawn(one, figures) for one in studies))
    index.write(found, place, str(facts.get("command", "")), [one.name for one in studies])
    return found


@guarded
def write_index(folder: str | os.PathLike[str]) -> Several:
    """Write a page that lists all finished studies in a folder, and return them. Their own pages stay as they are.

    Every subfolder that contains a finished study is listed, in the order of the names. A warning names those whose
    `summary.json` is missing or cannot be read, because the study is not finished or damaged. If the studies are of
    different concepts on one model, the page also shows the effect of each on the others.

    Raises:
        InputError: if there is no finished study in the folder, another file of one is damaged, or the folder has
            another `index.html` or `summary.json`.
    """
    from analysis.report import index
    from analysis.study.study_set import Several

    place = as_path(folder)
    studies = studies_in(place)
    begun = sorted(one.name for one in place.iterdir() if one not in studies and (one / stages.BEGUN).is_file())
    index.check(place)
    index.refuse_foreign(place, "remove it")
    found = Several(tuple(load_folder(one) for one in studies))
    command = _object(place / SUMMARY).get("command", "") if index.is_ours(place) else ""
    index.write(found, place, str(command), [one.name for one in studies])
    if begun:
        told = f"{place / 'index.html'} leaves out {shortened(begun)}: not finished, or the summary is damaged."
        warnings.warn(AudioLensWarning(told), stacklevel=callers_level())
    return found


def study_folders(place: Path) -> list[Path]:
    """Return the folders of the studies that an index lists, or the folder itself if it contains no index."""
    from analysis.report import index

    if not index.is_ours(place):
        return [place]
    facts = _object(place / SUMMARY)
    # Earlier versions named every folder after its concept.
    names = _names(place / SUMMARY, facts.get("folders", facts.get("concepts")), "studies")
    return [inside(place, name) for name in names]


def load_and_draw(place: Path) -> Study:
    """Load the study in a folder once and, if the installed versions are those that made it, draw its page.

    Raises:
        InputError: in the same cases as `load_folder`.
    """
    _summary(place)
    try:
        _refuse_other_versions(place)
    except InputError:
        return load_folder(place)
    return _redrawn(place, ())


def _redrawn(place: Path, figures: Sequence[str]) -> Study:
    facts = _summary(place)
    _refuse_other_versions(place)
    with stages.locked(place) as kept:
        study = load_folder(place)
        used = _entries(place).values()
        kept.keep(place / stages.BEGUN, *(place / stages.STAGES / entry for entry in used))
        remove_unfinished(place)
        experiment.write(study, place, str(facts.get("command", "")), used, kept.check, figures)
    return study


def _refuse_other_versions(place: Path) -> None:
    """Raise an `InputError` unless the installed versions are those that made the study."""
    begun = _object(place / stages.BEGUN)
    if begun.get("format") != STUDY.format:
        raise InputError(
            f"{place} contains a study of format {begun.get('format')}: load_folder reads it, but pages are only drawn "
            f"from {STUDY.format}. Run the study again."
        )
    refuse_other(place / stages.BEGUN, begun, STUDY.shape)
    other = first_difference(
        begun, {"versions": versions()}, [("versions.*", "{name} {there}, but {here} is installed")]
    )
    if other is not None:
        raise InputError(
            f"{place} was made with {other}, and the page would name the installed version. Draw the page with the "
            "version that made the study, or run the study again."
        )


def _damaged(place: Path, error: BaseException) -> DamagedError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return DamagedError(f"{place}: a file behind its page is missing or damaged ({reason}): {_AGAIN}")


def _summary(place: Path) -> dict[str, Any]:
    """Read the summary of a finished study. An error is raised if the folder contains links."""
    if place.is_dir():
        refuse_links(place)
    stages.refuse_unfinished(place)
    return _object(place / SUMMARY)


def _entries(place: Path) -> dict[str, str]:
    """Return the folder name of each stage."""
    path, sealed = place / stages.MADE, _is_sealed(place)
    found = _object(path, former=() if sealed else (None,))
    found = found.get("stages") if sealed else found
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is damaged: it names no stages.")
    return dict(zip(found, _names(path, list(found.values()), "stages"), strict=True))


def _names(path: Path, found: Any, what: str) -> list[str]:
    """Return the folder names listed in a file, after checking that they stay inside the file's own folder."""
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise DamagedError(f"{path} is damaged: it names no {what}.")
    try:
        for name in found:
            refuse_path(name)
    except InputError as error:
        raise DamagedError(f"{path} is damaged: it names no {what}: {error}") from None
    return found


def _is_sealed(place: Path) -> bool:
    """Return whether the study's files contain hashes. Files of the previous format have none."""
    return _object(place / stages.BEGUN).get("format") != STUDY.unsealed


def _swept(place: Path) -> SweepResult:
    found = sweep.load_folder(place)
    if not found.whole:
        raise DamagedError(f"{place} contains {len(found.table)} of {found.planned} rows")
    return found


def _object(path: Path, former: Collection[str | None] = _UNSEALED) -> dict[str, Any]:
    try:
        found = read_json(path, former)
    except FileNotFoundError:
        raise DamagedError(f"{path.parent} has no {path.name}: {_AGAIN}") from None
    except DamagedError as error:
        raise DamagedError(f"{str(error).rstrip('.')}: {_AGAIN}") from None
    try:
        # JSON can contain a lone surrogate, which cannot be written to a page.
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise DamagedError(f"{path} cannot be read: {' '.join(str(error).split())[:80]}.") from None
    return found


def _settings(values: dict[str, Any]) -> Settings:
    """Return the settings in a summary, without fields that this version does not know."""
    known = {entry.name for entry in fields(Settings)}
    # Earlier versions read each prompt over its own clip, and their summaries have no field `codes`.
    values = {"codes": "own", **stages.present_names(values)}
    return Settings(**{name: tuples(value) for name, value in values.items() if name in known})
