"""Integrity: the hashes that kept files carry, so that a byte that changed is noticed when it is read.

JSON holds a hash of its other entries; a safetensors header is such JSON, with a hash of each tensor, which may be read
one by one; any other file holds a hash of its own bytes (`seal`), or a folder's manifest does. What is read is what was
written, or a `DamagedError` names the file. Hashes show damage and exchanged files; they do not show who wrote a file.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from errno import ENOENT
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from audiolens.errors import DamagedError, InputError
from audiolens.files.bounded import read_bytes, read_object

MANIFEST = "manifest.json"
_MANIFEST = "audiolens.manifest.1"
HEADER, SEAL = "audiolens", "sha256"
_TENSORS = "tensors"
_SLOT = b"audiolens-sha256:"
MOST_KEPT_BYTES = 2**29
"""Of one file of a sweep or a study: it is read whole."""
OPEN_SEAL = (_SLOT + b"0" * 64).decode()
"""Where a file of bytes keeps its hash; `seal` fills it in."""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """A hash of a tensor's type, shape and values, to the bit."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    found.update(flat)
    return found.hexdigest()


def sealed_header(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata of a safetensors file: `facts`, with shape and hash of each tensor, and a hash of all that."""
    held = {name: [list(tensor.shape), tensor_hash(tensor)] for name, tensor in tensors.items()}
    # One entry: safetensors writes several in any order, and equal results would be unequal files.
    return {HEADER: sealed_json({**facts, _TENSORS: held}, indent=None).decode()}


def check_header(path: object, facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Compare what a sealed header says of itself and of the shapes of its tensors with what there is.

    Raises:
        DamagedError: naming what differs.
    """
    rest = {name: value for name, value in facts.items() if name != SEAL}
    if facts.get(SEAL) != _hash_of(rest):
        raise DamagedError(f"{path} is damaged: its header is not the one that was written.")
    try:
        listed = {name: shape for name, (shape, _) in facts[_TENSORS].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        listed = None
    if {name: list(shape) for name, shape in shapes.items()} != listed:
        raise DamagedError(f"{path} is damaged: its tensors are not those that its header lists.")


def check_tensor(path: object, facts: Mapping[str, Any], name: str, tensor: Tensor) -> None:
    """Compare a tensor with its hash in the facts of a checked header.

    Raises:
        DamagedError: naming the tensor.
    """
    if tensor_hash(tensor) != facts[_TENSORS][name][1]:
        raise DamagedError(f"{path} is damaged: the values of {name} are not those that were written.")


def sealed_json(facts: Mapping[str, Any], *, indent: int | None = 1, ensure_ascii: bool = True) -> bytes:
    """Facts as JSON, with a hash of them."""
    plain = json.loads(json.dumps(facts, default=str))
    return json.dumps({**plain, SEAL: _hash_of(plain)}, indent=indent, ensure_ascii=ensure_ascii).encode()


def read_json(path: Path, former: Collection[str | None] = ()) -> dict[str, Any]:
    """What `sealed_json` wrote, without its hash; of a `former` format it may have none.

    Raises:
        DamagedError: if it cannot be read, or holds something other than what was written.
        FileNotFoundError: if it is not there.
    """
    if not path.exists():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(path))
    try:
        found = read_object(path)
    except InputError as error:
        reason = str(error).removeprefix(str(path))
        raise DamagedError(f"{path} is damaged: {f'it{reason}' if reason[0] == ' ' else reason.lstrip(': ')}") from None
    told = found.pop(SEAL, None)
    if told is None and found.get("format") in former:
        return found
    if told != _hash_of(found):
        raise DamagedError(f"{path} is damaged: it is not what was written.")
    return found


def seal(content: bytes) -> bytes:
    """Content with its own hash in the place of its last `OPEN_SEAL`."""
    start, end = _slot(content)
    return content[:start] + digest(content).encode() + content[end:]


def check_seal(path: object, content: bytes) -> None:
    """Compare bytes with the hash that they hold.

    Raises:
        DamagedError: if they hold none, or another.
    """
    start, end = _slot(content)
    told = content[start:end]
    if start < 0 or told.decode("ascii", "replace") != digest(content[:start] + b"0" * 64 + content[end:]):
        raise DamagedError(f"{path} is damaged: it is not what was written.")


def write_manifest(folder: Path, name: str) -> None:
    """Write down the hash of every file of a folder that is called `name`."""
    held = {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in _files(folder)}
    (folder / MANIFEST).write_bytes(sealed_json({"format": _MANIFEST, "of": name, "files": held}))


def check_manifest(folder: Path, name: str) -> None:
    """Compare every file that a folder's manifest lists with its hash.

    Raises:
        DamagedError: naming the first file that is gone or differs.
    """
    try:
        facts = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise DamagedError(f"{folder / MANIFEST} is gone.") from None
    if facts.get("format") != _MANIFEST:
        raise DamagedError(f"{folder / MANIFEST} is damaged: it is no manifest.")
    if facts.get("of") != name:
        raise DamagedError(f"{folder / MANIFEST} is damaged: it belongs to {str(facts.get('of'))[:60]}.")
    check_files(folder, facts.get("files"))


def check_files(folder: Path, files: object) -> None:
    """Compare files of a folder, by name, with their hashes.

    Raises:
        DamagedError: naming the first that is gone or differs, or if this is no list of files inside the folder.
    """
    listed = files if isinstance(files, dict) else {"..": ""}
    for file, told in listed.items():
        if not _is_inside(file):
            raise DamagedError(f"{folder}: what it lists as its files is damaged.")
        check_bytes(folder / file, told)


def check_bytes(path: Path, told: str) -> bytes:
    """The bytes of a file, compared with their hash.

    Raises:
        DamagedError: if it is gone, cannot be read, or differs.
    """
    content = content_of(path)
    if digest(content) != told:
        raise DamagedError(f"{path} is damaged: it is not what was written.")
    return content


def content_of(path: Path) -> bytes:
    """The bytes of a kept file.

    Raises:
        DamagedError: if it is gone, no file, larger than any that is kept, or cannot be read.
    """
    if not path.is_file():
        raise DamagedError(f"{path} is gone.")
    try:
        return read_bytes(path, MOST_KEPT_BYTES)
    except InputError as error:
        raise DamagedError(str(error)) from None


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _is_inside(file: str) -> bool:
    parts = PurePosixPath(file).parts
    return bool(parts) and ".." not in parts and not PurePosixPath(file).is_absolute()


def _hash_of(plain: Any) -> str:
    return digest(json.dumps(plain, sort_keys=True).encode())


def _slot(content: bytes) -> tuple[int, int]:
    """Where the 64 digits of the last seal are; (-1, -1) without one."""
    place = content.rfind(_SLOT)
    start = place + len(_SLOT)
    whole = place >= 0 and re.fullmatch(rb"[0-9a-f]{64}", content[start : start + 64]) is not None
    return (start, start + 64) if whole else (-1, -1)
