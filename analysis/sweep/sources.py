"""Turn the names of concepts and files, and the settings of a sweep, into the arguments of `sweep.run`.

The command line and `load_arguments` use this module, so that a file of settings gives the same sweep in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.sweep import config as configs
from audiolens import prompts
from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.errors import InputError, nearest
from audiolens.files.atomic import as_path
from audiolens.prompts import PromptSet
from audiolens.prompts.files import SUFFIXES

if TYPE_CHECKING:
    from audiolens import AudioLens, Directions


@guarded
def load_arguments(lens: AudioLens, file: str | os.PathLike[str], **changes: Any) -> dict[str, Any]:
    """Return the arguments of `sweep.run` that repeat the sweep of a `sweep.toml`, as `audiolens sweep` writes it.

    The directions are read again, as the command does. `sweep.run(lens, **arguments, out=folder)` then has the same
    plan, if `lens` is the model that the file names; with another model, it repeats the sweep on that one.

    Args:
        file: the path of the file. The files that it names are looked up as their names say, from the current folder.
        changes: settings to change, by the names in the file, such as `seeds=4`.

    Raises:
        InputError: if the file cannot be read, or a setting or a file that it names is wrong.
    """
    place = as_path(file)
    stated = configs.read(place)
    if not stated.concepts:
        raise InputError(f"{place}: concepts is missing: expected a list of concepts or files.")
    settings = configs.Settings(**{**stated.settings, **configs.known(changes)})
    given, others = sources_of(stated.concepts), sources_of(stated.others or ())
    found = arguments(lens, settings, given, others, progress=False)
    revision = stated.revision if stated.model == lens.name else None
    return {**found, "config": configs.text_of(replace(stated, model=lens.name, revision=revision), settings)}


def sources_of(
    names: Sequence[str], read: Callable[[str], PromptSet] = prompts.from_file
) -> list[Directions | PromptSet | str]:
    """Load directions and prompts from files, and check concept names, before a model is opened."""
    found: list[Directions | PromptSet | str] = []
    known = prompts.concepts(None)
    for name in names:
        if Path(name).suffix == ".safetensors":
            from audiolens import Directions

            found.append(Directions.load(name))
        elif Path(name).suffix.lower() in SUFFIXES:
            found.append(read(name))
        elif name in known:
            found.append(name)
        else:
            raise InputError(
                f"unknown concept {shown(name)}.{nearest(name, known)} Known: {', '.join(known)}; or a "
                ".safetensors file of directions, or a .csv, .json or .toml file of prompts."
            )
    return found


def arguments(
    lens: AudioLens,
    settings: configs.Settings,
    given: Sequence[Directions | PromptSet | str],
    others: Sequence[Directions | PromptSet | str] = (),
    *,
    progress: bool,
) -> dict[str, Any]:
    """Return the arguments of `sweep.run`, with directions that are read now. The same settings give the same ones."""
    sets = _sets(given, lens)
    neutral = _neutral(sets, settings, lens)
    keep_samples = settings.n_shuffled > 0
    asked = {
        name: getattr(settings, name)
        for name in (
            "strengths", "strategies", "layers", "band", "branches", "n_random", "n_shuffled", "control_strengths",
            "opposed", "heads", "seeds", "seconds", "guidance_scale", "batch_size", "n_jobs", "engine", "sound",
        )
    }  # fmt: skip
    return {
        "directions": _directions(given, sets, lens, settings, keep_samples=keep_samples, progress=progress),
        "others": _directions(others, _sets(others, lens), lens, settings, keep_samples=False, progress=progress)
        or None,
        "sets": sets,
        "prompts": neutral,
        **asked,
    }


def _sets(given: Sequence[Directions | PromptSet | str], lens: AudioLens) -> dict[str, PromptSet]:
    """Return the prompt sets by concept. Concepts without prompts are left out."""
    from audiolens import Directions
    from audiolens.prompts.files import readable

    sets: dict[str, PromptSet] = {}
    for one in given:
        name = one if isinstance(one, str) else one.meta.label if isinstance(one, Directions) else one.concept
        if name in sets:
            raise InputError(f"{shown(name)} was given twice: give each concept once, with its own label.")
        if not isinstance(one, Directions | str):
            sets[name] = one.completed(prompts.load("tempo", lens=lens))
        elif isinstance(one, str) or readable(name, lens):
            sets[name] = prompts.load(name, lens=lens)
    return sets


def _directions(
    given: Sequence[Directions | PromptSet | str],
    sets: dict[str, PromptSet],
    lens: AudioLens,
    settings: configs.Settings,
    *,
    keep_samples: bool,
    progress: bool,
) -> list[Directions]:
    """Return the directions from files, and estimate the others."""
    from audiolens import Directions, difference_in_means

    found = []
    for one in given:
        if isinstance(one, Directions):
            one.meta.refuse_other(lens)
            found.append(one)
            continue
        own = sets[one if isinstance(one, str) else one.concept]
        found.append(
            difference_in_means(
                lens,
                own.positive[: settings.poles],
                own.negative[: settings.poles],
                "resid_post" if settings.heads is None else "attn.z",
                guidance_scale=settings.guidance_scale,
                codes=settings.read_on,
                neutral=own.development if settings.read_on == "shared" else None,
                label=own.concept,
                keep_samples=keep_samples,
                progress=progress,
            )
        )
    return found


def _neutral(sets: dict[str, PromptSet], settings: configs.Settings, lens: AudioLens) -> list[str]:
    """Return the neutral prompts of the first concept that has prompts, or bundled ones if no concept has any."""
    split, count = settings.split, settings.prompts
    own = next((getattr(one, split) for one in sets.values()), None)
    if own is None:
        own = getattr(prompts.load("tempo", lens=lens), split)
    if not 1 <= count <= len(own):
        raise InputError(f"prompts={count}: expected at least 1, and there are {len(own)} neutral {split} prompts.")
    return list(own[:count])
