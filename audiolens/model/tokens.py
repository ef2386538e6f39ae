"""Prompts as tokens: whole and unpadded whatever the tokenizer is set to, and the words that it does not know.

A word outside the vocabulary becomes the tokenizer's unknown token, or nothing: the model runs and reads another text.
Every prompt passes here before a model runs: its unread words are noted at the door, and named in one warning a call
when the model first runs, so that what is refused says one thing only.
"""

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from inspect import currentframe
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from audiolens.errors import AudioLensWarning, InputTypeError, PromptError, UnreadWordsWarning

P = ParamSpec("P")
T = TypeVar("T")
_WHOLE = {"padding": False, "truncation": False}
_OURS = tuple(f"{Path(__file__).parents[2] / name}/" for name in ("audiolens", "analysis"))


@dataclass
class _Call:
    """Unknown words of one call: already reported, and still to report.

    `whole` is a call that runs a model many times.
    """

    whole: bool
    named: set[str] = field(default_factory=set)
    noted: dict[str, None] = field(default_factory=dict)


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


def ids(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Each prompt's tokens, special ones included, without padding or truncation.

    Raises:
        PromptError: if the tokenizer fails, as one without an unknown token may.
    """
    if not prompts:
        return []
    try:
        return [list(row) for row in tokenizer(list(prompts), add_special_tokens=True, **_WHOLE)["input_ids"]]
    except Exception as error:
        more = f" or one of the {len(prompts) - 1} prompts after it" if len(prompts) > 1 else ""
        raise PromptError(f"the model's tokenizer fails on {prompts[0]!r}{more}: {_line(error)}.") from error


def unread(prompts: Sequence[str | None], tokenizer: Any) -> list[str]:
    """The words that the tokenizer does not know, each once, in the order of the prompts."""
    texts = list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None:
        # Tokenising once more, for where words begin and end, is only for prompts that hold an unknown one.
        texts = [text for text, row in zip(texts, ids(texts, tokenizer), strict=True) if unknown in row]
    if not texts:
        return []
    found = _placed if getattr(tokenizer, "is_fast", False) else _one_by_one
    bare = (_bare(word) for word in found(texts, tokenizer, unknown))
    return list(dict.fromkeys(word for word in bare if word))


def note_unread(prompts: Sequence[str | None], tokenizer: Any) -> None:
    """Keep the words that the tokenizer does not know for `tell_unread`; of a call that is refused nothing is told."""
    call = _CALL.get()
    if call is None or not call.whole:
        call = _Call(whole=False)
        _CALL.set(call)
    call.noted.update((word, None) for word in unread(prompts, tokenizer) if word not in call.named)


def tell_unread() -> None:
    """Name the words that were noted in one warning, which points to whoever called the package; a model runs next."""
    call = _CALL.get()
    if call is not None and call.noted:
        words = list(call.noted)
        call.noted.clear()
        call.named.update(words)
        warnings.warn(
            f"unknown to the model: {', '.join(map(repr, words))}. Its tokenizer has no token of their own for these "
            "words, so the model does not see what they ask for.",
            UnreadWordsWarning,
            stacklevel=callers_level(),
        )


@contextmanager
def naming_once() -> Iterator[None]:
    """Name each unread word once, however many runs inside read it."""
    call = _CALL.get()
    if call is not None and call.whole:
        yield
        return
    token = _CALL.set(_Call(whole=True))
    try:
        yield
    finally:
        _CALL.reset(token)


def named_once(function: Callable[P, T]) -> Callable[P, T]:
    """A function that runs a model many times, as one call that names each unread word once."""

    @wraps(function)
    def once(*args: P.args, **kwargs: P.kwargs) -> T:
        with naming_once():
            return function(*args, **kwargs)

    return once


def mismatch(tokenizer: Any, embedded: int) -> str | None:
    """Why a tokenizer cannot be that of a text encoder with `embedded` embeddings; `None` if nothing says so.

    Warns where it fills less than half of them: some are always spare, but seldom so many.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise InputTypeError(f"tokenizer={type(tokenizer).__name__}: expected a tokenizer or a processor.")
    vocabulary = tokenizer.get_vocab()
    special = {*getattr(tokenizer, "all_special_ids", ())}
    if not any(number not in special and any(map(str.isalnum, token)) for token, number in vocabulary.items()):
        return (
            "the tokenizer knows no word (its vocabulary holds special tokens only), so that every prompt would read "
            "alike: were its files (tokenizer.json, tokenizer_config.json) saved next to the model?"
        )
    largest = max(vocabulary.values())
    if largest >= embedded:
        return (
            f"the tokenizer numbers its tokens up to {largest}, and the text encoder embeds {embedded}: expected the "
            "tokenizer that the model was trained with."
        )
    if 2 * len(vocabulary) < embedded:
        warnings.warn(
            f"the tokenizer has {len(vocabulary)} tokens, and the text encoder embeds {embedded}: is it this model's?",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    return None


def _placed(texts: Sequence[str], tokenizer: Any, unknown: int | None) -> Iterator[str]:
    """Unread words by the places of their tokens; without an unknown token, those that no token stands for."""
    told = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, **_WHOLE)
    for text, numbers, spans in zip(texts, told["input_ids"], told["offset_mapping"], strict=True):
        if unknown is None:
            read = {place for start, stop in spans for place in range(start, stop)}
            yield from (text[start:stop] for start, stop in _words(text) if read.isdisjoint(range(start, stop)))
            continue
        missed = [span for number, span in zip(numbers, spans, strict=True) if number == unknown]
        yield from (text[start:stop] for start, stop in _joined(missed))


def _one_by_one(texts: Sequence[str], tokenizer: Any, unknown: int | None) -> Iterator[str]:
    """Unread words where tokens have no places: each word is read by itself."""
    for word in dict.fromkeys(word for text in texts for word in map(_bare, text.split()) if word):
        read = tokenizer(word, add_special_tokens=False, **_WHOLE)["input_ids"]
        if not read or unknown in read:
            yield word


def _words(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for word in text.split():
        start = text.index(word, start)
        yield start, start + len(word)
        start += len(word)


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans with those that follow each other immediately made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _bare(word: str) -> str:
    """A word without spaces and punctuation around it: a full stop that is not known takes no meaning away."""
    kept = [place for place, sign in enumerate(word) if unicodedata.category(sign)[0] not in "PZC"]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def callers_level() -> int:
    """The `stacklevel`, for a warning in the calling function, of the frame that called into the package."""
    frame = currentframe()
    level, outermost = 0, 0
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OURS):
            outermost = level
        frame, level = frame.f_back, level + 1
    return outermost + 1


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
