"""Store hashes with saved files, so that any changed byte is detected when a file is read.

A JSON file contains a hash of its other entries. The header of a safetensors file is JSON with a hash of the same kind.
The header also contains a hash of each tensor, so that tensors can be read one by one. Any other file contains a hash
of its own bytes (`seal`), or the manifest of its folder lists the file with its hash. Reading a file returns exactly
what was written, or raises a `DamagedError` that names the file. Hashes reveal damaged or swapped files, but not who
wrote a file.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from errno import ENOENT
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from audiolens.errors import DamagedError, InputError
from audiolens.files.bounded import read_bytes, read_object

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
_MANIFEST = "audiolens.manifest.1"
HEADER, SEAL = "audiolens", "sha256"
_TENSORS = "tensors"
_SLOT = b"audiolens-sha256:"
MOST_KEPT_BYTES = 2**29
"""The largest size in bytes of a file in a sweep or a study. Such a file is read into memory as a whole."""
OPEN_SEAL = (_SLOT + b"0" * 64).decode()
"""The placeholder for a file's own hash, which `seal` inserts."""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tensor_hash(tensor: "Tensor") -> str:
    """Hash a tensor's dtype, its shape and the exact bits of its values."""
    # Most callers only read JSON and hash bytes, and need not wait for torch.
    import torch

    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    found.update(flat)
    return found.hexdigest()


def sealed_header(facts: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> dict[str, str]:
    """Return the metadata of a safetensors file: `facts`, each tensor's shape and hash, and a hash of all of these."""
    held = {name: [list(tensor.shape), tensor_hash(tensor)] for name, tensor in tensors.items()}
    # Use one entry, because safetensors writes several in arbitrary order, and equal results could give unequal files.
    return {HEADER: sealed_json({**facts, _TENSORS: held}, indent=None).decode()}


def check_header(path: object, facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Check a header against the hash that it contains, and against the shapes of the tensors in the file.

    Raises:
        DamagedError: if the hash or a shape differs; the message states which.
    """
    rest = {name: value for name, value in facts.items() if name != SEAL}
    if facts.get(SEAL) != _hash_of(rest):
        raise DamagedError(f"{path} is damaged: its header is not what was written.")
    try:
        listed = {name: shape for name, (shape, _) in facts[_TENSORS].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        listed = None
    if {name: list(shape) for name, shape in shapes.items()} != listed:
        raise DamagedError(f"{path} is damaged: its tensors are not the ones listed in its header.")


def tensor_hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of every tensor, by name, in a header that `check_header` accepted."""
    return {name: found for name, (_, found) in facts[_TENSORS].items()}


def check_tensor(path: object, facts: Mapping[str, Any], name: str, tensor: "Tensor") -> None:
    """Check a tensor against its hash in a header that `check_header` accepted.

    Raises:
        DamagedError: if the tensor differs; the message names the tensor.
    """
    if tensor_hash(tensor) != facts[_TENSORS][name][1]:
        raise DamagedError(f"{path} is damaged: the values of {name} are not what was written.")


def sealed_json(facts: Mapping[str, Any], *, indent: int | None = 1, ensure_ascii: bool = True) -> bytes:
    """Encode `facts` as JSON that also contains their hash."""
    plain = json.loads(json.dumps(facts, default=str))
    return json.dumps({**plain, SEAL: _hash_of(plain)}, indent=indent, ensure_ascii=ensure_ascii).encode()


def read_json(path: Path, former: Collection[str | None] = ()) -> dict[str, Any]:
    """Read the facts that `sealed_json` wrote, without their hash. A file in a `former` format need not have a hash.

    Raises:
        DamagedError: if the file cannot be read, or differs from what was written.
        FileNotFoundError: if the file does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(path))
    try:
        found = read_object(path)
    except InputError as error:
        reason = str(error).removeprefix(str(path))
        raise DamagedError(f"{path} is damaged: {f'it{reason}' if reason[0] == ' ' else reason.lstrip(': ')}") from None
    stated = found.pop(SEAL, None)
    if stated is None and found.get("format") in former:
        return found
    if stated != _hash_of(found):
        raise DamagedError(f"{path} is damaged: it is not what was written.")
    return found


def seal(content: bytes) -> bytes:
    """Replace the last `OPEN_SEAL` in the content with the hash of the content."""
    start, end = _slot(content)
    # A view, because the table of a large sweep takes much memory.
    view = memoryview(content)
    return b"".join((view[:start], digest(content).encode(), view[end:]))


def check_seal(path: object, content: bytes) -> None:
    """Check bytes against the hash that they contain.

    Raises:
        DamagedError: if the bytes contain no hash, or do not match their hash.
    """
    start, end = _slot(content)
    found, view = hashlib.sha256(), memoryview(content)
    for part in (view[:start], b"0" * 64, view[end:]):
        found.update(part)
    if start < 0 or content[start:end].decode("ascii", "replace") != found.hexdigest():
        raise DamagedError(f"{path} is damaged: it is not what was written.")


def write_manifest(folder: Path, name: str) -> None:
    """Write a manifest with the hash of every file in a folder; `name` describes the contents of the folder."""
    held = {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in _files(folder)}
    (folder / MANIFEST).write_bytes(sealed_json({"format": _MANIFEST, "of": name, "files": held}))


def check_manifest(folder: Path, name: str) -> None:
    """Check every file listed in a folder's manifest against its hash.

    Raises:
        DamagedError: if a file is missing or differs; the message names the first one.
    """
    try:
        facts = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise DamagedError(f"{folder / MANIFEST} is gone.") from None
    if facts.get("format") != _MANIFEST:
        raise DamagedError(f"{folder / MANIFEST} is damaged: it is not a manifest.")
    if facts.get("of") != name:
        raise DamagedError(f"{folder / MANIFEST} is damaged: it belongs to {str(facts.get('of'))[:60]}.")
    check_files(folder, facts.get("files"))


def check_files(folder: Path, files: object) -> None:
    """Check the listed files in a folder against their hashes.

    Raises:
        DamagedError: if a file is missing or differs, or if `files` does not list files in the folder.
    """
    listed = files if isinstance(files, dict) else {"..": ""}
    for file, expected in listed.items():
        if not _is_inside(file):
            raise DamagedError(f"{folder}: its list of files is damaged.")
        check_bytes(folder / file, expected)


def check_bytes(path: Path, expected: str) -> bytes:
    """Return the bytes of a file, after checking them against a hash.

    Raises:
        DamagedError: if the file is missing, cannot be read, or has a different hash.
    """
    content = content_of(path)
    if digest(content) != expected:
        raise DamagedError(f"{path} is damaged: it is not what was written.")
    return content


def content_of(path: Path, most: int = MOST_KEPT_BYTES) -> bytes:
    """Read the bytes of a saved file of at most `most` bytes.

    Raises:
        DamagedError: if the file is missing, is not a regular file, is larger than any saved file, or cannot be read.
    """
    if not path.is_file():
        raise DamagedError(f"{path} is gone.")
    try:
        return read_bytes(path, most)
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
    """The start and end of the 64 digits of the last hash in the content, or (-1, -1) if there is none."""
    slot = content.rfind(_SLOT)
    start = slot + len(_SLOT)
    whole = slot >= 0 and re.fullmatch(rb"[0-9a-f]{64}", content[start : start + 64]) is not None
    return (start, start + 64) if whole else (-1, -1)
