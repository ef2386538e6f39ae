"""Provenance of directions, saved in the header of their file: the model, site, branch and prompts that were read.

Without this record a direction is only a list of numbers. With the record, a file describes itself, and loading the
file for a different model raises an error.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiolens.characters import refuse_control
from audiolens.checks import shown
from audiolens.door import checked_kinds, guarded
from audiolens.errors import DamagedError, InputError
from audiolens.files import integrity
from audiolens.files.atomic import written
from audiolens.files.bounded import json_of, read_header
from audiolens.model.config import LensConfig
from audiolens.model.devices import described
from audiolens.model.weight_hash import weights_hash

FORMAT = "audiolens.directions.2"
UNSEALED = "audiolens.directions.1"
"""The previous format, without hashes. In this format, damage is detected only if it changes the norm of a vector."""
SHAPE = {
    "model": str, "weights": str, "n_layers": int, "site?": str, "position?": (str, [float, float]), "branch?": str,
    "guidance_scale?": float, "source?": str, "seconds?": (float, None), "estimator?": str, "n_prompts?": [int, int],
    "prompts?": str, "prefix?": bool, "seeds?": [int], "neutral?": str, "noise?": str, "label?": str,
    "revision?": (str, None), "versions?": {str: str}, "device?": str, "dtype?": str,
    "options?": {str: str}, "n_heads?": int, "sign?": int,
}  # fmt: skip
"""The shape of a `Provenance` as JSON."""


@runtime_checkable
class Opened(Protocol):
    """A lens, or the `TracedModel` inside a lens."""

    @property
    def config(self) -> LensConfig: ...

    @property
    def model(self) -> Any: ...

    @property
    def name(self) -> str: ...


@guarded
@dataclass(frozen=True)
class Provenance:
    """The record of how directions were read.

    Attributes:
        model, revision, weights: the model's name, its hub commit if it has one, and the hash of its decoder.
        n_layers: the number of blocks of that model.
        site, position, branch, guidance_scale: the site, positions, guidance branch and scale of the activations.
        source: the codes on which the prompts of both poles were read: `"generation"` (each prompt's own clip),
            `"shared codes"` (clips of neutral prompts, the same for both poles), `"codes"` (codes that the user gave),
            or `"start"` (none, only the text and the start token). A combination of directions with different sources
            states both ("generation, shared codes").
        seconds: the length of the generated clips, or `None` if no clips were generated.
        estimator: the method that turned activations into vectors.
        n_prompts: the numbers of prompts of the positive and the negative pole.
        prompts: the hash of the prompts of both poles.
        prefix: whether the mean includes the conditioning before step 0 (MusicGen Melody).
        seeds: the seeds of the generated clips, one per prompt of a pole or one per shared clip.
        neutral: the hash of the prompts of the shared clips, or an empty string if there are no shared clips.
        noise: the name of the random numbers with which the clips were drawn, or an empty string if no clips were
            generated or if an earlier version generated them.
        label: the name of the direction, and the operations applied to it ("tempo", "-tempo", "tempo + timbre").
        versions: the versions of the packages with which the direction was read.
        device, dtype: where the model ran, such as "NVIDIA H200", and in which dtype. They are empty in files written
            by earlier versions. A combination of directions names all devices and dtypes.
        options: the options of the estimator, and the settings that it chose, with one value per layer.
        n_heads: the number of heads whose vectors each vector contains, one after the other, as the output projection
            of the attention reads them. It is 0 at a site with one vector per step.
        sign: 1 if the vectors point to the positive pole of the prompts, -1 if they point to the negative one, as those
            of `-d` do, and 0 if they point to neither, such as those of a sum, or random ones.
    """

    model: str
    weights: str
    n_layers: int
    site: str = "resid_post"
    position: str | tuple[float, float] = "mean"
    branch: str = "cond"
    guidance_scale: float = 1.0
    source: str = "generation"
    seconds: float | None = None
    estimator: str = "difference in means"
    n_prompts: tuple[int, int] = (0, 0)
    prompts: str = ""
    prefix: bool = False
    seeds: tuple[int, ...] = ()
    neutral: str = ""
    noise: str = ""
    label: str = ""
    revision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    n_heads: int = 0
    sign: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                refuse_control(name, value)
        checked_kinds(self)
        if self.sign not in (-1, 0, 1):
            raise InputError(f"sign={shown(self.sign)}: expected -1, 0 or 1.")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """Create a `Provenance` from the output of `as_dict`; keys added by later versions are ignored."""
        known = {entry.name for entry in fields(cls)}
        if lacking := [name for name in ("model", "weights", "n_layers") if name not in values]:
            raise InputError(f"values={shown(values)}: {lacking[0]!r} is missing.")
        tuples = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        # Earlier versions recorded arithmetic in the label alone.
        sign = {"sign": 0} if re.search(r"\(| \+ ", str(values.get("label", ""))) else {}
        return cls(**{key: value for key, value in {**sign, **values, **tuples}.items() if key in known})

    def refuse_other(self, lens: Opened) -> None:
        """Raise an error unless the model of `lens` is exactly the one from which these directions were read.

        Raises:
            InputError: if the models differ; the message names both models and the difference.
        """
        if lens.config.n_layers != self.n_layers:
            reason = f"has {lens.config.n_layers} blocks, not {self.n_layers}"
        elif self.weights and weights_hash(lens.model) != self.weights:
            reason = "has different weights"
        else:
            return
        raise InputError(
            f"these directions were read from {shown(self.model)}, and {shown(lens.name)} {reason}: a direction means "
            "nothing in another model. Read them again with this lens, or load them without lens= to inspect them."
        )


def prompts_hash(*lists: Sequence[str | None]) -> str:
    """Return a hash of lists of prompts, such as those of both poles, in order."""
    return hashlib.sha256(json.dumps([list(prompts) for prompts in lists]).encode()).hexdigest()[:16]


def of_lens(lens: Opened, **facts: Any) -> Provenance:
    """Return the provenance of vectors that were just read from a lens. `facts` state how."""
    device, dtype = computed_on(lens)
    return Provenance(
        model=lens.name,
        weights=weights_hash(lens.model),
        n_layers=lens.config.n_layers,
        revision=getattr(lens.model.config, "_commit_hash", None),
        versions=versions(),
        device=device,
        dtype=dtype,
        **facts,
    )


def computed_on(lens: Opened) -> tuple[str, str]:
    """Return the device and the dtype of a model, as the fields of a `Provenance`."""
    parameter = next(lens.model.decoder.parameters())
    return described(parameter.device), str(parameter.dtype).removeprefix("torch.")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that affect how directions are read."""
    found = {}
    for package in ("audiolens", "torch", "transformers", "nnsight"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write one safetensors file atomically, with `facts` in its header.

    Raises:
        InputError: if the file cannot be written, or if `path` exists and is not a regular file.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written(path) as whole:
        save_file(kept, whole, metadata=integrity.sealed_header({"format": FORMAT, **facts}, kept))
    return Path(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts that `write` wrote.

    Raises:
        InputError: if the file does not exist, is truncated or corrupt, or does not contain directions.
        DamagedError: if the contents differ from what was written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of directions.")
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    header = read_header(path).metadata.get(integrity.HEADER, "{}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        facts = json_of(path, header)
    except InputError as error:
        raise DamagedError(f"{path}: its header is damaged ({error})") from None
    if not isinstance(facts, dict) or facts.get("format") not in (FORMAT, UNSEALED):
        stated = facts.get("format") if isinstance(facts, dict) else None
        raise InputError(
            f"{path} contains no directions: its header states {stated or 'no format'}, expected {FORMAT}."
        )
    if facts["format"] == FORMAT or integrity.SEAL in facts:
        integrity.check_header(path, facts, {name: tensor.shape for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            integrity.check_tensor(path, facts, name, tensor)
    return tensors, facts
