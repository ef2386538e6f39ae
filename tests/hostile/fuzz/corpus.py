"""The corpus: small valid files of every kind, made by the project's own writers and not stored in the repository.

Each maker fills a folder with one subfolder per variant, which holds the files of one case.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import clap_models
import conftest
import damage_folders as damage
import numpy as np
import soundfile
import torch
from plants import tables as planted
from safetensors.torch import load_file, save_file

import audiolens as al
from analysis import features, harvest, report, resampling
from analysis.report import index
from analysis.study import study_set
from audiolens.directions.evidence import Contrast
from audiolens.etude.training import checkpoint
from audiolens.files.bounded import read_header
from audiolens.files.integrity import HEADER, SEAL
from audiolens.model.provenance import Provenance
from audiolens.prompts import PromptSet, load

RATE = 16_000
SOUNDS = {
    "wav": ("WAV", "PCM_16"), "wavex": ("WAVEX", "FLOAT"), "adpcm": ("WAV", "IMA_ADPCM"), "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
_MOST_DRAWS = 20
_WRITE_INDEX = index.write
SOUND, TABLE, FILE = "sound", "t.csv", "f.safetensors"


@cache
def _root() -> Path:
    """The folder of models, sweeps and studies that several makers share; it is removed at the end of a run."""
    return Path(mkdtemp(prefix="fuzz-made-"))


def tidy() -> None:
    """Remove the files that makers shared."""
    if _root.cache_info().currsize:
        shutil.rmtree(_root(), ignore_errors=True)
    for made in (_root, model, lens, _sweeps, _studies):
        made.cache_clear()


@cache
def model() -> Path:
    return conftest.write_model(_root() / "model")


@cache
def lens() -> Any:
    return al.AudioLens.from_pretrained(model())


@cache
def _sweeps() -> dict[str, Path]:
    place = _root() / "sweeps"
    place.mkdir()
    made = {one.name: one.start for one in damage.sweeps(lens(), place)}
    return {"finished": made["finished sweep"], "unfinished": made["unfinished sweep"]}


@cache
def _studies() -> Path:
    """Two studies under a common index, without pictures and pages, which no loader reads."""
    place, before = _root() / "studies", (report.write, index.write)
    report.write, index.write = damage.tables_alone, _WRITE_INDEX
    try:
        study_set.run(lens(), ["tempo", "timbre"], place, settings=damage.TINY, progress=False)
    finally:
        report.write, index.write = before
    return place


def directions(folder: Path) -> None:
    plain = planted.directions(width=6)
    _saved(folder / "plain", plain.save)
    gen = torch.Generator().manual_seed(0)
    positive = torch.tensor([False, True] * 8)
    contrast = Contrast(8, 8)
    contrast.add(torch.randn(len(plain), 16, 6, generator=gen), torch.ones(len(plain), 16), positive)
    read = replace(plain, evidence=contrast.evidence())
    _saved(folder / "evidence", read.save)


def unsealed_directions(folder: Path) -> None:
    directions(folder)
    _unseal(folder, "audiolens.directions.1")


def caches(folder: Path) -> None:
    codes = torch.randint(0, 32, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    both = {"sites": ["attn.z"], "guidance_scale": 3.0, "branch": "both"}
    for name, options in {"stream": {}, "heads": both}.items():
        chosen = {"sites": ["resid_pre", "resid_post"], **options}
        _saved(folder / name, lens().run_with_cache(["a calm song", "fast piano"], codes, **chosen)[1].save)


def unsealed_caches(folder: Path) -> None:
    caches(folder)
    _unseal(folder, "audiolens.activations.1")


def harvests(folder: Path) -> None:
    asked: dict[str, Any] = {"seconds": 0.2, "layers": [1], "batch_size": 1, "progress": False}
    for name, reduce in {"steps": None, "mean": "mean"}.items():
        harvest.harvest(lens(), ["calm song", "jazz"], out=folder / name, reduce=reduce, **asked)


def saes(folder: Path) -> None:
    """SAEs as audiolens writes them, and one as SAELens wrote them before 6.0."""
    weights: Any = torch.ones(4, 6), torch.zeros(6), torch.ones(6, 4), torch.zeros(4)
    known: Any = {"layer": 1, "meta": Provenance("m", "w", 3, n_prompts=(2, 0)), "scores": {"l0": 2.0}}
    features.SAE(*weights, "topk", k=2, **known).save(folder / "topk")
    features.SAE(*weights, "jumprelu", threshold=torch.ones(6), **known).save(folder / "jumprelu")
    (folder / "old").mkdir()
    (folder / "old" / "sae_weights.safetensors").write_bytes((folder / "topk" / "sae_weights.safetensors").read_bytes())
    facts = {"d_in": 4, "d_sae": 6, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2},
             "hook_point": "blocks.1.hook_resid_post", "model_name": "m", "normalize_activations": False}  # fmt: skip
    (folder / "old" / "cfg.json").write_text(json.dumps(facts))


def checkpoints(folder: Path) -> None:
    (folder / "one").mkdir(parents=True)
    checkpoint.save(folder / "one" / FILE, {"m": torch.nn.Linear(3, 2)}, 7)


def prompts(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, sets in {"short": _own(2), "long": _own(6)}.items():
            (folder / name).mkdir(parents=True)
            fields = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(sets).items()}
            fields.pop("vocabulary")
            text = io.StringIO()
            if ending == "json":
                json.dump(fields, text)
            elif ending == "toml":
                text.writelines(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
            else:
                csv.writer(text).writerows([sets.poles, *zip(sets.positive, sets.negative, strict=True)])
            (folder / name / f"own.{ending}").write_text(text.getvalue())

    return make


def lines(folder: Path) -> None:
    for name, sets in {"short": _own(2), "long": _own(6)}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "up.txt").write_text("\n".join(sets.positive) + "\n")
        (folder / name / "down.txt").write_text("\n".join(sets.negative) + "\n")


def captions(folder: Path) -> None:
    for name, count in {"short": 2, "long": 6}.items():
        (folder / name).mkdir(parents=True)
        rows = [(text, "['fast tempo', 'drums']") for text in ("a fast song", *_own(count).negative)]
        with open(folder / name / "captions.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("caption", "aspect_list"), *rows])


def _own(count: int) -> PromptSet:
    known = load("tempo")
    lists = {name: getattr(known, name)[:count] for name in ("positive", "negative", "development", "test", "nouns")}
    return PromptSet(concept="own", poles=known.poles, **lists)


def sounds(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        format_, subtype = SOUNDS[kind]
        for name, channels, seconds in (("mono", 1, 0.4), ("stereo", 2, 0.15)):
            (folder / name).mkdir(parents=True)
            wave = _wave(round(seconds * RATE), channels)
            soundfile.write(folder / name / SOUND, wave, RATE, format=format_, subtype=subtype)

    return make


def _wave(n_samples: int, channels: int) -> np.ndarray:
    times = np.arange(n_samples)[:, None] / RATE
    noise = np.random.default_rng(0).standard_normal((n_samples, channels))
    return (0.3 * np.sin(2 * np.pi * 440 * times) + 0.02 * noise).astype(np.float32)


def tables(folder: Path) -> None:
    signs = ("01", "1", "1.0", "nan", "-1", "1e5")
    for name, labels in {"numbers": range(6), "words": "ababab", "signs": signs}.items():
        (folder / name).mkdir(parents=True)
        rows = [[f"{number}.wav", label, number // 2, "a song"] for number, label in enumerate(labels)]
        rows.insert(0, ["file", "label", "piece", "text"])
        with open(folder / name / TABLE, "w", newline="") as file:
            csv.writer(file).writerows(rows)


def labelled(folder: Path) -> None:
    """A table of labelled sounds, with the sound files."""
    tables(folder)
    for name in folder.iterdir():
        for number in range(6):
            soundfile.write(name / f"{number}.wav", _wave(4000, 1) * (number + 1) / 6, RATE)


def models(folder: Path) -> None:
    shutil.copytree(model(), folder / "mono")
    conftest.write_model(folder / "melody", melody=True, layers=1)
    sharded = Path(shutil.copytree(model(), folder / "sharded"))
    (sharded / "model.safetensors").unlink()
    lens().model.save_pretrained(sharded, max_shard_size="500KB")


def claps(folder: Path) -> None:
    for name in ("plain", "fused"):
        clap_models.write_clap(folder / name, fusion=name == "fused")


def sweeps(folder: Path) -> None:
    for name, place in _sweeps().items():
        shutil.copytree(place, folder / name, ignore=shutil.ignore_patterns(".lock"))


def unsealed_sweeps(folder: Path) -> None:
    sweeps(folder)
    for plan in folder.glob("*/plan.json"):
        facts = {**json.loads(plan.read_text()), "format": "audiolens.sweep.1"}
        facts.pop(SEAL)
        plan.write_text(json.dumps(facts))


def studies(folder: Path, names: Sequence[str] = ("tempo", "timbre")) -> None:
    for name in names:
        left_out = shutil.ignore_patterns(".lock", "tables")
        shutil.copytree(_studies() / name, folder / name, ignore=left_out)


def one_study(folder: Path) -> None:
    studies(folder, ["tempo"])


def indexes(folder: Path) -> None:
    """Several studies under a common index."""
    left_out = shutil.ignore_patterns(".lock", "tables", "*.png", "*.csv", "*.html")
    shutil.copytree(_studies(), folder / "several", ignore=left_out)


def drawn(folder: Path) -> None:
    """A common index with its studies, and a single study."""
    indexes(folder)
    one_study(folder)


def _saved(folder: Path, save: Callable[[Path], object]) -> None:
    folder.mkdir(parents=True)
    save(folder / FILE)


def _unseal(folder: Path, format_: str) -> None:
    """Rewrite files in the previous format, without hashes."""
    for path in folder.rglob(FILE):
        facts = json.loads(read_header(path).metadata[HEADER])
        kept = {key: value for key, value in facts.items() if key not in (SEAL, "tensors")}
        save_file(load_file(path), path, {HEADER: json.dumps({**kept, "format": format_})})


def quiet() -> None:
    """Turn off warnings, figures and most bootstrap draws, which would take most of the time of reading a study."""
    draws = resampling._Groups.draws
    resampling._Groups.draws = lambda self, count, seed: draws(self, min(count, _MOST_DRAWS), seed)
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    report.write = damage.tables_alone
    index.write = lambda *_: None
