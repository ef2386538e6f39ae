"""Mutations of bytes: flips, edits, cuts, insertions and splices, regardless of the file format."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

PICKLE = b"cposix\nsystem\n(S'touch fuzz-ran'\ntR."
"""A pickle that leaves a file in the working directory if it is loaded."""
TOKENS = (
    b"..", b"../../canary/x", b"/dev/zero", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\x1b[2J", b"NaN",
    b"Infinity", b"-1", b"1e999", b"9" * 60, b"0x41", b"null", b"true", b"[", b"{", b"}" * 9, b"[" * 2000,
    b'{"a":' * 500, b'"', b"'''", b'"""', b",", b";", b"=", b"a.b.c=1\n", b"[[a]]\n", b"\\ud800", b"\xed\xa0\x80",
    "\u202e".encode(), "\u2028".encode(), b"__metadata__", b"audiolens", b"audiolens-sha256:", b"sha256", b"format",
    b"auto_map", b"RIFF", b"data", b"fLaC", b"OggS", b"Xing", b"LAME", b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"TAG", b"PAR1",
    b"PK\x03\x04",
    b"\x80\x04", PICKLE, b"{{ 7 * 7 }}", b"%s%n", b"=cmd()", b"<script>",
)  # fmt: skip
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
_HEAD = 256
_MOST_GROWN = 2**22

Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The bytes of a file after one mutation; `others` are files to splice with."""
    found = rng.choice(_MUTATIONS)(content, rng, others)
    return found[:_MOST_GROWN] if len(found) > max(len(content), _MOST_GROWN) else found


def _place(content: bytes, rng: random.Random) -> int:
    """A position in a file, often near its start or end."""
    size = len(content)
    if not size:
        return 0
    where = rng.random()
    if where < 0.35:
        return rng.randrange(min(size, _HEAD))
    return size - 1 - rng.randrange(min(size, _HEAD)) if where < 0.45 else rng.randrange(size)


def _span(content: bytes, rng: random.Random) -> slice:
    start = _place(content, rng)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, 64, 256, 4096)))


def _flips(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if content else 0):
        changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _bytes(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16)) if content else 0):
        changed[_place(content, rng)] = rng.choice((0, 0xFF, 0x7F, 0x20, rng.randrange(256)))
    return bytes(changed)


def _number(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    width = rng.choice((2, 4, 8))
    kind = rng.choice("<>") + {2: "H", 4: "I", 8: "Q"}[width]
    number = struct.pack(kind, (rng.choice(NUMBERS) + rng.choice((0, 0, -1, 1))) % 2 ** (8 * width))
    place = _place(content, rng)
    return content[:place] + number + content[place + width :]


def _cut(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return content[: rng.choice((0, 1, 8, len(content) - 1, len(content) // 2, _place(content, rng)))]


def _headless(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return content[_place(content, rng) :]


def _longer(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return content + rng.choice((b"\0", rng.randbytes(rng.randrange(1, 300)), content, rng.choice(others)))


def _token(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    place, token = _place(content, rng), rng.choice(TOKENS)
    return content[:place] + token + content[place + (len(token) if rng.random() < 0.5 else 0) :]


def _gone(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    span = _span(content, rng)
    return content[: span.start] + content[span.stop :]


def _twice(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    span = _span(content, rng)
    return content[: span.stop] + content[span] * rng.choice((1, 1, 3, 100)) + content[span.stop :]


def _blank(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    span = _span(content, rng)
    filler = rng.choice((b"\0", b"\xff", b" "))
    return content[: span.start] + filler * len(content[span]) + content[span.stop :]


def _moved(content: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    span, place = _span(content, rng), _place(content, rng)
    rest = content[: span.start] + content[span.stop :]
    return rest[:place] + content[span] + rest[place:]


def _spliced(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    if rng.random() < 0.3:
        return other
    return content[: _place(content, rng)] + other[_place(other, rng) :]


_MUTATIONS: tuple[Mutation, ...] = (
    _flips, _flips, _flips, _bytes, _number, _number, _cut, _headless, _longer, _token, _token, _gone, _twice, _blank,
    _moved, _spliced,
)  # fmt: skip
