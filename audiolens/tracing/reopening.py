"""Pickle a lens as the arguments it was opened with and a hash of its weights, so that another process can reopen it.

joblib and multiprocessing can therefore pass a lens to their workers. Each worker opens the model again, from the
package, its folder or the hub, and raises an error unless the weights are bit-identical.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from audiolens.checks import shown
from audiolens.errors import InputError
from audiolens.model.hooks import acting_hooks
from audiolens.model.known_models import BESIDE, BUNDLED
from audiolens.model.weight_hash import content_hash

_SAVE = (
    "Save it (lens.model.save_pretrained(folder), lens.tokenizer.save_pretrained(folder)) and open it with "
    "AudioLens.from_pretrained(folder) in both processes."
)


@dataclass(frozen=True)
class Opening:
    """The arguments of `AudioLens.from_pretrained`; `name` refers to the same model from any working directory."""

    name: str
    dtype: str | None
    revision: str | None
    device_map: Any
    attention: str | None = None
    codec_dtype: str | None = None

    @classmethod
    def of(
        cls,
        name: str | os.PathLike[str],
        dtype: str | torch.dtype | None,
        revision: str | None,
        device_map: Any,
        attention: str | None = None,
        codec_dtype: torch.dtype | None = None,
    ) -> "Opening":
        """Record the arguments of a successful call."""
        folder = Path(name).expanduser()
        local = os.fspath(name) not in {*BUNDLED, *BESIDE} and folder.is_dir()
        return cls(
            str(folder.absolute()) if local else os.fspath(name),
            _named(dtype),
            revision,
            device_map,
            attention,
            _named(codec_dtype),
        )


class Portable:
    """The methods that copy and pickle a lens."""

    name: Any
    model: Any
    tokenizer: Any
    _opening: "Opening | None"

    def __copy__(self) -> Any:
        """Return a new lens on the same model."""
        return self._on(self.model, self.tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a new lens on a copy of the model."""
        return self._on(copy.deepcopy(self.model, memo), copy.deepcopy(self.tokenizer, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments the lens was opened with and a hash of its weights; unpickling opens the model again.

        Raises:
            InputError: if the model was given in memory or, on unpickling, if the weights differ.
        """
        return packed(self, self._opening)

    def _on(self, model: Any, tokenizer: Any) -> Any:
        kind: Any = type(self)
        made = kind(model, tokenizer, name=self.name)
        made._opening = self._opening
        return made


def packed(lens: Any, opening: Opening | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what `pickle` stores for a lens.

    Raises:
        InputError: if the model was given in memory or has hooks, because files do not store hooks.
    """
    if opening is None:
        raise InputError(
            f"a lens on a model that was given in memory ({shown(lens.name)}) cannot go to another process, "
            f"because that process could not load the model. {_SAVE}"
        )
    if any(map(_hooked, lens.model.modules())):
        raise InputError(
            f"the model of {shown(lens.name)} has hooks, which its files do not contain: remove them first."
        )
    device = None if opening.device_map is not None else str(lens.device)
    return _reopened, (type(lens), opening, lens.name, device, _attention(lens.model), content_hash(lens.model))


def elsewhere(lens: Any) -> Callable[[], Any]:
    """Return a function that another machine can unpickle and call to open the same model there.

    Unlike a pickled lens, it names the kind of device only, because devices are numbered per machine or per worker.

    Raises:
        InputError: as in `packed`.
    """
    function, (cls, opening, name, device, *others) = packed(lens, lens._opening)
    return partial(function, cls, opening, name, None if device is None else device.partition(":")[0], *others)


def opened_by_name(lens: Portable) -> bool:
    """Return whether a lens was opened from a name or folder, so that another process may be able to open it too."""
    return lens._opening is not None


def _reopened(
    cls: "type[Any]", opening: Opening, name: str, device: str | None, attention: str | None, weights: str
) -> Any:
    lens = cls.from_pretrained(
        opening.name,
        device=device,
        dtype=opening.dtype,
        revision=opening.revision,
        device_map=opening.device_map,
        attention=opening.attention,
        codec_dtype=opening.codec_dtype,
    )
    if content_hash(lens.model) != weights:
        raise InputError(
            f"{shown(name)} has different weights in this process and in the process that sent the lens: they were "
            f"changed in memory, or the files differ. {_SAVE}"
        )
    if attention is not None and attention != _attention(lens.model):
        lens.model.set_attn_implementation(attention)
    lens.name = name
    return lens


def _named(dtype: str | torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _hooked(part: torch.nn.Module) -> bool:
    """Whether a module has hooks other than those that torch itself adds, for example for weight norm."""
    return any(not type(hook).__module__.startswith("torch.nn.utils") for hook in acting_hooks(part))


def _attention(model: Any) -> str | None:
    return getattr(model.config, "_attn_implementation", None)
