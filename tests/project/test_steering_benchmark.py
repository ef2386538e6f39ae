"""The steering benchmark compares what it claims; its first-order factor equals the guidance scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import benchmark_script
from plants import tables as planted

import audiolens as al
from audiolens.directions.samples import Samples
from audiolens.interventions import Add
from audiolens.prompts import load


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return benchmark_script("steering")


def sampled(seed: int) -> al.Directions:
    """Planted directions with the samples they are the difference of."""
    directions = planted.directions(seed=seed)
    noise = torch.randn(planted.N_LAYERS, 20, 32, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(20) < 10
    noise -= torch.where(
        labels[:, None], noise[:, labels].mean(1, keepdim=True), noise[:, ~labels].mean(1, keepdim=True)
    )
    values = noise + torch.where(labels[:, None], 0.75, -0.25) * directions.vectors[:, None]
    samples = Samples(values, labels, directions.layers, tuple(map(str, range(20))))
    return al.Directions(
        samples.difference(), directions.layers, directions.residual_norms, directions.meta, None, samples
    )


@pytest.fixture(scope="module")
def todo(benchmark: ModuleType) -> list[Any]:
    read = {"tempo": sampled(0), "timbre": sampled(1)}
    return benchmark.conditions(read, {"tempo": 3, "timbre": 5}, [-1.0, 1.0, -2.0, 2.0], 3.0)


def test_poles_lie_one_length_apart(benchmark: ModuleType) -> None:
    low, high = benchmark.poles_along(sampled(0), 4)
    assert (low, high) == (pytest.approx(-0.25, abs=1e-4), pytest.approx(0.75, abs=1e-4))


def test_every_condition_has_its_own_name_and_what_its_labels_say(todo: list[Any]) -> None:
    assert len({one.name for one in todo}) == len(todo)
    assert todo[0].name == "baseline"
    for one in todo[1:]:
        steps, labels = one.interventions, one.labels
        blocks = sorted(layer for step in steps for layer in step.layers)
        expected = {"one-to-one": 1, "one-to-band": 3, "one-to-all": 8, "all-to-all": 8}[labels["strategy"]]
        assert len(blocks) == expected * (len(steps) if labels["table"] == "pairs" else 1)
        assert {step.branch for step in steps} == {labels["branch"]}
        if labels["table"] == "strategies":
            assert [float(step.strength) for step in steps] == pytest.approx([labels["strength"]] * len(steps))
    cond = {one.labels["strength"] for one in todo if one.labels["branch"] == "cond"}
    assert 1.0 in cond
    assert 0.333333 in cond


def test_freed_pairs_leave_the_first_as_it_is_and_no_part_of_it_in_the_second(todo: list[Any]) -> None:
    pairs = [one for one in todo if one.labels["table"] == "pairs" and len(one.interventions) == 2]
    assert len(pairs) == 3 * 4
    for one in pairs:
        tempo, timbre = one.interventions
        assert isinstance(tempo, Add)
        inner = float(torch.as_tensor(tempo.vector) @ torch.as_tensor(timbre.vector))
        raw = float(sampled(0)[3] @ sampled(1)[5])
        assert inner == pytest.approx(raw if one.labels["combine"] == "sum" else 0.0, abs=1e-3)
        assert (float(tempo.strength), float(timbre.strength)) == (one.labels["strength"], one.labels["other_strength"])
        kept = {
            "sum": (True, True),
            "timbre orthogonal to tempo": (True, False),
            "tempo orthogonal to timbre": (False, True),
        }
        whole = tuple(
            bool(torch.allclose(torch.as_tensor(step.vector), vector, atol=1e-5))
            for step, vector in ((tempo, sampled(0)[3]), (timbre, sampled(1)[5]))
        )
        assert whole == kept[one.labels["combine"]]


@pytest.mark.parametrize("guidance", [2.0, 3.0])
def test_the_first_order_factor_is_guidance_where_both_halves_answer_alike(
    benchmark: ModuleType, checkpoint: Path, guidance: float
) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    with torch.no_grad():
        # Deaf to the text: the two halves are one.
        for block in lens.model.decoder.model.decoder.layers:
            block.encoder_attn.out_proj.weight.zero_()
    codes = torch.randint(0, 32, (2, 4, 10), generator=torch.Generator().manual_seed(0))
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    directions = al.Directions(
        vectors, (0, 1, 2), torch.ones(3), replace(planted.directions().meta, weights="", n_layers=3)
    )
    asked = (lens, directions, 1, "one-to-one", ["fast piano", "calm"], codes, guidance)
    found = benchmark.first_order(*asked)
    assert found["factor"] == pytest.approx(guidance, rel=0.05)
    assert found["cosine"] == pytest.approx(1.0, abs=0.01)
    # The smaller the push, the straighter the answer.
    assert found["bend"] < benchmark.first_order(*asked, strength=0.2)["bend"]


def test_the_page_has_every_table(benchmark: ModuleType, todo: list[Any]) -> None:
    from analysis.sweep import SweepResult

    neutral = load("tempo").development[:3]
    table = planted.heard(todo, lambda labels: float(np.exp(0.3 * labels["strength"])) if labels["strength"] else 1.0,
                          prompts=neutral, seeds=2)  # fmt: skip
    tables = benchmark.tabled(SweepResult(table, ("tempo_ioi", "brightness"), {}, 16_000), n_bootstrap=20)
    assert {len(tables[name]) for name in ("operators", "pairs")} == {2 * 16, 2 * 24}
    tables["first_order"] = pd.DataFrame([{"concept": "tempo", "factor": 2.9}])
    tables["readings"] = pd.DataFrame(
        [{"concept": "tempo", "layer": 3, "residual_norm": 1.0, "position": "mean", "cosine": 1.0},
         {"concept": "tempo", "layer": 4, "residual_norm": 1.0, "position": "last", "cosine": 0.5}]
    )  # fmt: skip
    sets = {"tempo": load("tempo"), "timbre": load("timbre")}
    text = benchmark.page(tables, sets, {"tempo": 3, "timbre": 5}, {"model": "planted"})
    for told in ("all-to-all", "clamp", "ablate", "timbre orthogonal to tempo", "2.9", "Settings: model = planted"):
        assert told in text
    # Only the block that is steered is shown of the readings.
    assert "| last |" not in text
    assert "nan" not in text
    # Every table is one that Markdown can show: as many cells in each row as in its head.
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1
    assert benchmark._effect(0.5, float("nan"), float("nan")) == "+50%"
