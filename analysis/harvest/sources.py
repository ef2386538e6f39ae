"""Read the prompts or clips to harvest from a file or folder.

This module does not import torch until codes are read, so that the command line can refuse a wrong file at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolens.errors import DamagedError, InputError, PromptError
from audiolens.files import integrity
from audiolens.files.bounded import read_text
from audiolens.files.json_shapes import refuse_other
from audiolens.prompts import PromptSet

FACTS, CODES = "generation.json", "codes.safetensors"
_SHAPE = {"rows": [{"prompt": (str, None), "seed": (int, None)}], "files": {CODES: str}}
MOST_BYTES = 2**30
"""The largest file of prompts."""


@dataclass(frozen=True)
class Clips:
    """The clips in a folder that `Generation.save` or `audiolens generate` wrote."""

    folder: Path
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...] | None
    digest: str

    @classmethod
    def of(cls, folder: Path) -> Clips:
        """Read which clips a folder contains.

        Raises:
            InputError: if the folder contains no clips.
            DamagedError: if its description is damaged.
        """
        path = folder / FACTS
        try:
            facts = integrity.read_json(path)
        except FileNotFoundError:
            raise InputError(
                f"{folder} contains no {FACTS}: give a folder that `audiolens generate` wrote, or a file of prompts."
            ) from None
        try:
            refuse_other(path, facts, _SHAPE)
        except InputError as error:
            raise DamagedError(str(error)) from None
        rows = facts["rows"]
        seeds = tuple(row["seed"] for row in rows)
        known = None if not rows or None in seeds else seeds
        return cls(folder, tuple(row["prompt"] for row in rows), known, facts["files"][CODES])

    def codes(self) -> Any:
        """Return the codes of the clips, "row codebook frame".

        Raises:
            DamagedError: if the file of the codes is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.folder / CODES
        try:
            return load(integrity.check_bytes(path, self.digest))["codes"]
        except (SafetensorError, KeyError) as error:
            raise DamagedError(f"{path} is damaged: {error}.") from None


def prompts_in(path: Path) -> list[str]:
    """Return the prompts in a text file, one per line. Blank lines are left out.

    Raises:
        InputError: if the file cannot be read.
        PromptError: if the file contains no prompt.
    """
    found = [" ".join(line.split()) for line in read_text(path, MOST_BYTES).split("\n") if line.strip()]
    if not found:
        raise PromptError(f"{path} contains no prompt: expected one per line.")
    return found


def prompts_of(sets: PromptSet) -> list[str]:
    """Return every prompt of a set: those of the positive pole, those of the negative pole, and the neutral ones."""
    return [*sets.positive, *sets.negative, *sets.development, *sets.test]
