"""Prompt sets in files: the bundled ones by concept, and one's own from CSV, JSON, TOML or text.

A whole set as JSON or TOML has the keys of `PromptSet`: `positive` and `negative`, and what else is known of
`concept`, `poles`, `development`, `test`, `positive_words`, `negative_words`, `nouns`. A CSV has a header with the
two poles' names, the positive first, and a column of prompts under each.
"""

import csv
import json
import os
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from audiolens.errors import InputError, PromptError, nearest, shortened
from audiolens.prompts.sets import PromptSet

_NEUTRAL = "neutral"
_KEYS = (
    "concept", "poles", "positive", "negative", "development", "test", "positive_words", "negative_words", "nouns",
)  # fmt: skip


def concepts(vocabulary: str = "etude") -> tuple[str, ...]:
    """The concepts that have a bundled set in a vocabulary."""
    folder = _folder(vocabulary)
    found = (entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name for name in found if name != _NEUTRAL))


def load(concept: str, vocabulary: str | None = None, *, lens: Any = None) -> PromptSet:
    """The bundled set of a concept.

    `vocabulary="etude"` uses only words that étude knows, and has every concept of its grammar; `"english"` is free
    English, as a musician would write it for MusicGen, and has tempo and timbre. `None` is étude's, or, with a `lens`,
    free English where there is such a set and the lens's tokenizer knows all of its words.

    Raises:
        InputError: if there is no such concept or vocabulary; the message names the nearest ones.
    """
    if vocabulary is None:
        vocabulary = "etude" if lens is None or not _reads_english(lens, concept) else "english"
    known = concepts(vocabulary)
    if concept not in known:
        near = nearest(str(concept), known)
        raise InputError(
            f"no prompts for concept {concept!r} in vocabulary {vocabulary!r}.{near} There are: {shortened(known)}."
        )
    folder = _folder(vocabulary)
    neutral = tomllib.loads((folder / f"{_NEUTRAL}.toml").read_text("utf-8"))
    poles = tomllib.loads((folder / f"{concept}.toml").read_text("utf-8"))
    return PromptSet(**{**neutral, **poles}, vocabulary=vocabulary)


def from_file(
    path: str | os.PathLike[str],
    *,
    concept: str | None = None,
    development: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
) -> PromptSet:
    """A set of one's own from a CSV, JSON or TOML file (see the module's docstring).

    `concept` defaults to the file's own name; `development` and `test` stand in for neutral prompts that the file
    does not hold. Warns where length or a single word gives the pole away.

    Raises:
        InputError: if the file cannot be read, is not UTF-8, or does not have the two poles.
        PromptError: if a pole is empty, a prompt repeats, or one stands in both poles.
    """
    path = Path(path)
    readers = {".csv": _from_csv, ".json": _from_json, ".toml": _from_toml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: expected a .csv, .json or .toml file; two files of lines go to from_files.")
    fields = {"concept": path.stem, **reader(path, _read(path))}
    given = {"concept": concept, "development": development, "test": test}
    return _checked(path, {**fields, **{key: value for key, value in given.items() if value is not None}})


def from_files(
    positive: str | os.PathLike[str],
    negative: str | os.PathLike[str],
    *,
    concept: str = "own",
    development: Sequence[str] = (),
    test: Sequence[str] = (),
) -> PromptSet:
    """A set from two text files of one prompt a line; the poles are named after the files. Errors as `from_file`."""
    sides = [Path(positive), Path(negative)]
    lines = [[line for line in _read(path).splitlines() if line.strip()] for path in sides]
    fields = {
        "concept": concept,
        "poles": [path.stem for path in sides],
        "positive": lines[0],
        "negative": lines[1],
        "development": development,
        "test": test,
    }
    return _checked(sides[0], fields)


def _reads_english(lens: Any, concept: str) -> bool:
    if concept not in concepts("english"):
        return False
    sets, unknown = load(concept, "english"), lens.tokenizer.unk_token_id
    texts = [*sets.positive, *sets.negative, *sets.development, *sets.test]
    return not any(unknown in row for row in lens.tokenizer(texts)["input_ids"])


def _checked(path: Path, fields: Mapping[str, Any]) -> PromptSet:
    unknown = [key for key in fields if key not in _KEYS]
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]!r}.{nearest(unknown[0], _KEYS)} Known: {shortened(_KEYS)}.")
    missing = [key for key in ("positive", "negative") if not fields.get(key)]
    if missing:
        raise PromptError(f"{path}: no {missing[0]} prompts. A contrast needs prompts on both sides.")
    try:
        prompts = PromptSet(**{"poles": ("positive", "negative"), **fields})
    except (InputError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None
    for sentence in prompts.balance().leaks:
        warnings.warn(f"{path}: {sentence}. The direction will be that of this difference.", stacklevel=3)
    return prompts


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _from_csv(path: Path, text: str) -> dict[str, Any]:
    rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    if not rows:
        raise PromptError(f"{path} is empty: expected a header with the two poles' names, and prompts under them.")
    header = [cell.strip() for cell in rows[0]]
    if len(header) != 2 or not all(header):
        raise InputError(f"{path}: the header is {header}; expected the names of two poles, the positive first.")
    wide = next((number for number, row in enumerate(rows, 1) if len(row) > 2), None)
    if wide:
        raise InputError(f"{path}: row {wide} has {len(rows[wide - 1])} cells, expected 2 (quote prompts with commas).")
    columns = [[row[i] for row in rows[1:] if len(row) > i and row[i].strip()] for i in range(2)]
    return {"poles": header, "positive": columns[0], "negative": columns[1]}


def _from_json(path: Path, text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds a {type(fields).__name__}: expected an object with 'positive' and 'negative'.")
    return fields


def _from_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}.") from None


def _folder(vocabulary: str) -> Any:
    data = files("audiolens.prompts") / "data"
    known = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    if vocabulary not in known:
        near = nearest(str(vocabulary), known)
        raise InputError(f"no prompts in vocabulary {vocabulary!r}.{near} There are: {', '.join(known)}.")
    return data / vocabulary
