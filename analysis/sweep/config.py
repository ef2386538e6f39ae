"""The settings of a sweep of concepts as a TOML file, which `audiolens sweep` writes and `--config` reads.

`of_settings` turns settings into the arguments of `sweep.run`. This module imports no torch, so that the command line
can refuse wrong settings at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from analysis.store import settings_file
from audiolens.checks import checked_amount, checked_count, checked_flags
from audiolens.door import checked_kinds
from audiolens.files.atomic import as_path

FILE = "sweep.toml"
_NOTES = (
    "audiolens sweep --config sweep.toml -o FOLDER takes these settings again. Files of prompts and directions are",
    "named as they were given, and must still be there. The device and dtype are those of the command.",
)
_SEVERAL = ("strengths", "strategies", "layers", "branches", "control_strengths")
_COUNTS = {"seeds": 1, "n_random": 0, "n_shuffled": 0, "poles": 1, "batch_size": 1}


@dataclass(frozen=True)
class Settings:
    """The settings of a sweep of concepts. Each default is that of the option of `audiolens sweep`.

    Attributes:
        strengths, strategies, layers, band, branches, n_random, n_shuffled, control_strengths, opposed, heads, seconds,
            guidance_scale, batch_size, n_jobs, engine, sound: as in `sweep.run`. A single value stands for a list.
        split, prompts: the neutral prompts, "development" or "test", and how many of them.
        seeds: number of seeds per prompt.
        poles: number of prompts per pole from which directions are read.
        codes: the clips on which the poles are read, "shared" or "own" (default: shared; own for heads).
        measured: the measure of the effects that are printed (default: that of the concept).
    """

    strengths: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)
    strategies: tuple[str, ...] = ("one-to-one",)
    heads: int | None = None
    layers: tuple[int, ...] | None = None
    band: tuple[int, int] | None = None
    branches: tuple[str, ...] = ("both",)
    split: Literal["development", "test"] = "development"
    prompts: int = 8
    seeds: int = 2
    n_random: int = 5
    n_shuffled: int = 0
    control_strengths: tuple[float, ...] | None = None
    opposed: bool = False
    seconds: float = 5.0
    guidance_scale: float = 3.0
    batch_size: int = 64
    n_jobs: int | None = None
    engine: Literal["auto", "exact", "fast"] = "auto"
    sound: Literal["wav", "flac"] | None = None
    poles: int = 48
    codes: Literal["shared", "own"] | None = None
    measured: str | None = None

    def __post_init__(self) -> None:
        checked_flags(opposed=self.opposed)
        for name in _SEVERAL:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        checked_kinds(self)
        for name, least in _COUNTS.items():
            object.__setattr__(self, name, checked_count(name, getattr(self, name), least))
        # A whole number in a file must give the same plan as the same number with a point.
        for name in ("seconds", "guidance_scale"):
            object.__setattr__(self, name, checked_amount(name, getattr(self, name)))
        for name in ("strengths", "control_strengths"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(checked_amount(name, one) for one in value))
        for one in fields(self):
            object.__setattr__(self, one.name, settings_file.python_numbers(getattr(self, one.name)))

    @property
    def read_on(self) -> Literal["shared", "own"]:
        """The clips on which the poles are read, "shared" or "own"."""
        return self.codes or ("shared" if self.heads is None else "own")


_FORM = settings_file.Form(("model", "revision"), ("concepts", "others"), lambda: Settings, "seeds=4")


@dataclass(frozen=True)
class Config:
    """What a file states: entries that arguments of the command also state (`None` if it does not), and settings."""

    concepts: tuple[str, ...] | None = None
    model: str | None = None
    revision: str | None = None
    others: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def text_of(config: Config, settings: Settings) -> str:
    """Return the contents of the file that states these settings, and the other entries of `config`."""
    top = {one.name: getattr(config, one.name) for one in fields(Config) if one.name != "settings"}
    return settings_file.text_of(_NOTES, top, settings)


def read(path: str | Path) -> Config:
    """Read such a file. Fields of `Settings` that it lacks have their defaults.

    Raises:
        InputError: as `settings_file.Form.read`.
    """
    top, settings = _FORM.read(as_path(path))
    return Config(**top, settings=settings)


def assigned(texts: Iterable[str]) -> dict[str, Any]:
    """Return the settings in texts such as "seeds=4" (`settings_file.Form.assigned`)."""
    return _FORM.assigned(texts)


def known(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return changes of settings, after checking that their names are known."""
    settings_file.refuse_unknown("sweep", changes, _FORM.names())
    return changes
