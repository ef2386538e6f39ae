"""The labels of synthesised clips, which a probe can be asked to read. This module does not import torch."""

from __future__ import annotations

from audiolens.checks import shown
from audiolens.errors import InputError, nearest, shortened
from audiolens.etude.attributes import CONCEPTS, RANGES


def attribute_of(concept: str, *, quantity: bool) -> str:
    """Return the attribute of the synthesiser that a concept labels.

    Raises:
        InputError: if the synthesiser has no such label or, with `quantity`, if the label is not a quantity.
    """
    known = {**CONCEPTS, "tonic": "tonic", "meter": "meter"}
    if concept not in known:
        raise InputError(
            f"concept={shown(concept)} is not a label of the synthesiser.{nearest(concept, known)} Its labels are "
            f"{shortened(known)}."
        )
    if quantity and known[concept] not in RANGES:
        raise InputError(f"{concept} is not a quantity: use task='classification'.")
    return known[concept]
