"""Cases: changed files, which follow from loader, seed and number alone, and what comes of reading them."""

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
"""Before a slow case counts: the machine may have been at something else."""


@dataclass(frozen=True)
class Bench:
    """A loader with its whole files and what they hold.

    Attributes:
        work: where cases are laid out; `work/canary` is what nothing may touch.
        most_seconds: of a reading, by what reading the whole files took.
    """

    loader: Loader
    read: Read
    trees: tuple[Tree, ...]
    truths: tuple[Payload, ...]
    work: Path
    most_seconds: float


@dataclass(frozen=True)
class Case:
    """A changed tree, in words what was done to it, and whether hashes were written anew."""

    tree: Tree
    told: str
    resealed: bool


def prepare(loader: Loader, variants: Path, work: Path) -> Bench:
    """A bench for a loader whose whole files lie in `variants`; they are read once, unchanged."""
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
    """The case of this number."""
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
    # Weights and sounds are most of a folder's files; what is read first are its texts.
    texts = [name for name in files if name.endswith((".json", ".toml", ".csv", ".txt"))]
    name = rng.choice(texts if texts and rng.random() < 0.5 else list(files))
    if rng.random() < (0.9 if resealed else 0.4):
        found = structures.changed(name, files[name], rng)
        if found is not None:
            return name, found
    others = [content for one in bench.trees for content in one.values() if isinstance(content, bytes)]
    return name, mutations.mutated(files[name], rng, others)


def run(bench: Bench, case: Case) -> Seen:
    """Read a case under watch; what it holds is compared with the truth where hashes were left as they were."""
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
    # Pipes and endless files would hold up what writes hashes, too.
    if case.resealed and bench.loader.reseal is not None and all(isinstance(one, bytes) for one in case.tree.values()):
        bench.loader.reseal(place)
    away.mkdir()
    # What writes to a relative name writes here.
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
