"""Write the tensors and labels of an `ActivationCache` to a file atomically, and read each tensor on first use.

Slicing or moving a loaded cache does not read any data. The change is applied to each tensor when it is first used.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiolens.cache.decomposition import Stream
from audiolens.checks import shown
from audiolens.errors import InputError
from audiolens.files import integrity
from audiolens.files.atomic import written
from audiolens.files.bounded import json_of, read_header

Change = Callable[[Tensor, str], Tensor]

FORMAT = "audiolens.activations.2"
_UNSEALED = "audiolens.activations.1"
"""The previous format, without hashes."""
_NORMS = "norms/"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Stored(Mapping[str, Tensor]):
    """Tensors by name, each read on first use and then kept in memory.

    `outlines` are meta tensors of the same shapes and dtypes, which contain no data.

    A copy, or a pickle for another process, contains the tensors themselves.
    """

    def __init__(self, outlines: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.outlines = dict(outlines)
        self._read = read
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.outlines)

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __contains__(self, name: object) -> bool:
        return name in self.outlines

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outlines:
            raise KeyError(name)
        if name not in self._held:
            self._held[name] = self._read(name)
        return self._held[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.items()),)

    def some(self, names: Sequence[str], under: str = "") -> "Stored":
        """Select the tensors with these names. In the file, each name has the prefix `under`."""
        return Stored({name: self.outlines[under + name] for name in names}, lambda name: self._once(under + name))

    def changed(self, change: Change) -> "Stored":
        """Apply a change to the outlines now, and to each tensor when it is read."""
        outlines = {name: change(outline, name) for name, outline in self.outlines.items()}
        return Stored(outlines, lambda name: change(self._once(name), name))

    def _once(self, name: str) -> Tensor:
        """Read a tensor for another `Stored`. Only that object keeps the tensor in memory."""
        return self._held[name] if name in self._held else self._read(name)


def outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors or, for stored ones, meta tensors of the same shapes. No data are read."""
    return tensors.outlines if isinstance(tensors, Stored) else tensors


def some(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Mapping[str, Tensor]:
    """Select the tensors with these names."""
    return tensors.some(names) if isinstance(tensors, Stored) else {name: tensors[name] for name in names}


def changed(tensors: Mapping[str, Tensor], change: Change) -> Mapping[str, Tensor]:
    """Apply a change to all tensors. Stored tensors are changed only when they are read."""
    if isinstance(tensors, Stored):
        return tensors.changed(change)
    return {name: change(tensor, name) for name, tensor in tensors.items()}


def kept(
    path: Path, cache: Any, further: Mapping[str, Tensor] | None = None, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write a cache to a file, and return the path; see `ActivationCache.save`.

    `further` tensors and `facts` are stored next to those of the cache. `opened` ignores them.
    """
    labels = {
        "format": FORMAT,
        "axes": {name: list(axes) for name, axes in cache.axes.items()},
        "branch": cache.branch,
        "first_step": cache.first_step,
        "frame_rate": cache.frame_rate,
        "prompts": list(cache.prompts),
        "reduce": cache.reduce,
        "model": cache.model,
        "heads": cache.heads,
        "stream": None if cache.stream is None else asdict(cache.stream),
        "prefixes": list(cache.prefixes),
        "weights": cache.model_weights(),
    }
    norms = {_NORMS + name: norm for name, norm in cache.norms.items()}
    return write(path, {**cache.tensors, **norms, **(further or {})}, {**(facts or {}), **labels})


def opened(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a cache from a file; see `ActivationCache.load`."""
    return fields(path, *read(path, FORMAT, _UNSEALED))


def fields(path: str | os.PathLike[str], labels: Mapping[str, Any], stored: Stored) -> dict[str, Any]:
    """Return the fields of a cache from the labels and tensors of its file.

    Raises:
        InputError: if the labels are not those of an activation cache.
    """
    try:
        axes = {name: tuple(own) for name, own in labels["axes"].items()}
        unlike = [name for name, own in axes.items() if stored.outlines[name].ndim != len(own)]
        if unlike:
            raise InputError(
                f"{path}: the shape of {unlike[0]} does not match the axes {axes[unlike[0]]} in its label."
            )
        blocks = labels.get("stream")
        norms = [name for name in axes if _NORMS + name in stored]
        return {
            "tensors": stored.some(list(axes)),
            "axes": axes,
            "branch": labels["branch"],
            "first_step": labels["first_step"],
            "frame_rate": labels["frame_rate"],
            "prompts": tuple(labels["prompts"]),
            "reduce": labels["reduce"],
            "norms": stored.some(norms, under=_NORMS),
            "model": labels["model"],
            "heads": None if labels.get("heads") is None else tuple(labels["heads"]),
            "stream": None if blocks is None else Stream(int(blocks["n_layers"]), tuple(blocks["parts"])),
            "prefixes": tuple(labels.get("prefixes", ())),
            "weights": str(labels.get("weights", "")),
        }
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is not an activation cache: {error!r} is missing or unreadable.") from None


def write(path: Path, tensors: Mapping[str, Tensor], labels: Mapping[str, Any]) -> Path:
    """Write one safetensors file, with the labels in its header. An existing file is replaced atomically.

    Raises:
        InputError: if the file cannot be written, or if `path` exists and is not a regular file.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written(path) as made:
        save_file(whole, made, metadata=integrity.sealed_header(labels, whole))
    return path


def read(path: str | os.PathLike[str], format_: str, unsealed: str) -> tuple[dict[str, Any], Stored]:
    """Read the labels of a file, and prepare to read its tensors. Files in the `unsealed` format have no hashes.

    Raises:
        InputError: if the file is not complete, or is in neither format. An `InputError` is also raised later, if a
            tensor that is read is damaged.
    """
    # The path is made absolute, so that a later change of the working directory has no effect.
    absolute = Path(path).absolute()
    if not absolute.exists():
        raise InputError(f"{path}: no such file.")
    # Record the file's state before reading the header, so that any later write is detected.
    stamp = _stamp(absolute)
    header = read_header(absolute)
    labels = json_of(absolute, header.metadata.get(integrity.HEADER, "null"))
    found = labels.get("format") if isinstance(labels, dict) else None
    if found not in (format_, unsealed):
        raise InputError(f"{path} is not an activation cache: format {shown(found)}, expected {shown(format_)}.")
    sealed = found == format_ or integrity.SEAL in labels
    if sealed:
        integrity.check_header(path, labels, header.shapes)
    try:
        outlines = {
            name: torch.empty(shape, device="meta", dtype=_DTYPES.get(header.dtypes[name]))
            for name, shape in header.shapes.items()
        }
    except RuntimeError as error:
        raise InputError(f"{path} is not an activation cache: {str(error).splitlines()[0]}.") from None
    return labels, Stored(outlines, _Source(absolute, stamp, labels if sealed else None).tensor)


@dataclass(frozen=True)
class _Source:
    """A file that is reopened for each tensor, and must not change after it was first opened."""

    path: Path
    stamp: tuple[int, ...]
    sealed: Mapping[str, Any] | None

    def tensor(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                same = _stamp(self.path) == self.stamp
                found = file.get_tensor(name) if same else None
        except Exception as error:
            raise InputError(
                f"{name} cannot be read: {self.path} is gone, or no longer readable ({error}). A loaded cache reads "
                "each tensor on first use: keep the file in place until then."
            ) from None
        if found is None:
            raise InputError(
                f"{name} cannot be read: {self.path} was rewritten after this cache was loaded. Load it again."
            )
        if self.sealed is not None:
            integrity.check_tensor(self.path, self.sealed, name, found)
        return found


def _stamp(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
