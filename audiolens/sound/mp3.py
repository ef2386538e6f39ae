"""Detect truncated MP3 files by the frame count in their Xing, LAME or Fraunhofer header.

libsndfile reads what is left of a truncated MP3 file without an error. Encoders write the number of frames and bytes
into the first frame (the "Xing", "Info" and "VBRI" headers). A file without one of these headers is only a sequence of
frames, and its truncation can be detected only if the file ends inside a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiolens.files.bounded import read_bytes

_MOST_BYTES = 2**28
_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s, by MPEG version (2 includes 2.5) and layer."""
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MOST_SEARCHED = 2**16


@dataclass(frozen=True)
class Frame:
    """An MP3 frame: its start and size in bytes, and the position at which an encoder would put its header."""

    start: int
    size: int
    tag: int


def missing_frames(path: Path) -> bool:
    """Whether an MP3 file has fewer frames or bytes than its header states, or ends inside a frame.

    Raises:
        InputError: if the file cannot be read.
    """
    return is_cut(read_bytes(path, _MOST_BYTES))


def is_cut(content: bytes) -> bool:
    """Whether the bytes of an MP3 file have fewer frames or bytes than the header states, or end inside a frame."""
    first = _first(content)
    if first is None:
        return False
    n_frames, n_bytes = _stated(content, first)
    if n_bytes is not None and len(content) - first.start < n_bytes:
        return True
    whole, inside = 0, False
    for frame in _frames(content, first):
        inside = frame.start + frame.size > len(content)
        whole += not inside
    if n_frames is None:
        return inside
    # Only some encoders include the frame that contains the header in the number of frames.
    return whole < n_frames or (inside and whole == n_frames)


def _first(content: bytes) -> Frame | None:
    """The first frame that is followed by another frame or by the end of the file."""
    start = 0
    while content[start : start + 3] == b"ID3" and len(content) >= start + 10:
        sizes = content[start + 6 : start + 10]
        start += 10 + sum((size & 0x7F) << shift for size, shift in zip(sizes, (21, 14, 7, 0), strict=True))
    for offset in range(start, min(len(content), start + _MOST_SEARCHED)):
        frame = _frame(content, offset)
        if frame is not None and (_frame(content, offset + frame.size) or offset + frame.size >= len(content)):
            return frame
    return None


def _frames(content: bytes, first: Frame) -> Iterator[Frame]:
    """Yield consecutive frames, up to the first bytes that do not begin a frame (a tag, or the end of the file)."""
    frame: Frame | None = first
    while frame is not None:
        yield frame
        frame = _frame(content, frame.start + frame.size)


def _frame(content: bytes, start: int) -> Frame | None:
    head = content[start : start + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate, bits = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or rate == 3 or bits in (0, 15):
        return None
    kbits = _KBITS[1 if version == 3 else 2, layer][bits - 1]
    padding, hertz = head[2] >> 1 & 1, _RATES_HZ[version][rate]
    if layer == 1:
        size = (12_000 * kbits // hertz + padding) * 4
    else:
        size = (72_000 if layer == 3 and version != 3 else 144_000) * kbits // hertz + padding
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return Frame(start, size, start + 4 + side)


def _stated(content: bytes, first: Frame) -> tuple[int | None, int | None]:
    """The numbers of frames and bytes that the first frame states. A number that is not stated is `None`."""
    number = lambda offset: int.from_bytes(content[offset : offset + 4], "big")  # noqa: E731
    if content[first.tag : first.tag + 4] in (b"Xing", b"Info"):
        flags, offset = number(first.tag + 4), first.tag + 8
        frames = number(offset) if flags & 1 else None
        size = number(offset + 4 * (flags & 1)) if flags & 2 else None
        return frames, size
    offset = first.start + 36
    if content[offset : offset + 4] == b"VBRI":
        return number(offset + 14), number(offset + 10)
    return None, None
