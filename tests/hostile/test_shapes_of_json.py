"""The shape of JSON is checked when a file is read: errors name what differs, and well-formed files pass."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import damage_folders as damage
import pytest

from analysis import sweep
from analysis.store.parquet import read
from audiolens.errors import MOST_CHARACTERS, AudioLensError, DamagedError, InputError
from audiolens.files.integrity import SEAL, sealed_json
from audiolens.files.json_shapes import refuse_other

SHAPE = {"name": str, "rows": int, "rate?": (float, None), "sizes": [int], "versions": {str: str}, "pair?": [int, int]}
WHOLE: dict[str, Any] = {"name": "a", "rows": 2, "rate": 1, "sizes": [1], "versions": {"torch": "2"}, "further": []}


def test_what_has_the_shape_passes_with_keys_of_its_own() -> None:
    refuse_other("f", WHOLE, SHAPE)
    refuse_other("f", {**WHOLE, "rate": None}, SHAPE)
    refuse_other("f", {key: value for key, value in WHOLE.items() if key != "rate"}, SHAPE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 3}, "name is 3, expected text"),
        ({"rows": True}, "rows is True, expected a whole number"),
        ({"rows": 2**63}, "expected a whole number"),
        ({"rate": "x"}, "rate is 'x', expected a number"),
        ({"rate": 10**400}, "expected a number"),
        ({"sizes": [1, "x"]}, r"sizes\[1\] is 'x'"),
        ({"pair": [1]}, "pair has 1 items, expected 2"),
        ({"sizes": {}}, "sizes is dict, expected a list"),
        ({"versions": {"torch": 2}}, r"versions\.torch is 2, expected text"),
        ({"versions": None}, "versions is None, expected an object"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=f"^f cannot be used: .*{told}"):
        refuse_other("f", {**WHOLE, **change}, SHAPE)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match="it lacks 'rows'"):
        refuse_other("f", {key: value for key, value in WHOLE.items() if key != "rows"}, SHAPE)


def test_every_key_of_a_plan_may_be_missing_or_wrong(lens: Any, tmp_path: Path) -> None:
    place = damage.sweeps(lens, tmp_path)[0].start
    plan = json.loads((place / "plan.json").read_text())
    plan.pop(SEAL)
    for key in plan:
        for changed in ({name: plan[name] for name in plan if name != key}, {**plan, key: 1.5}, {**plan, key: [None]}):
            (place / "plan.json").write_bytes(sealed_json(changed))
            # Any other exception fails the test.
            with suppress(AudioLensError):
                sweep.load_folder(place)


def test_a_table_of_endless_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": pa.nulls(20_000_000)}), buffer)
    assert len(buffer.getvalue()) < 2**20
    with pytest.raises(InputError, match="20,000,000 rows of 1 columns"):
        read(tmp_path / "t.parquet", buffer.getvalue(), {})


def test_a_message_is_one_line_of_bounded_length() -> None:
    text = str(DamagedError("first\nsecond " + "x" * 10**6))
    assert "\n" not in text
    assert text.startswith("first second xxx")
    assert len(text) <= MOST_CHARACTERS
