"""The file of directions: one safetensors file, with the provenance in its header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from audiolens.directions.calibration import SHAPE as CALIBRATION
from audiolens.directions.calibration import Calibration
from audiolens.directions.evidence import Evidence
from audiolens.directions.heads import Heads
from audiolens.directions.leace import Eraser
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.files.json_shapes import refuse_other
from audiolens.model import provenance
from audiolens.model.provenance import SHAPE, Provenance

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

_FACTS = {"meta": SHAPE, "layers": [int], "norms": [float], "calibration?": (CALIBRATION, None)}
"""The keys and types that the JSON header of a file must have."""
_ERASER = ("removed", "reader", "mean")


@guarded
class Stored:
    """The methods of `Directions` that write and read its file."""

    if TYPE_CHECKING:
        vectors: Tensor
        layers: tuple[int, ...]
        residual_norms: Tensor
        meta: Provenance
        evidence: Evidence | None
        calibration: Calibration | None
        eraser: Eraser | None
        heads: Heads | None

        def __init__(
            self,
            *,
            vectors: Tensor,
            layers: tuple[int, ...],
            residual_norms: Tensor,
            meta: Provenance,
            evidence: Evidence | None = None,
            calibration: Calibration | None = None,
            eraser: Eraser | None = None,
            heads: Heads | None = None,
        ) -> None: ...

        @property
        def norms(self) -> Tensor: ...

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the directions to one safetensors file with the provenance in its header.

        Any existing file is replaced. Samples are not written.

        Raises:
            InputError: if the file cannot be written.
        """
        facts: dict[str, Any] = {
            "meta": self.meta.as_dict(),
            "layers": list(self.layers),
            "norms": self.norms.tolist(),
            "residual_norms": [None if norm != norm else norm for norm in self.residual_norms.tolist()],
            **({} if self.calibration is None else {"calibration": self.calibration.as_dict()}),
        }
        tensors = {"vectors": self.vectors, "residual_norms": self.residual_norms}
        if self.evidence is not None:
            kept = {name: value for name, value in vars(self.evidence).items() if value is not None}
            tensors.update({f"evidence/{name}": value for name, value in kept.items()})
        if self.eraser is not None:
            tensors.update({f"eraser/{name}": getattr(self.eraser, name) for name in _ERASER})
        if self.heads is not None:
            tensors.update({f"heads/{name}": value for name, value in self.heads.tensors().items()})
        return provenance.write(path, tensors, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: AudioLens | None = None) -> Self:
        """Read a file that `save` wrote. If `lens` is given, the directions must come from exactly that model.

        Raises:
            InputError: if the file is missing, truncated or corrupt, if it does not contain directions, or if they come
                from another model.
            DamagedError: (an InputError) if the vectors or the header have changed since they were written.
        """
        tensors, facts = provenance.read(path)
        try:
            refuse_other(path, facts, _FACTS)
            meta = Provenance.from_dict(facts["meta"])
            layers = tuple(facts["layers"])
            maps = {name: tensors.pop(f"eraser/{name}") for name in _ERASER if f"eraser/{name}" in tensors}
            heads = {key[6:]: tensors.pop(key) for key in [*tensors] if key.startswith("heads/")}
            kept = {key.removeprefix("evidence/"): value for key, value in tensors.items() if "/" in key}
            directions = cls(
                vectors=tensors["vectors"],
                layers=layers,
                residual_norms=tensors["residual_norms"],
                meta=meta,
                evidence=Evidence.of_file(kept, len(layers)) if kept else None,
                calibration=Calibration.from_dict(facts["calibration"]) if facts.get("calibration") else None,
                eraser=Eraser(**maps, layers=layers) if maps else None,
                heads=Heads.of_file(heads, layers) if heads else None,
            )
            stated = torch.tensor(facts["norms"], dtype=torch.float32, device="cpu")
            agree = torch.allclose(directions.norms, stated, rtol=1e-4)
        except (KeyError, TypeError, AttributeError, RuntimeError, InputError) as error:
            raise InputError(f"{path}: its header and its vectors do not match ({error}).") from None
        if not agree:
            raise InputError(f"{path} is damaged: its vectors do not have the norms stated in its header.")
        if lens is not None:
            meta.refuse_other(lens)
        return directions
