"""MP3's own count of its frames, by which a cut can be seen: Xing's, LAME's and Fraunhofer's headers carry one.

libsndfile plays what is left of a cut MP3 as if it were all. An encoder writes into the first frame how many frames and
bytes follow (the "Xing", "Info" and "VBRI" headers); a file without one is a row of frames, and only a cut inside the
last of them can be seen.
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
"""By MPEG version (2 stands for 2.5 too) and layer."""
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MOST_SEARCHED = 2**16


@dataclass(frozen=True)
class Frame:
    """A frame: where it begins, how many bytes it has, and where its encoder's header would be."""

    start: int
    size: int
    tag: int


def missing_frames(path: Path) -> bool:
    """Whether a file holds less than it says of itself, or ends inside a frame.

    Raises:
        InputError: if it cannot be read.
    """
    return is_cut(read_bytes(path, _MOST_BYTES))


def is_cut(content: bytes) -> bool:
    """The same of a file's bytes."""
    first = _first(content)
    if first is None:
        return False
    told_frames, told_bytes = _told(content, first)
    if told_bytes is not None and len(content) - first.start < told_bytes:
        return True
    whole, inside = 0, False
    for frame in _frames(content, first):
        inside = frame.start + frame.size > len(content)
        whole += not inside
    if told_frames is None:
        return inside
    # Some encoders count the frame of the header too, and some do not.
    return whole < told_frames or (inside and whole == told_frames)


def _first(content: bytes) -> Frame | None:
    """The first frame that another follows, or that ends the file."""
    start = 0
    while content[start : start + 3] == b"ID3" and len(content) >= start + 10:
        sizes = content[start + 6 : start + 10]
        start += 10 + sum((size & 0x7F) << shift for size, shift in zip(sizes, (21, 14, 7, 0), strict=True))
    for place in range(start, min(len(content), start + _MOST_SEARCHED)):
        frame = _frame(content, place)
        if frame is not None and (_frame(content, place + frame.size) or place + frame.size >= len(content)):
            return frame
    return None


def _frames(content: bytes, first: Frame) -> Iterator[Frame]:
    """Frames, one after the other, to the first bytes that begin none: a tag, or the end."""
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


def _told(content: bytes, first: Frame) -> tuple[int | None, int | None]:
    """How many frames and bytes the first frame says that there are; `None` for what it does not say."""
    number = lambda place: int.from_bytes(content[place : place + 4], "big")  # noqa: E731
    if content[first.tag : first.tag + 4] in (b"Xing", b"Info"):
        flags, place = number(first.tag + 4), first.tag + 8
        frames = number(place) if flags & 1 else None
        size = number(place + 4 * (flags & 1)) if flags & 2 else None
        return frames, size
    place = first.start + 36
    if content[place : place + 4] == b"VBRI":
        return number(place + 14), number(place + 10)
    return None, None
