"""The steering strategies: which blocks each one changes, with which vectors, and how figures and pages describe it.

`steer` (`steering.py`) computes the vectors. All other code reads from `STRATEGIES` what it needs to know about a
strategy, so a new strategy needs an entry here instead of a case in each place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from audiolens.checks import shown
from audiolens.directions.directions import Directions
from audiolens.errors import InputError

Strategy = Literal["one-to-one", "one-to-all", "one-to-band", "all-to-all", "heads"]


@dataclass(frozen=True)
class Placing:
    """One strategy.

    Attributes:
        changes: the blocks that change: the "source" of the vector, a "band" that the caller gives, "every" block of
            the model, the blocks with vectors of their "own", or those of chosen "heads".
        axis: the label of an axis of layers.
        where: the words before a block's number, such as "added at" in "added at block 3".
        added: the words for where the vector is added, if the block is known.
        meaning: a sentence that explains the strategy to the reader of a page.
    """

    changes: Literal["source", "band", "every", "own", "heads"]
    axis: str
    where: str
    added: str
    meaning: str

    @property
    def uses_one_layer(self) -> bool:
        """Whether the vector belongs to one layer, which the caller chooses."""
        return self.changes not in ("own", "heads")


_SOURCE = "block from which the direction was read"

STRATEGIES: Mapping[str, Placing] = {
    "one-to-one": Placing(
        "source", "block", "added at", "added there", "One block's direction is added at that block."
    ),
    "one-to-all": Placing(
        "every", _SOURCE, "read at", "added at every block", "One block's direction is added at every block."
    ),
    "one-to-band": Placing(
        "band", _SOURCE, "read at", "added at a band of blocks", "One block's direction is added at a range of blocks."
    ),
    "all-to-all": Placing(
        "own", "block", "read at", "added at every block", "Every block's own direction is added at that block."
    ),
    "heads": Placing(
        "heads",
        "block",
        "read at",
        "added to the chosen heads",
        "The heads whose probes are best are pushed along their own directions, in proportion to the spread of their "
        "activations and to how far their probes are above chance.",
    ),
}
"""Every strategy, by name."""
UNKNOWN = Placing("source", "block", "at", "added", "")
"""How a label that is not a strategy is described. Conditions of a sweep may have labels of the caller's own."""


def changed_blocks(strategy: str, layer: int | None, directions: Directions) -> list[int]:
    """Return the blocks that a strategy changes, given the layer whose vector is used.

    Raises:
        InputError: if the blocks do not follow from the layer, because the strategy changes a band, is unknown, or
            lacks its layer, or because it changes heads.
    """
    changes = described(strategy).changes
    if changes == "own":
        return list(directions.layers)
    if changes == "every":
        return list(range(directions.meta.n_layers))
    if changes in ("band", "heads") or layer is None or strategy not in STRATEGIES:
        raise InputError(
            f"strategy={shown(strategy)}, layer={shown(layer)}: expected a layer, and a strategy whose blocks follow "
            "from it, such as 'one-to-one' or 'one-to-all'."
        )
    return [layer]


def described(strategy: str) -> Placing:
    """Return how figures describe the strategy with which a condition is labelled."""
    return STRATEGIES.get(strategy, UNKNOWN)
