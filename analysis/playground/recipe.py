"""How to make a clip of the playground again: the command line, the Python code, and a ZIP file with both."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolens.directions.directions import Directions


@dataclass(frozen=True, eq=False)
class Part:
    """A direction as it was added. `place` is empty if `strength` is text, because the calibration states the place."""

    name: str
    directions: Directions
    strength: float | str
    place: Mapping[str, Any]
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Recipe:
    """All arguments of a clip. `model` has the name of the model, and the arguments with which it was opened."""

    model: Mapping[str, str | None]
    prompt: str
    seed: int
    seconds: float
    guidance: float
    engine: str
    parts: Sequence[Part]
    folder: str = "again"

    @property
    def files(self) -> list[str]:
        """The file name of each part, without any character that a shell or a file system could read otherwise."""
        names: list[str] = []
        for part in self.parts:
            slug = re.sub(r"[^a-z0-9]+", "-", part.name.lower()).strip("-")[:40] or "direction"
            numbered = itertools.chain([slug], (f"{slug}-{number}" for number in itertools.count(2)))
            names.append(next(name for name in numbered if name not in names))
        return [f"{name}.safetensors" for name in names]

    @property
    def command(self) -> str:
        """The command line that makes the clip again, in a folder with the files of the directions."""
        words = ["audiolens", "generate", "--model", str(self.model["name"])]
        for option, value in self.model.items():
            if option != "name" and value is not None:
                words += [f"--{option.replace('_', '-')}", value]
        for part, file in zip(self.parts, self.files, strict=True):
            strength = part.strength if isinstance(part.strength, str) else f"{part.strength!r}"
            words += ["--steer", f"{file}:{strength}{_at(part.place)}"]
        if any(part.curve for part in self.parts):
            for part in self.parts:
                points = part.curve or ((0.0, 1.0),)
                words += ["--curve", ",".join(f"{seconds!r}:{factor!r}" for seconds, factor in points)]
        words += ["--seconds", repr(self.seconds), "--seed", str(self.seed), "--guidance", repr(self.guidance)]
        # What follows "--" is never read as an option, even if the prompt begins with a dash.
        return shlex.join([*words, "--engine", self.engine, "--out", self.folder, "--", self.prompt])

    @property
    def python(self) -> str:
        """Python code that makes the clip again, in a folder with the files of the directions."""
        opened = ", ".join(f"{name}={value!r}" for name, value in self.model.items() if name != "name" and value)
        lines = ["import audiolens as al", "", f"lens = al.AudioLens.from_pretrained({self.model['name']!r}, {opened})"]
        lines.append("steps = []")
        for part, file in zip(self.parts, self.files, strict=True):
            given = [f"{name}={value!r}" for name, value in part.place.items()] + [f"strength={part.strength!r}"]
            if part.curve:
                given.append(f"schedule=al.schedules.piecewise({list(part.curve)!r})")
            lines.append(f"steps += al.steer(al.Directions.load({file!r}, lens), {', '.join(given)})")
        lines += [
            "clip = lens.generate(",
            f"    [{self.prompt!r}], seconds={self.seconds!r}, seeds=[{self.seed}], guidance_scale={self.guidance!r},",
            f"    interventions=steps, engine={self.engine!r},",
            ")",
            f"clip.save({self.folder!r})",
        ]
        return "\n".join(lines) + "\n"

    def zipped(self, wav: bytes) -> bytes:
        """Return a ZIP file with the sound, the directions, the code and the command line."""
        from tempfile import TemporaryDirectory

        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, TemporaryDirectory() as folder:
            archive.writestr("clip.wav", wav)
            archive.writestr("again.py", self.python)
            archive.writestr("again.txt", f"{self.command}\n")
            for part, file in zip(self.parts, self.files, strict=True):
                archive.writestr(file, part.directions.save(Path(folder) / file).read_bytes())
        return made.getvalue()


def _at(place: Mapping[str, Any]) -> str:
    if not place:
        return ""
    layer = place.get("layer")
    return f"@{place['strategy']}" if layer is None else f"@{layer}/{place['strategy']}"
