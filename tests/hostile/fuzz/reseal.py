"""Update the hashes in changed files, as an attacker could, so that the code behind the hash checks is tested too."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load, save_file

from analysis.harvest import described
from analysis.store.folder import SUMMARY
from analysis.study import made, stages
from analysis.sweep import batches, planned
from audiolens.files.integrity import (
    HEADER,
    MANIFEST,
    OPEN_SEAL,
    SEAL,
    digest,
    seal,
    sealed_header,
    sealed_json,
    write_manifest,
)


def file(folder: Path) -> None:
    """Update the hashes in the header of every safetensors file of a folder."""
    for path in folder.glob("*.safetensors"):
        _try(_tensors, path)


def sweep(folder: Path) -> None:
    """Update the hashes of a sweep's plan, batches and table."""
    _try(_json, folder / planned.PLAN)
    _try(_batches, folder)


def harvest(folder: Path) -> None:
    """Update the hashes of a harvest's description, shards and tables."""
    _try(_json, folder / described.PLAN)
    _try(_harvested, folder)


def study(folder: Path) -> None:
    """Update the hashes of a study: its stages first, then the files that list them."""
    for path in sorted(folder.glob("stages/*")):
        if (path / planned.PLAN).is_file():
            sweep(path)
        elif path.is_dir():
            file(path)
            _try(write_manifest, path, path.name)
        elif path.is_file():
            _try(_json, path)
    for name in (stages.BEGUN, SUMMARY):
        _try(_json, folder / name)
    _try(_made, folder)


def studies(folder: Path) -> None:
    """Update the hashes of an index and of the studies under it."""
    if (folder / stages.BEGUN).exists():
        study(folder)
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            study(path)
    _try(_json, folder / SUMMARY)


def _try(change: Callable[..., Any], *args: Any) -> None:
    """Update a hash; a file that can no longer be read keeps its old one."""
    path = args[0]
    if path.is_symlink() or not (path.is_dir() or path.is_file()) or (path.is_file() and path.stat().st_size > 2**24):
        return
    with suppress(Exception):
        change(*args)


def _json(path: Path) -> None:
    facts = json.loads(path.read_text())
    facts.pop(SEAL, None)
    path.write_bytes(sealed_json(facts))


def _tensors(path: Path, plan: str = "") -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][HEADER])
    tensors = load(content)
    if plan:
        facts["harvest"]["plan"] = plan
    save_file(tensors, path, sealed_header({key: facts[key] for key in facts if key not in (SEAL, "tensors")}, tensors))


def _harvested(folder: Path) -> None:
    facts = json.loads((folder / described.PLAN).read_text())
    facts.pop(SEAL)
    plan = described.plan_hash(facts)
    for path in folder.glob(f"{described.SHARDS}/*.safetensors"):
        _try(_tensors, path, plan)
    for path in (folder / described.INDEX, folder / described.CLIPS):
        table = pq.read_table(io.BytesIO(path.read_bytes()))
        path.write_bytes(_resealed(table, {"plan": plan}))


def _batches(folder: Path) -> None:
    facts = json.loads((folder / planned.PLAN).read_text())
    facts.pop(SEAL)
    plan = planned.plan_hash(facts)
    for path in (*folder.glob("batches/*.parquet"), folder / batches.TABLE):
        table = pq.read_table(io.BytesIO(path.read_bytes()))
        metadata = table.schema.metadata or {}
        told = {**json.loads(metadata.get(b"audiolens", b"{}")), "plan": plan}
        for name in told.get("files", {}):
            with suppress(OSError):
                told["files"][name] = digest((folder / name).read_bytes())
        path.write_bytes(_resealed(table, told))


def _resealed(table: pa.Table, told: dict[str, Any]) -> bytes:
    metadata = {**(table.schema.metadata or {}), b"audiolens": json.dumps({**told, "seal": OPEN_SEAL})}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    return seal(buffer.getvalue().to_pybytes())


def _made(folder: Path) -> None:
    path = folder / stages.MADE
    facts: dict[str, Any] = json.loads(path.read_text())
    facts.pop(SEAL, None)
    with suppress(Exception):
        facts["study"] = made._facts(folder)
        facts["hashes"][SUMMARY] = digest((folder / SUMMARY).read_bytes())
    for entry in facts["stages"].values():
        place = folder / stages.STAGES / str(entry)
        with suppress(Exception):
            plan = place / planned.PLAN
            facts["hashes"][entry] = made._mark(place) if plan.is_file() else digest((place / MANIFEST).read_bytes())
    path.write_bytes(sealed_json(facts))
