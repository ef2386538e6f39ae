"""The loaders: every function of audiolens that reads untrusted files, one entry each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage_folders as damage
import numpy as np
import torch

import audiolens as al
from analysis import features, study
from analysis.harvest import Harvest
from analysis.probing import Dataset
from analysis.probing.table import numbers_or_text, read_columns
from analysis.report import index
from analysis.store.folder import SUMMARY
from analysis.store.folder import check as check_folder
from analysis.study import finished, others, placement_storage, side_effects, stages, storage, where
from analysis.sweep import ledger
from audiolens import prompts
from audiolens.etude.training import checkpoint
from audiolens.files.integrity import SEAL
from audiolens.measure import clap
from audiolens.model import model_files
from audiolens.sound import soundfiles
from hostile.fuzz import corpus, reseal

Payload = Mapping[str, Any] | None
"""The contents of what was read; incomplete if it has the key "partial". `None` if no hash in the file covers them."""
Read = Callable[[Path], Payload]


@dataclass(frozen=True)
class Loader:
    """A function that reads files, with a maker of valid files.

    Attributes:
        name: its name in the counts.
        make: fills a folder with variants of its files.
        read: reads the files of a case from a folder.
        share: its number of cases relative to other loaders.
        sealed: whether hashes protect the content of its files.
        reseal: updates the hashes in changed files.
        ready: makes `read` from the variants, for a reader that needs part of the valid files.
        writes: whether it writes into the folder, as a resumed run does.
        quick: whether its files are made in a second or two.
    """

    name: str
    make: Callable[[Path], None]
    read: Read
    share: int
    sealed: bool = False
    reseal: Callable[[Path], None] | None = None
    ready: Callable[[Path], Read] | None = None
    writes: bool = False
    quick: bool = True


def fits(found: Payload, truth: Payload) -> bool:
    """Whether what was read equals what was written, or is a declared part of it."""
    if found is None or truth is None:
        return True
    if "partial" in found:
        return all(truth.get(key) == value for key, value in found.items() if key != "partial")
    return dict(found) == dict(truth)


def digest(*values: Any) -> str:
    """A hash of texts, tensors and arrays."""
    found = hashlib.sha256()
    for value in values:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        plain = isinstance(array, np.ndarray)
        found.update(repr(array.dtype).encode() + array.tobytes() if plain else repr(array).encode())
    return found.hexdigest()


def _directions(folder: Path) -> Payload:
    found = al.Directions.load(folder / corpus.FILE)
    return {"all": digest(found.vectors, found.residual_norms, found.meta, found, found.to_frame().to_csv())}


def _cache(folder: Path) -> Payload:
    found = al.ActivationCache.load(folder / corpus.FILE)
    labels = (found.axes, found.branch, found.prompts, found.frame_rate, found.first_step, found.reduce, repr(found))
    return {"labels": digest(labels), **{name: digest(found[name]) for name in found}}


def _harvest(folder: Path) -> Payload:
    found = Harvest.load(folder)
    cache, data = found.cache(), found.vectors()
    labels = (cache.axes, found.prompts, found.seeds, cache.frame_rate, cache.first_step, cache.reduce, data.steps)
    return {"labels": digest(labels), "codes": digest(found.codes()), **{name: digest(cache[name]) for name in cache},
            "vectors": digest(data[:])}  # fmt: skip


def _sae(folder: Path) -> Payload:
    found = features.load(folder)
    found.encode(torch.ones(2, found.d_in))
    repr(found)
    return None


def _checkpoint(folder: Path) -> Payload:
    checkpoint.load(folder / corpus.FILE, {"m": torch.nn.Linear(3, 2)})
    return None


def _prompts(ending: str) -> Read:
    def read(folder: Path) -> Payload:
        found = prompts.from_file(folder / f"own.{ending}")
        repr(found)
        return None

    return read


def _lines(folder: Path) -> Payload:
    prompts.from_files(folder / "up.txt", folder / "down.txt")
    return None


def _captions(folder: Path) -> Payload:
    repr(prompts.counterfactuals(folder / "captions.csv", ("fast", "slow")))
    return None


def _table(folder: Path) -> Payload:
    columns = read_columns(folder / corpus.TABLE, filled=["file", "label"], blank=["text"])
    numbers_or_text(columns["label"])
    return None


def _dataset(folder: Path) -> Payload:
    made = Dataset.from_folder(
        corpus.lens(), folder, folder / corpus.TABLE, "label", group="piece", prompt="text", seconds=0.2
    )
    repr(made)
    return None


def _sound(folder: Path) -> Payload:
    samples, rate = soundfiles.read(folder / corpus.SOUND)
    assert 0 < samples.shape[1] <= soundfiles.LONGEST_SECONDS * rate
    return {"samples": digest(samples)}


def _loose_sound(folder: Path) -> Payload:
    _sound(folder)
    return None


def _span(folder: Path) -> Payload:
    soundfiles.read(folder / corpus.SOUND, (0.05, 0.1))
    return None


def _headers(folder: Path) -> Payload:
    with model_files.staged(folder) as files:
        assert all(path.is_symlink() for path in files.folder.iterdir())
    return None


def _model(folder: Path) -> Payload:
    found = al.AudioLens.from_pretrained(folder)
    found.generate("a calm song", 0.12)
    return None


def _clap(folder: Path) -> Payload:
    # Bypass the cache of opened models, since all cases have the same path.
    clap._loaded.__wrapped__(str(folder))
    return None


def _sweep(folder: Path) -> Payload:
    told, whole = damage.read_sweep(folder)
    return {repr(key): value for key, value in told.items()} | ({} if whole else {"partial": True})


def _loose_sweep(folder: Path) -> Payload:
    _sweep(folder)
    return None


def _resumed(variants: Path) -> Read:
    """Resume a sweep: damaged batches must be dropped, and the others must be as written."""
    begun = json.loads((variants / "finished" / ledger.PLAN).read_text())
    begun.pop(SEAL)
    whole = ledger.batches_of(variants / "finished", begun)
    table = whole.table()[0]
    labels = table[["condition", "strength", "prompt", "asked", "seed"]]
    heard = [name for name in table.columns if name not in labels]

    def read(folder: Path) -> Payload:
        told: dict[str, Any] = {"partial": True}
        with ledger.ledger(folder, begun, labels, heard) as kept:
            for batch in sorted(kept.done):
                told[f"{batch}"] = digest(kept.rows(batch).to_csv(), kept.codes(batch))
            if len(kept.done) == len(begun["batches"]):
                kept.close()
        return told

    return read


def _study(folder: Path) -> Payload:
    found = study.load_folder(folder)
    clips, response = (table.to_csv(index=False) for table in (found.clips, found.response))
    samples = found.directions.samples
    sounds = digest(*found.sounds.values())
    return {"all": digest(clips, response, found.directions.vectors, samples, found.outcomes, sounds, found.poles)}


def _redrawn(folder: Path) -> Payload:
    repr(finished.redraw(folder))
    return None


def _door(folder: Path) -> Payload:
    """Run the checks that are made before anything is written to a folder."""
    index.is_ours(folder)
    check_folder(folder / "tempo", overwrite=True)
    stages.check(folder / "timbre")
    return None


def _begun(variants: Path) -> Read:
    """Resume a study: check the folder, then read each stage or make it again."""
    begun = json.loads((variants / "tempo" / stages.BEGUN).read_text())
    facts = {key: value for key, value in begun.items() if key not in (SEAL, "format")}
    settings = json.loads((variants / "tempo" / SUMMARY).read_text())["settings"]
    places = (path for path in (variants / "tempo" / stages.STAGES).iterdir() if path.is_dir())
    named = {path.name.rpartition("-")[0]: path.name for path in places}
    directions = storage.read_directions(variants / "tempo" / stages.STAGES / named["directions"])

    def read(folder: Path) -> Payload:
        stages.check(folder)
        stages.refuse_other_settings(folder, settings)
        told: dict[str, Any] = {"partial": True}
        readers: dict[str, Callable[[Path], Any]] = {
            "directions": lambda place: digest(*vars(storage.read_directions(place).samples).values()),
            "placement": lambda place: placement_storage.read_placement(place, directions).candidates.to_csv(),
            "patching": lambda place: digest(where.read(place).reason, *_grids(where.read(place))),
            "lost": lambda place: side_effects.read(place).to_csv(),
            "others": lambda place: digest(*(one.vectors for one in others.read_back(place).values())),
        }
        with stages.begun(folder, facts, {}) as kept:
            for name, reader in readers.items():
                place = folder / stages.STAGES / named[name]
                stage = stages.Stage(name, _remade, _nothing, reader, place, held=kept.held)
                if stage.place is not None and stage.place.exists():
                    with suppress(_RemadeError):
                        told[name] = stage.kept()
        return told

    return read


def _grids(found: where.Where) -> list[np.ndarray]:
    return [grid.patched for grid in (found.windows, found.components) if grid is not None]


class _RemadeError(Exception):
    """Raised when a stage is made again because its stored files are damaged."""


def _remade() -> Any:
    raise _RemadeError


def _nothing(_: object, folder: Path) -> None:
    (folder / "nothing").write_bytes(b"")


_SEALED_SOUNDS = ("flac", "vorbis", "opus")
LOADERS = (
    Loader("directions", corpus.directions, _directions, 90, True, reseal.file),
    Loader("directions, format 1", corpus.unsealed_directions, _directions, 40),
    Loader("cache", corpus.caches, _cache, 90, True, reseal.file),
    Loader("cache, format 1", corpus.unsealed_caches, _cache, 40),
    Loader("training checkpoint", corpus.checkpoints, _checkpoint, 60),
    *(Loader(f"prompts, {ending}", corpus.prompts(ending), _prompts(ending), 80) for ending in ("csv", "json", "toml")),
    Loader("prompts, two texts", corpus.lines, _lines, 50),
    Loader("captions", corpus.captions, _captions, 50),
    Loader("labelled table", corpus.tables, _table, 80),
    *(
        Loader(f"sound, {kind}", corpus.sounds(kind), _sound if kind in _SEALED_SOUNDS else _loose_sound, 90,
               kind in _SEALED_SOUNDS)
        for kind in corpus.SOUNDS
    ),
    Loader("span of a sound, flac", corpus.sounds("flac"), _span, 60),
    Loader("model's files", corpus.models, _headers, 20),
    Loader("model", corpus.models, _model, 4),
    Loader("CLAP", corpus.claps, _clap, 4),
    Loader("labelled sounds", corpus.labelled, _dataset, 4),
    Loader("SAE", corpus.saes, _sae, 15),
    Loader("harvest", corpus.harvests, _harvest, 7, True, reseal.harvest),
    Loader("sweep", corpus.sweeps, _sweep, 7, True, reseal.sweep),
    Loader("sweep, format 1", corpus.unsealed_sweeps, _loose_sweep, 5),
    Loader("sweep going on", corpus.sweeps, _sweep, 4, True, reseal.sweep, _resumed, writes=True),
    Loader("study", corpus.studies, _study, 4, True, reseal.study, quick=False),
    Loader("study going on", corpus.one_study, _study, 5, True, reseal.study, _begun, writes=True, quick=False),
    Loader("studies, drawn anew", corpus.drawn, _redrawn, 3, reseal=reseal.studies, writes=True, quick=False),
    Loader("folder of results", corpus.indexes, _door, 8, reseal=reseal.studies, writes=True, quick=False),
)  # fmt: skip
