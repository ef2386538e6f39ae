"""Describe in words how two plans of a sweep differ. `ledger` uses this before it resumes a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_THREADS = 1024


def are_threads(value: object) -> bool:
    """Return whether the value is a number of threads that a computer may have."""
    return type(value) is int and 1 <= value <= MOST_THREADS


def difference(begun: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Return a description of the first difference that matters; `None` if there is none."""
    if begun.get("format") != facts["format"]:
        return f"it has format {begun.get('format')}, but this version writes {facts['format']}"
    for section, words in (("versions", "version of {}"), ("settings", "{}")):
        for name in {**begun[section], **facts[section]}:
            there, here = begun[section].get(name), facts[section].get(name)
            if there != here:
                return f"it was begun with {words.format(name)} {_short(there)}, but this one has {_short(here)}"
    if begun["model"]["weights"] != facts["model"]["weights"]:
        return f"it was begun with other weights ({begun['model']['name']!r}; this is {facts['model']['name']!r})"
    for name in ("device", "attention"):
        if begun["model"][name] != facts["model"][name]:
            return f"it was begun with {name} {begun['model'][name]}, but this is {facts['model'][name]}"
    there, here = begun["conditions"], facts["conditions"]
    for one, other, words in ((there, here, "has a condition that this one lacks"), (here, there, "lacks a condition")):
        missing = [name for name in one if name not in other]
        if missing:
            return f"it {words}: {_first(missing)}"
    changed = [name for name in there if there[name] != here[name]]
    if changed:
        return f"it adds other vectors in condition {_first(changed)}"
    if list(there) != list(here):
        return "its conditions are in another order"
    for name in ("clips", "asked", "batches"):
        if begun.get(name) != facts.get(name):
            return f"its {name} differ"
    return None


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f", and {len(names) - 1} more" if len(names) > 1 else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
