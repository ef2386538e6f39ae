"""Downloads in a page hold the exact bytes of their tables, compressed if long, within the size limit."""

import base64
import gzip
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from analysis.report import downloads as held
from analysis.report import live, page
from analysis.report.downloads import downloads


def _table(rows: int, seed: int = 0) -> pd.DataFrame:
    numbers = np.random.default_rng(seed).normal(size=(rows, 3))
    return pd.DataFrame(numbers, columns=["a", "b", "c"]).assign(prompt='a "calm" tune, für Elise')


def _content(link: str) -> bytes:
    return base64.b64decode(link.partition("base64,")[2])


def test_a_short_table_is_its_link() -> None:
    table = _table(10)
    found = downloads({"few": table}, {"few": "tables/few.csv"})["few"]
    assert (found.file, found.saved, found.rows) == ("few.csv", "few.csv", 10)
    assert found.link.startswith("data:text/csv")
    assert _content(found.link) == table.to_csv(index=False).encode()


def test_a_long_table_is_in_the_page_too_packed() -> None:
    table = _table(9000)
    found = downloads({"clips": table}, {"clips": "clips.csv"})["clips"]
    assert found.packed
    assert found.link.startswith("data:application/gzip")
    assert (found.file, found.saved) == ("clips.csv", "clips.csv.gz")
    unpacked = gzip.decompress(_content(found.link))
    assert unpacked == table.to_csv(index=False).encode()
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(unpacked)), table)


def test_the_same_table_is_the_same_link_at_any_time() -> None:
    one, other = (downloads({"clips": _table(9000)}, {"clips": "clips.csv"})["clips"].link for _ in range(2))
    assert one == other


def test_only_what_no_mail_would_take_lies_beside_the_page_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MOST_BYTES", 150_000)
    tables = {"longest": _table(4000), "long": _table(2000, 1), "few": _table(10)}
    found = downloads(tables, {name: f"tables/{name}.csv" for name in tables})
    assert list(found) == list(tables)
    assert found["longest"].external
    assert found["longest"].link == "tables/longest.csv"
    assert found["long"].packed
    assert not found["long"].external
    assert found["few"].link.startswith("data:text/csv")
    assert len(found["long"].link) <= held.MOST_BYTES


def test_library_sounds_and_tables_at_their_longest_leave_a_megabyte_for_figures() -> None:
    script, packed = live.library([go.Figure(go.Heatmap(z=[[1]]))])
    assert len(script) < 1.6e6
    assert len(packed) + page.SOUND_BYTES + held.MOST_BYTES <= 4e6


def test_the_library_is_that_of_the_installed_plotly_and_draws_what_it_is_given() -> None:
    small, _ = live.library([go.Figure(go.Heatmap(z=[[1]])), go.Figure(go.Scatter(y=[1]))])
    whole, _ = live.library([go.Figure(go.Scatter3d(z=[1]))])
    assert whole == get_plotlyjs()
    version = re.search(r"v(\d+\.\d+)", whole[:200])
    assert version is not None
    assert f"plotly.js (cartesian - minified) v{version[1]}" in small[:200]
    assert "MIT" in (Path(live.__file__).with_name("plotly-LICENSE")).read_text()
