"""The methods that `compare` knows: each is a name and a function from a lens and a reading to a steering.

A further method is one more entry: `compare(lens, concepts, methods={"mine": function})`. The function gets the lens
and the concept's `Reading`, fits whatever it needs, and returns a function from a signed dose to interventions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from analysis.methods.gated import gated
from analysis.methods.latents import latent
from analysis.methods.reading import NotApplicable, Reading, Steering
from analysis.sweep.conditions import BASELINE
from analysis.sweep.controls import BALANCED, RANDOM
from audiolens.checks import checked_function, shown
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.estimators import estimate, estimators
from audiolens.directions.steering import steer
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, nearest
from audiolens.interventions import Intervention

if TYPE_CHECKING:
    from audiolens import AudioLens

Method = Callable[["AudioLens", Reading], Steering]
"""A way to steer. It raises `NotApplicable` if it cannot be used for a concept."""
REFERENCE = "difference_in_means"
"""The method with which all others are compared."""
PROMPTING, OTHER_SEEDS = "prompting", "other seeds"
"""Prompts that name the pole, and clips of other seeds, which are not steered either and whose drift is the unit."""
_TAKEN = re.compile(rf"{PROMPTING}|{OTHER_SEEDS}|{BASELINE}|({RANDOM}|{BALANCED})( \d+)?")
"""The names of what is compared besides methods."""
CLIPS_PER_PROMPT = 2
"""The clips of each development prompt from which directions by measure are read."""


HEADS, HEADS_STRENGTH = 12, 0.5
"""The number of heads of the method "heads", and the strength of a dose of 1.

Both were chosen on four development clips of étude's tempo (`benchmarks/heads.py`).
"""


@guarded
def estimator(method: str, **options: Any) -> Method:
    """Return a method that steers along the direction of one of `al.estimators()`, with its own options.

    Every direction gets the norm of the difference in means. Most need only the reading's samples; "mean_centred",
    "by_measure" and "gradient" read the model again.

    Raises:
        InputError: if there is no such estimator.
    """
    if method not in estimators():
        raise InputError(f"method={shown(method)}: no estimator has this name.{nearest(str(method), estimators())}")
    return partial(_estimated, method, options)


def _estimated(method: str, options: Mapping[str, Any], lens: AudioLens, reading: Reading) -> Steering:
    positive, negative = reading.poles
    neutral = list(reading.sets.development)
    asked: dict[str, Any] = {"layers": list(reading.directions.layers), "label": reading.sets.concept}
    quiet: dict[str, Any] = {**asked, "progress": False, "keep_samples": False}
    if method == REFERENCE and not options:
        return reading.along(reading.directions)
    if method == "mean_centred":
        given = (lens, positive)
        asked = {**quiet, "neutral": neutral, "codes": "shared"}
    elif method == "gradient":
        given, asked = (lens, positive, negative), quiet
    elif method == "by_measure":
        if reading.measured is None:
            raise NotApplicable(f"{reading.sets.concept} has no measure with a name, by which clips could be sorted.")
        given = (lens,)
        asked = {**quiet, "prompts": neutral, "measure": reading.measured, "clips_per_prompt": CLIPS_PER_PROMPT}
    else:
        given = ()
        asked = {"samples": reading.samples, "keep_samples": False}
    return reading.along(reading.kept(method, estimate, *given, method=method, **{**asked, **options}))


def heads(lens: AudioLens, reading: Reading) -> Steering:
    """Steer the self-attention heads whose probes are best (`steer(strategy="heads")`), wherever they are.

    The heads are read on each pole's own clips. They have neither the place nor the norm of the other methods.

    Raises:
        NotApplicable: if the model has too few heads.
    """
    available = lens.config.n_layers * lens.config.n_heads
    if available <= HEADS:
        raise NotApplicable(f"the model has {available} self-attention heads, and {HEADS} would be chosen.")
    read = reading.kept(
        "heads", difference_in_means, lens, *reading.poles, site="attn.z", codes="own", label=reading.sets.concept,
        progress=False,
    )  # fmt: skip

    def steering(dose: float) -> Sequence[Intervention]:
        return steer(read, "heads", strength=dose * HEADS_STRENGTH, heads=HEADS)

    return steering


METHODS: Mapping[str, Method] = {
    **{name: estimator(name) for name in estimators()}, "heads": heads, "gated": gated, "latent": latent,
}  # fmt: skip
"""The methods that are compared by default: every estimator of a direction, heads, a gate, and a latent of a sparse
autoencoder."""


def checked_methods(methods: Sequence[str] | Mapping[str, Method] | None) -> dict[str, Method]:
    """Return the methods by name, the reference first.

    Raises:
        InputError, InputTypeError: if a name is unknown or taken, or an entry is not a function.
    """
    if methods is None:
        methods = METHODS
    if not isinstance(methods, Mapping):
        if isinstance(methods, str):
            raise InputTypeError(f"methods={shown(methods)}: expected a list of names, or names with functions.")
        for name in methods:
            if name not in METHODS:
                raise InputError(
                    f"method {shown(name)}: not known.{nearest(str(name), METHODS)} Known: {', '.join(METHODS)}; or "
                    "give a mapping from your name to a function."
                )
        methods = {name: METHODS[name] for name in methods}
    for name, method in methods.items():
        if not isinstance(name, str) or not name.strip():
            raise InputTypeError(f"methods: {shown(name)}: {shown(method)}: expected a name with a function.")
        checked_function(f"methods: {shown(name)}", method, "a function of (lens, reading)", None, None)
        if _TAKEN.fullmatch(name) or (name == REFERENCE and method is not METHODS[REFERENCE]):
            raise InputError(f"methods: {shown(name)} is always compared: give your method another name.")
    if not methods:
        raise InputError("methods is empty: give at least one besides the difference in means.")
    return {REFERENCE: METHODS[REFERENCE], **methods}
