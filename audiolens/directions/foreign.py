"""Directions in the formats of other projects: one vector per block, and GGUF control vectors.

repeng's `ControlVector` and steering-vectors' `SteeringVector` hold a vector per decoder block, added to the block's
output. repeng stores them in GGUF files with the architecture "controlvector" and a tensor "direction.N" for each block
N, counted from 0. llama.cpp reads such files too, but no vector of block 0, and no MusicGen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from audiolens.checks import numbers_of, shown
from audiolens.errors import DamagedError, InputError, InputTypeError, MissingPackageError
from audiolens.files.atomic import as_path, written
from audiolens.files.bounded import json_of, read_bytes
from audiolens.files.json_shapes import refuse_other
from audiolens.model import provenance
from audiolens.model.provenance import SHAPE, Provenance

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

ARCHITECTURE = "controlvector"
_OWN, _SEAL = "audiolens.provenance", "audiolens.sha256"
_NAME = "direction."
MOST_BYTES = 2**30
"""The largest GGUF file that is read. The vectors of MusicGen-large have 400 kB."""
SITE = "resid_post"
"""The site at which other projects add their vectors: the output of a block."""


def layer_vectors(given: object) -> dict[int, Tensor]:
    """Return the vector of each block, from a mapping, a repeng `ControlVector` or a steering-vectors `SteeringVector`.

    Raises:
        InputTypeError: if `given` is something else.
        InputError: if a block is not a whole number, or the vectors are not of equal length.
    """
    kind = getattr(given, "layer_type", "decoder_block")
    if kind != "decoder_block":
        raise InputError(f"vectors of {shown(kind)}: only those of whole blocks (decoder_block) can be used.")
    for name in ("layer_activations", "directions"):
        inner = getattr(given, name, None)
        if isinstance(inner, Mapping):
            given = inner
    if not isinstance(given, Mapping) or not given:
        raise InputTypeError(
            f"vectors={type(given).__name__}: expected a mapping from block to vector, a repeng ControlVector or a "
            "steering-vectors SteeringVector."
        )
    found: dict[int, Tensor] = {}
    for layer, vector in given.items():
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or layer < 0:
            raise InputError(f"vectors: {shown(layer)} is no block: expected whole numbers from 0.")
        values = numbers_of(f"the vector of block {layer}", vector)
        if values.ndim != 1:
            raise InputError(f"the vector of block {layer} has shape {values.shape}: expected one axis.")
        found[int(layer)] = torch.from_numpy(values).float()
    widths = {len(vector) for vector in found.values()}
    if len(widths) > 1:
        raise InputError(f"vectors have different lengths: {sorted(widths)}.")
    return dict(sorted(found.items()))


def refuse_site(meta: Provenance) -> None:
    """Raise an error unless vectors were read where other projects add theirs."""
    if meta.site != SITE:
        raise InputError(f"these directions were read at {shown(meta.site)}: other libraries add vectors at {SITE}.")


def described(vectors: Mapping[int, Tensor], lens: AudioLens, label: str, estimator: str) -> Provenance:
    """Return the provenance of vectors that another project made for the model of a lens.

    Raises:
        InputError: if the model has another width or fewer blocks.
    """
    config, width = lens.config, len(next(iter(vectors.values())))
    if width != config.d_model:
        raise InputError(f"vectors of length {width}: the residual stream of {shown(lens.name)} has {config.d_model}.")
    if max(vectors) >= config.n_layers:
        raise InputError(f"a vector of block {max(vectors)}: {shown(lens.name)} has blocks 0 to {config.n_layers - 1}.")
    return provenance.of_lens(lens, site=SITE, label=label, estimator=estimator)


def write_gguf(path: str | os.PathLike[str], vectors: Mapping[int, Tensor], meta: Provenance) -> Path:
    """Write a GGUF control vector, with the provenance in an additional field.

    Raises:
        InputError: if the file cannot be written.
        MissingPackageError: if `gguf` is not installed.
    """
    gguf = _gguf()
    with written(as_path(path)) as whole:
        writer = gguf.GGUFWriter(str(whole), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", meta.model)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        writer.add_string(_OWN, json.dumps(meta.as_dict()))
        writer.add_string(_SEAL, _sealed(vectors, meta))
        for layer, vector in vectors.items():
            writer.add_tensor(f"{_NAME}{layer}", vector.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def read_gguf(path: str | os.PathLike[str]) -> tuple[dict[int, Tensor], str, Provenance | None]:
    """Read a GGUF control vector: the vectors, the name of its model, and the provenance if audiolens wrote the file.

    Raises:
        InputError: if the file is missing, is not a control vector in float32 or float16, or is larger than 1 GiB.
        DamagedError: if it cannot be parsed, or a file of audiolens has changed since it was written.
        MissingPackageError: if `gguf` is not installed.
    """
    place = as_path(path)
    # The reader maps the file, and is given only regular files within the limit.
    read_bytes(place, MOST_BYTES)
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(place, "r")
        names = ("general.architecture", f"{ARCHITECTURE}.model_hint", _OWN, _SEAL)
        texts = {name: _text(reader.get_field(name)) for name in names}
        tensors = {
            tensor.name: (tensor.tensor_type.name, np.array(tensor.data))
            for tensor in reader.tensors
            if tensor.name.startswith(_NAME)
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, UnicodeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{place} is not a complete GGUF file ({reason}).") from None
    if texts["general.architecture"] != ARCHITECTURE or not tensors:
        raise InputError(
            f"{place} is no control vector: its architecture is {shown(texts['general.architecture'])}, and it has "
            f"{len(tensors)} tensors named {_NAME}N."
        )
    vectors: dict[int, Any] = {}
    for name, (kind, values) in tensors.items():
        number = name.removeprefix(_NAME)
        if not (number.isascii() and number.isdigit()):
            raise InputError(f"{place}: {shown(name)} names no block.")
        if kind not in ("F32", "F16"):
            raise InputError(f"{place}: {shown(name)} is stored as {kind}: expected F32 or F16.")
        vectors[int(number)] = values
    found, meta = layer_vectors(vectors), None
    if texts[_OWN]:
        facts = json_of(place, texts[_OWN])
        refuse_other(place, facts, SHAPE)
        meta = Provenance.from_dict(facts)
        if texts[_SEAL] != _sealed(found, meta):
            raise DamagedError(f"{place} is damaged: its vectors or its provenance have changed since it was written.")
    return found, texts[f"{ARCHITECTURE}.model_hint"], meta


def _sealed(vectors: Mapping[int, Tensor], meta: Provenance) -> str:
    """Return a hash of the vectors, their blocks and their provenance."""
    found = hashlib.sha256(json.dumps([sorted(vectors), meta.as_dict()], sort_keys=True).encode())
    for layer in sorted(vectors):
        found.update(vectors[layer].numpy().astype("<f4").tobytes())
    return found.hexdigest()


def _text(field: Any) -> str:
    return "" if field is None else str(bytes(field.parts[-1]), "utf-8")


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingPackageError("GGUF files need gguf: pip install 'audiolens[gguf]'.") from None
    return gguf
