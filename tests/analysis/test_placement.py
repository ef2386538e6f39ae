"""Placement finds a planted concept without using any steered sound."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plants
import pytest
import torch
from conftest import write_model
from plants.placing import NEUTRAL, placed, set_of

import audiolens as al
from analysis import placement
from analysis.placement import shifts
from audiolens.errors import InputError
from audiolens.prompts import PromptSet

BLOCKS = 5


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("five"), layers=BLOCKS)


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 3), (3, 0), (4, 2)])
def test_a_planted_head_is_placed_at_its_block(five: Path, layer: int, head: int) -> None:
    plant = plants.head_plant(al.AudioLens.from_pretrained(five), layer, head)
    found = placed(plant)
    assert (found.strategy, found.layer) == ("one-to-one", layer)
    assert found.where == {"strategy": "one-to-one", "layer": layer}
    assert found.chosen.alignment > 0.9
    assert max(map(abs, found.random)) < found.chosen.low
    # Below it there is nothing to steer along.
    assert found.candidates.layer.min() == layer


@pytest.mark.parametrize(("read_at", "written_at"), [(0, 2), (2, 4), (1, 3)])
def test_an_exclusive_or_is_placed_at_the_mlp_that_writes_it(five: Path, read_at: int, written_at: int) -> None:
    plant = plants.xor_plant(al.AudioLens.from_pretrained(five), read_at, written_at)
    found = placed(plant)
    assert (found.strategy, found.layer) == ("one-to-one", written_at)


@pytest.fixture(scope="module")
def plant(five: Path) -> plants.Plant:
    return plants.head_plant(al.AudioLens.from_pretrained(five), 1, 3)


@pytest.fixture(scope="module")
def full(plant: plants.Plant) -> placement.Placement:
    """With everything computed beside, and one kind of evidence of one's own."""
    own = dict(zip(("layer", "value"), (range(1, BLOCKS), (0.1, 0.2, 0.9, 0.3)), strict=True))
    return placed(plant, compute=("probe", "patching", "attribution"), evidence={"mine": pd.DataFrame(own)})


def test_shifts_are_those_of_raw_hooks(plant: plants.Plant) -> None:
    """A naive loop over hooks on the bare model, and the metric written out code by code."""
    lens, sets = plant.lens, set_of(plant)
    codes = torch.randint(0, 32, (2, 4, 9), generator=torch.Generator().manual_seed(3))
    neutral = ["piano", "the song"]
    poles = (list(sets.positive[:2]), list(sets.negative[:2]))
    directions = al.difference_in_means(lens, sets.positive, sets.negative, codes=codes[[0, 0, 0]])
    places = shifts.candidates(directions, ("one-to-one", "one-to-all", "all-to-all"), [1, 2])
    assert [place.name for place in places] == [
        "one-to-one 1", "one-to-one 2", "one-to-all 1", "one-to-all 2", "all-to-all",
    ]  # fmt: skip
    found = shifts.shifts_of(lens, neutral, poles, codes, places, batch_size=16)
    blocks = lens.model.decoder.model.decoder.layers

    def logits(prompts: list[str], added: dict[int, torch.Tensor]) -> torch.Tensor:
        hooks = [
            blocks[at].register_forward_hook(lambda _m, _i, out, v=v: out + v) for at, v in added.items()
        ]  # fmt: skip
        try:
            rows = [[[32] * (k + 1) + row[k].tolist() + [32] * (3 - k) for k in range(4)] for row in codes]
            inputs = lens.tokenizer(prompts, return_tensors="pt", padding=True)
            with torch.no_grad():
                told = lens.model(**inputs, decoder_input_ids=torch.tensor(rows).flatten(0, 1)[:, :-1]).logits
        finally:
            for hook in hooks:
                hook.remove()
        return told.view(2, 4, 12, 32)

    base = logits(neutral, {}).double().softmax(-1)
    words = (logits(poles[0], {}) - logits(poles[1], {})).double()
    step = shifts.STEP
    targets = {0: {1: 1}, 1: {2: 2}, 2: dict.fromkeys(range(BLOCKS), 1), 3: dict.fromkeys(range(BLOCKS), 2)}
    targets[4] = {1: 1, 2: 2}
    for index, where in targets.items():
        size = step / len(where)
        up, down = (logits(neutral, {a: sign * size * directions[v] for a, v in where.items()}) for sign in (1, -1))
        shift = (up - down).double() / (2 * size)
        inner = own = told = 0.0
        for row in range(2):
            for k in range(4):
                for frame in range(9):
                    p, d, w = (values[row, k, frame + k].numpy() for values in (base, shift, words))
                    d, w = d - (p * d).sum(), w - (p * w).sum()
                    inner, own, told = inner + (p * d * w).sum(), own + (p * d * d).sum(), told + (p * w * w).sum()
        assert found.inner[index].sum() == pytest.approx(inner, rel=1e-5)
        assert found.own[index].sum() == pytest.approx(own, rel=1e-5)
        assert found.alignment()[index] == pytest.approx(inner / np.sqrt(own * told), rel=1e-5)
        assert found.gain[index] == pytest.approx(inner / told, rel=1e-5)


def test_where_is_what_steer_takes(full: placement.Placement) -> None:
    steps = al.steer(full.directions, **full.where, strength=full.strength)
    assert [step.layers for step in steps] == [[1]]
    assert full.layers == [1]
    assert full.site == "resid_post"
    assert full.strength == pytest.approx(0.5 / full.chosen.gain)


def test_everything_else_stands_beside(full: placement.Placement) -> None:
    table = full.to_frame()
    assert table.chosen.sum() == 1
    assert {"norm", "probe", "patching", "attribution", "mine"} <= set(table.columns)
    own = table[(table.strategy == "one-to-one") & (table.layer == 3)].iloc[0]
    assert own.mine == 0.9
    # What was planted at block 1 is carried by every block from there on, and read off there.
    carried = table[table.strategy == "one-to-one"].set_index("layer").patching
    assert carried[1:].min() > 0
    assert full.row_steps > 0
    assert "Block 1's" in full.reason
    assert "high" in repr(full)


def test_an_alignment_that_chance_reaches_is_said_to_be_one(full: placement.Placement) -> None:
    own = abs(float(full.chosen.alignment))
    assert "which is no less" in repr(dataclasses.replace(full, random=(0.1, -own)))
    assert "which is no less" not in repr(dataclasses.replace(full, random=(0.5 * own, -0.1 * own)))
    unsure = full.candidates.assign(low=-0.1)
    assert "not distinguishable from chance (its interval covers 0)" in repr(
        dataclasses.replace(full, candidates=unsure, random=())
    )
    against = full.candidates.assign(low=-0.5, high=-0.3)
    assert "chance" not in dataclasses.replace(full, candidates=against, random=()).reason


def test_other_evidence_may_decide(plant: plants.Plant) -> None:
    found = placed(plant, by="mine", evidence={"mine": [0, 0.1, 0.2, 0.9, 0.3]}, strategies=("one-to-all",))
    assert found.name == "one-to-all 3"
    assert np.isnan(found.certainty)
    assert "chosen by mine" in found.reason
    # Where it is far below 0 it speaks against the place.
    worst = placed(plant, by="mine", evidence={"mine": [0, -5.0, 0.2, 0.1, 0.3]}, strategies=("one-to-all",))
    assert worst.name == "one-to-all 4"


def test_both_figures_are_drawn(full: placement.Placement, tmp_path: Path) -> None:
    full.plot().savefig(tmp_path / "place.png")
    names = [trace.name for trace in full.figure().data]
    assert {"one-to-one", "one-to-all", "placed here", "patching"} <= set(names)


def test_all_to_all_changes_the_blocks_that_have_a_direction(plant: plants.Plant) -> None:
    found = placed(plant, strategies=("all-to-all",))
    assert found.layers == [1, 2, 3, 4]
    assert [step.layers for step in al.steer(found.directions, **found.where)] == [[layer] for layer in found.layers]
    assert np.isnan(found.certainty)
    assert "Every block's own" in found.reason


def test_intervals_are_over_prompts_and_not_over_clips(plant: plants.Plant) -> None:
    lens, sets = plant.lens, set_of(plant)
    codes = torch.randint(0, 32, (3, 4, 9), generator=torch.Generator().manual_seed(3))
    directions = al.difference_in_means(lens, sets.positive, sets.negative, codes=codes)
    options: dict[str, Any] = {"codes": codes, "compute": (), "n_random": 0, "progress": False}
    one = placement.place(lens, sets, directions, prompts=["piano"] * 3, **options)
    assert one.n_prompts == 1
    assert one.candidates.low.isna().all()
    assert "nan" not in one.reason
    assert np.isfinite(placement.place(lens, sets, directions, prompts=NEUTRAL[:3], **options).candidates.low).all()


def test_what_cannot_be_computed_is_left_out_and_named(plant: plants.Plant) -> None:
    lens, sets = plant.lens, set_of(plant)
    codes = torch.randint(0, 32, (1, 4, 9), generator=torch.Generator().manual_seed(3))
    directions = al.difference_in_means(lens, sets.positive, sets.negative, codes=codes.repeat(3, 1, 1))
    found = placement.place(
        lens, sets, directions, prompts=["piano"], codes=codes, compute=("probe",), n_random=0, progress=False
    )
    assert "one neutral prompt is too few" in found.left_out["probe"]
    assert "Without probe" in repr(found)


def test_directions_of_another_model_are_refused(plant: plants.Plant, checkpoint: Path) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint)
    theirs = al.difference_in_means(lens, ["fast song"], ["slow song"], seconds=0.4, progress=False)
    with pytest.raises(InputError, match="read from"):
        placement.place(plant.lens, set_of(plant), theirs, prompts=NEUTRAL[:2], progress=False)


def test_bundled_sets_are_in_the_words_that_the_model_reads(
    monkeypatch: pytest.MonkeyPatch, plant: plants.Plant
) -> None:
    asked = []
    monkeypatch.setattr(
        "audiolens.prompts.load", lambda concept, **more: asked.append((concept, more["lens"])) or set_of(plant)
    )
    placement.place(plant.lens, "tempo", prompts=NEUTRAL[:2], seconds=0.4, compute=(), n_random=0, progress=False)
    assert asked == [("tempo", plant.lens)]


def test_in_half_precision_it_places_alike(plant: plants.Plant, five: Path) -> None:
    half = plants.head_plant(al.AudioLens.from_pretrained(five), 1, 3)
    half.lens.model.to(torch.bfloat16)
    found = placed(half)
    assert found.candidates.alignment.max() > 0.9
    assert found.chosen.layer == 1


def test_the_same_call_places_alike(plant: plants.Plant) -> None:
    one, other = placed(plant), placed(plant)
    assert one.candidates.equals(other.candidates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": ("one-to-band",)}, "is not a candidate"),
        ({"strategies": ()}, "no strategies"),
        ({"strategies": "one-to-one"}, "expected a list"),
        ({"compute": "probe"}, "expected a list"),
        ({"n_random": -1}, "n_random=-1"),
        ({"n_bootstrap": -1}, "n_bootstrap=-1"),
        ({"layers": 7}, "7"),
        ({"by": "loudest"}, "by='loudest'"),
        ({"by": "mine", "evidence": {"mine": pd.DataFrame({"layer": [0], "value": [1.0]})}}, "no value"),
        ({"by": "norm", "strategies": ("all-to-all",)}, "selects one block"),
        ({"compute": ("probes",)}, "compute='probes'"),
        ({"prompts": "piano"}, "list of at least one neutral prompt"),
        ({"prompts": ["piano"]}, "rows of codes"),
    ],
)
def test_what_cannot_be_placed_is_refused(plant: plants.Plant, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        placed(plant, **options)


def test_poles_that_do_not_differ_are_refused(plant: plants.Plant) -> None:
    lens, sets = plant.lens, set_of(plant)
    codes = torch.zeros(3, 4, 5, dtype=torch.long)
    directions = al.difference_in_means(lens, sets.positive, sets.negative, codes=codes)
    nothing = dataclasses.replace(directions, vectors=torch.zeros_like(directions.vectors))
    with pytest.raises(InputError, match="length 0"):
        placement.place(lens, sets, nothing, codes=codes, prompts=NEUTRAL[:3], progress=False)


def test_a_model_whose_text_is_a_prefix_is_placed_too(melody_lens: al.AudioLens) -> None:
    sets = PromptSet(
        "own", ("fast", "slow"), ("fast piano", "fast song"), ("slow piano", "slow song"), ("piano", "song")
    )
    found = placement.place(
        melody_lens, sets, prompts=["piano", "song"], seconds=0.5, n_random=0, n_bootstrap=20, progress=False,
        compute=("patching",),
    )  # fmt: skip
    assert np.isfinite(found.candidates.alignment).all()
    uneven = PromptSet("own", ("fast", "slow"), ("fast loud piano", "fast song"), sets.negative, ("piano", "song"))
    with pytest.raises(InputError, match="4 and 3 tokens"):
        placement.place(melody_lens, uneven, prompts=["piano", "song"], progress=False)


def test_prompts_go_round_batches_without_a_trace(plant: plants.Plant) -> None:
    whole, parts = placed(plant, batch_size=16), placed(plant, batch_size=2)
    np.testing.assert_allclose(whole.candidates.alignment, parts.candidates.alignment, atol=1e-4)
    assert whole.row_steps == parts.row_steps
