"""Check a command's arguments before torch, transformers and nnsight are imported, which takes seconds.

The functions that the arguments are passed to check them again, and also check what depends on the model. The names
listed here repeat those in modules that import torch; `tests/cli/test_cli_early.py` compares the two.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.common import is_prompt_file
from audiolens.checks import MOST_INDICES, MOST_JOBS, bounded, checked_amount, checked_count, shown
from audiolens.errors import AudioLensWarning, InputError, nearest
from audiolens.model.known_models import folder_of

if TYPE_CHECKING:
    from analysis.distributed.settings import Ray

STRATEGIES = ("one-to-one", "one-to-all", "one-to-band", "all-to-all")
PLACED = ("one-to-one", "one-to-all", "all-to-all")
BRANCHES = ("cond", "null", "both")
CODES = ("own", "shared")
POSITIONS = ("mean", "first", "last", "eos")
PROBES = ("logistic", "ridge", "mlp")
EVIDENCE = (
    "alignment", "middle", "equal_damage", "constancy", "norm", "probe", "patching", "attribution",
)  # fmt: skip
SOUND_FORMATS = ("wav", "flac")
REDUCED = ("mean", "first", "last", "max", "eos")


def check_model(name: str) -> None:
    """Raise an error if no model on this machine has this name, and it is not a hub name either."""
    folder_of(name)


def check_choice(name: str, value: str | None, known: Iterable[str]) -> None:
    """Raise an error unless a value is `None` or one of the known ones."""
    known = tuple(known)
    if value is not None and value not in known:
        listed = ", ".join(map(repr, known))
        raise InputError(f"{name}={shown(value)}: expected {listed}.{nearest(value, known)}")


def check_concept(concept: str, vocabulary: str | None = None) -> None:
    """Raise an error if a concept is neither bundled nor a prompt file that can be read."""
    from audiolens import prompts

    if is_prompt_file(concept):
        # The warnings about its prompts are printed when the command reads it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioLensWarning)
            prompts.from_file(concept)
    else:
        prompts.load(concept, vocabulary)


def check_measures(option: str, *names: str | None) -> None:
    """Raise an error if a measure is unknown."""
    from audiolens.measure import MEASURES

    for name in names:
        if name is not None and name not in MEASURES:
            raise InputError(f"{option} {shown(name)}.{nearest(name, MEASURES)} Choose from: {', '.join(MEASURES)}.")


def check_confirm(confirm: int, by: str, measure: str | None, concept: str) -> None:
    """Raise an error if a place cannot be chosen from clips as asked."""
    from analysis.sweep.concept_measures import MEASURED

    checked_count("confirm", confirm, 0)
    check_measures("--measure", measure)
    if confirm and by != EVIDENCE[0]:
        raise InputError(
            f"--by {by} and --confirm {confirm} were both given, but clips decide with --confirm: give one."
        )
    if measure is not None and not confirm:
        raise InputError(f"--measure {measure}: only --confirm measures clips, so give it as well.")
    if confirm and measure is None and concept not in MEASURED and not is_prompt_file(concept):
        raise InputError(f"--confirm {confirm}: {concept} has no measure of its own, so give one with --measure.")


def check_length(seconds: float | None) -> None:
    """Raise an error if a length in seconds is not a positive number."""
    if seconds is not None:
        checked_amount("seconds", seconds, above=0)


def check_windows(window: float | None, overlap: float | None) -> None:
    """Raise an error if the length of windows or of their overlap is not a positive number, or only one is left."""
    if overlap is not None and window is None:
        raise InputError(f"overlap={overlap} needs window=, the length of the windows that overlap.")
    for name, seconds in (("window", window), ("overlap", overlap)):
        if seconds is not None:
            checked_amount(name, seconds, above=0)
    if window is not None and overlap is not None and overlap >= window:
        raise InputError(f"overlap={overlap}: expected less than window={window}.")


def check_guidance(scale: float) -> None:
    """Raise an error unless a guidance scale is at least 1."""
    if not checked_amount("guidance_scale", scale) >= 1:
        raise InputError(f"guidance_scale={scale}: expected at least 1, which means no guidance.")


def numbers(text: str | None, option: str) -> list[int] | None:
    """Return the numbers in a list of numbers and ranges, such as "0,3" or "2-5"; `None` stays `None`."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not match:
            raise InputError(f"{option}={text}: expected numbers such as 0,3 or a range such as 2-5.")
        first, last = int(match[1]), int(match[2] or match[1])
        found += bounded(option, range(first, last + 1), MOST_INDICES)
    if not found:
        raise InputError(f"{option}={text}: expected numbers such as 0,3 or a range such as 2-5.")
    return found


def check_jobs(jobs: int | None) -> None:
    """Raise an error if a number of worker processes is negative or too large."""
    if jobs is not None:
        checked_count("n_jobs", jobs, 0, MOST_JOBS)


def checked_ray(address: str | None, workers: int | None, gpus: float | None, jobs: int | None) -> Ray | None:
    """Return the Ray cluster that the options name, if any, and raise an error if it does not answer."""
    if address is None:
        for name, value in (("--workers", workers), ("--gpus-per-worker", gpus)):
            if value is not None:
                raise InputError(f"{name} {value}: only a Ray cluster has workers; add --ray auto, or use --jobs.")
        return None
    if jobs is not None:
        raise InputError("--jobs and --ray were both given: on a Ray cluster, --workers sets the number of processes.")
    from analysis.distributed.address import found
    from analysis.distributed.settings import Ray

    ray = Ray(address, workers, gpus)
    found(ray)
    return ray


def check_folder(out: Path | None) -> None:
    """Raise an error if no new folder can be created at a path."""
    from analysis.store import folder

    if out is not None:
        folder.check(out, overwrite=None)
