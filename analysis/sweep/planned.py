"""Describe everything that the rows of a sweep depend on, for the file `plan.json` in the sweep's folder.

`ledger` writes `plan.json`, and resumes a sweep only if its plan is unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.store.resumable import Kind, first_difference
from analysis.sweep import runs
from analysis.sweep.batch_files import BATCHES, SOUND, are_threads
from analysis.sweep.batches import TABLE
from analysis.sweep.config import FILE as CONFIG
from audiolens.checks import MOST, RATES_HZ, shown
from audiolens.errors import InputError

if TYPE_CHECKING:
    from analysis.sweep.conditions import Condition
    from audiolens.gates import Gate
    from audiolens.interventions import Intervention
    from audiolens.lens import AudioLens

PLAN = "plan.json"
Used = Literal["exact", "fast"]
ENGINES: tuple[Used, ...] = ("exact", "fast")
_ALWAYS = frozenset(("seconds", "guidance_scale", "temperature", "top_k", "batch_size", "measures", "also", "sound"))
"""The settings in the plan of every sweep of this format.

A sweep that was begun before a later setting existed can be resumed, because a field of `Sampling` that a plan lacks
had its default (see `completed`).
"""
_BEFORE = (
    ("format", "it has format {there}, but this version writes {here}"),
    ("noise", "its clips were drawn with other random numbers, by another version of audiolens"),
    ("versions.*", "it was begun with {name} {there}, but this one has {here}"),
    ("settings.*", "it was begun with {name} {there}, but this one has {here}"),
    ("model.device", "it was begun with device {there}, but this is {here}"),
    ("model.dtype", "it was begun with dtype {there}, but this is {here}"),
    ("model.codec_dtype", "it was begun with a codec in {there}, but this one computes in {here}"),
    ("model.weights", "it was begun with other weights ({begun[model][name]!r}; this is {facts[model][name]!r})"),
    ("model.attention", "it was begun with attention {there}, but this is {here}"),
)
_AFTER = (("clips", "its clips differ"), ("asked", "its prompts differ"), ("batches", "its batches differ"))


def _verify(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise an error if batch sizes do not add up to the rows, or the threads or sample rate are out of range."""
    sizes = facts["batches"]
    if min(sizes, default=1) < 1 or sum(sizes) != facts["rows"] or facts["rows"] > MOST:
        raise InputError(f"{path} cannot be used: {len(sizes)} batches do not add up to {facts['rows']} rows.")
    if not are_threads(facts["model"]["threads"]):
        raise InputError(f"{path} cannot be used: it was begun with {facts['model']['threads']} threads.")
    if facts["model"].get("engine", "exact") not in ENGINES:
        raise InputError(f"{path} cannot be used: it was begun with engine {shown(facts['model']['engine'])}.")
    # The versions that record the codec's dtype record these too.
    lacking = {"engine", "dtype"} - facts["model"].keys() if "codec_dtype" in facts["model"] else set[str]()
    if lacking:
        raise InputError(f"{path} cannot be used: it does not state the {min(lacking)} that the clips were made with.")
    runs.check(path, facts)
    if not RATES_HZ[0] <= facts["sample_rate"] <= RATES_HZ[1]:
        raise InputError(f"{path} cannot be used: its sample rate is {facts['sample_rate']} Hz.")


SWEEP = Kind(
    noun="sweep",
    busy="sweeping into this folder",
    description=PLAN,
    format="audiolens.sweep.2",
    unsealed="audiolens.sweep.1",
    shape={
        "format": str,
        "noise?": str,
        "versions": {str: str},
        "model": {
            "name": str,
            "weights": str,
            "device": str,
            "dtype?": str,
            "codec_dtype?": str,
            "attention": str,
            "threads": int,
        },
        "settings": {"measures": [str], "also": [str]},
        "conditions": {str: str},
        "sample_rate": int,
        "rows": int,
        "batches": [int],
        "runs?": [runs.SHAPE],
    },
    entries=BATCHES,
    files=(TABLE, "devices.json", CONFIG),
    folders=(SOUND,),
    verify=_verify,
)


def used_engine(facts: Mapping[str, Any]) -> Used:
    """Return the engine that generated a sweep, which the first versions did not record, because there was only one."""
    return "fast" if facts["model"].get("engine") == "fast" else "exact"


def facts_of(
    lens: AudioLens, conditions: Sequence[Condition], settings: Mapping[str, Any], engine: str, **others: Any
) -> dict[str, Any]:
    """Return all versions, weights, settings and condition hashes that a sweep's rows depend on, as plain values.

    `noise` names the random numbers. Plans of earlier versions lack it, because their clips were drawn with others.
    """
    import torch

    from audiolens.model import provenance
    from audiolens.model.weight_hash import content_hash
    from audiolens.tracing.noise import NOISE

    return {
        "format": SWEEP.format,
        "noise": NOISE,
        "versions": {
            **provenance.versions(),
            **{name: metadata.version(name) for name in ("librosa", "numpy", "scipy")},
        },
        "model": {
            "name": lens.name,
            "weights": content_hash(lens.model),
            "device": lens.device.type,
            "dtype": str(lens.dtype).removeprefix("torch."),
            "codec_dtype": str(lens.model.audio_encoder.dtype).removeprefix("torch."),
            "attention": str(getattr(lens.model.decoder.config, "_attn_implementation", None)),
            "threads": torch.get_num_threads(),
            "engine": engine,
        },
        "settings": dict(settings),
        "conditions": condition_hashes(lens, conditions, settings["seconds"]),
        **others,
    }


def condition_hashes(lens: AudioLens, conditions: Sequence[Condition], seconds: float) -> dict[str, str]:
    """Return, by condition name, a hash of everything that the condition does to a clip."""
    times = np.arange(round(seconds * lens.config.frame_rate)) / lens.config.frame_rate
    return {one.name: condition_hash(one, times) for one in conditions}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a plan, with the default of every sampling setting that the plan lacks."""
    return {**{name: value for name, value in _defaults().items() if name not in _ALWAYS}, **settings}


def plan_hash(facts: Mapping[str, Any]) -> str:
    """Return a hash of what a sweep's rows depend on: all facts except the model's name, the threads and the runs.

    The kind of device is included, but not the card, on which a sweep may go on (`runs`). The hash of the weights
    depends on the dtypes of the model and its codec, which are therefore stated only to be named in messages.

    A later setting does not change the hash while it has its default, so it can be missing from a plan. The same
    applies to the engine, of which the first versions had only the exact one.
    """
    named = ("name", "threads", "engine", "dtype", "codec_dtype")
    model = {key: value for key, value in facts["model"].items() if key not in named}
    if used_engine(facts) != "exact":
        model["engine"] = used_engine(facts)
    defaults = _defaults()
    settings = {
        name: value
        for name, value in facts["settings"].items()
        if name in _ALWAYS or name not in defaults or value != defaults[name]
    }
    whole = {**{key: value for key, value in facts.items() if key != "runs"}, "model": model, "settings": settings}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _defaults() -> dict[str, Any]:
    from audiolens.tracing.sampling import Sampling

    return {one.name: one.default for one in fields(Sampling) if one.default is not MISSING}


def difference(begun: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Return a description of the first difference that matters; `None` if there is none."""
    begun, facts = ({**one, "settings": completed(one["settings"])} for one in (begun, facts))
    # The first versions did not record the dtype, and their codec had that of the model.
    dtype = facts["model"].get("dtype")
    begun["model"] = {"dtype": dtype, "codec_dtype": begun["model"].get("dtype", dtype), **begun["model"]}
    changed = first_difference(begun, facts, _BEFORE) or _other_conditions(begun["conditions"], facts["conditions"])
    changed = changed or first_difference(begun, facts, _AFTER)
    if changed is None and plan_hash(begun) != plan_hash(facts):
        return "its plan has other entries than this one"
    return changed


def _other_conditions(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    for one, other, words in ((there, here, "has a condition that this one lacks"), (here, there, "lacks a condition")):
        if missing := [name for name in one if name not in other]:
            return f"it {words}: {_first(missing)}"
    if changed := [name for name in there if there[name] != here[name]]:
        return f"it adds other vectors in condition {_first(changed)}"
    return None if list(there) == list(here) else "its conditions are in another order"


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f", and {len(names) - 1} more" if len(names) > 1 else "")


def condition_hash(condition: Condition, times: np.ndarray) -> str:
    """Return a hash of what a condition does to a clip, given the times of the clip's steps in seconds."""
    digest = hashlib.sha256()
    digest.update(json.dumps([dict(condition.labels), condition.reseed], default=str, sort_keys=True).encode())
    for step in condition.interventions:
        digest.update(type(step).__name__.encode())
        digest.update(_fields(condition, step, times))
    return digest.hexdigest()[:16]


def _fields(condition: Condition, step: Intervention | Gate, times: np.ndarray) -> bytes:
    found = b""
    for entry in fields(step):
        # The origin of a vector does not affect how it is used, and the first versions had no gates.
        unused = entry.name == "gate" and getattr(step, "gate", None) is None
        if entry.name == "meta" or entry.name.startswith("_") or unused:
            continue
        found += f"{entry.name}=".encode() + _bytes(condition, step, entry.name, times)
    return found


def _bytes(condition: Condition, step: Intervention | Gate, name: str, times: np.ndarray) -> bytes:
    import torch

    value: Any = getattr(step, name)
    if name == "gate":
        return _fields(condition, value, times)
    if callable(value) and name == "schedule":
        schedule: Callable[[float], Any] = value
        value = torch.tensor([float(schedule(float(time))) for time in times], dtype=torch.float32, device="cpu")
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)}".encode() + value.detach().cpu().double().contiguous().numpy().tobytes()
    if isinstance(identity := getattr(value, "identity", None), str):
        # A value with weights of its own, such as a sparse autoencoder.
        return identity.encode()
    if callable(value):
        raise InputError(
            f"condition {condition.name!r}: a folder cannot identify a function, so {type(step).__name__} with a "
            "function cannot be resumed. Sweep it without out=."
        )
    return repr(value).encode()
