"""Load a model and its tokenizer by name, with errors that state what is wrong with the name or the files."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from audiolens.checks import shown
from audiolens.errors import (
    InputError,
    InputTypeError,
    ModelFilesError,
    ModelNotFoundError,
    TooLittleMemoryError,
    UnsupportedModelError,
    nearest,
)
from audiolens.model import tokens
from audiolens.model.devices import checked_device_map, checked_dtype
from audiolens.model.families import FAMILIES
from audiolens.model.known_models import HUB, folder_of
from audiolens.model.memory import amount, freed, memory_text, ran_out, weight_bytes
from audiolens.model.model_files import downloaded, staged

_PARTS = {"text_encoder": ("t5", "mt5", "umt5"), "audio_encoder": ("encodec",)}


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: Any = None,
    attention: str | None = None,
    codec_dtype: torch.dtype | None = None,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer, given a bundled name, a folder or a hub name.

    `attention` is the implementation that the decoder uses; `None` is transformers' choice. `codec_dtype` is the dtype
    of the codec; `None` is float32 if the other parts are narrower, and otherwise their dtype.

    Raises:
        ModelNotFoundError: if there is no model with the given name or in the given folder, or if the hub cannot be
            reached.
        ModelFilesError: if the folder does not contain a complete model with its tokenizer.
        UnsupportedModelError: if the model does not belong to a supported family.
    """
    import transformers

    if not isinstance(name, str | os.PathLike):
        raise InputTypeError(f"model {shown(name)}: expected 'etude', a hub name or a folder.")
    checked_device_map(device_map)
    source, wanted = str(name), checked_dtype(dtype)
    local = folder = folder_of(os.fspath(name))
    if local is not None and revision is not None:
        raise InputError(
            f"revision={shown(revision)}: only models on the hub have revisions, and {shown(source)} is a folder on "
            "this machine: leave it out."
        )
    try:
        with _without_chatter():
            folder = folder or downloaded(source, revision)
        with staged(folder) as files:
            model_class = _class_of(source, files.config)
            with _without_chatter():
                config = model_class.config_class.from_pretrained(files.folder, local_files_only=True)
            files.refuse_larger(model_class, config, config.audio_encoder.num_quantizers)
            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            # Opening a pickle can run arbitrary code, so weights are read only from safetensors files.
            loading = {**options, "dtype": wanted or "auto", "use_safetensors": True}
            if device_map is not None:
                loading["device_map"] = device_map
            if attention is not None:
                # T5 and the codec do not have every implementation.
                loading["attn_implementation"] = {"decoder": attention}
            with _without_chatter(), _plain_defaults(device_map is None), _codec_in_float32(model_class):
                model, report = model_class.from_pretrained(files.folder, output_loading_info=True, **loading)
            if codec_dtype is not None:
                model.audio_encoder.to(codec_dtype)
            missing = sorted(report.get("missing_keys", ()))
            if missing:
                raise ModelFilesError(
                    f"{name}: the weights lack {len(missing)} tensors ({missing[0]}, ...): the file is incomplete. "
                    "Save or download the model again."
                )
            with tokens.panics_are_errors():
                tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, config=config, **options)
        refuse_tokenizer(tokenizer, model, source)
    except (InputError, UnsupportedModelError):
        raise
    except Exception as error:
        if device_map is not None and folder is not None:
            raise InputError(
                f"{name} could not be placed by device_map={shown(device_map)}: {_detail(error)}"
            ) from error
        raise _explained(source, local is not None, error) from error
    # The model and the tokenizer were loaded from a temporary folder that no longer exists.
    for part in (model.config, tokenizer):
        part.name_or_path = str(local or source)
    if local is None:
        model.config._commit_hash = folder.name
    return model, tokenizer


def moved(model: Any, device: torch.device) -> Any:
    """Return a model on another device.

    Raises:
        TooLittleMemoryError: if its weights do not fit there.
    """
    try:
        return model.to(device)
    except Exception as error:
        if not ran_out(error):
            raise
    freed(device)
    raise TooLittleMemoryError(
        f"the weights take {amount(weight_bytes(model))}, more than is free on {memory_text(device)}: use a narrower "
        "dtype ('bfloat16'), another device, or device_map='auto'."
    )


def refuse_tokenizer(tokenizer: Any, model: Any, name: str | None = None) -> None:
    """Reject a tokenizer that cannot belong to a model's text encoder.

    A tokenizer is rejected if it knows no words, or if the text encoder has no embedding for some of its tokens. `name`
    is the name from which both were loaded, or `None` if the tokenizer was given separately.

    Raises:
        ModelFilesError: if a rejected tokenizer was loaded with the model.
        InputError: if a rejected tokenizer was given separately.
    """
    reason = tokens.mismatch(tokenizer, model.text_encoder.get_input_embeddings().num_embeddings)
    if reason is None:
        return
    if name is None:
        raise InputError(f"tokenizer={type(tokenizer).__name__}: {reason}")
    raise ModelFilesError(f"{name}: {reason}")


@contextmanager
def _plain_defaults(on_cpu: bool) -> Iterator[None]:
    """Use torch's own default dtype and device, because position tables are computed and depend on these defaults."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if on_cpu else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _codec_in_float32(model_class: Any) -> Iterator[None]:
    """Load the codec's weights in float32, also if the other parts are loaded in half precision.

    The sum of the codec's many layers rounds audibly in bfloat16: quiet parts of the spectrum become noise.
    """
    before = model_class._keep_in_fp32_modules_strict
    model_class._keep_in_fp32_modules_strict = {*(before or ()), "audio_encoder"}
    try:
        yield
    finally:
        model_class._keep_in_fp32_modules_strict = before


def _class_of(name: str, config: Mapping[str, Any]) -> Any:
    """Return the transformers class that a configuration names, after checking that all parts are supported."""
    import transformers

    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else "?"
    known = [family.architecture for family in FAMILIES]
    if architecture not in known:
        raise UnsupportedModelError(
            f"{name}: {architecture} is not a model the lens can open: expected one of {', '.join(known)}."
        )
    found = getattr(transformers, architecture)
    expected = {"": (found.config_class.model_type,), **_PARTS}
    for part, kinds in expected.items():
        values = config.get(part, {}) if part else config
        kind = values.get("model_type", kinds[0]) if isinstance(values, Mapping) else type(values).__name__
        if kind not in kinds:
            raise UnsupportedModelError(
                f"{name}: config.json states model_type={shown(kind)}{f' of {part}' if part else ''}, expected "
                f"{' or '.join(map(repr, kinds))} in a {architecture}."
            )
    return found


def _explained(name: str, local: bool, error: Exception) -> InputError:
    """Return an error that a caller can act on, in place of the error that transformers raised."""
    detail = _detail(error)
    if isinstance(error, ImportError):
        return InputError(f"{name} could not be loaded because a package is missing: {detail}")
    if local:
        reason = detail.rstrip(".")
        return ModelFilesError(f"{name} could not be loaded: {reason}. The files are damaged or incomplete.")
    return ModelNotFoundError(
        f"{shown(name)} could not be loaded from the hub: {detail} Check the name and the network."
        f"{nearest(name, HUB) if name not in HUB else ''} 'etude' is bundled and works offline."
    )


def _detail(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # If the first line ends with a colon ("Validation error for field 'x':"), the second line has the explanation.
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Hide transformers' progress bars and its warnings about configurations.

    transformers would warn about MusicGen's sub-configurations, and about its start token, which is not a valid code.
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
