"""Escape or reject characters that a terminal would execute as commands, or that a file cannot store."""

from __future__ import annotations

import unicodedata

from audiolens.errors import InputError

_KINDS = ("Cc", "Cs")
_TURNING = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Line separators, and the bidirectional control characters that make a terminal reorder the letters of a line."""


def printable(text: str) -> str:
    """Return text for a terminal: all control characters except tabs and line feeds are escaped (as `\\x1b`)."""
    return "".join(_escaped(sign) if sign not in "\n\t" and _is_control(sign) else sign for sign in text)


def refuse_control(name: str, text: str) -> None:
    """Reject text that contains a control character or half of a surrogate pair.

    Raises:
        InputError: if the text contains such a character; the message names the first one.
    """
    found = next((sign for sign in text if unicodedata.category(sign) in _KINDS), None)
    if found is not None:
        raise InputError(f"{name} contains {_escaped(found)}, which is not allowed in text: remove it.")


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in _KINDS or sign in _TURNING


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
