"""The errors a caller can catch: each says what was given, what was expected and what to do.

All are `AudioLensError`s, and each is also the built-in error it specialises (`ValueError`, `TypeError`,
`RuntimeError`), so code that knows nothing of audiolens still catches it.
"""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_MESSAGE = 1_000
"""Characters of a message: what it quotes may come from a file, and be of any length."""


class AudioLensError(Exception):
    """Anything audiolens refuses: its message is one line of bounded length, whatever it quotes."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())
        half = MOST_MESSAGE // 2
        return text if len(text) <= MOST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


class InputError(AudioLensError, ValueError):
    """A value outside what is accepted."""


class InputTypeError(AudioLensError, TypeError):
    """A value of the wrong kind."""


class ModelNotFoundError(InputError):
    """No model under this name or in this folder."""


class ModelFilesError(InputError):
    """A folder that should hold a model does not hold a whole one."""


class UnsupportedModelError(InputError):
    """A model whose parts are not where the lens expects them."""


class SiteError(InputError):
    """An unknown site or layer, or one that this model does not have."""


class PromptError(InputError):
    """A prompt that is empty, not text, or longer than the text encoder reads."""


class DamagedError(InputError):
    """A kept file is not what was written; the message names it."""


class AudioLensWarning(UserWarning):
    """Anything that audiolens does all the same, but says first."""


class DamageWarning(AudioLensWarning):
    """A kept file was not what was written, and is made again; the message names it."""


class UnreadWordsWarning(AudioLensWarning):
    """A prompt holds words that the model's tokenizer does not know; the message names them, once a call."""


class ActivationOverflow(AudioLensError, OverflowError):
    """Activations are infinite or NaN, by an intervention or by the model itself; the run was stopped."""


class BusyError(AudioLensError, RuntimeError):
    """A second run was started inside a run of the same model, or into a folder that another process writes."""


class StaleSourceError(AudioLensError, RuntimeError):
    """A file was edited under the code that traces in it, which has not been loaded again."""


class StoppedError(AudioLensError, RuntimeError):
    """A long run could not go on: a full disk, a process that died. What it had finished is kept."""


class MissingPackageError(AudioLensError, ImportError):
    """Something that needs a package which is not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the known names nearest to `name`, or an empty string."""
    matches = get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not matches:
        return ""
    return " Did you mean " + " or ".join(repr(match) for match in matches) + "?"


def shortened(names: Iterable[str], limit: int = 12) -> str:
    """Names as one line, cut after `limit`."""
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
