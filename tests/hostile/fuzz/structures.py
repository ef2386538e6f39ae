"""Mutations of structured files (JSON, TOML, CSV, Parquet, safetensors headers) that remain well-formed.

Each function maps the bytes of a file to new bytes; files that cannot be parsed are left to `mutations`.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tomllib
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hostile.fuzz.mutations import PICKLE

_HEADER = "audiolens"


def _nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


POOL: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 2**31, -(2**31), 2**63, 10**18, 10**39, -(10**39), 10**400, 0.5, -0.0,
    1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "nan", "1", "-1", "a\0b", "\x1b[2J\x07", "two\nlines",
    "half \ud800", "\u202etxt", "..", "../../canary/x", "/etc/passwd", "own.Own", "x" * 5000, [], [[]], {},
    [0], [1, 2], ["a"], ["a", "b"], [None], {"a": 1}, {"": None}, _nested(40), _nested(90),
    {str(number): number for number in range(300)}, PICKLE.decode(),
)  # fmt: skip
_LARGE: tuple[Any, ...] = ("x" * 200_000, [0] * 3000, ["x"] * 3000)
KEYS = (
    "auto_map", "format", "sha256", "tensors", "custom_generate", "__class__", "model_type", "architectures", "layers",
    "", "\0", "concept", "..", "quantization_config", "_attn_implementation", "num_hidden_layers", "dtype", "stages",
)  # fmt: skip
_NAMES = ("", "../../canary/x", "audio/../../x", "audio/9999999.flac", "x" * 2000)
_TYPES = ("F32", "F64", "I32", "I64", "I16", "U8", "BOOL", "BF16", "F16", "F8_E4M3", "C64", "U32", "F4", "X9")


def changed(name: str, content: bytes, rng: random.Random) -> bytes | None:
    """The bytes of a file after a change to its structure; `None` if its extension or content does not allow one."""
    changes = {
        "json": _json, "toml": _toml, "csv": _csv, "txt": _lines, "safetensors": _safetensors, "parquet": _parquet,
    }  # fmt: skip
    change = changes.get(name.rpartition(".")[2])
    try:
        return None if change is None else change(content, rng)
    except Exception:
        # Parsers may raise anything on a file that was already changed.
        return None


def _any(rng: random.Random) -> Any:
    """A value that may not fit where it is put; large ones are rare, because they are slow."""
    return rng.choice(_LARGE if rng.random() < 0.02 else POOL)


def value_changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part exchanged, removed, added, renamed or scaled."""
    holder: Any = {"": value}
    places = _places(holder)
    inside, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.4:
        inside[key] = _any(rng)
    elif kind < 0.55 and inside is not holder:
        del inside[key]
    elif kind < 0.65:
        other, other_key = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[other_key]))
    elif kind < 0.75 and isinstance(inside, dict) and inside is not holder:
        inside[rng.choice((*KEYS, *inside))] = inside.pop(key)
    elif kind < 0.85 and isinstance(inside[key], dict):
        inside[key][rng.choice(KEYS)] = _any(rng)
    elif isinstance(inside[key], bool) or not isinstance(inside[key], int | float):
        inside[key] = [inside[key]] * rng.choice((0, 1, 2, 100))
    else:
        inside[key] = rng.choice((inside[key] + 1, -inside[key], inside[key] * 1000, inside[key] / 3, str(inside[key])))
    return holder.get("")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """The positions of all parts, as (container, key or index); of long lists, only the first items."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo and len(found) < 3000:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(min(len(one), 40)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            todo.append(one[key])
    return found


def _json(content: bytes, rng: random.Random) -> bytes:
    value = value_changed(json.loads(content), rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.06 and isinstance(value, dict) and value:
        key = json.dumps(rng.choice(list(value)))
        text = text.replace(f"{key}:", f"{key}: {json.dumps(rng.choice(POOL[:20]))}, {key}:", 1)
    return text.encode("utf-8", "surrogatepass")


def _toml(content: bytes, rng: random.Random) -> bytes:
    values = tomllib.loads(content.decode())
    values = value_changed(values, rng)
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items()]
    extra = (
        'concept = "again"', "[concept]", "[[positive]]", "a" + ".b" * 3000 + " = 1", "x = 1979-05-27T07:32:00Z",
        "y = 0x" + "f" * 500, "z = " + "[" * 500 + "]" * 500, "w = inf", "'' = 1", '"\\u0000" = 1', "v = {a.b.c = 1}",
    )  # fmt: skip
    if rng.random() < 0.4:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(extra))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml_key(key: str) -> str:
    return json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float) and value != value:
        return "nan"
    return {None: "''", float("inf"): "inf", float("-inf"): "-inf"}.get(value) or json.dumps(value)


def _csv(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rng.choice(rows)
    kind = rng.random()
    if kind < 0.5:
        row[rng.randrange(len(row))] = str(_any(rng))[:200_000]
    elif kind < 0.6:
        row.append("more")
    elif kind < 0.7:
        del row[rng.randrange(len(row))]
    elif kind < 0.8:
        rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
    elif kind < 0.85:
        rows = rows[: rng.randrange(len(rows))]
    elif kind < 0.9:
        place = rng.randrange(len(row))
        rows = [[*one, *one[place : place + 1]] for one in rows]
    else:
        rows += [row] * rng.choice((1, 10, 100, 20_000 if rng.random() < 0.05 else 1000))
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice(",,,;"), lineterminator=rng.choice(("\n", "\r\n"))).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().split("\n")
    place = rng.randrange(len(lines))
    long = "x" * (300_000 if rng.random() < 0.1 else 300)
    signs = ("", " ", "\0", "\x0c", "\u2028", "\ufeff", "a\tb", "\x1b[2J")
    lines[place] = rng.choice((lines[place - 1], long, *signs))
    return "\n".join(lines).encode()


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    own = header.get("__metadata__", {}).get(_HEADER)
    kind = rng.random()
    if own is not None and kind < 0.5:
        header["__metadata__"][_HEADER] = json.dumps(value_changed(json.loads(own), rng))
    elif kind < 0.75:
        header = value_changed(header, rng)
    elif kind < 0.85:
        entry = header[rng.choice(names)]
        entry["dtype"] = rng.choice(_TYPES)
    elif kind < 0.95:
        entry = header[rng.choice(names)]
        shape = entry["shape"]
        entry["shape"] = rng.choice((shape[::-1], [*shape, 1], [1, *shape], [*shape, 0], [10**18, 0], [1] * 20, []))
    else:
        extra = {f"x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(2000)}
        header |= {"a" * 1000: extra["x0"]} if rng.random() < 0.5 else extra
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _parquet(content: bytes, rng: random.Random) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    told = table.schema.metadata
    place = rng.randrange(table.num_columns)
    name, values = table.column_names[place], table.column(place).to_pylist()
    kind = rng.random()
    if kind < 0.15:
        table = table.drop_columns([name])
    elif kind < 0.3:
        new = rng.choice(("x", "condition", ""))
        table = table.rename_columns([new if one == name else one for one in table.column_names])
    elif kind < 0.55:
        table = table.set_column(place, name, _column(values, rng))
    elif kind < 0.65:
        table = table.slice(0, rng.choice((0, 1, table.num_rows - 1)))
    elif kind < 0.75:
        table = pa.concat_tables([table] * rng.choice((2, 100)))
    elif kind < 0.8:
        table = table.append_column(rng.choice((name, "more")), pa.array(values, table.column(place).type))
    elif kind < 0.85 and told:
        changed_key = rng.choice(list(told))
        told = {**told, changed_key: json.dumps(value_changed(json.loads(told[changed_key]), rng))}
    elif kind < 0.87:
        return _bomb()
    else:
        cells = [rng.choice((None, *values)) for _ in values]
        table = table.set_column(place, name, pa.array(cells, table.column(place).type))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(told), buffer)
    return buffer.getvalue()


def _column(values: list[Any], rng: random.Random) -> pa.Array:
    """A column with another type, or with values that the column never has."""
    kinds: tuple[Any, ...] = (
        lambda: pa.nulls(len(values)),
        lambda: pa.array([str(value) for value in values]),
        lambda: pa.array([rng.choice((0.0, -1.0, 1e308, float("nan"), float("inf"))) for _ in values]),
        lambda: pa.array([rng.choice((0, -1, 2**62)) for _ in values]),
        lambda: pa.array([rng.choice(_NAMES) for _ in values]),
        lambda: pa.array([[1, 2] for _ in values]),
        lambda: pa.array([{"a": 1} for _ in values]),
        lambda: pa.array([b"\xff\0" for _ in values]),
        lambda: pa.array([True for _ in values]),
    )
    return rng.choice(kinds)()


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """A small file with a huge number of rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"condition": pa.nulls(150_000_000)}), buffer)
    return buffer.getvalue()
