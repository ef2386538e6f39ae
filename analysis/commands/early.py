"""Check a command's arguments before torch, transformers and nnsight are imported, which takes seconds.

The functions that the arguments are passed to check them again, and also check what depends on the model. The names
listed here repeat those in modules that import torch; `tests/cli/test_cli_early.py` compares the two.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.common import ModelOptions, is_prompt_file
from audiolens.checks import MOST_INDICES, MOST_JOBS, bounded, checked_amount, checked_count, shown
from audiolens.errors import AudioLensWarning, InputError, nearest
from audiolens.model.known_models import folder_of

if TYPE_CHECKING:
    from analysis.distributed.settings import Ray

STRATEGIES = ("one-to-one", "one-to-all", "one-to-band", "all-to-all", "heads")
PLACED = ("one-to-one", "one-to-all", "all-to-all")
BRANCHES = ("cond", "null", "both")
CODES = ("own", "shared")
METHODS = (
    "difference_in_means", "mean_centred", "principal_component", "probe", "ridge", "leace", "rfm", "by_measure",
    "gradient",
)  # fmt: skip
POSITIONS = ("mean", "first", "last", "eos")
PROBED_POSITIONS = ("mean", "first", "last", "max", "eos")
PROBES = ("logistic", "ridge", "mlp")
EVIDENCE = (
    "alignment", "middle", "equal_damage", "constancy", "norm", "probe", "patching", "attribution",
)  # fmt: skip
SOUND_FORMATS = ("wav", "flac")
FIGURES = ("svg", "pdf", "png")
REDUCED = ("mean", "first", "last", "max", "eos")
REPETITIONS = 100
"""Number of values of a study's seed."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
_RANGE = re.compile(r"^(?P<first>[^:]+):(?P<last>[^:]+):(?P<count>\d{1,6})$")
_MOST_STRENGTHS = 1000


def check_heads(strategies: Iterable[str | None], heads: int | None) -> None:
    """Raise an error unless the strategy "heads" and the number of heads are given together, and alone."""
    given = [strategy for strategy in strategies if strategy is not None]
    if heads is None and "heads" not in given:
        return
    if heads is None:
        raise InputError("--strategy heads needs --heads, the number of heads to steer.")
    checked_count("--heads", heads, least=1)
    if given != ["heads"]:
        raise InputError(f"--heads {heads} needs --strategy heads, and no other: their directions are read elsewhere.")


def check_layers(strategies: Iterable[str], layers: Iterable[int] | None) -> None:
    """Raise an error if layers are given for strategies that use every block's own directions."""
    given = list(strategies)
    if layers is not None and set(given) <= {"all-to-all", "heads"}:
        raise InputError(
            f"--layers {','.join(map(str, layers))}: --strategy {','.join(given)} uses every block's own directions: "
            "leave it out."
        )


def check_model(options: ModelOptions) -> None:
    """Raise an error if a model cannot be opened in this way: an unknown name, or a device that is not there.

    Only the check for a GPU imports torch, and it is the last one.
    """
    folder = folder_of(options.model)
    if folder is not None and options.revision is not None:
        raise InputError(
            f"--revision {shown(options.revision)}: only models on the hub have revisions, and {options.model} is on "
            "this machine: leave it out."
        )
    device = options.device
    if not _DEVICE.fullmatch(device):
        raise InputError(f"--device {shown(device)}: expected auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    if options.device_map is not None:
        if device != "auto":
            raise InputError("--device and --device-map exclude each other: --device-map places the model by itself.")
        if find_spec("accelerate") is None:
            raise InputError("--device-map needs accelerate, which is not installed: pip install accelerate.")
    if options.attention == "flash_attention_2":
        _check_flash(options)
    if device in ("auto", "cpu"):
        return
    if (device == "mps") != (sys.platform == "darwin"):
        raise InputError(f"--device {device}: this machine has no such device. Use --device auto or cpu.")
    from audiolens.model.devices import chosen_device, chosen_dtype

    chosen_dtype(options.dtype, chosen_device(device))


def _check_flash(options: ModelOptions) -> None:
    if find_spec("flash_attn") is None:
        raise InputError(
            "--attention flash_attention_2 needs the package flash-attn, which is not installed: use sdpa, or pip "
            "install flash-attn."
        )
    if options.device in ("cpu", "mps"):
        raise InputError(f"--attention flash_attention_2 runs only on a CUDA GPU, not on {options.device}: use sdpa.")
    if options.dtype == "float32":
        raise InputError("--attention flash_attention_2 computes only in bfloat16 or float16: use sdpa for float32.")


def check_batch_size(text: str) -> int | None:
    """Return the number of rows that `--batch-size` gives; `None` for auto."""
    if text == "auto":
        return None
    if not re.fullmatch(r"\d{1,9}", text):
        raise InputError(f"--batch-size {shown(text)}: expected auto, or a number of clips.")
    return checked_count("--batch-size", int(text))


def check_choice(name: str, value: str | None, known: Iterable[str]) -> None:
    """Raise an error unless a value is `None` or one of the known ones."""
    known = tuple(known)
    if value is not None and value not in known:
        listed = ", ".join(map(repr, known))
        raise InputError(f"{name}={shown(value)}: expected {listed}.{nearest(value, known)}")


def checked_figures(value: str) -> tuple[str, ...]:
    """Return the kinds of files in `--figures`, such as pdf,png."""
    kinds = tuple(kind.strip() for kind in value.split(","))
    for kind in kinds:
        check_choice("--figures", kind, FIGURES)
    return kinds


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


def check_matched(concept: str) -> None:
    """Raise an error if a concept is unknown, or if its prompt file has poles with different numbers of prompts."""
    check_concept(concept)
    if is_prompt_file(concept):
        from audiolens import prompts

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioLensWarning)
            if not prompts.from_file(concept).matched:
                raise InputError(
                    f"{concept}: its poles have different numbers of prompts, so none are matched: give the same "
                    "number for each pole."
                )


def check_prompts(count: int, concept: str | None, split: str = "development") -> None:
    """Raise an error if a number of neutral prompts is less than 1, or more than a concept's prompt set has.

    A prompt file without neutral prompts is completed with bundled ones, at most as many as those of tempo.
    """
    from audiolens import prompts

    sets = prompts.load("tempo")
    if concept is not None and is_prompt_file(concept):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioLensWarning)
            own = prompts.from_file(concept)
        sets = own if getattr(own, split) else sets
    elif concept in prompts.concepts(None):
        sets = prompts.load(concept)
    there = len(getattr(sets, split))
    if not 1 <= count <= there:
        raise InputError(f"--prompts={count}: expected at least 1, and there are {there} neutral {split} prompts.")


def check_measures(option: str, *names: str | None) -> None:
    """Raise an error if a measure is unknown."""
    from audiolens.measure.table import known_measure

    for name in names:
        if name is not None:
            known_measure(option, name)


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


def check_method(method: str, measure: str | None, codes: str | None, concept: str) -> None:
    """Raise an error if directions cannot be estimated in this way."""
    from analysis.sweep.concept_measures import MEASURED

    check_choice("--method", method, METHODS)
    check_choice("codes", codes, CODES)
    check_measures("--measure", measure)
    if measure is not None and method != "by_measure":
        raise InputError(f"--measure {measure}: only --method by_measure measures clips.")
    if method == "by_measure" and measure is None and concept not in MEASURED:
        raise InputError(f"--method by_measure: {concept} has no measure of its own, so give one with --measure.")
    if codes == "shared" and method in ("by_measure", "gradient"):
        raise InputError(f"--codes shared: --method {method} needs each prompt's own clips; leave --codes out.")


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


def check_study(seconds: float, seed: int) -> None:
    """Raise an error if the clips of a study are too short to be measured, or if its seed is out of range."""
    from audiolens.measure.rhythm import FASTEST_BPM, FEWEST_ONSETS

    check_length(seconds)
    if seconds < (least := FEWEST_ONSETS * 60 / FASTEST_BPM):
        raise InputError(
            f"seconds={seconds}: expected at least {least:g} (a clip of fewer than {FEWEST_ONSETS} onsets counts as "
            "failed)."
        )
    if not 0 <= seed < REPETITIONS:
        raise InputError(f"seed={seed}: expected 0 to {REPETITIONS - 1}, one per repetition.")


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


def strengths(option: str, text: str) -> list[float]:
    """Parse strengths such as -2:2:9 (first, last, count) or -1,-0.5,1."""
    import numpy as np

    span = _RANGE.match(text.strip())
    try:
        if span is None:
            return [float(part) for part in text.split(",")]
        first, last, count = float(span["first"]), float(span["last"]), int(span["count"])
    except ValueError:
        raise InputError(f"{option} {shown(text)}: expected FROM:TO:COUNT (-2:2:9), or a list of numbers.") from None
    if not first < last or not 2 <= count <= _MOST_STRENGTHS:
        raise InputError(f"{option} {shown(text)}: expected FROM below TO, and a COUNT of 2 to {_MOST_STRENGTHS}.")
    return [round(float(value), 12) for value in np.linspace(first, last, count)]


def check_jobs(jobs: int | None) -> None:
    """Raise an error if a number of worker processes is negative or too large."""
    if jobs is not None:
        checked_count("n_jobs", jobs, 0, MOST_JOBS)


def checked_ray(address: str | None, workers: int | None, gpus: float | None, jobs: int | None = None) -> Ray | None:
    """Return the Ray cluster that the options name, if any, and raise an error if it does not answer."""
    if address is None:
        for name, value in (("--workers", workers), ("--gpus-per-worker", gpus)):
            if value is not None:
                raise InputError(f"{name} {value}: only a Ray cluster has workers; add --ray auto.")
        return None
    if jobs is not None:
        raise InputError("--jobs and --ray were both given: on a Ray cluster, --workers sets the number of processes.")
    from analysis.distributed.address import found
    from analysis.distributed.settings import Ray

    ray = Ray(address, workers, gpus)
    found(ray)
    return ray


def checked_logs(given: Iterable[str] | None) -> list[tuple[str, str]]:
    """Return the trackers that `--log` names, as pairs of kind and name, such as ("tensorboard", "runs/log")."""
    if not given:
        return []
    from analysis import trackers

    return [trackers.asked(text) for text in given]


def check_folder(out: Path | None) -> None:
    """Raise an error if no new folder can be created at a path."""
    from analysis.store import folder

    if out is not None:
        folder.check(out, overwrite=None)
