"""What every method of a concept is made from: its prompts, one reading of the model, and the place where it steers.

All methods steer at the same place, which one rule chooses. A dose is a multiple of the strength at which the
difference in means shifts the next-code predictions as far as naming the pole does (`Placement.words_strength`), so
that a dose is the same step for all concepts. `compare` reads a concept, and the methods (`table.py`) use the
reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from analysis.methods import stored
from analysis.placement import place as chosen_place
from analysis.study import storage
from analysis.study.stages import Stages
from audiolens.checks import checked_amount, checked_function, shown
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.directions.estimators import estimate
from audiolens.directions.samples import Samples
from audiolens.directions.steering import steer
from audiolens.directions.strategies import Strategy, described
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError, PromptError
from audiolens.files.atomic import is_name
from audiolens.interventions import Intervention
from audiolens.model.provenance import prompts_hash
from audiolens.prompts import PromptSet

if TYPE_CHECKING:
    from audiolens import AudioLens

Steering = Callable[[float], Sequence[Intervention]]
"""A method after it was fitted: from a signed dose to interventions. A positive dose points to the positive pole."""


class NotApplicable(InputError):
    """A method cannot be used for a concept. Its cells are left out, and the result states why."""


@guarded
@dataclass(frozen=True)
class Place:
    """Where all methods steer a concept.

    Attributes:
        strategy: as in `al.steer`.
        layer: the block whose direction is added; `None` for "all-to-all".
        strength: the strength of the difference in means that is a dose of 1.
    """

    strategy: Strategy
    layer: int | None
    strength: float

    def __post_init__(self) -> None:
        checked_kinds(self)
        if (self.layer is None) == described(self.strategy).uses_one_layer:
            raise InputError(f"layer={self.layer} does not fit strategy={self.strategy!r}: see al.steer.")
        checked_amount("strength", self.strength, above=0)


@guarded
@dataclass(frozen=True, eq=False)
class Reading:
    """What a method of a concept is made from.

    Attributes:
        sets: the prompts of the concept.
        n_read: number of prompts per pole that were read.
        directions: the difference in means at the blocks of the place, with its samples.
        place: where every method steers.
        measured: the name of the concept's measure, or `None` if it is measured by a function.
    """

    sets: PromptSet
    n_read: int
    directions: Directions
    place: Place
    measured: str | None
    _stages: Stages = field(default_factory=Stages, repr=False)

    def __post_init__(self) -> None:
        checked_kinds(self)

    @property
    def samples(self) -> Samples:
        """One vector per prompt at the blocks of the place."""
        assert self.directions.samples is not None
        return self.directions.samples

    @property
    def poles(self) -> tuple[list[str], list[str]]:
        """The prompts of both poles that were read."""
        return list(self.sets.positive[: self.n_read]), list(self.sets.negative[: self.n_read])

    def along(self, directions: Directions) -> Steering:
        """Return the steering along other directions, at the place and with the norms of the difference in means."""
        alike = directions.with_norms_of(self.directions)
        place = self.place

        def steering(dose: float) -> list[Intervention]:
            return steer(alike, place.strategy, place.layer, strength=dose * place.strength)

        return steering

    def kept(self, name: str, make: Callable[..., Directions], *given: Any, **options: Any) -> Directions:
        """Return `make(*given, **options)`, or read it from the comparison's folder if it was computed before.

        Samples are stored if the result has them.

        `name` and `options` identify the result, besides the concept's prompts, its place and the model. Only
        functions of audiolens and analysis have code that is checked for changes.

        Raises:
            InputError: (or a subclass) if `name` cannot be the name of a folder, if `make` does not take these
                arguments, or if it does not return directions.
        """
        if not is_name(name):
            raise InputError(f"name={shown(name)}: expected a name that a folder can have.")
        checked_function("make", make, "a function of these arguments that returns Directions", *given, **options)
        concept = {**_prompts(self.sets, self.n_read), "layers": list(self.directions.layers), "how": repr(options)}
        stage = self._stages.stage(
            f"{self.sets.concept}-{name}", concept, make, stored.write_directions, stored.read_directions
        )
        return stored.checked_directions(stage.kept(*given, **options))


def read(
    lens: AudioLens,
    sets: PromptSet,
    *,
    n_read: int,
    place: Place | None,
    measured: str | None,
    stages: Stages,
    progress: bool,
) -> Reading:
    """Read both poles on shared clips, and choose the place, unless one is given.

    Raises:
        PromptError: if the set has no neutral prompts.
        InputError: if no place is given and the direction does not shift the predictions as the words do.
    """
    if not sets.development:
        raise PromptError(f"{sets.concept}: no neutral development prompts, on whose clips both poles are read.")
    n = min(n_read, len(sets.positive), len(sets.negative))
    asked: dict[str, Any] = {
        "codes": "shared", "neutral": list(sets.development), "seeds": list(range(n)), "label": sets.concept,
    }  # fmt: skip
    stage = stages.stage(
        f"{sets.concept}-reading", _prompts(sets, n), difference_in_means, storage.write_directions,
        storage.read_directions,
    )  # fmt: skip
    poles = list(sets.positive[:n]), list(sets.negative[:n])
    whole = stage.kept(lens, *poles, **asked, keep_samples=True, progress=progress)
    if place is None:
        found = stages.stage(
            f"{sets.concept}-place", _prompts(sets, n), _chosen, stored.write_place, stored.read_place
        ).kept(lens, sets, whole, progress)  # fmt: skip
        if not found[2] > 0 or not math.isfinite(found[2]):
            raise InputError(
                f"{sets.concept}: the direction does not shift the next-code predictions as naming the pole does, so "
                "no dose can be stated: leave the concept out, or give places={...} with a strength."
            )
        place = Place(*found)  # pyright: ignore[reportArgumentType]
    layers = whole.layers if place.layer is None else (place.layer,)
    if not set(layers) <= set(whole.layers):
        raise InputError(f"place={place}: the model has blocks 0 to {whole.layers[-1]}.")
    directions = estimate(samples=_at(whole.samples, layers))
    return Reading(sets, n, directions, place, measured, stages)


def _chosen(lens: AudioLens, sets: PromptSet, directions: Directions, progress: bool) -> tuple[str, int | None, float]:
    found = chosen_place(
        lens, sets, directions, compute=(), screen_seconds=0, n_random=0, n_bootstrap=0, progress=progress
    )
    return found.strategy, found.layer, found.words_strength


def _prompts(sets: PromptSet, n: int) -> Mapping[str, Any]:
    """Facts that identify a reading of a concept."""
    return {"prompts": prompts_hash(sets.positive[:n], sets.negative[:n], sets.development), "concept": sets.concept}


def _at(samples: Samples | None, layers: Sequence[int]) -> Samples:
    """Return the samples at some of their blocks."""
    assert samples is not None
    at = [samples.layers.index(layer) for layer in layers]
    norms = None if samples.residual_norms is None else samples.residual_norms[at]
    meta = samples.meta
    return replace(samples, values=samples.values[at], layers=tuple(layers), residual_norms=norms, meta=meta)
