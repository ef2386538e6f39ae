"""Arguments that travel together: a group gives exactly what its loose arguments give, and never both at once."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import random_codes
from hostile.drive import names
from hostile.drive.baselines import ARGUMENTS
from hostile.drive.run import target
from hostile.drive.world import World

import audiolens as al
from analysis import Resampling, attention, patching, probing, study, sweep
from audiolens.errors import GivenTwiceError, InputError, InputTypeError
from audiolens.groups import Group, groups_of, loosened, takes

SWEPT = {"seconds": 0.3, "guidance_scale": 1.0, "temperature": 0.7, "top_k": 5}
DRAWS = {"n_bootstrap": 7, "seed": 3}
HEADS = {"layers": [1], "heads": [0]}
CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("audiolens.AudioLens.generate", "reading"): {
        "sites": ["attn.z"], "layers": [1], "branch": "null", "span": (0.0, 0.1), "reduce": "max", "heads": [1],
        "cache_device": "cpu", "cache_dtype": "bfloat16",
    },
    ("audiolens.AudioLens.generate", "sampling"): SWEPT,
    ("audiolens.AudioLens.run_with_cache", "reading"): {
        "sites": ["attn.z"], "layers": [1], "seconds": (0.0, 0.2), "reduce": "mean", **HEADS, "dtype": "bfloat16",
    },
    ("audiolens.AudioLens.iter_cache", "reading"): {"sites": ["attn.z"], "seconds": (0.0, 0.2), **HEADS},
    ("analysis.statistics.effect", "resampling"): {**DRAWS, "confidence": 0.8},
    ("analysis.statistics.auc", "resampling"): {**DRAWS, "confidence": 0.8},
    ("analysis.statistics.means", "resampling"): {**DRAWS, "confidence": 0.8, "n_permutations": 9},
    ("analysis.probing.probe", "reading"): {"layers": [1]},
    ("analysis.probing.probe", "resampling"): {"n_shuffles": 3, **DRAWS},
    ("analysis.probing.ProbeResult.gains", "resampling"): DRAWS,
    ("analysis.probing.Dataset.from_prompts", "sampling"): {"seconds": 0.3, "guidance_scale": 1.0},
    ("analysis.pca.fit", "reading"): {"layers": [3, 4]},
    ("analysis.pca.fit", "resampling"): {"n_shuffles": 7, "seed": 3},
    ("analysis.pca.trajectories", "reading"): {"layers": [3, 4]},
    ("analysis.listening_test.read", "resampling"): {**DRAWS, "confidence": 0.8},
    ("analysis.methods.compare", "sampling"): SWEPT,
    ("analysis.methods.compare", "resampling"): {**DRAWS, "n_permutations": 9},
    ("analysis.harvest.harvest", "reading"): {
        "sites": ["attn.z"], "layers": [1], "branch": "null", "span": (0.0, 0.2), "reduce": "mean", "heads": [1],
        "dtype": "bfloat16",
    },
    ("analysis.harvest.harvest", "sampling"): SWEPT,
    ("analysis.patching.patch", "reading"): {"site": ["attn_out"], "layers": [2], "seconds": (0.0, 0.1)},
    ("analysis.patching.patch", "resampling"): {"n_bootstrap": 7, "n_permutations": 9, "seed": 3},
    ("analysis.patching.plan", "reading"): {"site": ["attn_out"], "layers": [2]},
    ("analysis.patching.pairs", "sampling"): {"seconds": 0.4, "guidance_scale": 1.0},
    ("analysis.patching.Sound", "sampling"): SWEPT,
    ("analysis.study.Settings", "sampling"): SWEPT,
    ("analysis.attention.by_lag", "reading"): HEADS,
    ("analysis.attention.by_lag", "resampling"): {"n_permutations": 7, "seed": 3},
    ("analysis.attention.to_text", "reading"): HEADS,
    ("analysis.attention.ablate", "reading"): {"site": "cross_attn.z", "layers": [2], "heads": [0]},
    ("analysis.attribution.attribute", "reading"): {"sites": ["attn_out"], "layers": [2]},
    ("analysis.attribution.AttributionResult.over", "resampling"): {"n_permutations": 7},
    ("analysis.placement.place", "sampling"): {"seconds": 0.4},
    ("analysis.placement.place", "resampling"): DRAWS,
    ("analysis.reading_comparison.compare", "sampling"): {"seconds": 0.4, "guidance_scale": 1.0},
    ("analysis.sweep.run", "sampling"): SWEPT,
    ("analysis.sweep.play", "sampling"): SWEPT,
    ("analysis.sweep.effects", "resampling"): {"n_bootstrap": 7},
    ("analysis.sweep.SweepResult.effects", "resampling"): {"n_bootstrap": 7},
    ("analysis.sweep.SweepResult.dose_response", "resampling"): {"n_bootstrap": 7},
    ("analysis.sweep.SweepResult.cross_effects", "resampling"): {"n_bootstrap": 7},
    ("analysis.sweep.SweepResult.limits", "resampling"): {"n_bootstrap": 7},
    ("analysis.sweep.SweepResult.strategies", "resampling"): {"n_bootstrap": 7},
    ("analysis.sweep.SweepResult.front", "resampling"): {"n_bootstrap": 7},
}  # fmt: skip
"""The loose arguments to give, by function and group: not the defaults, so that an ignored group shows."""
UNSEEN = {
    "analysis.sweep.SweepResult.strategies", "analysis.sweep.SweepResult.front", "analysis.methods.compare",
}  # fmt: skip
"""Results that show no interval, some with so few prompts, so that other draws change nothing."""
FOLDERS = {"analysis.harvest.harvest"}
"""Functions that write their result to a folder, which is a new one in each call."""
UNTIMED = {"analysis.methods.compare": lambda made: made.to_frame().drop(columns="seconds")}
"""What to compare of results that also state how long they took."""
NAMES = {one.path: one for one in names.public()}
CHANGED: dict[str, Callable[[World], dict[str, Any]]] = {
    "analysis.patching.Sound": lambda _: {"measure": "loudness"},
    "analysis.study.Settings": lambda _: {},
    "analysis.placement.place": lambda _: {"codes": None, "seconds": 0.3},
    "analysis.probing.probe": lambda w: {"lens": w.lens, "data": w.dataset, "labels": None, "baselines": ()},
}
"""Arguments in which a call here differs from the driver's."""


@pytest.fixture(scope="module")
def world(lens: Any) -> World:
    made = World()
    made.__dict__["lens"] = lens
    made.__dict__["probed"] = probing.probe(lens, made.dataset, baselines=["codec"], folds=2, n_shuffles=2)
    return made


def taken() -> Iterator[tuple[str, str, Any, Group]]:
    """Every public function and class that takes a group, with the group's argument."""
    for path, name in NAMES.items():
        if name.kind == "property":
            continue
        home = names.classes().get(name.owner or "") or names.modules()[path.rpartition(".")[0]]
        found = home if name.kind == "class" else inspect.getattr_static(home, name.last)
        found = getattr(found, "__func__", found)
        yield from ((path, argument, found, group) for argument, group in groups_of(found).items())


ALL = list(taken())


def held(group: Group, loose: Mapping[str, Any]) -> Any:
    """The group that holds the loose arguments."""
    fields = {own[0]: field for field, own in group.loose.items() if own}
    return group.kind(**{fields[name]: value for name, value in loose.items()})


def alike(one: Any, other: Any) -> bool:
    """Whether two results are the same, value for value."""
    if isinstance(one, torch.Tensor):
        return bool(one.shape == other.shape and ((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, np.ndarray) and one.dtype != object:
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if dataclasses.is_dataclass(one):
        own = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(alike(getattr(one, name), getattr(other, name)) for name in own)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | np.ndarray):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other or (one != one and other != other) or type(one).__module__.startswith("analysis.sweep.batches")


def test_every_function_that_takes_a_group_is_tested_here() -> None:
    assert {(path, argument) for path, argument, *_ in ALL} == set(CASES)


@pytest.mark.parametrize(("path", "argument"), CASES)
def test_a_group_gives_what_its_arguments_give(world: World, path: str, argument: str) -> None:
    function, group = next((one, group) for where, name, one, group in ALL if (where, name) == (path, argument))
    loose = CASES[path, argument]
    aliases = {name for own in group.loose.values() for name in own}
    given = ARGUMENTS.get(path, lambda _: {})(world)
    base = {**given, **CHANGED.get(path, lambda _: {})(world)}
    rest = {name: value for name, value in base.items() if name not in aliases}
    assert not set(loose) - aliases, f"{function}: no such arguments"

    def call(**given: Any) -> Any:
        torch.manual_seed(0)
        if path in FOLDERS:
            return dict(target(world, NAMES[path])(**{**rest, "out": world.place()}, **given).cache())
        made = UNTIMED.get(path, lambda made: made)(target(world, NAMES[path])(**rest, **given))
        return list(made) if isinstance(made, Iterator) else made

    together = call(**{argument: held(group, loose)})
    assert alike(together, call(**loose))
    if path not in UNSEEN:
        usual = {name: value for name, value in base.items() if name in aliases}
        assert not alike(together, call(**usual))


@pytest.mark.parametrize(("path", "argument", "function", "group"), ALL, ids=[f"{one[0]}-{one[1]}" for one in ALL])
def test_a_group_and_one_of_its_arguments_are_refused_together(
    path: str, argument: str, function: Any, group: Group
) -> None:
    """Also if the loose argument equals its default. The check comes before anything else, so nothing more is given."""
    signature = inspect.signature(function)
    whole = group.kind(seconds=0.5) if group.kind is al.Sampling else group.kind()
    call = function.__init__ if inspect.isclass(function) else function
    for names_of_one in group.loose.values():
        for name in names_of_one:
            given = {argument: whole, name: signature.parameters[name].default}
            with pytest.raises(GivenTwiceError, match=f"{argument}= and {name}= were both given") as refused:
                call(**given)
            assert isinstance(refused.value, TypeError)
            assert isinstance(refused.value, InputError)
    with pytest.raises(InputTypeError, match=f"{argument}=7: expected a {group.kind.__name__}, or None"):
        call(**{argument: 7})


def test_loose_arguments_have_the_defaults_of_the_group() -> None:
    """Except where the group's own default says nothing: then each function has its own."""
    for path, _, function, group in ALL:
        parameters = inspect.signature(function).parameters
        for field in dataclasses.fields(group.kind):
            for name in group.loose[field.name]:
                if field.default not in (None, ()):
                    assert parameters[name].default == field.default, f"{path}({name}=)"


def test_a_group_that_says_more_than_a_function_takes_is_refused(lens: Any, world: World) -> None:
    read = lens, ["fast"], random_codes(lens)[:1]
    cases: Any = (
        (lambda: attention.to_text(*read, reading=al.Reading("attn.z")), "sites"),
        (lambda: attention.ablate(*read, reading=al.Reading(branch="null")), "branch"),
        (lambda: attention.ablate(*read, reading=al.Reading(seconds=(0, 0.1))), "seconds"),
        (lambda: world.dosed.effects("tempo_ioi", resampling=Resampling(confidence=0.9)), "confidence"),
    )
    for call, field in cases:
        with pytest.raises(InputError, match=f"takes no {field}; leave it out"):
            call()
    with pytest.raises(InputError, match="reading contains 2 sites: expected one"):
        attention.ablate(*read, reading=al.Reading(["attn.z", "cross_attn.z"]))


def test_a_length_may_be_given_beside_a_sampling_that_holds_none(lens: Any) -> None:
    drawing = al.Sampling(temperature=0.7)
    one = lens.generate("calm", 0.3, seeds=0, sampling=drawing, decode=False)
    other = lens.generate("calm", seeds=0, sampling=dataclasses.replace(drawing, seconds=0.3), decode=False)
    assert torch.equal(one.codes, other.codes)
    with pytest.raises(GivenTwiceError, match="sampling= and seconds= were both given"):
        lens.generate("calm", seconds=4.0, sampling=al.Sampling(seconds=2))
    with pytest.raises(GivenTwiceError, match="sampling= and max_new_tokens= were both given"):
        lens.generate("calm", max_new_tokens=20, sampling=al.Sampling(seconds=2))
    with pytest.raises(GivenTwiceError, match="reading= and names_filter= were both given"):
        lens.run_with_cache("calm", reading=al.Reading(), names_filter="resid_post")


def test_a_sampling_reaches_clips_whose_function_has_no_argument_for_it(world: World) -> None:
    greedy = al.Sampling(temperature=0.0, seconds=0.3)
    pairs = patching.pairs(world.lens, world.sets, 2, sampling=greedy)
    assert torch.equal(pairs.codes, patching.pairs(world.lens, world.sets, 2, first_seed=9, sampling=greedy).codes)
    expected = world.lens.generate(pairs.clean, seeds=0, sampling=greedy, decode=False, batch_size=64)
    assert torch.equal(pairs.codes, expected.codes)


def test_seeds_of_a_resampling_reach_the_intervals_of_a_sweep(world: World) -> None:
    one, same, other = (
        world.dosed.effects("tempo_ioi", resampling=Resampling(n_bootstrap=9, seed=seed)) for seed in (0, 0, 5)
    )
    assert one.equals(same)
    assert one.equals(world.dosed.effects("tempo_ioi", n_bootstrap=9))
    assert not one.equals(other)


def test_the_plan_of_a_sweep_takes_its_sampling(world: World) -> None:
    given = {name: value for name, value in world.sweeping.items() if name not in ("n_jobs", "progress", *SWEPT)}
    plan = sweep.plan(world.lens, world.directions, timed=False, **given, sampling=al.Sampling(**SWEPT))
    assert plan.seconds == SWEPT["seconds"]
    with pytest.raises(GivenTwiceError, match="sampling= and seconds= were both given"):
        sweep.plan(world.lens, world.directions, seconds=1.0, sampling=al.Sampling(seconds=1.0))


def test_settings_are_copied_without_the_group_that_made_them() -> None:
    made = study.Settings(sampling=al.Sampling(temperature=0.5), poles=4)
    assert dataclasses.replace(made, poles=8) == study.Settings(temperature=0.5, poles=8)
    assert "sampling" not in dataclasses.asdict(made)
    sound = patching.Sound("loudness", sampling=al.Sampling(top_k=5))
    assert dataclasses.replace(sound, pairs=2) == patching.Sound("loudness", top_k=5, pairs=2)


def test_a_call_that_python_refuses_is_refused_by_python() -> None:
    @takes("sampling", al.Sampling)
    def play(n: int, *, temperature: float = 1.0, sampling: al.Sampling | None = None) -> float:  # noqa: ARG001
        return n * temperature

    assert play(2, sampling=al.Sampling(temperature=0.5)) == 1.0
    assert loosened(play, 2, sampling=al.Sampling(temperature=0.5)) == {"temperature": 0.5}
    with pytest.raises(TypeError, match="no_such"):
        play(2, sampling=al.Sampling(), no_such=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match="play takes no top_k"):
        play(2, sampling=al.Sampling(top_k=3))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"n_bootstrap": -1}, InputError, "n_bootstrap"),
        ({"n_permutations": "many"}, InputError, "n_permutations"),
        ({"confidence": 95}, InputError, "confidence"),
        ({"seed": 1.5}, InputError, "seed"),
    ],
)
def test_a_resampling_checks_itself(wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Resampling(**wrong)
