"""`steer` adds the right vector at the right block in the right unit; test_raw_hooks.py tests its effect."""

import math
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch

import audiolens as al
from analysis.placement.shifts import Candidate
from analysis.study.scan import Choice
from analysis.sweep.tradeoff import LayerMap
from audiolens.directions import schedules, strategies
from audiolens.errors import InputError, SiteError
from audiolens.interventions import Ablate, Add, Clamp
from audiolens.model.provenance import Provenance

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS = 0.6


@pytest.fixture(scope="module")
def directions() -> al.Directions:
    generator = torch.Generator().manual_seed(0)
    return al.Directions(
        vectors=torch.randn(3, 48, generator=generator),
        layers=(0, 1, 2),
        residual_norms=torch.tensor([2.0, 4.0, 8.0]),
        meta=Provenance(model="tiny", weights="", n_layers=3, label="tempo"),
    )


def placed(interventions: list[Any]) -> dict[int, torch.Tensor]:
    """Layer -> what strength 1 adds there."""
    found: dict[int, torch.Tensor] = {}
    for one in interventions:
        for layer in one.layers:
            assert layer not in found, "a layer is steered twice"
            found[layer] = one.vector
    return found


STRATEGIES = {
    "one-to-one": ({"layer": 1}, {1: 1}),
    "one-to-all": ({"layer": 1}, {0: 1, 1: 1, 2: 1}),
    "one-to-band": ({"layer": 0, "band": (1, 2)}, {1: 0, 2: 0}),
    "all-to-all": ({}, {0: 0, 1: 1, 2: 2}),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_puts_the_right_vector_at_the_right_block(directions: al.Directions, strategy: Any) -> None:
    options, expected = STRATEGIES[strategy]
    found = placed(al.steer(directions, strategy, **options))
    assert set(found) == set(expected)
    for target, source in expected.items():
        assert torch.equal(found[target], directions[source])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_units_scale_by_the_vector_and_by_the_block_it_goes_to(directions: al.Directions, strategy: Any) -> None:
    options, expected = STRATEGIES[strategy]
    unit = placed(al.steer(directions, strategy, unit="unit", **options))
    residual = placed(al.steer(directions, strategy, unit="residual", **options))
    for target, source in expected.items():
        torch.testing.assert_close(unit[target], directions.unit()[source])
        torch.testing.assert_close(residual[target], directions.unit()[source] * directions.residual_norm(target))


def test_bands_and_lists_of_layers_select_the_same(directions: al.Directions) -> None:
    by_band = placed(al.steer(directions, "one-to-band", layer=0, band=(1, 2)))
    by_list = placed(al.steer(directions, "one-to-band", layer=0, layers=[2, 1]))
    assert set(by_band) == set(by_list) == {1, 2}
    assert set(placed(al.steer(directions, "all-to-all", layers=[0, 2]))) == {0, 2}


def test_a_single_layer_needs_no_naming(directions: al.Directions) -> None:
    assert set(placed(al.steer(directions.at(2), "one-to-one"))) == {2}
    assert set(placed(al.steer(directions.at(2), "one-to-all"))) == {0, 1, 2}


def test_a_layer_alone_steers_at_that_block_alone(directions: al.Directions) -> None:
    (one,) = al.steer(directions, layer=1)
    assert one.layers == [1]
    assert set(placed(al.steer(directions.at(2)))) == {2}


def test_place_time_and_strength_are_handed_on(directions: al.Directions) -> None:
    schedule = [1.0] * 15
    (one,) = al.steer(
        directions, layer=1, strength=[-1.0, 2.0], branch="cond", seconds=(0.1, 0.4), rows=[0, 2], schedule=schedule,
        preserve_norm=True,
    )  # fmt: skip
    assert isinstance(one, Add)
    assert (one.site, one.branch, one.seconds, one.rows, one.preserve_norm) == (
        "resid_post",
        "cond",
        (0.1, 0.4),
        [0, 2],
        True,
    )
    assert torch.as_tensor(one.strength).tolist() == [-1.0, 2.0]
    assert torch.as_tensor(one.schedule).tolist() == schedule


def test_operators_ablate_and_clamp(directions: al.Directions) -> None:
    (ablate,) = al.steer(directions, layer=1, operator="ablate", strength=0.5)
    assert isinstance(ablate, Ablate)
    assert float(torch.as_tensor(ablate.strength)) == 0.5
    (clamp,) = al.steer(directions, layer=1, operator="clamp", strength=[0.0, 2.0])
    assert isinstance(clamp, Clamp)
    assert clamp.value.tolist() == [0.0, 2.0]
    assert float(torch.as_tensor(clamp.strength)) == 1.0
    assert torch.equal(clamp.direction, directions[1])


def test_a_schedule_multiplies_the_strength_at_every_step(lens: Any, directions: al.Directions) -> None:
    codes = torch.randint(0, 32, (3, 4, 12), generator=torch.Generator().manual_seed(0))
    fade = lambda seconds: math.cos(seconds)  # noqa: E731
    steered = al.steer(directions, "one-to-one", layer=2, strength=2.0, schedule=fade)
    _, bare = lens.run_with_cache(PROMPTS, codes, layers=[2])
    _, changed = lens.run_with_cache(PROMPTS, codes, layers=[2], interventions=steered)
    factors = torch.tensor([fade(step / 25) for step in range(15)])
    expected = bare["resid_post", 2] + 2.0 * factors[:, None] * directions[2]
    torch.testing.assert_close(changed["resid_post", 2], expected, rtol=1e-5, atol=1e-5)


def test_two_concepts_add_up(lens: Any, directions: al.Directions) -> None:
    codes = torch.randint(0, 32, (3, 4, 12), generator=torch.Generator().manual_seed(0))
    other = directions.random_like(1)
    apart = al.steer(directions, layer=1) + al.steer(other, layer=1)
    together = al.steer(directions + other, layer=1)
    torch.testing.assert_close(
        lens.run_with_interventions(PROMPTS, codes, apart),
        lens.run_with_interventions(PROMPTS, codes, together),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_concepts_are_the_lists_of_each(directions: al.Directions, strategy: Any) -> None:
    options, expected = STRATEGIES[strategy]
    other = directions.random_like(1)
    found = al.steer([directions, -0.5 * other], strategy, strength=2.0, **options)
    half = len(found) // 2
    for part, vectors in ((found[:half], directions.vectors), (found[half:], -0.5 * other.vectors)):
        for target, source in expected.items():
            torch.testing.assert_close(placed(part)[target], vectors[source])
    assert all(float(torch.as_tensor(one.strength)) == 2.0 for one in found)


@pytest.mark.parametrize("unit", ["raw", "unit", "residual"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_orthogonalised_concepts_keep_the_first_and_free_the_later_ones(
    directions: al.Directions, strategy: Any, unit: Any
) -> None:
    options, expected = STRATEGIES[strategy]
    others = [directions + directions.random_like(1), directions.random_like(2) - directions]
    found = al.steer([directions, *others], strategy, unit=unit, combine="orthogonalised", **options)
    third = len(found) // 3
    parts = [placed(found[i * third : (i + 1) * third]) for i in range(3)]
    assert len(al.steer(directions, strategy, unit=unit, **options)) == third
    for target, source in expected.items():
        # Gram-Schmidt by hand, on the vectors of the block that is read.
        raw = [one[source].double() for one in (directions, *others)]
        basis: list[torch.Tensor] = []
        for place, vector in enumerate(raw):
            rest = vector - sum(((vector @ axis) * axis for axis in basis), torch.zeros(48).double())
            basis.append(rest / rest.norm())
            length = {"raw": rest.norm(), "unit": 1.0, "residual": directions.residual_norm(target)}[unit]
            expected_vector = (basis[-1] * length).float()
            torch.testing.assert_close(parts[place][target], expected_vector, rtol=1e-4, atol=1e-5)


def test_each_concept_may_come_from_a_block_of_its_own(directions: al.Directions) -> None:
    other = directions.random_like(1)
    first, second = al.steer([directions, other], "one-to-all", layer=[0, 2], combine="orthogonalised")
    assert torch.equal(placed([first])[1], directions[0])
    freed = placed([second])[1]
    assert abs(float(freed @ directions[0])) < 1e-4
    torch.testing.assert_close(freed @ other[2], freed @ freed, rtol=1e-4, atol=1e-4)


def test_ablations_of_orthogonalised_concepts_leave_nothing_of_either(lens: Any, directions: al.Directions) -> None:
    codes = torch.randint(0, 32, (3, 4, 12), generator=torch.Generator().manual_seed(0))
    other = directions + directions.random_like(1)
    steps = al.steer([directions, other], "one-to-one", layer=1, operator="ablate", combine="orthogonalised")
    _, cache = lens.run_with_cache(PROMPTS, codes, layers=[1], interventions=steps)
    for one in (directions, other):
        assert float((cache["resid_post", 1] @ one.unit()[1]).abs().max()) < 1e-4


def test_concepts_that_do_not_go_together_are_refused(directions: al.Directions) -> None:
    with pytest.raises(InputError, match="nothing is left of '2 \\* \\(tempo\\)' at layer 1"):
        al.steer([directions, 2.0 * directions], layer=1, combine="orthogonalised")
    with pytest.raises(InputError, match="2 concepts: give one layer for all, or one for each"):
        al.steer([directions, -directions], layer=[0, 1, 2])
    with pytest.raises(InputError, match="no directions: give at least one"):
        al.steer([], layer=1)
    with pytest.raises(InputError, match="Expected one of: sum, orthogonalised"):
        al.steer([directions, -directions], layer=1, combine="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expected Directions, or a list of them"):
        al.steer([directions, "timbre"], layer=1)  # pyright: ignore[reportArgumentType]
    elsewhere = al.Directions(
        directions.vectors,
        directions.layers,
        directions.residual_norms,
        Provenance(model="other", weights="other", n_layers=3),
    )
    with pytest.raises(InputError, match="different weights cannot be steered together"):
        al.steer([directions, elsewhere], layer=1)


def test_a_row_of_strength_zero_is_left_to_the_bit(lens: Any, directions: al.Directions) -> None:
    bare = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3])
    steered = lens.generate(
        PROMPTS, SECONDS, seeds=[1, 2, 3], interventions=al.steer(directions, layer=1, strength=[0.0, 9.0, 0.0])
    )
    assert torch.equal(bare.codes[[0, 2]], steered.codes[[0, 2]])
    assert not torch.equal(bare.codes[1], steered.codes[1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "one-to-al"}, InputError, "Did you mean 'one-to-all'"),
        ({"unit": "decibels", "layer": 1}, InputError, "Expected one of: raw, unit, residual"),
        ({"operator": "multiply", "layer": 1}, InputError, "Expected one of: add, ablate, clamp"),
        ({}, SiteError, "needs layer=: choose one of layers 0, 1, 2"),
        ({"layer": 3}, SiteError, "layer 3 does not exist: this model has layers 0 to 2"),
        ({"layer": "ten"}, TypeError, "expected a layer number"),
        ({"layer": 1, "strength": float("nan")}, InputError, "strength contains NaN"),
        ({"layer": 1, "strength": [1.0, math.inf]}, InputError, "strength contains NaN or infinite"),
        ({"layer": 1, "strength": "much"}, TypeError, "these directions are not calibrated"),
        ({"layer": 1, "branch": "left"}, InputError, "expected 'cond', 'null' or 'both'"),
        ({"layer": 1, "band": (0, 1)}, InputError, "takes no band="),
        ({"layer": 1, "strategy": "all-to-all"}, InputError, "takes no layer="),
        ({"layer": 1, "strategy": "one-to-band"}, InputError, r"needs band=\(first, last\)"),
        ({"layer": 1, "strategy": "one-to-band", "band": (2, 1)}, InputError, "is empty"),
        ({"layer": 1, "strategy": "one-to-band", "band": (1, 5)}, SiteError, "layer 5 does not exist"),
        ({"layer": 1, "strategy": "one-to-band", "band": 2}, TypeError, "a pair of layers"),
        ({"strategy": "all-to-all", "layers": [4]}, SiteError, "layer 4 does not exist"),
        ({"layer": 1, "seconds": (2.0, 1.0)}, InputError, "0 <= from < to"),
    ],
)
def test_bad_input_names_what_there_is(
    directions: al.Directions, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        al.steer(directions, **options)


def test_what_is_not_there_to_steer_with_is_refused(lens: Any, directions: al.Directions) -> None:
    with pytest.raises(SiteError, match="no direction at layer 1: these directions have layers 0, 2"):
        al.steer(directions.at([0, 2]), layer=1)
    with pytest.raises(SiteError, match="no direction at layer 1"):
        al.steer(directions.at([0, 2]), "one-to-all", layer=0, unit="residual")
    with pytest.raises(InputError, match="is zero: there is nothing to steer along"):
        al.steer(0.0 * directions, layer=0)
    with pytest.raises(TypeError, match="for a bare vector, use Add"):
        al.steer(torch.zeros(48), layer=0)  # pyright: ignore[reportArgumentType]
    wide = al.Directions(torch.ones(3, 64), (0, 1, 2), torch.ones(3), directions.meta)
    with pytest.raises(InputError, match=r"vector has shape \(64,\), expected the last axes of \(d_model=48\)"):
        lens.generate(PROMPTS, SECONDS, interventions=al.steer(wide, layer=0))
    with pytest.raises(InputError, match="2 values of strength for 3 rows"):
        lens.generate(PROMPTS, SECONDS, interventions=al.steer(directions, layer=0, strength=[1.0, 2.0]))


def test_schedules_start_stop_and_bend_where_they_say() -> None:
    line, ease = schedules.linear(1.0, 3.0, 0.0, 2.0), schedules.cosine(1.0, 3.0, 0.0, 2.0)
    for ramp in (line, ease):
        assert [ramp(seconds) for seconds in (0.0, 1.0, 3.0, 9.0)] == pytest.approx([0.0, 0.0, 2.0, 2.0])
        assert ramp(2.0) == pytest.approx(1.0)
    assert line(1.5) == pytest.approx(0.5)
    assert ease(1.5) < line(1.5)
    fade = schedules.exponential(0.5)
    assert [fade(seconds) for seconds in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.25])
    assert schedules.exponential(0.5, start=0.0, stop=1.0)(0.5) == pytest.approx(0.5)
    for schedule, times in (
        (schedules.linear, (2.0, 1.0)),
        (schedules.cosine, (0.0, math.nan)),
        (schedules.exponential, (0.0,)),
    ):
        with pytest.raises(InputError, match="expected"):
            schedule(*times)


def test_a_ramp_reaches_the_residual_stream(lens: Any, directions: al.Directions) -> None:
    codes = torch.zeros(3, 4, 12, dtype=torch.long)
    steered = al.steer(directions, "one-to-one", layer=2, schedule=schedules.linear(0.2, 0.4))
    _, bare = lens.run_with_cache(PROMPTS, codes, layers=[2])
    _, changed = lens.run_with_cache(PROMPTS, codes, layers=[2], interventions=steered)
    moved = (changed["resid_post", 2] - bare["resid_post", 2])[0] @ directions[2] / directions[2].norm() ** 2
    expected = torch.tensor([min(max((step / 25 - 0.2) / 0.2, 0.0), 1.0) for step in range(15)])
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


def test_the_table_of_strategies_is_complete_and_names_the_blocks_that_change(directions: al.Directions) -> None:
    assert list(strategies.STRATEGIES) == list(get_args(strategies.Strategy)) == [*STRATEGIES, "heads"]
    assert not strategies.STRATEGIES["heads"].uses_one_layer
    with pytest.raises(InputError, match="strategy='heads'"):
        strategies.changed_blocks("heads", 1, directions)
    for name, (options, expected) in STRATEGIES.items():
        if name == "one-to-band":
            with pytest.raises(InputError, match="whose blocks follow from it"):
                strategies.changed_blocks(name, options["layer"], directions)
        else:
            assert strategies.changed_blocks(name, options.get("layer"), directions) == list(expected)
        assert strategies.STRATEGIES[name].uses_one_layer is ("layer" in options)
    with pytest.raises(InputError, match="strategy='sideways'"):
        strategies.changed_blocks("sideways", 1, directions)


def test_a_new_strategy_is_described_by_its_entry_in_the_table(
    directions: al.Directions, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = strategies.Placing("source", "block of the mean", "mean added at", "added as a mean", "The mean is added.")
    monkeypatch.setitem(cast(Any, strategies.STRATEGIES), "all-to-one", new)
    choice = Choice(cast(Any, "all-to-one"), 2, 1.0, 1.5, 0.0, 3)
    assert choice.description == "all-to-one, mean added at block 2"
    cells = np.zeros((2, 2))
    found = LayerMap("tempo", "tempo_ioi", "all-to-one", "both", (0, 1), (-1.0, 1.0), cells, cells)
    assert found.plot().axes[0].get_ylabel() == "block of the mean"
    assert found.figure().layout.yaxis.title.text == "block of the mean"
    assert Candidate(cast(Any, "all-to-one"), 1, directions).targets == 1
