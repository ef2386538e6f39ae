"""From a name to a model and its tokenizer, with errors that say what was wrong with the name or the files."""

import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from audiolens import tokens
from audiolens.errors import (
    InputError,
    InputTypeError,
    ModelFilesError,
    ModelNotFoundError,
    UnsupportedModelError,
    nearest,
)
from audiolens.families import FAMILIES

BUNDLED = {"etude": Path(__file__).parent / "etude" / "weights"}
"""Models that come with the package."""

HUB = (
    "facebook/musicgen-small",
    "facebook/musicgen-medium",
    "facebook/musicgen-large",
    "facebook/musicgen-stereo-small",
    "facebook/musicgen-stereo-medium",
    "facebook/musicgen-stereo-large",
    "facebook/musicgen-melody",
    "facebook/musicgen-melody-large",
    "facebook/musicgen-stereo-melody",
    "facebook/musicgen-stereo-melody-large",
)
"""Hub names known to be of a supported family; any other of that family will do too."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: Any = None,
) -> tuple[Any, Any]:
    """A model and its tokenizer, by bundled name, folder or hub name.

    Raises:
        ModelNotFoundError: no such name or folder, or the hub could not be reached.
        ModelFilesError: the folder does not hold a whole model with its tokenizer.
        UnsupportedModelError: the model is of no supported family.
    """
    import transformers

    if not isinstance(name, str | os.PathLike):
        raise InputTypeError(f"model {name!r}: expected 'etude', a hub name or a folder.")
    checked_device_map(device_map)
    if device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise InputError(f"device_map={device_map!r} needs accelerate, which is not installed: pip install accelerate.")
    source, local = _source(os.fspath(name))
    options: dict[str, Any] = {} if revision is None or local else {"revision": revision}
    if local:
        options["local_files_only"] = True
    try:
        with _without_chatter():
            config = transformers.AutoConfig.from_pretrained(source, **options)
        architecture = (config.architectures or ["?"])[0]
        known = [family.architecture for family in FAMILIES]
        if architecture not in known:
            raise UnsupportedModelError(
                f"{name}: {architecture} is not a model the lens can open: expected one of {', '.join(known)}."
            )
        # A pickle can run anything when it is opened: only safetensors are.
        loading = {**options, "dtype": checked_dtype(dtype) or "auto", "use_safetensors": True}
        if device_map is not None:
            loading["device_map"] = device_map
        with _without_chatter(), _plain_defaults(device_map is None):
            model, report = getattr(transformers, architecture).from_pretrained(
                source, output_loading_info=True, **loading
            )
        missing = sorted(report.get("missing_keys", ()))
        if missing:
            raise ModelFilesError(
                f"{name}: the weights lack {len(missing)} tensors ({missing[0]}, ...): the file is not whole. "
                "Save or download the model again."
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        refuse_tokenizer(tokenizer, model, str(name))
    except (InputError, UnsupportedModelError):
        raise
    except Exception as error:
        if device_map is not None:
            raise InputError(f"{name} could not be placed by device_map={device_map!r}: {_detail(error)}") from error
        raise _explained(str(name), local, error) from error
    return model, tokenizer


def checked_device_map(device_map: Any) -> None:
    """Refuse a map that names no device of this machine.

    Raises:
        InputTypeError, InputError: saying what is taken.
    """
    if device_map is None or (isinstance(device_map, str) and device_map in _MAPS):
        return
    if isinstance(device_map, bool) or not isinstance(device_map, str | int | torch.device | Mapping):
        raise InputTypeError(f"device_map={device_map!r}: expected {', '.join(_MAPS)}, a device, or parts by device.")
    for device in device_map.values() if isinstance(device_map, Mapping) else [device_map]:
        if device == "disk":
            raise InputError(f"device_map={device_map!r}: activations cannot be read from parts that lie on disk.")
        try:
            checked_device(device)
        except InputError as error:
            raise InputError(f"device_map={device_map!r}: expected {', '.join(_MAPS)}, or devices; {error}") from None


def refuse_tokenizer(tokenizer: Any, model: Any, name: str | None = None) -> None:
    """Raise unless a tokenizer can be that of a model's text encoder; `name` is that of files both were loaded from.

    Raises:
        ModelFilesError: if it was loaded with the model, InputError if not: it knows no word, or its tokens have
            numbers that the text encoder does not embed.
    """
    told = tokens.mismatch(tokenizer, model.text_encoder.get_input_embeddings().num_embeddings)
    if told is None:
        return
    if name is None:
        raise InputError(f"tokenizer={type(tokenizer).__name__}: {told}")
    raise ModelFilesError(f"{name}: {told}")


@contextmanager
def _plain_defaults(on_cpu: bool) -> Iterator[None]:
    """torch's own defaults: tables that no file holds, such as positions, are made in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if on_cpu else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


def checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating dtype from itself or its name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is not None and found not in _DTYPES:
        raise InputError(f"dtype={dtype!r}: expected a floating dtype such as 'float32' or 'bfloat16'.")
    if found is None and dtype is not None:
        raise InputError(f"dtype={dtype!r}: expected a floating dtype such as 'float32' or 'bfloat16'.")
    return found


def checked_device(device: str | int | torch.device) -> torch.device:
    """A device that exists here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device={str(device)!r} is not available: {str(error).splitlines()[0]}") from None
    if found.type == "meta":
        raise InputError(f"device={str(device)!r} holds no numbers: give one that does, such as 'cpu'.")
    return found


def _source(name: str) -> tuple[str, bool]:
    """What to load from, and whether it lies on this disk; a folder is checked for a whole model."""
    if name in BUNDLED:
        folder = BUNDLED[name]
        if not (folder / "config.json").is_file():
            raise ModelFilesError(
                f"the bundled model {name!r} is not in this installation ({folder} holds no config.json): "
                "reinstall audiolens, or train it with `python -m audiolens.etude.train`."
            )
    else:
        folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise ModelNotFoundError(f"{name} is a file: give the folder that holds the model.")
        if _HUB_NAME.fullmatch(name) and not name.startswith("."):
            return name, False
        raise ModelNotFoundError(
            f"unknown model {name!r}: not a bundled model, not a folder, not a hub name (owner/name)."
            f"{nearest(name, [*BUNDLED, *HUB])} 'etude' is bundled and works offline."
        )
    config = folder / "config.json"
    if not config.is_file():
        raise ModelFilesError(
            f"{folder} holds no config.json: it is not a saved model. Give the folder that "
            "save_pretrained wrote, a hub name, or 'etude'."
        )
    try:
        json.loads(config.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFilesError(f"{config} is not readable as JSON ({error}): the model is half-written.") from None
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        pickles = sorted(folder.glob("*.bin"))
        if pickles:
            raise ModelFilesError(
                f"{folder} holds its weights as a pickle ({pickles[0].name}), which can run anything when it is "
                f"opened: save the model again as safetensors ({_WEIGHTS[0]})."
            )
        raise ModelFilesError(
            f"{folder} holds a config.json but no weights ({_WEIGHTS[0]}): the model is half-written."
        )
    return str(folder), True


def _explained(name: str, local: bool, error: Exception) -> InputError:
    """The error a caller can act on, for whatever transformers raised."""
    detail = _detail(error)
    if isinstance(error, ImportError):
        return InputError(f"{name} could not be loaded, for want of a package: {detail}")
    if local:
        told = detail.rstrip(".")
        return ModelFilesError(f"{name} could not be loaded: {told}. The files are damaged or not all there.")
    return ModelNotFoundError(
        f"{name!r} could not be loaded from the hub: {detail} Check the name and the network."
        f"{nearest(name, HUB) if name not in HUB else ''} 'etude' is bundled and works offline."
    )


def _detail(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep transformers' progress bars off the screen, and its warnings about configurations.

    Sub-configurations it does not know, and a start token past the codes, are MusicGen's own.
    """
    from transformers.utils import logging as chatter

    level, shown = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if shown:
            chatter.enable_progress_bar()
