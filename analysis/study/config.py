"""The settings of a study as a TOML file, which each study writes and `audiolens study --config` reads."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolens.checks import shown
from audiolens.errors import InputError, nearest
from audiolens.files.bounded import read_text, toml_of
from audiolens.prompts import concepts

if TYPE_CHECKING:
    from analysis.study.result import Study

FILE = "study.toml"
_TEXTS = ("concept", "model", "revision", "others")
_NONE = "none"


@dataclass(frozen=True)
class Config:
    """What a file states: texts that options also state (`None` if it does not), and the fields of `Settings`."""

    concept: str | None = None
    model: str | None = None
    revision: str | None = None
    others: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def text_of(study: Study) -> str:
    """Return the contents of the file that states a study's concept, model and all settings."""
    # TOML has no null, so None is written as text, where it is not the default.
    defaults = {one.name: one.default for one in fields(study.settings)}
    settings = {
        name: _NONE if value is None else value
        for name, value in asdict(study.settings).items()
        if value is not None or defaults[name] is not None
    }
    known = concepts(None)
    facts = {
        "concept": study.concept if study.concept in known else "", "model": study.model,
        "revision": study.directions.meta.revision, "others": ",".join(study.others) or "none",
    }  # fmt: skip
    if any(name not in known for name in study.others):
        del facts["others"]
    return "\n".join(
        [
            "# audiolens study --config study.toml -o FOLDER takes these settings again. A study of your own prompts",
            "# also needs their files again, and the device and dtype are those of the command.",
            *(f"{name} = {_value(value)}" for name, value in facts.items() if value), "", "[settings]",
            *(f"{name} = {_value(value)}" for name, value in settings.items()), "",
        ]
    )  # fmt: skip


def read(path: Path) -> Config:
    """Read such a file. Fields of `Settings` that it lacks have their defaults.

    Raises:
        InputError: if the file cannot be read, or states something unknown; the error names the nearest known name.
    """
    found = toml_of(path, read_text(path))
    _refuse_unknown(str(path), found, [*_TEXTS, "settings"])
    settings = found.get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"{path}: settings is {shown(settings)}: expected a table, [settings].")
    for name in _TEXTS:
        if not isinstance(found.get(name, ""), str):
            raise InputError(f"{path}: {name} is {shown(found[name])}: expected a text.")
    _refuse_unknown(f"{path}: settings", settings, _known())
    return Config(**{name: found[name] for name in _TEXTS if name in found}, settings=_tuples(settings))


def assigned(texts: Iterable[str]) -> dict[str, Any]:
    """Return the settings in texts such as "poles=24" and "place_by=scan", with values as TOML or plain text.

    Raises:
        InputError: if a text is not NAME=VALUE, or names no setting.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name:
            raise InputError(f"--set {shown(text)}: expected NAME=VALUE, such as poles=24.")
        _refuse_unknown("--set", {name: value}, _known())
        if name in found:
            raise InputError(f"--set {name} was given twice: give it once.")
        try:
            found[name] = _tuples(tomllib.loads(f"value = {value}")["value"])
        except (ValueError, RecursionError):
            found[name] = _tuples(value.strip())
    return found


def _known() -> list[str]:
    from analysis.study.settings import Settings

    return [one.name for one in fields(Settings)]


def _refuse_unknown(where: str, given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown {shown(name)}.{nearest(name, known)} Known: {', '.join(known)}.")


def _value(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(str(key))} = {_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # TOML and JSON write texts, numbers and truth values alike.
    return json.dumps(value, ensure_ascii=False)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    if value == _NONE:
        return None
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
