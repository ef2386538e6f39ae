"""Build conditions from concepts x strategies x layers x branches x strengths, with baseline, controls and references.

These pure functions take directions and prompts, and return conditions with the labels of their rows.
`sweep.run` calls them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from analysis.sweep.conditions import BASELINE, Condition
from analysis.sweep.controls import drawn
from audiolens.checks import checked_count, checked_flags, listed, one_or_listed, real_number, shown
from audiolens.directions.directions import Directions
from audiolens.directions.steering import Unit, steer
from audiolens.directions.strategies import Strategy, described
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Branch
from audiolens.model.sites import counted, layers_once
from audiolens.prompts import PromptSet

LABELS = ("kind", "concept", "strategy", "layer", "band", "branch", "strength", "draw", "pole", "other", "cosine")
"""The columns that describe a condition.

If a control is another concept's direction, `other` names that concept. `cosine` is the cosine similarity between a
control and the real direction. Conditions of the strategy "heads" also state the number of `heads`.
"""
PLACE = ("concept", "strategy", "layer", "band", "branch")
"""The columns that identify where a direction is added."""
REDRAWN = "redrawn"
"""The kind of the baseline with other seeds, which shows the variation between seeds without steering."""
RESEED = 1 << 31
"""Number added to the seeds of the redrawn baseline. It is half the range of a seed, which has 32 bits."""


@dataclass(frozen=True)
class Factors:
    """The factors whose combinations are run. `sweep.run` takes the same arguments and describes them."""

    strengths: Sequence[float] = (-1.0, -0.5, 0.5, 1.0)
    strategies: Sequence[Strategy] = ("one-to-one",)
    layers: int | Sequence[int] | None = None
    band: tuple[int, int] | None = None
    branches: Sequence[Branch] = ("both",)
    unit: Unit = "raw"
    n_random: int = 5
    n_shuffled: int = 0
    others: Mapping[str, Directions] = field(default_factory=dict)
    control_strengths: Sequence[float] | None = None
    opposed: bool = False
    heads: int | None = None

    def __post_init__(self) -> None:
        for name in ("strengths", "control_strengths"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _strengths(name, given))
        if self.control_strengths and not set(self.control_strengths) <= set(self.strengths):
            raise InputError(f"control_strengths={self.control_strengths}: expected some of {self.strengths}.")
        for name in ("strategies", "branches"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if self.layers is not None:
            object.__setattr__(self, "layers", layers_once(self.layers))
            if self.layers == []:
                raise InputError("layers=[]: expected at least one layer to steer, or None for all.")
            if isinstance(self.layers, list) and len(set(self.layers)) < len(self.layers):
                raise InputError(f"layers={shown(self.layers)}: expected each layer once.")
            if not any(described(one).uses_one_layer for one in self.strategies):
                raise InputError(
                    f"layers={shown(self.layers)}: the strategies {list(self.strategies)} use every block's own "
                    "directions, so leave layers= out."
                )
        checked_flags(opposed=self.opposed)
        for name in ("n_random", "n_shuffled"):
            object.__setattr__(self, name, checked_count(name, getattr(self, name), least=0))
        if self.band is not None and "one-to-band" not in self.strategies:
            raise InputError(f"band={self.band} needs the strategy 'one-to-band': add it, or leave out band.")
        if self.band is None and "one-to-band" in self.strategies:
            raise InputError("strategy='one-to-band' needs band=(first, last), both included.")
        if self.heads is not None:
            object.__setattr__(self, "heads", checked_count("heads", self.heads, least=1))
        if (self.heads is None) == ("heads" in self.strategies):
            raise InputError(
                f"strategies={list(self.strategies)} and heads={shown(self.heads)}: give the strategy 'heads' and "
                "heads=k, the number of heads to steer, or neither."
            )

    @property
    def controlled(self) -> Sequence[float]:
        """The strengths at which controls and opposing prompts are run."""
        return self.strengths if self.control_strengths is None else self.control_strengths


def named(directions: Directions | Sequence[Directions] | Mapping[str, Directions]) -> dict[str, Directions]:
    """Return directions by concept, named by their labels or by the keys of a mapping."""
    if isinstance(directions, Mapping):
        pairs = list(directions.items())
        if not all(isinstance(one, Directions) for _, one in pairs):
            raise InputTypeError(f"directions={shown(directions)}: expected Directions as the values of the mapping.")
    else:
        found = [directions] if isinstance(directions, Directions) else one_or_listed("directions", directions)
        found = found if isinstance(found, list) else [found]
        if not all(isinstance(one, Directions) for one in found):
            raise InputTypeError(f"{type(directions).__name__}: expected Directions, a list of them, or a mapping.")
        pairs = [(one.meta.label or "direction", one) for one in found]
    names = [name for name, _ in pairs]
    if not names or len(set(names)) < len(names):
        raise InputError(f"concepts {names}: expected at least one, each with its own label; or give {{name: d}}.")
    return dict(pairs)


def conditions(
    directions: Mapping[str, Directions], factors: Factors, sets: Mapping[str, PromptSet] | None = None
) -> list[Condition]:
    """Return all conditions of a sweep, with the baseline first.

    Strength 0 is the baseline. Control directions are applied like the direction itself, at the same places and
    strengths. Concepts with a prompt set also get clips whose prompts ask for the poles in words.

    Raises:
        InputError: (or a subclass) if a strategy, layer or band does not fit the directions.
    """
    found = [Condition(BASELINE, labels=_labels(kind=BASELINE, strength=0.0))]
    found.append(Condition(REDRAWN, labels=_labels(kind=REDRAWN), reseed=RESEED))
    for concept, own in directions.items():
        words = (sets or {}).get(concept)
        others = {name: one for name, one in factors.others.items() if name != concept}
        draws = drawn(own, n_random=factors.n_random, n_shuffled=factors.n_shuffled, others=others)
        for place, where in _places(concept, own, factors):
            for strength in factors.strengths:
                found.append(_steered("steered", own, place, where, strength, factors))
            for strength in factors.controlled:
                for one in draws:
                    labels = one.labels(place.get("layer"))
                    found.append(_steered(one.kind, one.directions, place, where, strength, factors, **labels))
                if words is not None and factors.opposed:
                    pole = words.poles[1] if strength > 0 else words.poles[0]
                    found.append(_steered("opposed", own, place, where, strength, factors, words, pole=pole))
        if words is None:
            continue
        for pole in words.poles:
            values = _labels(kind="prompted", concept=concept, pole=pole)
            found.append(Condition(f"prompted {concept} {pole}", ask=_asking(words, pole), labels=values))
    return found


def _steered(
    kind: str,
    source: Directions,
    place: Mapping[str, Any],
    where: Mapping[str, Any],
    strength: float,
    factors: Factors,
    words: PromptSet | None = None,
    **further: Any,
) -> Condition:
    steps = steer(source, strength=strength, unit=factors.unit, **where)
    values = _labels(kind=kind, strength=strength, **place, **further)
    unnamed = ("strength", "cosine")
    name = " ".join(str(value) for key, value in values.items() if value is not None and key not in unnamed)
    ask = None if words is None else _asking(words, further["pole"])
    return Condition(f"{name} {strength:+.12g}", tuple(steps), ask, values)


def _places(concept: str, directions: Directions, factors: Factors) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each place, both as labels and as arguments of `steer`."""
    chosen = directions.layers if factors.layers is None else factors.layers
    layers = [counted(layer, directions.meta.n_layers) for layer in ([chosen] if isinstance(chosen, int) else chosen)]
    if len(set(layers)) < len(layers):
        raise InputError(f"layers={layers}: expected each layer once.")
    for branch in factors.branches:
        for strategy in factors.strategies:
            if not described(strategy).uses_one_layer:
                where: dict[str, Any] = {"strategy": strategy, "branch": branch}
                if described(strategy).changes == "heads":
                    where["heads"] = factors.heads
                yield {"concept": concept, **where}, where
                continue
            band = factors.band if described(strategy).changes == "band" else None
            for layer in layers:
                where = {"strategy": strategy, "layer": layer, "branch": branch}
                label = {} if band is None else {"band": f"{band[0]}-{band[1]}"}
                yield {"concept": concept, **where, **label}, {**where, "band": band}


def _labels(**values: Any) -> dict[str, Any]:
    # Conditions of other strategies have no number of heads, not even an empty one: their labels identify a sweep that
    # is resumed.
    heads = {"heads": values["heads"]} if "heads" in values else {}
    return {name: values.get(name) for name in LABELS} | heads


def _asking(words: PromptSet, pole: str) -> Any:
    # Unlike a lambda, this can be pickled, and so can the plan of a sweep.
    return partial(words.prompted, pole=pole)


def _names(name: str, given: Any) -> tuple[str, ...]:
    try:
        names = tuple(listed(name, given))
    except InputTypeError:
        names = ()
    if not names or not all(isinstance(one, str) for one in names) or len(set(names)) < len(names):
        raise InputError(f"{name}={shown(given)}: expected a list of different names.")
    return names


def _strengths(name: str, given: Sequence[float]) -> tuple[float, ...]:
    try:
        values = [real_number(value) for value in listed(name, given)]
    except TypeError:
        raise InputTypeError(f"{name}={shown(given)}: expected a list of numbers.") from None
    if not all(math.isfinite(value) for value in values) or len(set(values)) < len(values):
        raise InputError(f"{name}={values}: expected different finite numbers.")
    steered = tuple(sorted(value for value in values if value))
    if not steered and name == "strengths":
        raise InputError(f"{name}={values}: expected a strength other than 0, the baseline, which is always included.")
    return steered


def spoken(place: Any) -> str:
    """Return a place as text, such as "one-to-one 4 (cond)"."""
    strategy, layer, branch = place["strategy"], place["layer"], place["branch"]
    where = "" if layer is None or layer != layer else f" {int(layer)}"
    band = place["band"]
    suffix = f" on {band}" if isinstance(band, str) else ""
    return f"{strategy}{where}{suffix}{'' if branch == 'both' else f' ({branch})'}"
