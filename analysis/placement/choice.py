"""Choose the place from the shifts, by one of the rules or by other evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.layer_attribution import LayerAttribution, LayerEvidence
from analysis.placement.equal_damage import EqualDamage
from analysis.placement.result import Placement
from analysis.placement.rules import ALIGNMENT, CONSTANCY, EQUAL_DAMAGE, LEAST_CONSTANCY, MIDDLE, RULES, named
from analysis.placement.shifts import Candidate, Shifts
from analysis.resampling import interval_of, resampled
from audiolens.errors import InputError
from audiolens.prompts import PromptSet

AS_GOOD = 0.995
"""Places with at least this fraction of the best alignment count as equally good. The simplest of them is chosen."""


def chosen(
    sets: PromptSet,
    places: Sequence[Candidate],
    shifts: Shifts,
    evidence: LayerAttribution,
    *,
    damage: EqualDamage | None,
    prompts: Sequence[str],
    by: str,
    left_out: Mapping[str, str],
    n_bootstrap: int,
    seed: int,
    spent: tuple[int, int, int],
) -> Placement:
    """Return the placement chosen from the shifts or, if other evidence decides, from that evidence.

    `damage` are the shifts at equal damage, if they were computed. `spent` are the numbers of decoder steps for the
    directions, the codes, and the other evidence.

    Raises:
        InputError: if the rule or the evidence has no value at any place.
    """
    alignment, n_layers = shifts.alignment(), places[0].directions.meta.n_layers
    draws = resampled(prompts, n_bootstrap, seed)
    again = _again(shifts.alignment, draws, len(places))
    n_prompts, names = len(set(prompts)), [place.name for place in places]
    ends = [interval_of(again[:, at], n_prompts) for at in range(len(places))]
    table = pd.DataFrame(
        {
            "strategy": [place.strategy for place in places],
            "layer": pd.array([place.layer for place in places], dtype="Int64"),
            "alignment": alignment,
            "low": [end.low for end in ends],
            "high": [end.high for end in ends],
            "gain": shifts.gain,
            "strength": [0.5 / gain if gain > 0 else float("nan") for gain in shifts.gain],
        }
    )
    constancy = float(shifts.constancy.mean())
    offered = {(place.strategy, place.layer) for place in places}
    choices = {ALIGNMENT: names[_first_as_good(alignment)], **named(n_layers, constancy, offered)}
    if damage is not None:
        equal = damage.alignment()
        table = table.assign(equal_damage=equal, equal_damage_strength=damage.strength)
        if np.isfinite(equal).any():
            choices[EQUAL_DAMAGE] = names[int(np.nanargmax(equal))]
        elif by == EQUAL_DAMAGE:
            raise InputError(
                "by='equal_damage': at no place does any strength change the predictions as much as words."
            )
    at = names.index(choices[by]) if by in choices else _largest(evidence[by], places)
    certainty = float("nan")
    if len(places) > 1 and len(draws):
        if by == ALIGNMENT:
            certainty = _share_as_good(again, at)
        elif by == EQUAL_DAMAGE and damage is not None:
            certainty = _share_as_good(_again(damage.alignment, draws, len(places)), at)
        elif by == CONSTANCY:
            static = [shifts.constancy[rows].mean() >= LEAST_CONSTANCY for rows in draws]
            certainty = float(np.mean(np.array(static) == (constancy >= LEAST_CONSTANCY)))
    return Placement(
        concept=sets.concept,
        poles=sets.poles,
        strategy=places[at].strategy,
        layer=places[at].layer,
        directions=places[at].directions,
        candidates=table,
        evidence=evidence,
        by=by,
        certainty=certainty,
        n_prompts=n_prompts,
        row_steps=sum(spent) + shifts.row_steps + (0 if damage is None else damage.shifts.row_steps),
        left_out=dict(left_out),
        choices={rule: choices[rule] for rule in RULES if rule in choices},
        costs={rule: cost for rule, cost in _costs(shifts, damage, *spent[:2]).items() if rule in choices},
        constancy=constancy,
    )


def _costs(shifts: Shifts, damage: EqualDamage | None, directions: int, codes: int) -> dict[str, int]:
    """Return the decoder steps that each rule needs by itself."""
    read = directions + codes
    costs = {ALIGNMENT: read + shifts.row_steps, MIDDLE: directions, CONSTANCY: read + shifts.words_steps}
    if damage is not None:
        costs[EQUAL_DAMAGE] = costs[ALIGNMENT] + damage.shifts.row_steps
    return costs


def _again(
    alignment: Callable[[Int[np.ndarray, " row"]], Any], draws: Sequence[Int[np.ndarray, " row"]], n_places: int
) -> Float[np.ndarray, "draw candidate"]:
    return np.array([alignment(rows) for rows in draws]).reshape(len(draws), n_places)


def _share_as_good(again: Float[np.ndarray, "draw candidate"], at: int) -> float:
    """Return the share of draws in which a place counts as equal to the best."""
    return float(np.mean(again[:, at] >= _enough(np.nanmax(again, axis=1))))


def _first_as_good(alignment: Float[np.ndarray, " candidate"]) -> int:
    """Return the index of the first place that counts as equal to the best."""
    return int(np.flatnonzero(alignment >= _enough(alignment.max()))[0])


def _enough(best: Any) -> Any:
    return best - (1 - AS_GOOD) * np.abs(best)


def _largest(one: LayerEvidence, places: Sequence[Candidate]) -> int:
    """Return the index of the first place at the candidate block with the largest evidence (signed, not absolute)."""
    values = dict(zip(one.layers, one.values, strict=True))
    known = {place.layer: values[place.layer] for place in places if place.layer in values}
    finite = {layer: value for layer, value in known.items() if np.isfinite(value)}
    if not finite:
        raise InputError(f"{one.name} has no value at any candidate's block: give evidence for these blocks.")
    best = max(finite, key=lambda layer: finite[layer])
    return next(at for at, place in enumerate(places) if place.layer == best)
