"""Settings of a study or a sweep as a TOML file, which each writes beside its result and `--config` reads again.

A file has some entries on top, such as the model, and the table `[settings]`. `--set NAME=VALUE` sets one entry of the
table. Nothing here imports torch, so that a wrong file is refused at once.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

from audiolens.checks import encodes, shown
from audiolens.errors import InputError, InputTypeError, nearest
from audiolens.files.bounded import read_text, toml_of
from audiolens.files.json_shapes import tuples

NONE = "none"
"""What stands for `None`, which TOML cannot state."""
_TABLE = "settings"


@dataclass(frozen=True)
class Form:
    """What the files of one command state.

    Attributes:
        texts, lists: the names of the entries on top that are a text, and of those that are a list of texts.
        kind: a function that returns the dataclass of the table. The module of a study's settings imports torch, so it
            is only imported where a table is read.
        example: an example of NAME=VALUE.
    """

    texts: tuple[str, ...]
    lists: tuple[str, ...]
    kind: Callable[[], type[Any]]
    example: str

    def names(self) -> list[str]:
        """Return the names in the table."""
        return [one.name for one in fields(self.kind())]

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the entries on top of a file and those of its table. Lists become tuples, and "none" becomes `None`.

        Raises:
            InputError: if the file cannot be read, or states something unknown or of the wrong type. The error names
                the nearest known name.
        """
        found = toml_of(path, read_text(path))
        settings = found.pop(_TABLE, {})
        for name in found:
            self._refuse_misplaced(f"{path}", name)
        refuse_unknown(f"{path}", found, [*self.texts, *self.lists, _TABLE])
        if not isinstance(settings, dict):
            raise InputError(f"{path}: {_TABLE} is {shown(settings)}: expected a table, [{_TABLE}].")
        for name, value in found.items():
            if name in self.texts and not isinstance(value, str):
                raise InputError(f"{path}: {name} is {shown(value)}: expected a text.")
            if name in self.lists and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                raise InputError(f"{path}: {name} is {shown(value)}: expected a list of texts, in brackets.")
        if settings:
            if wrong := next((name for name in settings if name in (*self.texts, *self.lists)), None):
                raise InputError(f"{path}: {wrong} is in the table [{_TABLE}]: it belongs above it.")
            refuse_unknown(f"{path}: {_TABLE}", settings, self.names())
            settings = {name: _stated(value) for name, value in settings.items()}
            try:
                self.kind()(**settings)
            except (InputError, InputTypeError) as error:
                raise InputError(f"{path}: {error}") from None
        return {name: tuples(value) for name, value in found.items()}, settings

    def _refuse_misplaced(self, where: str, name: str) -> None:
        if name not in (*self.texts, *self.lists) and name in self.names():
            raise InputError(f"{where}: {name} is above the table [{_TABLE}]: it belongs in it.")

    def assigned(self, texts: Iterable[str]) -> dict[str, Any]:
        """Return the settings in texts such as "poles=24" and "place_by=scan", with values as TOML or plain text.

        Raises:
            InputError: if a text is not NAME=VALUE, or names no setting.
        """
        found: dict[str, Any] = {}
        for text in texts:
            name, sign, value = text.partition("=")
            name = name.strip()
            if not sign or not name:
                raise InputError(f"--set {shown(text)}: expected NAME=VALUE, such as {self.example}.")
            refuse_unknown("--set", {name: value}, self.names())
            if name in found:
                raise InputError(f"--set {name} was given twice: give it once.")
            try:
                read = tomllib.loads(f"value = {value}")
            except (ValueError, RecursionError):
                read = {}
            # A text of several lines can hold several entries.
            found[name] = _stated(read["value"] if len(read) == 1 else value.strip())
        return found


def text_of(notes: Sequence[str], top: Mapping[str, Any], settings: Any) -> str:
    """Return the contents of a file.

    Args:
        notes: lines of comment that come first.
        top: the entries on top. Those that are empty, or that no file can state, are left out.
        settings: the dataclass that becomes the table.
    """
    defaults = {one.name: one.default for one in fields(settings)}
    table = {
        name: NONE if value is None else value
        for name, value in asdict(settings).items()
        if value is not None or defaults[name] not in (None, MISSING)
    }
    above = [f"{name} = {_value(value)}" for name, value in top.items() if value and encodes(_value(value))]
    listed = [f"{name} = {_value(value)}" for name, value in table.items()]
    return "\n".join([*(f"# {line}" for line in notes), *above, "", f"[{_TABLE}]", *listed, ""])


def refuse_unknown(where: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise an `InputError` that names the first unknown name, and the known one that is nearest to it."""
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown {shown(name)}.{nearest(name, known)} Known: {', '.join(known)}.")


def python_numbers(value: Any) -> Any:
    """Return the value of a setting with any numbers as those of Python, and lists as tuples.

    A file then states every setting, and gives it back as it was.
    """
    if isinstance(value, Mapping):
        return {key: python_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(python_numbers, value))
    # A number of NumPy, or an array or tensor of a single one.
    if callable(getattr(value, "item", None)) and not getattr(value, "ndim", 0):
        value = value.item()
    if isinstance(value, bool | int | float):
        return value
    return float(value) if isinstance(value, Real) else value


def _stated(value: Any) -> Any:
    """Return the value of a setting that a file or `--set` states."""
    return None if value == NONE else tuples(value)


def _value(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(str(key))} = {_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # TOML and JSON write texts, numbers and truth values alike, except for one character that only JSON takes as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")
