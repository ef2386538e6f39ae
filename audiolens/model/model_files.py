"""Check a model's files before transformers opens them, so that an untrusted folder cannot run code.

transformers follows every reference in a folder: to code that a configuration names, to an adapter and its base model,
to pickled checkpoints, and to any weights that an index lists. transformers therefore loads from a temporary folder
that contains only links to the files named in this module. Each of these files is a regular file that was checked: JSON
must be within limits, and weights must be in safetensors files whose headers account for every byte. From the hub, only
files named in this module are downloaded, and they are checked in the same way.
"""

import copy
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audiolens.checks import shown
from audiolens.errors import InputError, ModelFilesError
from audiolens.files.bounded import (
    MOST_BYTES,
    MOST_TEXT,
    Header,
    json_of,
    read_bytes,
    read_header,
    read_object,
    read_text,
)
from audiolens.model.known_models import CONFIG

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN = (CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
OPAQUE = ("spiece.model", "merges.txt")
"""Files that are not JSON and are parsed only by the tokenizer."""

MOST_NUMBER = 1_000_000
"""The largest number allowed in a configuration, unless an axis of the weights is larger."""
_MOST = {
    "num_labels": 10_000, "chroma_length": 10_000, "num_chroma": 10_000, "audio_channels": 2, "num_codebooks": 1_000,
    "dilation_growth_rate": 16, "num_residual_layers": 5, "num_lstm_layers": 100,
}  # fmt: skip
_LAYERS = re.compile(r"(num_(hidden_|decoder_|encoder_)?|n_|encoder_|decoder_)layers|layers|depths")
_MOST_LAYERS = 1_000
_CODE = ("auto_map", "custom_pipelines", "kernel_config", "custom_generate")
"""Keys by which a configuration names code to fetch and run."""
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_MOST_MADE = 2**26
"""The largest number of values that a model may compute instead of loading. These are mainly position embeddings."""
_SHARD = re.compile(r"[\w][\w.-]*\.safetensors")


@dataclass(frozen=True)
class ModelFiles:
    """The checked files of a model. `folder` contains only these files, and exists until the `staged` block ends.

    `source` is the folder from which the files came.
    """

    source: Path
    folder: Path
    config: Mapping[str, Any]
    headers: Mapping[str, Header]

    def refuse_larger(self, model_class: Any, config: Any, modules: int = 0) -> None:
        """Reject a configuration that describes far more values than the weights contain, because transformers would
        initialise the missing values at random.

        `modules` is the number of modules that the model creates in a loop whose length the configuration sets
        indirectly.

        Raises:
            ModelFilesError: if the configuration describes too many values or modules; the message states how many it
                describes and how many the weights contain.
        """
        tensors = sum(len(header.shapes) for header in self.headers.values())
        elements = sum(header.elements for header in self.headers.values())
        data_bytes = sum(header.data_bytes for header in self.headers.values())
        if modules > tensors:
            raise ModelFilesError(
                f"{self.source / CONFIG} describes {modules:,} modules, but the weights have {tensors:,} tensors."
            )
        with torch.device("meta"):
            shell = model_class(copy.deepcopy(config))
        # Packed weights have up to eight values per byte.
        held = 8 * data_bytes if "quantization_config" in self.config else 2 * elements
        wanted = sum(parameter.numel() for parameter in shell.parameters())
        made = sum(buffer.numel() for buffer in shell.buffers())
        if wanted > held or made > elements + _MOST_MADE:
            raise ModelFilesError(
                f"{self.source / CONFIG} describes a model of {wanted + made:,} values, but its weights have "
                f"{elements:,}: they do not belong together."
            )


@contextmanager
def staged(folder: Path) -> Iterator[ModelFiles]:
    """Check the files in a folder, and create a temporary folder of links to them.

    transformers can load the model from the temporary folder, which is removed when the block ends.

    Raises:
        ModelFilesError: if a file is missing, is not a regular file, names code to run, or exceeds the limits.
    """
    try:
        whole = {name: _object(folder / name) for name in (*PLAIN, *TOKENIZER) if _there(folder / name)}
        headers = {name: read_header(folder / name) for name in _shards(folder)}
        opaque = [name for name in OPAQUE if _there(folder / name) and read_bytes(folder / name)]
    except ModelFilesError:
        raise
    except InputError as error:
        raise ModelFilesError(f"{folder} could not be loaded: {error} The files are damaged or half-written.") from None
    if CONFIG not in whole:
        raise ModelFilesError(f"{folder} contains no {CONFIG}: it is not a saved model.")
    for name, values in whole.items():
        refuse_code(folder / name, values)
        if name in PLAIN:
            _refuse_numbers(folder / name, values, headers)
    with tempfile.TemporaryDirectory(prefix="audiolens-model-") as made:
        work = Path(made)
        for name in (*whole, *opaque, *headers, *([] if WEIGHTS in headers else [INDEX])):
            (work / name).symlink_to((folder / name).absolute())
        yield ModelFiles(folder, work, whole[CONFIG], headers)


def downloaded(name: str, revision: str | None) -> Path:
    """Download the files of a hub model that are named in this module and not yet cached; return their local folder.

    Errors from the hub's client are raised unchanged.

    Raises:
        ModelFilesError: before the download, if a text file is larger than the limit.
    """
    from huggingface_hub import snapshot_download

    revision = _sized(name, revision)
    small = Path(snapshot_download(name, revision=revision, allow_patterns=[*PLAIN, *TOKENIZER, *OPAQUE, INDEX]))
    weights = _indexed(small) if _there(small / INDEX) else [WEIGHTS]
    # The folder is named after its commit, so both downloads use the same commit.
    return Path(snapshot_download(name, revision=small.name, allow_patterns=weights))


def _sized(name: str, revision: str | None) -> str | None:
    """Reject a hub model whose text files are too large; return its commit, or `revision` if the hub is unreachable."""
    from huggingface_hub import HfApi

    try:
        facts = HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception:
        # If there is no network or no such model, use the local files, or let the download raise its own error.
        return revision
    for file in facts.siblings or ():
        if file.rfilename in (*PLAIN, *TOKENIZER, *OPAQUE, INDEX) and (file.size or 0) > MOST_BYTES:
            raise ModelFilesError(
                f"{name}: {file.rfilename} has {file.size:,} bytes, expected at most {MOST_BYTES:,}, so it was "
                "not downloaded."
            )
    return facts.sha or revision


def _object(path: Path) -> dict[str, Any]:
    found = json_of(path, read_text(path), MOST_BYTES if path.name == "tokenizer.json" else MOST_TEXT)
    if not isinstance(found, dict):
        raise ModelFilesError(f"{path} contains a {type(found).__name__}: expected a JSON object.")
    return found


def refuse_code(path: Path, values: Any) -> None:
    """Reject a configuration that names code to run, even in a nested entry.

    transformers' own models do not need such code.

    Raises:
        ModelFilesError: if the configuration names code; the message quotes the key.
    """
    for key, value in _entries(values):
        fetched = isinstance(value, str) and bool(_IMPLEMENTATIONS.fullmatch(key)) and "/" in value
        if fetched or (key in _CODE and value):
            raise ModelFilesError(
                f"{path} names code to run ({key}={shown(value)}), which is not allowed in a model's files: remove the "
                "key, if the model is one of transformers' own."
            )


def _shards(folder: Path) -> list[str]:
    """Return the names of the weight files, after checking that the files exist."""
    if _there(folder / WEIGHTS):
        return [WEIGHTS]
    if not _there(folder / INDEX):
        raise _no_weights(folder)
    names = _indexed(folder)
    missing = [name for name in names if not _there(folder / name)]
    if missing:
        raise ModelFilesError(f"{folder} has no {missing[0]}, which {INDEX} names: the model is incomplete.")
    return names


def _indexed(folder: Path) -> list[str]:
    """The names of the weight files that an index lists."""
    index = read_object(folder / INDEX)
    weight_map, facts = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(facts, dict):
        raise ModelFilesError(f"{folder / INDEX} has no weight_map: the model is incomplete.")
    names = list(dict.fromkeys(map(str, weight_map.values())))
    for name in names:
        if not _SHARD.fullmatch(name):
            raise ModelFilesError(
                f"{folder / INDEX} names {shown(name)}: expected names of .safetensors files in the same folder."
            )
    return names


def _no_weights(folder: Path) -> ModelFilesError:
    pickles = sorted(folder.glob("*.bin"))
    if pickles:
        return ModelFilesError(
            f"{folder} stores its weights as a pickle ({pickles[0].name}), which can run any code when it is opened: "
            f"save the model again as safetensors ({WEIGHTS})."
        )
    return ModelFilesError(f"{folder} contains a {CONFIG} but no weights ({WEIGHTS}): the model is incomplete.")


def _there(path: Path) -> bool:
    """Whether anything exists at this path. Reading anything except a regular file later raises an error."""
    return os.path.lexists(path)


def _refuse_numbers(path: Path, values: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    """Reject sizes that do not match the weights before anything of that size is allocated."""
    shapes = [shape for header in headers.values() for shape in header.shapes.values()]
    most = max([MOST_NUMBER, *(size for shape in shapes for size in shape)])
    layers = min(len(shapes), _MOST_LAYERS)
    for key, number in _leaves(values):
        limit = layers if _LAYERS.fullmatch(key) else _MOST.get(key, most)
        # NaN fails this comparison too.
        if isinstance(number, int | float) and not -limit <= number <= limit:
            raise ModelFilesError(f"{path}: {key}={number}, expected at most {limit:,} with these weights.")


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """All keys and their values, including those of nested entries.

    Recursion is safe, because the nesting depth was checked when the configuration file was read.
    """
    if isinstance(values, dict):
        yield from values.items()
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _entries(value)


def _leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not an object or a list, with its key."""
    if isinstance(values, dict):
        for own, value in values.items():
            yield from _leaves(value, own)
    elif isinstance(values, list):
        for value in values:
            yield from _leaves(value, key)
    else:
        yield key, values
