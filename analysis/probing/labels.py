"""The labels of a data set's rows, and the groups of rows that must stay on one side of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from analysis.probing.table import column
from audiolens.errors import InputError, shortened

Task = Literal["classification", "regression"]
_CLASSES = 12
"""Whole numbers with more distinct values than this are treated as a quantity, not as classes."""


def task_of(labels: np.ndarray) -> Task:
    """Return the task that labels imply.

    Strings, Booleans and integers with few distinct values are treated as classes, and other numbers as a quantity.
    """
    if labels.dtype.kind in "USOb":
        return "classification"
    whole = labels.dtype.kind in "iu" or bool((labels == np.round(labels)).all())
    return "classification" if whole and len(np.unique(labels)) <= _CLASSES else "regression"


def labels_text(labels: np.ndarray) -> str:
    """Return a short description of labels, with the number of rows of each class, or the range of a quantity."""
    if task_of(labels) == "regression":
        return f"{labels.min():.3g} to {labels.max():.3g}"
    values, counts = np.unique(labels, return_counts=True)
    return shortened((f"{count} {value}" for value, count in zip(values, counts, strict=True)), 6)


def checked_labels(labels: Any, rows: int) -> np.ndarray:
    """Return labels as an array, after checking that there is one per row and that all are of one kind (`column`)."""
    return column("labels", labels, rows)


def same(values: Sequence[str | None]) -> np.ndarray:
    """Return one number per row, which is the same for rows with the same text.

    The number is -1 for rows without text, or for every row if all rows have the same text.
    """
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    if len(numbers) == 1:
        return np.full(len(values), -1)
    return np.array([-1 if value is None else numbers[value] for value in values])


def same_codes(codes: Int[Tensor, "row codebook frame"]) -> np.ndarray:
    """Return one number per row, like `same`, but equal for rows with the same codes."""
    return same([bytes(clip.cpu().numpy().tobytes()).hex() for clip in codes])


def checked_groups(groups: Any, rows: int, ties: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Return the group of each row, as given or built so that rows with equal prompts or equal clips share a group.

    Raises:
        InputError: if the given groups separate tied rows, because the same prompt would then be on both sides of a
            split.
    """
    if groups is None:
        links = [(np.flatnonzero(tie >= 0), tie[tie >= 0]) for tie in ties]
        # Rows and ties are the two kinds of nodes of a graph. A group is a connected component.
        offset, starts, ends = rows, [], []
        for members, marks in links:
            starts.append(members)
            ends.append(marks + offset)
            offset += int(marks.max(initial=-1)) + 1
        edges = (np.concatenate([*starts, np.empty(0, int)]), np.concatenate([*ends, np.empty(0, int)]))
        graph = coo_array((np.ones(len(edges[0])), edges), shape=(offset, offset))
        found = connected_components(graph, directed=False)[1][:rows]
        return np.unique(found, return_inverse=True)[1]
    numbers = np.unique(column("groups", groups, rows), return_inverse=True)[1]
    refuse_leak(numbers, ties, "groups")
    return numbers


def refuse_leak(sides: np.ndarray, ties: Sequence[np.ndarray], what: str) -> None:
    """Raise if rows that share a prompt, clip or group are on different sides of a split.

    Raises:
        InputError: if two such rows are on different sides. The error names the two rows.
    """
    for tie in ties:
        for mark in np.unique(tie[tie >= 0]):
            rows = np.flatnonzero(tie == mark)
            apart = rows[sides[rows] != sides[rows[0]]]
            if len(apart):
                raise InputError(
                    f"a leak: rows {rows[0]} and {apart[0]} share their prompt, clip or group, but {what}= separates "
                    f"them, so the probe could be trained on one and tested on the other: leave {what}= out to keep "
                    "them together."
                )


def groups_of(groups: Any, rows: int) -> np.ndarray | None:
    """Return groups as an array with one group per row, checked by `column`, or `None` if no groups were given."""
    return None if groups is None else column("groups", groups, rows)
