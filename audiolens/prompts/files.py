"""Load prompt sets from files: bundled sets by concept, and your own from CSV, JSON, TOML or text.

A JSON or TOML file has the keys of `PromptSet`: `positive` and `negative`, and optionally `concept`, `poles`,
`development`, `test`, `positive_words`, `negative_words` and `nouns`. A CSV has a header with the names of the two
poles, the positive pole first, and one pair of prompts per line.
"""

import os
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import AudioLensWarning, InputError, PromptError, nearest, shortened
from audiolens.files.bounded import csv_rows, json_of, read_text, toml_of
from audiolens.model import tokens
from audiolens.prompts.sets import KEYS, PromptSet

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

_NEUTRAL = "neutral"
VOCABULARIES = ("etude", "english")
_READ_FIRST = "tempo"
"""The concept whose English prompts show whether a tokenizer was made for English."""
MOST_TOKENS = 2
"""A tokenizer that needs more tokens per English word, on average, was not made for English."""
SUFFIXES = (".csv", ".json", ".toml")


@guarded
def concepts(vocabulary: str | None = "etude") -> tuple[str, ...]:
    """Return the concepts that have a bundled prompt set in a vocabulary; `None` means in any vocabulary."""
    if vocabulary is None:
        return tuple(sorted({name for one in VOCABULARIES for name in concepts(one)}))
    folder = _folder(vocabulary)
    found = (entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name for name in found if name != _NEUTRAL))


@guarded
def load(concept: str, vocabulary: str | None = None, *, lens: "AudioLens | None" = None) -> PromptSet:
    """Return the bundled prompt set of a concept, or your own set in a file.

    `concept` is the name of a concept, or the path of a .csv, .json or .toml file (see `from_file`).
    `vocabulary="etude"` uses only words that étude knows, and covers every concept of étude's grammar. `"english"` is
    free English, as a musician would write it for MusicGen. `None` means étude's vocabulary or, with a `lens`, free
    English if the concept has an English set whose words the lens's tokenizer knows. Without a `lens`, a concept that
    has prompts in free English only is loaded in free English.

    Raises:
        InputError: if the concept or the vocabulary does not exist (the message suggests the closest names), or if the
            concept has prompts in free English only, and the model does not read it.
    """
    if vocabulary is None and isinstance(concept, str) and Path(concept).suffix.lower() in SUFFIXES:
        return from_file(concept)
    if vocabulary is None:
        vocabulary = _vocabulary(concept, lens)
    known = concepts(vocabulary)
    if concept not in known:
        near = nearest(str(concept), known)
        raise InputError(
            f"no prompts for concept {shown(concept)} in vocabulary {shown(vocabulary)}.{near} Concepts: "
            f"{shortened(known, 20)}."
        )
    folder = _folder(vocabulary)
    neutral = tomllib.loads((folder / f"{_NEUTRAL}.toml").read_text("utf-8"))
    poles = tomllib.loads((folder / f"{concept}.toml").read_text("utf-8"))
    return PromptSet(**{**neutral, **poles}, vocabulary=vocabulary)


@guarded
def from_file(
    path: str | os.PathLike[str],
    *,
    concept: str | None = None,
    development: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
) -> PromptSet:
    """Read your own prompt set from a CSV, JSON or TOML file (see the module's docstring).

    `concept` defaults to the name of the file. `development` and `test` are neutral prompts that override those in the
    file. A warning is issued if prompt length or a single word predicts the pole.

    Raises:
        InputError: if the file cannot be read, is not UTF-8, or does not have two poles.
        PromptError: if a pole is empty, if a prompt is repeated or is in both poles, or if a CSV line lacks a prompt.
    """
    path = Path(path)
    readers: Mapping[str, Callable[[Path, str], dict[str, Any]]] = {
        ".csv": _from_csv, ".json": _from_json, ".toml": toml_of,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: expected a .csv, .json or .toml file; for two text files, use from_files.")
    fields = {"concept": path.stem, **reader(path, read_text(path))}
    given = {"concept": concept, "development": development, "test": test}
    return _checked(path, {**fields, **{key: value for key, value in given.items() if value is not None}})


@guarded
def from_files(
    positive: str | os.PathLike[str],
    negative: str | os.PathLike[str],
    *,
    concept: str = "own",
    development: Sequence[str] = (),
    test: Sequence[str] = (),
) -> PromptSet:
    """Read a set from two text files with one prompt per line; the poles are named after the files.

    If the files have the same number of lines, line i of one is paired with line i of the other. The errors are those
    of `from_file`. In addition, a line that is blank in only one of the files is an error.
    """
    sides = [Path(positive), Path(negative)]
    lines = [read_text(path).rstrip().split("\n") for path in sides]
    _refuse_empty(sides[0], map(any, lines))
    for number, pair in enumerate(zip(*lines, strict=False), 1):
        blank = [not line.strip() for line in pair]
        if blank[0] != blank[1]:
            raise PromptError(
                f"{sides[blank[1]]}: line {number} is blank, but that of {sides[blank[0]]} is not, so later prompts "
                "would be paired wrongly. Remove the blank line, or write a prompt on it."
            )
    lines = [[line for line in side if line.strip()] for side in lines]
    fields = {
        "concept": concept,
        "poles": [path.stem for path in sides],
        "positive": lines[0],
        "negative": lines[1],
        "development": development,
        "test": test,
    }
    return _checked(sides[0], fields)


def readable(concept: str, lens: "AudioLens") -> bool:
    """Return whether there is a bundled prompt set of a concept which a model reads."""
    return concept in concepts("etude") or _reads_english(lens, concept)


def _vocabulary(concept: str, lens: "AudioLens | None") -> str:
    """Return the vocabulary in which a concept is loaded by default.

    Raises:
        InputError: if the concept does not exist, or exists in free English only and the model does not read it.
    """
    if concept not in (known := concepts(None)):
        raise InputError(
            f"no prompts for concept {shown(concept)}.{nearest(str(concept), known)} Concepts: {shortened(known, 20)}."
        )
    here = [one for one in VOCABULARIES if concept in concepts(one)]
    if lens is None:
        return here[0]
    if "english" in here and _reads_english(lens, concept):
        return "english"
    if "etude" not in here:
        raise InputError(
            f"the prompts for concept {shown(concept)} are in free English, and the model's tokenizer does not know "
            f"all of its words. Concepts that étude's words cover: {shortened(concepts('etude'))}."
        )
    return "etude"


def _reads_english(lens: "AudioLens", concept: str) -> bool:
    if concept not in concepts("english"):
        return False
    unknown = lens.tokenizer.unk_token_id
    # A tokenizer without an unknown token spells words that the model never read, in about three tokens per word here.
    texts = _english_texts(_READ_FIRST)
    rows = tokens.ids(texts, lens.tokenizer)
    if sum(map(len, rows)) > MOST_TOKENS * sum(len(text.split()) for text in texts):
        return False
    return not any(unknown in row for row in tokens.ids(_english_texts(concept), lens.tokenizer))


def _english_texts(concept: str) -> list[str]:
    sets = load(concept, "english")
    return [*sets.positive, *sets.negative, *sets.development, *sets.test]


def _checked(path: Path, fields: Mapping[str, Any]) -> PromptSet:
    unknown = [key for key in fields if key not in KEYS]
    if unknown:
        raise InputError(
            f"{path}: unknown key {shown(unknown[0])}.{nearest(unknown[0], KEYS)} Known: {shortened(KEYS)}."
        )
    _refuse_empty(path, [fields.get(key) for key in ("positive", "negative")])
    try:
        prompts = PromptSet(**{"poles": ("positive", "negative"), **fields})
    except (InputError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None
    for sentence in prompts.balance().leaks:
        warnings.warn(
            f"{path}: {sentence}. The direction will reflect this difference.",
            AudioLensWarning,
            stacklevel=tokens.callers_level(),
        )
    return prompts


def _refuse_empty(path: Path, sides: Iterable[Any]) -> None:
    missing = [name for name, side in zip(("positive", "negative"), sides, strict=True) if not side]
    if missing:
        raise PromptError(f"{path}: no {missing[0]} prompts. A contrast needs prompts on both sides.")


def _from_csv(path: Path, text: str) -> dict[str, Any]:
    rows = [(line, cells) for line, cells in csv_rows(path, text) if any(cells)]
    if not rows:
        raise PromptError(f"{path} is empty: expected a header with the names of the two poles, and prompts below.")
    header = rows[0][1]
    if len(header) != 2 or not all(header):
        raise InputError(f"{path}: the header is {header}; expected the names of two poles, the positive pole first.")
    columns = [[cells[side] for _, cells in rows[1:]] for side in (0, 1)]
    _refuse_empty(path, map(any, columns))
    for line, cells in rows[1:]:
        if not all(cells):
            raise PromptError(
                f"{path}: line {line} has a prompt for {shown(header[not cells[0]])} only, but a line must be a pair: "
                "add the other prompt, or remove the line. For poles of different sizes, use JSON, TOML or text files."
            )
    return {"poles": header, "positive": columns[0], "negative": columns[1]}


def _from_json(path: Path, text: str) -> dict[str, Any]:
    fields = json_of(path, text)
    if not isinstance(fields, dict):
        raise InputError(
            f"{path} contains a {type(fields).__name__}: expected an object with 'positive' and 'negative'."
        )
    return fields


def _folder(vocabulary: str) -> Any:
    data = files("audiolens.prompts") / "data"
    known = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    if vocabulary not in known:
        near = nearest(str(vocabulary), known)
        raise InputError(f"no prompts in vocabulary {shown(vocabulary)}.{near} Vocabularies: {', '.join(known)}.")
    return data / vocabulary
