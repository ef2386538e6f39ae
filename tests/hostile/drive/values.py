"""Wrong arguments, each created anew for every call."""

import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

HERE = __file__


def nested(depth: int = 5_000) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def endless() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    return made


def some() -> Iterator[int]:
    yield from (0, 1)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def own(*_: Any, **__: Any) -> Any:
    """A user function that fails: its error should reach the user."""
    raise ZeroDivisionError("the caller's own")


class Stranger:
    """An object that no function expects."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


NUMBERS: dict[str, Callable[[], Any]] = {
    "-1": lambda: -1,
    "0": lambda: 0,
    "2": lambda: 2,
    "0.5": lambda: 0.5,
    "10**18": lambda: 10**18,
    "10**30": lambda: 10**30,
    "-10**30": lambda: -(10**30),
    "10**5000": lambda: 10**5000,
    "1e300": lambda: 1e300,
    "-1e300": lambda: -1e300,
    "1e-300": lambda: 1e-300,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "np.int64(3)": lambda: np.int64(3),
    "np.float32(0.5)": lambda: np.float32(0.5),
    "np.bool_": lambda: np.bool_(True),
    "Fraction": lambda: Fraction(1, 3),
    "Decimal": lambda: Decimal("0.5"),
    "complex": lambda: 1 + 2j,
    "tensor(3)": lambda: torch.tensor(3),
}
ARRAYS: dict[str, Callable[[], Any]] = {
    "array 2 3": lambda: np.zeros((2, 3)),
    "array 0": lambda: np.zeros(0),
    "array 3 0 2": lambda: np.zeros((3, 0, 2)),
    "array nan": lambda: np.full(5, np.nan),
    "array object": lambda: np.array([None, "a", 1], dtype=object),
    "array text": lambda: np.array(["a", "b"]),
    "array bool": lambda: np.array([True, False]),
    "array complex": lambda: np.ones(3) * 1j,
    "array records": lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "array dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "array masked": lambda: np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    "array vast": lambda: np.broadcast_to(np.float64(0), (10**6, 10**6)),
    "tensor 2 3": lambda: torch.zeros(2, 3),
    "tensor 0": lambda: torch.zeros(0),
    "tensor 48": lambda: torch.ones(48),
    "tensor long": lambda: torch.zeros(2, 4, 5, dtype=torch.long),
    "tensor meta": lambda: torch.zeros(2, 48, device="meta"),
    "tensor sparse": lambda: torch.eye(3).to_sparse(),
    "tensor complex": lambda: torch.ones(3, dtype=torch.complex64),
    "tensor half": lambda: torch.ones(48, dtype=torch.float16),
    "tensor grad": lambda: torch.ones(48, requires_grad=True) * 2,
    "tensor bool": lambda: torch.tensor([True, False]),
    "tensor nan": lambda: torch.full((48,), float("nan")),
    "tensor huge": lambda: torch.full((48,), 1e38),
    "tensor vast": lambda: torch.zeros(1).expand(10**6, 10**6),
    "tensor quantized": lambda: quantized(),
}
TEXT: dict[str, Callable[[], Any]] = {
    "''": lambda: "",
    "' '": lambda: " ",
    "unknown": lambda: "no such thing",
    "null byte": lambda: "a\0b",
    "lone surrogate": lambda: "\ud800",
    "two lines": lambda: "one\ntwo",
    "long text": lambda: "x" * 20_000,
    "many words": lambda: "fast " * 5_000,
    "bytes": lambda: b"fast",
    "bytearray": lambda: bytearray(b"fast"),
    "cuda:99": lambda: "cuda:99",
    "meta": lambda: "meta",
    "../..": lambda: "../..",
}
LISTS: dict[str, Callable[[], Any]] = {
    "[]": lambda: [],
    "()": lambda: (),
    "[None]": lambda: [None],
    "[[]]": lambda: [[]],
    "[0, 0]": lambda: [0, 0],
    "[1, 'a', None]": lambda: [1, "a", None],
    "['a']": lambda: ["a"],
    "['a', 'b']": lambda: ["a", "b"],
    "[nan]": lambda: [float("nan")],
    "[10**30]": lambda: [10**30],
    "(0, 1e300)": lambda: (0, 1e300),
    "(nan, inf)": lambda: (float("nan"), float("inf")),
    "(1, 0)": lambda: (1, 0),
    "ragged": lambda: [[1, 2], [3]],
    "nested": nested,
    "endless": endless,
    "generator": some,
    "count()": count,
    "range(10**18)": lambda: range(10**18),
    "range(10**30)": lambda: range(10**30),
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({"a"}),
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "{None: None}": lambda: {None: None},
    "{1: [2]}": lambda: {1: [2]},
    "slice": lambda: slice(0, 10),
}
OBJECTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "...": lambda: ...,
    "object": Stranger,
    "class": lambda: Stranger,
    "exception": lambda: KeyError("a"),
    "function": lambda: own,
    "constant": lambda: lambda *_, **__: None,
    "module": lambda: np,
    "dtype": lambda: torch.float16,
    "device": lambda: torch.device("meta"),
    "frame": lambda: pd.DataFrame({"a": [1, 2], "prompt": ["x", "y"]}),
    "empty frame": pd.DataFrame,
    "series": lambda: pd.Series([1.0, None]),
    "missing path": lambda: Path("no/such/place"),
    "folder": lambda: Path("/"),
    "device file": lambda: Path("/dev/null"),
    "list of objects": lambda: [Stranger(), Stranger()],
}
POOL = {**NUMBERS, **ARRAYS, **TEXT, **LISTS, **OBJECTS}
"""Values that need no model; `World.strangers` adds models, caches, directions and results of other models."""
