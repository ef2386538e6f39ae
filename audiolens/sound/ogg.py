"""Detect Ogg files that were cut short or damaged, and give written files a fixed serial number.

libsndfile reads what is left of a truncated Ogg file as if the file were complete. To detect truncation, this module
uses the page number, the last-page flag and the checksum that every Ogg page contains (RFC 3533).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from audiolens.errors import InputError

_HEAD = struct.Struct("<4sBBqIIIB")
_CHECKSUM = slice(22, 26)
_LAST = 4
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def refuse_cut(path: Path) -> None:
    """Read an Ogg file page by page to the end, and reject the file if it is incomplete.

    Raises:
        InputError: if the file ends early, a page is missing or damaged, or another stream follows.
    """
    with path.open("rb") as file:
        offset = before = 0
        serial = None
        for page in _pages(file, path):
            _, _, flags, _, mine, number, checksum, _ = _HEAD.unpack_from(page)
            if serial is not None and mine != serial:
                raise InputError(f"{path} contains several Ogg streams, but only one is read: save each separately.")
            if checksum != _checksum(page) or (serial is not None and number != before + 1):
                raise InputError(f"{path} is damaged: the Ogg page at byte {offset} is not what was written.")
            offset, before, serial = offset + len(page), number, mine
            if flags & _LAST:
                break
        else:
            raise InputError(f"{path} was cut short: the Ogg page that is marked as the last is missing.")
        if file.read(4) == b"OggS":
            raise InputError(f"{path} contains several Ogg streams, but only one is read: save each separately.")


def with_serial(content: bytes, serial: int) -> bytes:
    """Give a complete single-stream file a new serial number, because encoders derive it from the time of day."""
    parts, offset = [], 0
    while offset < len(content):
        count = content[offset + _HEAD.size - 1]
        size = _HEAD.size + count + sum(content[offset + _HEAD.size : offset + _HEAD.size + count])
        page = bytearray(content[offset : offset + size])
        struct.pack_into("<I", page, 14, serial)
        struct.pack_into("<I", page, _CHECKSUM.start, _checksum(page))
        parts.append(bytes(page))
        offset += size
    return b"".join(parts)


def _pages(file: BinaryIO, path: Path) -> Iterator[bytes]:
    while head := file.read(_HEAD.size):
        sizes = file.read(head[-1]) if len(head) == _HEAD.size else b""
        body = file.read(sum(sizes))
        if len(head) < _HEAD.size or len(sizes) < head[-1] or len(body) < sum(sizes):
            raise InputError(f"{path} was cut short: it ends inside an Ogg page.")
        if not head.startswith(b"OggS"):
            raise InputError(f"{path} is damaged: no Ogg page begins at byte {file.tell() - len(head + sizes + body)}.")
        yield head + sizes + body


def _checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC of a page, computed from zlib's by reversing bits and undoing zlib's initial and final inversion."""
    blank = bytearray(page)
    blank[_CHECKSUM] = bytes(4)
    ones = 0xFFFFFFFF
    return int(f"{zlib.crc32(blank.translate(_MIRRORED), ones) ^ ones:032b}"[::-1], 2)
