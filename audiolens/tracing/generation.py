"""The result of `AudioLens.generate`: clips, their codes, and the activations recorded while they were generated."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor

from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import listed, one_or_listed, shown, whole_number, whole_numbers
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.files.atomic import as_path, new_folder, refuse_taken, refused
from audiolens.files.integrity import digest, sealed_json
from audiolens.sound import soundfiles


@guarded
@dataclass(frozen=True, eq=False)
class Generation:
    """Generated clips.

    `codes` are undelayed and begin with the audio prompt, if there was one. `audio` is `None` if the codec was skipped,
    `cache` is `None` if nothing was recorded, and `seeds` is `None` if transformers' own sampler drew the codes.
    `settings` are the arguments with which the clips were generated. `gates` states at which steps each gate was open,
    in the order in which the gates occur in the interventions; it is `None` without gates.
    """

    codes: Int[Tensor, "row codebook frame"]
    audio: Float[Tensor, "row channel sample"] | None
    sample_rate: int
    frame_rate: float
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...] | None
    cache: ActivationCache | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    gates: Bool[Tensor, "gate row step"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> "Iterator[Generation]":
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int | slice) -> "Generation":
        """Return one clip, or a slice of the clips, as a `Generation` with the recordings of these rows.

        Raises:
            InputTypeError, InputError: if `row` is neither a row number nor a slice, or if it selects no clip.
        """
        rows = range(len(self))[row] if isinstance(row, slice) else [self._row(row)]
        if not len(rows):
            raise InputError(f"{row} selects none of the {len(self)} clips: give a slice that contains at least one.")
        return replace(
            self,
            codes=self.codes[list(rows)],
            audio=None if self.audio is None else self.audio[list(rows)],
            prompts=tuple(self.prompts[one] for one in rows),
            seeds=None if self.seeds is None else tuple(self.seeds[one] for one in rows),
            cache=None if self.cache is None else self.cache.rows(rows),
            gates=None if self.gates is None else self.gates[:, list(rows)],
        )

    def _row(self, row: Any) -> int:
        try:
            number = whole_number(row)
        except TypeError:
            raise InputTypeError(f"row {shown(row)}: expected a row number, or a slice.") from None
        if not -len(self) <= number < len(self):
            raise InputError(f"row {number}: there are rows 0 to {len(self) - 1}.")
        return number % len(self)

    @property
    def seconds(self) -> float:
        return self.codes.shape[-1] / self.frame_rate

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write one WAV file per row, `codes.safetensors` and `generation.json` into a new folder.

        A row is written as 16-bit samples, or as 32-bit floats if it exceeds full scale. `generation.json` contains the
        hash of every other file.

        Raises:
            InputError: if the folder is not empty or cannot be created or written to, or if the clips have no audio or
                contain NaN or infinite samples.
        """
        folder = as_path(folder)
        if self.audio is None:
            raise InputError(
                "these clips were made with decode=False: use lens.decode_codes(out.codes) for their sound."
            )
        refuse_taken(folder)
        clips = self.audio.detach().float().cpu().numpy()
        broken = [row for row, clip in enumerate(clips) if not np.isfinite(clip).all()]
        if broken:
            raise InputError(f"the audio of rows {broken} has NaN or infinite samples: save only the other rows.")
        with refused(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(folder) as work:
                self._write(work, clips)
        return folder

    def listen(self, row: int | Sequence[int] | None = None, labels: Sequence[str] | None = None) -> Any:
        """Return audio players for a notebook, with the sound embedded.

        Args:
            row: one row, whose player has no label, or several rows, each under its label; by default all rows.
            labels: the text above each player; by default the prompts.

        The sound is compressed (Ogg Vorbis) to keep notebooks small; use `audio` or `save` for the exact samples.
        """
        from IPython.display import HTML, Audio  # pyright: ignore[reportMissingImports]

        if self.audio is None:
            raise InputError(
                "these clips were made with decode=False: use lens.decode_codes(out.codes) for their sound."
            )
        given = one_or_listed("row", row)
        single = row is not None and not isinstance(given, list)
        try:
            rows = list(range(len(self))) if row is None else whole_numbers([given] if single else given)
        except TypeError:
            raise InputTypeError(
                f"row={shown(row)}: expected a row number, a list of row numbers, or None for all."
            ) from None
        for index in rows:
            if not -len(self) <= index < len(self):
                raise InputError(f"row {index}: there are rows 0 to {len(self) - 1}.")
        texts = [self.prompts[index] or "(no prompt)" for index in rows] if labels is None else listed("labels", labels)
        if len(texts) != len(rows):
            raise InputError(f"{len(texts)} labels for {len(rows)} clips: give one label per clip.")
        players = []
        for index in rows:
            content, mime = soundfiles.compressed(self.audio[index].detach().float().cpu().numpy(), self.sample_rate)
            player = Audio(content)
            player.mimetype = mime
            players.append(player)
        if single and labels is None:
            return players[0]
        return HTML("".join(map(_labelled, texts, players)))

    def _write(self, folder: Path, clips: Float[np.ndarray, "row channel sample"]) -> None:
        """Write all files into an empty folder."""
        names = [self._name(row) for row in range(len(self))]
        for row, name in enumerate(names):
            soundfiles.write(folder / name, clips[row], self.sample_rate)
        save_file({"codes": self.codes.detach().cpu().contiguous()}, folder / "codes.safetensors")
        rows = [
            {"file": name, "prompt": prompt, "seed": None if self.seeds is None else self.seeds[row]}
            for row, (name, prompt) in enumerate(zip(names, self.prompts, strict=True))
        ]
        facts = {
            "sample_rate": self.sample_rate,
            "frame_rate": self.frame_rate,
            "settings": dict(self.settings),
            "rows": rows,
            "files": {name: digest((folder / name).read_bytes()) for name in (*names, "codes.safetensors")},
        }
        (folder / "generation.json").write_bytes(sealed_json(facts, indent=2))

    def _name(self, row: int) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", (self.prompts[row] or "unconditional").lower()).strip("-")[:40]
        seed = "" if self.seeds is None else f"-seed{self.seeds[row]}"
        return f"{row:03d}-{words or 'clip'}{seed}.wav"

    def __repr__(self) -> str:
        recorded = "" if self.cache is None else f", {len(self.cache)} sites recorded"
        return f"Generation({len(self)} clips of {self.seconds:g} s at {self.sample_rate} Hz{recorded})"


def _labelled(label: str, player: Any) -> str:
    # Notebooks render text between two $ as mathematics, except within these classes.
    return (
        '<div class="tex2jax_ignore mathjax_ignore" style="display: inline-block; margin: 0 1em 0.6em 0">'
        f"{_escape(label)}<br>{player._repr_html_()}</div>"
    )


def _escape(text: str) -> str:
    from html import escape

    return escape(text)
