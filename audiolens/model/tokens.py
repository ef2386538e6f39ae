"""Tokenise prompts without padding or truncation, and warn about words that the tokenizer does not know.

A word outside the vocabulary becomes the tokenizer's unknown token, or vanishes, and the model reads a different text
without any error. Every prompt is therefore tokenised by this module before a model runs. Unknown words are collected
when arguments are checked, and reported in one warning per call when the model first runs. If a call is rejected, only
its error is raised.
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

from audiolens.checks import shown
from audiolens.errors import AudioLensWarning, InputTypeError, PromptError, UnreadWordsWarning

P = ParamSpec("P")
T = TypeVar("T")
_WHOLE = {"padding": False, "truncation": False}
_OURS = tuple(f"{Path(__file__).parents[2] / name}/" for name in ("audiolens", "analysis"))


@dataclass
class _Call:
    """The unknown words of one call, of which `named` were already reported and `noted` are still to be reported.

    `whole` marks a call that runs a model many times.
    """

    whole: bool
    named: set[str] = field(default_factory=set)
    noted: dict[str, None] = field(default_factory=dict)


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """Raise a RuntimeError where the tokenizers library panics, because its own exception is not an `Exception`.

    The library is written in Rust. It panics on some files that are inconsistent.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from None


def ids(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of each prompt, including special tokens, without padding or truncation.

    Raises:
        PromptError: if the tokenizer fails, for example because it has no unknown token.
    """
    if not prompts:
        return []
    try:
        with panics_are_errors():
            return [list(row) for row in tokenizer(list(prompts), add_special_tokens=True, **_WHOLE)["input_ids"]]
    except Exception as error:
        more = f" or one of the {len(prompts) - 1} prompts after it" if len(prompts) > 1 else ""
        raise PromptError(f"the model's tokenizer fails on {shown(prompts[0])}{more}: {_line(error)}.") from error


def unread(prompts: Sequence[str | None], tokenizer: Any) -> list[str]:
    """Return the words that the tokenizer does not know, without repeats, in the order of the prompts."""
    texts = list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None:
        # Only prompts with an unknown token are tokenised again, to find where their words begin and end.
        texts = [text for text, row in zip(texts, ids(texts, tokenizer), strict=True) if unknown in row]
    if not texts:
        return []
    found = _from_offsets if getattr(tokenizer, "is_fast", False) else _one_by_one
    bare = (_bare(word) for word in found(texts, tokenizer, unknown))
    return list(dict.fromkeys(word for word in bare if word))


def note_unread(prompts: Sequence[str | None], tokenizer: Any) -> None:
    """Collect words that the tokenizer does not know, for `tell_unread` to report unless the call is rejected."""
    call = _CALL.get()
    if call is None or not call.whole:
        call = _Call(whole=False)
        _CALL.set(call)
    call.noted.update((word, None) for word in unread(prompts, tokenizer) if word not in call.named)


def tell_unread() -> None:
    """Warn once about the collected words, just before a model runs. The warning points to the package's caller."""
    call = _CALL.get()
    if call is not None and call.noted:
        words = list(call.noted)
        call.noted.clear()
        call.named.update(words)
        warnings.warn(
            f"unknown to the model: {', '.join(map(repr, words))}. Its tokenizer has no tokens for these words, so "
            "the model cannot see what they ask for.",
            UnreadWordsWarning,
            stacklevel=callers_level(),
        )


@contextmanager
def naming_once() -> Iterator[None]:
    """Report each unknown word only once, regardless of how many runs inside the block read the word."""
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
    """Decorate a function that runs a model many times, so that each call reports an unknown word only once."""

    @wraps(function)
    def once(*args: P.args, **kwargs: P.kwargs) -> T:
        with naming_once():
            return function(*args, **kwargs)

    return once


def mismatch(tokenizer: Any, embedded: int) -> str | None:
    """Return why a tokenizer cannot belong to a text encoder with `embedded` embeddings, or `None` if it can.

    A warning is issued if the tokenizer uses fewer than half of the embeddings. A few embeddings are often unused, but
    rarely half of them.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise InputTypeError(f"tokenizer={type(tokenizer).__name__}: expected a tokenizer or a processor.")
    vocabulary = tokenizer.get_vocab()
    special = {*getattr(tokenizer, "all_special_ids", ())}
    if not any(number not in special and any(map(str.isalnum, token)) for token, number in vocabulary.items()):
        return (
            "the tokenizer knows no words (its vocabulary contains only special tokens), so all prompts would look the "
            "same to the model: were its files (tokenizer.json, tokenizer_config.json) saved next to the model?"
        )
    largest = max(vocabulary.values())
    if largest >= embedded:
        return (
            f"the tokenizer numbers its tokens up to {largest}, but the text encoder embeds {embedded}: expected the "
            "tokenizer that the model was trained with."
        )
    if 2 * len(vocabulary) < embedded:
        warnings.warn(
            f"the tokenizer has {len(vocabulary)} tokens, but the text encoder embeds {embedded}: is it this model's "
            "tokenizer?",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    return None


def _from_offsets(texts: Sequence[str], tokenizer: Any, unknown: int | None) -> Iterator[str]:
    """Find unknown words from token offsets. If there is no unknown token, these are the words that no token covers."""
    with panics_are_errors():
        encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, **_WHOLE)
    for text, numbers, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if unknown is None:
            read = {index for start, stop in spans for index in range(start, stop)}
            yield from (text[start:stop] for start, stop in _words(text) if read.isdisjoint(range(start, stop)))
            continue
        missed = [span for number, span in zip(numbers, spans, strict=True) if number == unknown]
        yield from (text[start:stop] for start, stop in _joined(missed))


def _one_by_one(texts: Sequence[str], tokenizer: Any, unknown: int | None) -> Iterator[str]:
    """Find the unknown words of a tokenizer without offsets, by tokenising each word separately."""
    for word in dict.fromkeys(word for text in texts for word in map(_bare, text.split()) if word):
        with panics_are_errors():
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
    """Merge directly adjacent (start, stop) ranges of characters."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _bare(word: str) -> str:
    """Strip surrounding spaces and punctuation from a word. An unknown full stop does not change the meaning."""
    kept = [index for index, sign in enumerate(word) if unicodedata.category(sign)[0] not in "PZC"]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def callers_level() -> int:
    """The `stacklevel` with which a warning from the calling function points to the code that called the package."""
    frame = currentframe()
    level, outermost = 0, 0
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OURS):
            outermost = level
        frame, level = frame.f_back, level + 1
    return outermost + 1


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
