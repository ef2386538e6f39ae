"""The evidence page matches its tables, and updates only its own part of a document."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import benchmark_script


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    return benchmark_script("evidence")


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    ability = {
        "concept": "tempo", "measure": "tempo_ioi", "low_median": 71.0, "high_median": 158.0, "auc": 0.961,
        "auc_low": 0.93, "auc_high": 0.98, "ceiling": 0.99, "difference": -0.029,
    }  # fmt: skip
    instrument = ability | {
        "concept": "instrument", "measure": "classifier", "auc_low": float("nan"), "auc_high": float("nan"),
    }  # fmt: skip
    neutral = {
        "measure": "tempo", "p10": 70.0, "median": 110.0, "p90": 170.0, "share_above_reference": 0.48,
        "relative_spread": 0.9,
    }  # fmt: skip
    steering = {
        "concept": "tempo", "pole": "slow", "strength": -1.0, "effect": -0.4, "low": -0.5, "high": -0.3,
        "failed": 0.03, "median": 66.0, "p_random": 0.05, "n_random": 19, "p_shuffled": 0.091, "n_shuffled": 10,
        "p_corrected": 0.041, "n_controls": 32, "rivals": "", "n_other": 3,
        "prompted": -0.36, "opposed": -0.1, "spearman": 1.0,
    }  # fmt: skip
    response = {
        "concept": "tempo", "kind": "steered", "strategy": "one-to-one", "layer": 4.0, "strength": -1.0,
        "pole": None, "median": 66.0, "effect": -0.4, "low": -0.5, "high": -0.3, "failed": 0.03,
    }  # fmt: skip
    cross = {
        "concept": "tempo", "own": "tempo_ioi", "measure": "tempo_ioi", "strength": 0.5, "direction": "whole",
        "effect": 0.3, "low": 0.2, "high": 0.4, "failed": 0.0,
    }  # fmt: skip
    freed = cross | {"direction": "freed", "effect": 0.25}
    louder = [one | {"measure": "loudness", "effect": 1.5, "low": 1.0, "high": 2.0} for one in (cross, freed)]
    rows: dict[str, list[dict[str, Any]]] = {
        "abilities": [ability, instrument], "neutral": [neutral], "steering": [steering], "response": [response],
        "cross": [cross, freed, *louder],
    }  # fmt: skip
    return {name: pd.DataFrame(each) for name, each in rows.items()}


def test_the_page_says_what_the_tables_hold(evidence: ModuleType, tables: dict[str, pd.DataFrame]) -> None:
    text = evidence.page(tables, [SimpleNamespace(finding="tempo turns.", qualification="Nothing failed.")])
    assert "| tempo | tempo_ioi | 71 | 158 | 0.961 [0.930, 0.980] | 0.990 | -0.029 |" in text
    assert "| instrument | classifier | 71 | 158 | 0.961  | 0.990 | -0.029 |" in text
    ranks = "0.050 (19) | 0.091 (10) | 0.041 (32) | none of 3"
    assert f"| tempo | slow | -1 | -40.0% [-50%, -30%] | 3% | 66 | {ranks} | -36.0% |" in text
    assert "| tempo | steered | one-to-one 4, -1 | 66 | -40.0% [-50%, -30%] | 3% |" in text
    assert "- tempo turns. Nothing failed." in text
    assert "| tempo | +0.5 | tempo_ioi | +30.0% [+20%, +40%], 0% failed | +25.0% [+20%, +40%], 0% failed |" in text
    assert "| tempo | +0.5 | loudness | +1.5 dB [+1.0, +2.0] | +1.5 dB [+1.0, +2.0] |" in text


def test_every_table_has_as_many_cells_as_its_head(evidence: ModuleType, tables: dict[str, pd.DataFrame]) -> None:
    lines = evidence.page(tables, []).splitlines()
    for at, line in enumerate(lines):
        if line.startswith("|---"):
            below = iter(lines[at + 1 :])
            while (row := next(below)).startswith("|"):
                assert row.count("|") == line.count("|") == lines[at - 1].count("|")
