"""Directions travel: to and from other libraries, GGUF files and the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from audiolens.checks import shown
from audiolens.directions import card, foreign
from audiolens.directions.stored import Stored
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.files import hub
from audiolens.model.provenance import Provenance

if TYPE_CHECKING:
    from audiolens.lens import AudioLens


@guarded
class Exchange(Stored):
    """The methods of `Directions` that read and write what other libraries and the hub hold."""

    def to_layers(self) -> dict[int, Tensor]:
        """Return the vector of each block, for libraries that steer other models.

        `steering_vectors.SteeringVector(d.to_layers())` takes them as they are, and `repeng.ControlVector` as numpy
        arrays. Both add them at the outputs of blocks, so the directions must have been read there.

        Raises:
            InputError: if the directions were read at another site than `resid_post`.
        """
        foreign.refuse_site(self.meta)
        return {layer: vector.clone() for layer, vector in zip(self.layers, self.vectors, strict=True)}

    @classmethod
    def from_layers(cls, vectors: Any, lens: AudioLens, *, label: str = "") -> Self:
        """Make directions of the model of a lens from vectors that another library computed.

        The lengths of the residual stream are unknown, so `unit="residual"` cannot be used in `steer`.

        Args:
            vectors: a vector for each block ("d_model"), as a mapping, a repeng `ControlVector` or a steering-vectors
                `SteeringVector`. They are added at the outputs of the blocks (`resid_post`).
            lens: the model for which the vectors were computed.
            label: the name of the direction.

        Raises:
            InputError, InputTypeError: if the vectors do not fit the model.
        """
        found = foreign.layer_vectors(vectors)
        return cls._imported(found, foreign.described(found, lens, label, "imported"))

    def to_gguf(self, path: str | os.PathLike[str]) -> Path:
        """Write a GGUF control vector, the format of repeng, with the provenance in an own field.

        Evidence, samples and calibration are not written. Needs `pip install 'audiolens[gguf]'`.

        Raises:
            InputError: if the directions were read at another site than `resid_post`, or the file cannot be written.
            MissingPackageError: if gguf is not installed.
        """
        return foreign.write_gguf(path, self.to_layers(), self.meta)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str], lens: AudioLens | None = None) -> Self:
        """Read a GGUF control vector. One that audiolens did not write needs the lens of its model.

        Raises:
            InputError: if the file is missing, is not a control vector, does not fit the model of `lens`, or states no
                model and `lens` is not given.
            DamagedError: (an InputError) if the file cannot be parsed.
            MissingPackageError: if gguf is not installed.
        """
        vectors, hint, meta = foreign.read_gguf(path)
        if meta is not None:
            if lens is not None:
                meta.refuse_other(lens)
            return cls._imported(vectors, meta)
        if lens is None:
            raise InputError(
                f"{path} was not written by audiolens, and states only {shown(hint)} as its model: give that model's "
                "lens (lens=)."
            )
        return cls._imported(vectors, foreign.described(vectors, lens, hint, "imported"))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str = "Add directions"
    ) -> str:
        """Upload the directions to the Hugging Face hub, with a card written from their provenance.

        If the model was opened from a folder, only the folder's name is uploaded, without its path.

        Args:
            repo_id: "user/name", which is created as a model repository if it does not exist.
            private: whether a new repository is private [default: the account's own default].
            token: an access token [default: that of `hf auth login`, or `HF_TOKEN`].
            message: the title of the commit.

        Returns:
            The address of the repository.

        Raises:
            InputError: if the name is not valid, the hub cannot be reached, or it refuses the upload.
        """
        finding = "none" if self.evidence is None else self.evidence.finding
        shared = card.without_path(self)
        text = card.written(shared.meta, self.layers, finding, repo_id)
        with tempfile.TemporaryDirectory() as work:
            files = {card.FILE: shared.save(Path(work) / card.FILE), "README.md": text.encode()}
            return hub.push(repo_id, files, kind="model", message=message, private=private, token=token)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        lens: AudioLens | None = None,
        *,
        filename: str = "directions.safetensors",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Download directions that `push_to_hub` uploaded, and load them as `load` does.

        Raises:
            InputError: if there is no such repository, revision or file, or in the cases of `load`.
        """
        return cls.load(hub.fetch(repo_id, filename, kind="model", revision=revision, token=token), lens)

    @classmethod
    def _imported(cls, vectors: Mapping[int, Tensor], meta: Provenance) -> Self:
        """Return directions whose residual norms are unknown."""
        unknown = torch.full((len(vectors),), torch.nan)
        return cls(vectors=torch.stack([*vectors.values()]), layers=tuple(vectors), residual_norms=unknown, meta=meta)
