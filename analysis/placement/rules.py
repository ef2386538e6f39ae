"""The rules by which `place` chooses, and the places that fixed rules name in a model with a given number of blocks.

`docs/placement.md` defines the rules, in the section "Rules for choosing a place".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from audiolens.checks import shown
from audiolens.directions.strategies import Strategy
from audiolens.errors import InputError

ALIGNMENT = "alignment"
MIDDLE = "middle"
EQUAL_DAMAGE = "equal_damage"
CONSTANCY = "constancy"
CONFIRMED = "confirmed"
RULES = (ALIGNMENT, MIDDLE, EQUAL_DAMAGE, CONSTANCY)
"""The rules that choose without generating steered clips."""
LEAST_CONSTANCY = 0.4
"""From this constancy on, the shift caused by the words counts as constant over time."""
Where = tuple[Strategy, int]
"""A strategy, and the layer whose vector is added."""


def place_name(strategy: str, layer: int | None) -> str:
    """Return the name of a place, such as "one-to-one 3"."""
    return strategy if layer is None else f"{strategy} {layer}"


def middle(n_layers: int) -> Where:
    """Return the middle block, one-to-one."""
    return "one-to-one", n_layers // 2


def last_at_all(n_layers: int) -> Where:
    """Return the last block's vector, added at all blocks."""
    return "one-to-all", n_layers - 1


def by_constancy(constancy: float, n_layers: int) -> Where:
    """Return the place for words whose shift has this constancy."""
    return last_at_all(n_layers) if constancy >= LEAST_CONSTANCY else middle(n_layers)


def spread(n_layers: int) -> list[Where]:
    """Return the candidates of which clips are generated: at most four, because small models have too few blocks."""
    blocks = (n_layers * 3 // 8, n_layers // 2, n_layers * 3 // 4)
    single: list[Where] = [("one-to-one", block) for block in dict.fromkeys(blocks)]
    return [*single, last_at_all(n_layers)]


def needed(by: str, confirm: bool, n_layers: int) -> list[Where]:
    """Return the places that must be among the candidates."""
    if confirm:
        return spread(n_layers)
    if by == MIDDLE:
        return [middle(n_layers)]
    return [middle(n_layers), last_at_all(n_layers)] if by == CONSTANCY else []


def refuse_missing(by: str, confirm: int, n_layers: int, offered: Collection[tuple[str, int | None]]) -> None:
    """Raise an error if a place that the rule could choose is not among the candidates.

    Raises:
        InputError: naming the first such place.
    """
    missing = [where for where in needed(by, bool(confirm), n_layers) if where not in offered]
    if missing:
        asked = f"confirm={confirm}" if confirm else f"by={shown(by)}"
        raise InputError(
            f"{asked} considers {place_name(*missing[0])}, which is not among the candidates: leave strategies and "
            "layers at their defaults, and give directions that are not zero there."
        )


def named(n_layers: int, constancy: float, offered: Collection[tuple[str, int | None]]) -> dict[str, str]:
    """Return the choices of the fixed rules, as far as the places are among the candidates."""
    choices = {MIDDLE: middle(n_layers), CONSTANCY: by_constancy(constancy, n_layers)}
    return {rule: place_name(*where) for rule, where in choices.items() if where in offered}


def refuse_names(evidence: Sequence[str]) -> None:
    """Raise an error if a user's evidence has the name of a rule, because `by` would be ambiguous."""
    taken = [name for name in evidence if name in (*RULES, CONFIRMED)]
    if taken:
        raise InputError(f"evidence {shown(taken[0])} has the name of a rule: choose another name.")
