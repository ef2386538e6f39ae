"""Cases: changed files, determined by loader, seed and number, and the result of reading them."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from hostile.fuzz import mutations, places, structures
from hostile.fuzz.loaders import Loader, Payload, Read, fits
from hostile.fuzz.trees import Tree, lay, taken
from hostile.fuzz.watch import MOST_SECONDS, Seen, watched

TRIES = 3
"""The number of attempts before a case counts as slow, since the machine may have been busy."""


@dataclass(frozen=True)
class Bench:
    """A loader with its valid files and their contents.

    Attributes:
        work: folder for the files of cases; `work/canary` must remain untouched.
        most_seconds: time limit of a read, derived from the time that reading the valid files took.
    """

    loader: Loader
    read: Read
    trees: tuple[Tree, ...]
    truths: tuple[Payload, ...]
    work: Path
    most_seconds: float


@dataclass(frozen=True)
class Case:
    """A changed tree, a description of the changes, and whether hashes were updated to match."""

    tree: Tree
    told: str
    resealed: bool


def prepare(loader: Loader, variants: Path, work: Path) -> Bench:
    """A bench for a loader whose valid files are in `variants`; they are read once, unchanged."""
    canary = work / "canary"
    if not canary.exists():
        canary.mkdir(parents=True)
        (work / "in").mkdir()
        (canary / "x").write_text("untouched")
        with open(canary / "large", "wb") as file:
            file.truncate(8 * 2**30)
    read = loader.read if loader.ready is None else loader.ready(variants)
    trees, truths, started = [], [], time.perf_counter()
    for variant in sorted(path for path in variants.iterdir() if path.is_dir()):
        trees.append(taken(variant))
        place = work / "in" / "case"
        lay(trees[-1], place)
        try:
            truths.append(read(place))
        finally:
            shutil.rmtree(place)
    taken_seconds = time.perf_counter() - started
    return Bench(loader, read, tuple(trees), tuple(truths), work, MOST_SECONDS + 3 * taken_seconds)


def case_of(bench: Bench, seed: int, number: int) -> Case:
    """The case with this number."""
    rng = random.Random(f"{seed} {bench.loader.name} {number}")
    tree = dict(rng.choice(bench.trees))
    resealed = bench.loader.reseal is not None and rng.random() < 0.35
    told = ["resealed"] if resealed else []
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        if not tree:
            break
        if rng.random() < 0.1:
            before = tree
            tree = places.moved(tree, rng, str(bench.work / "canary"), bench.trees)
            told.append(f"moved {[name for name in {**before, **tree} if before.get(name) != tree.get(name)]}")
        else:
            name, content = _changed(tree, rng, bench, resealed)
            tree = {**tree, name: content}
            told.append(f"changed {name}")
    return Case(tree, "; ".join(told), resealed)


def _changed(tree: Tree, rng: random.Random, bench: Bench, resealed: bool) -> tuple[str, bytes]:
    files = {name: content for name, content in tree.items() if isinstance(content, bytes)}
    if not files:
        return "x", b""
    # Most files in a folder are weights and sounds, but text files are read first, so half of the changes are to text.
    texts = [name for name in files if name.endswith((".json", ".toml", ".csv", ".txt"))]
    name = rng.choice(texts if texts and rng.random() < 0.5 else list(files))
    if rng.random() < (0.9 if resealed else 0.4):
        found = structures.changed(name, files[name], rng)
        if found is not None:
            return name, found
    others = [content for one in bench.trees for content in one.values() if isinstance(content, bytes)]
    return name, mutations.mutated(files[name], rng, others)


def run(bench: Bench, case: Case) -> Seen:
    """Read a case under watch; unless hashes were updated, compare what was read with the original."""
    for _ in range(TRIES):
        seen = _once(bench, case)
        if not any(fault.startswith("slow") for fault in seen.faults):
            break
    hashed = bench.loader.sealed and not case.resealed and seen.error is None and not seen.faults
    if hashed and not any(fits(seen.result, truth) for truth in bench.truths):
        seen.faults.append("altered: what was read is not what was written")
    return seen


def _once(bench: Bench, case: Case) -> Seen:
    place, away, here = bench.work / "in" / "case", bench.work / "away", os.getcwd()
    lay(case.tree, place)
    # Computing hashes would block on pipes and endless files too.
    if case.resealed and bench.loader.reseal is not None and all(isinstance(one, bytes) for one in case.tree.values()):
        bench.loader.reseal(place)
    away.mkdir()
    # A write to a relative path is caught in this folder.
    os.chdir(away)
    allowed = (f"{bench.work / 'temp'}{os.sep}", *([str(place.parent)] if bench.loader.writes else []))
    try:
        seen = watched(lambda: bench.read(place), allowed, bench.work / "canary", bench.most_seconds)
        if os.listdir(away):
            seen.faults.append(f"ran: {os.listdir(away)} was made in the working directory")
        return seen
    finally:
        os.chdir(here)
        shutil.rmtree(away, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
