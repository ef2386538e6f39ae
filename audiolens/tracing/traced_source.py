"""Find the source of a traced block as it was when the running code was compiled.

nnsight looks up a `with` block by file name and line, reads each file only once, and runs the text that it read. If the
file is edited and reloaded, nnsight alone would still run the old block. This module passes nnsight the version of the
file whose compiled code is running.
"""

import linecache
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from types import CodeType, FrameType
from typing import no_type_check

from nnsight.intervention.tracer import Invoker
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import Tracer, skip_context, skippable

from audiolens.errors import StaleSourceError

_READ: dict[str, list[str]] = {}
"""Every version of a file's text that was traced, by file name, with the newest last."""
_KNOWN: dict[tuple[str, int, str, int], CodeType] = {}
"""The code that entered each traced block of the text that nnsight now stores; the keys are nnsight's own."""


class CurrentTracer(Tracer):
    """A tracer that reads its block from the correct version of the file: the one that the calling code came from."""

    @no_type_check
    def __enter__(self) -> Tracer:
        # This follows nnsight's own method, whose helpers look two frames up for the caller. A run-time type checker
        # would add a frame.
        hold_source(sys._getframe(1))
        self.capture()
        if skippable(self.node):
            skip_context(self)
        return self


class CurrentInvoker(CurrentTracer, Invoker):
    """nnsight's invoker, which reads its block in the same way as `CurrentTracer`."""


def hold_source(frame: FrameType) -> None:
    """Give nnsight the text from which a frame's code was compiled.

    Raises:
        StaleSourceError: if no known version of the file matches the running code.
    """
    code, name = frame.f_code, frame.f_code.co_filename
    key = (name, frame.f_lineno, code.co_name, code.co_firstlineno)
    if _KNOWN.get(key) == code:
        return
    if not _within_a_block(code):
        text = _text_of(frame)
        if text is None:
            return
        if text != SOURCES.get(name):
            for cache in (BLOCKS, _KNOWN):
                for other in [other for other in cache if other[0] == name]:
                    del cache[other]
            SOURCES[name] = text
        if text not in _READ.setdefault(name, []):
            _READ[name].append(text)
    _KNOWN[key] = code


def _within_a_block(code: CodeType) -> bool:
    """Whether nnsight compiled this code from its stored text, as part of another block."""
    blocks = (compiled for _, compiled in BLOCKS.values() if compiled is not None)
    return any(code is part for compiled in blocks for part in _nested(compiled))


def _text_of(frame: FrameType) -> str | None:
    """Return the version of the file from which a frame's code was compiled, or `None` if there is no text."""
    code, name = frame.f_code, frame.f_code.co_filename
    known = (SOURCES.get(name, ""), _now(name), *reversed(_READ.get(name, [])))
    texts = [text for index, text in enumerate(known) if text and text not in known[:index]]
    found = next((text for text in texts if code in _compiled(text, name)), None)
    if found is not None:
        return found
    # Test runners and notebooks do not compile the file's text unchanged.
    if len(texts) > 1 or _as_written(frame):
        raise StaleSourceError(
            f"{name} has changed since the code that is running was loaded, so the block traced at line "
            f"{frame.f_lineno} cannot be read: reload the module (importlib.reload), or restart Python."
        )
    return texts[0] if texts else None


def _now(name: str) -> str:
    """Return a file's current text, or the program given to `python -c`."""
    linecache.checkcache(name)
    text = "".join(linecache.getlines(name))
    if not text and name == "<string>" and "-c" in sys.orig_argv:
        return sys.orig_argv[sys.orig_argv.index("-c") + 1] + "\n"
    return text


def _as_written(frame: FrameType) -> bool:
    """Whether a frame's code was compiled from its file unchanged."""
    name, own = frame.f_code.co_filename, frame.f_globals
    return name == "<string>" or (type(own.get("__loader__")) is SourceFileLoader and own.get("__file__") == name)


@lru_cache(maxsize=16)
def _compiled(text: str, name: str) -> frozenset[CodeType]:
    """Return all code objects that a text compiles to, including those of nested functions."""
    try:
        return frozenset(_nested(compile(text, name, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return frozenset()


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
