"""The errors that a caller can catch. Each message states what was given, what was expected and what to do.

Every error is an `AudioLensError` and also a subclass of a built-in error (such as `ValueError`, `TypeError` or
`RuntimeError`), so code that does not import audiolens can still catch it.
"""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_CHARACTERS = 1_500
"""The largest number of characters in a message."""


class AudioLensError(Exception):
    """The base class of every error that audiolens raises. Its message is one line of bounded length."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(one_line(part) if isinstance(part, str) else part for part in parts))


class InputError(AudioLensError, ValueError):
    """An argument or a file contains a value that is not accepted."""


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type, which is a kind of value that is not accepted."""


class GivenTwiceError(InputError, TypeError):
    """An argument was given twice: by itself, and as part of a group of arguments such as `reading=`."""


class ModelNotFoundError(InputError):
    """There is no model with the given name or in the given folder."""


class ModelFilesError(InputError):
    """A model's folder is incomplete, damaged or unsafe to load."""


class UnsupportedModelError(InputError):
    """The lens cannot open a model, because the model's modules are not where the lens expects them."""


class SiteError(InputError):
    """A site or layer is unknown, or the model does not have it."""


class PromptError(InputError):
    """A prompt is empty, is not text, or is longer than the text encoder can read."""


class DamagedError(InputError):
    """A saved file differs from what was written; the message names the file."""


class AudioLensWarning(UserWarning):
    """The base class of every warning that audiolens issues. The call continues, but perhaps not as intended."""


class DamageWarning(AudioLensWarning):
    """A saved file differs from what was written, so it is created again; the message names the file."""


class UnreadWordsWarning(AudioLensWarning):
    """A prompt contains words that the model's tokenizer does not know. Each word is named once per call."""


class ActivationOverflow(AudioLensError, OverflowError):
    """The run was stopped because an intervention, or the model itself, made activations infinite or NaN."""


class BusyError(AudioLensError, RuntimeError):
    """A run was started inside another run of the same model, or in a folder that another process is writing to."""


class StaleSourceError(AudioLensError, RuntimeError):
    """A source file was edited after it was loaded, so nnsight cannot read the code it is tracing; reload the file."""


class StoppedError(AudioLensError, RuntimeError):
    """A long run could not continue because a disk was full or a process died. Finished work is not lost."""


class TooLittleMemoryError(AudioLensError, MemoryError):
    """A model, or a single row of a batch, does not fit in the memory of a device; the message states what it needs."""


class MissingPackageError(AudioLensError, ImportError):
    """A feature needs a package that is not installed."""


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text on one line, with the middle left out if the text is long."""
    if len(text) > most:
        text = f"{text[: most // 3]} ... {text[-most // 2 :]}"
    return " ".join(text.split()) if "\n" in text or "\r" in text else text


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence suggesting the known names closest to `name`, or an empty string if none is close."""
    matches = get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not matches:
        return ""
    return " Did you mean " + " or ".join(repr(match) for match in matches) + "?"


def shortened(names: Iterable[str], limit: int = 12) -> str:
    """Join names into one line, cutting the list off after `limit` names."""
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
