"""Make the calls: a valid call of each name with one argument replaced, after which the result is used."""

import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch

import audiolens as al
from analysis import statistics
from hostile.drive import names, values
from hostile.drive.baselines import ARGUMENTS, EXEMPT, FURTHER, INSTANCES, ON_PLANTED
from hostile.drive.names import Name
from hostile.drive.world import PROMPTS, World

MISSING, UNKNOWN = "(left out)", "(unknown keyword)"
INSIDE = "[]"
"""After the name of an argument: an item of it is replaced, not the whole."""


@dataclass(frozen=True)
class Trial:
    """One call, in which `argument` is replaced by `value` from the pool."""

    name: Name
    argument: str
    value: str

    def __str__(self) -> str:
        return f"{self.name.path}({self.argument}={self.value})"


def driven() -> list[Name]:
    return [name for name in names.public() if name.path not in EXEMPT]


@cache
def _class(path: str) -> type:
    return names.classes()[path]


def target(world: World, name: Name) -> Callable[..., Any]:
    """The function or method to call."""
    if name.kind == "function":
        module = names.modules()[name.path.rpartition(".")[0]]
        return getattr(module, name.last)
    if name.kind == "class":
        return _class(name.path)
    assert name.owner is not None
    if name.kind == "classmethod":
        return getattr(_class(name.owner), name.last)
    instance = instance_of(world, name)
    if name.kind == "property":
        return lambda: getattr(instance, name.last)
    return getattr(instance, name.last)


def instance_of(world: World, name: Name) -> Any:
    assert name.owner is not None
    if name.owner.endswith("SweepResult") and name.last in ON_PLANTED:
        return world.dosed
    if name.path.endswith("ActivationCache.stack_norms"):
        return world.means
    return INSTANCES[name.owner](world)


def baseline(world: World, name: Name) -> dict[str, Any]:
    """The arguments of a valid call; for a result class, the fields of an instance."""
    if name.path in ARGUMENTS:
        return ARGUMENTS[name.path](world)
    if name.kind == "class":
        made = INSTANCES[name.path](world)
        fields = [field for field in dataclasses.fields(made) if field.init and not field.name.startswith("_")]
        return {field.name: getattr(made, field.name) for field in fields}
    return {}


def signature(name: Name) -> list[inspect.Parameter]:
    """The parameters without `self`; empty for a property."""
    if name.kind == "property":
        return []
    if name.kind == "method":
        assert name.owner is not None
        return list(inspect.signature(getattr(_class(name.owner), name.last)).parameters.values())[1:]
    module = names.modules().get(name.path.rpartition(".")[0])
    called = getattr(module, name.last) if name.kind == "function" else None
    if called is None:
        owner = _class(name.owner or name.path)
        called = owner if name.kind == "class" else getattr(owner, name.last)
    return list(inspect.signature(called).parameters.values())


def parameters(name: Name) -> list[str]:
    """The arguments to replace: named ones, and those in `FURTHER` that are passed through `*` and `**`."""
    plain = [one.name for one in signature(name) if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [*(one for one in plain if not one.startswith("_")), *FURTHER.get(name.path, ())]


def lacking(world: World, name: Name) -> list[str]:
    """The names of required arguments without a valid value."""
    given = baseline(world, name) if name.kind != "property" else {}
    needed = [one for one in signature(name) if one.default is one.empty]
    named = [one.name for one in needed if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [one for one in named if one not in given]


def trials(world: World, seed: int) -> list[Trial]:
    """Every call, in a seeded order that alternates between names, so that any part of it covers all names.

    Result classes that users never instantiate, and calls that take seconds, get only a few turns.
    """
    pool, draw = [*values.POOL, *world.strangers], random.Random(seed)
    turns: list[tuple[int, float, Trial]] = []
    for name in driven():
        asked = parameters(name)
        own = [Trial(name, argument, value) for argument in asked for value in [*pool, MISSING]]
        own += [Trial(name, one + INSIDE, value) for one in asked if not one.startswith("*") for value in pool]
        draw.shuffle(own)
        if name.kind != "property":
            # Not always the first: a short run would then make no other calls.
            own.insert(draw.randrange(FEW), Trial(name, "no_such_argument", UNKNOWN))
        result = name.kind == "class" and name.path not in AT_HAND
        most = FEW if result or name.path in SLOW else len(own)
        turns.extend((turn, draw.random(), trial) for turn, trial in enumerate(own[:most]))
    return [trial for *_, trial in sorted(turns, key=lambda one: one[:2])]


FEW = 12
SLOW = {
    "analysis.features.train", "analysis.features.index", "analysis.features.synthesised",
    "analysis.features.FeatureIndex.plot",
    "analysis.report.write", "analysis.study.Study.save", "analysis.study.Study.figure", "analysis.study.load_folder",
    "analysis.study.redraw", "analysis.study.run", "analysis.sweep.run", "audiolens.AudioLens", "analysis.sweep.play",
    "audiolens.AudioLens.from_pretrained", "analysis.reading_comparison.compare", "analysis.probing.Dataset.from_synth",
    "analysis.methods.compare", "analysis.sweep.load_arguments",
}  # fmt: skip


def slow(name: Name) -> bool:
    """Whether a call, or making the object it is called on, takes seconds."""
    return name.path in SLOW or name.path.startswith(("analysis.study.", "analysis.report.")) or "clap" in name.path


AT_HAND = {
    "analysis.Resampling", "analysis.distributed.Ray", "analysis.methods.Place", "analysis.patching.LogLikelihood",
    "analysis.patching.Pairs", "analysis.patching.Sound", "analysis.probing.Dataset", "analysis.study.Settings",
    "analysis.sweep.Condition", "audiolens.Ablate",
    "audiolens.ActivationCache", "audiolens.Add", "audiolens.Apply", "audiolens.AudioLens", "audiolens.Clamp",
    "audiolens.Directions", "audiolens.Erase", "audiolens.Reading", "audiolens.Replace", "audiolens.Sampling",
    "audiolens.Scale", "audiolens.prompts.PromptSet",
}  # fmt: skip
"""Classes that users instantiate; other results are returned by functions."""


def perform(world: World, name: Name, arguments: dict[str, Any]) -> None:
    """Make the call, and use its result as a user would."""
    if name.path == "audiolens.AudioLens.trace":
        traced(world, arguments)
        return
    spread = [value for key, value in arguments.items() if key.startswith("*")]
    plain = {key: value for key, value in arguments.items() if not key.startswith("*")}
    made = target(world, name)(*spread, **plain)
    if isinstance(made, Iterator):
        made = list(islice(made, 50))
    if name.kind == "class" or name.path.startswith("audiolens.schedules."):
        used(world, name, made)
    elif type(made).__module__.startswith(("audiolens", "analysis")):
        repr(made)


def traced(world: World, arguments: dict[str, Any]) -> None:
    with world.lens.trace(**arguments) as tracer:
        world.lens.position()
        seen = world.lens.site("resid_post", 1).value.save()  # noqa: F841
        logits = tracer.result.save()  # noqa: F841


def used(world: World, name: Name, made: Any) -> None:
    """Use an object that users instantiate once, because some of its arguments are read only then."""
    if isinstance(made, al.Intervention) and type(made) is not al.Intervention:
        world.lens.run_with_interventions(PROMPTS[:2], world.codes[:2], made)
    if name.path == "audiolens.Reading":
        world.lens.run_with_cache(PROMPTS[:2], world.codes[:2], reading=made)
    if name.path == "analysis.Resampling":
        statistics.means([0.0, 1.0], ["a", "b"], resampling=made)
    if name.path == "audiolens.Sampling":
        world.lens.generate(PROMPTS[:1], 0.2, seeds=0, decode=False, sampling=made)
    if name.path.startswith("audiolens.schedules."):
        world.lens.run_with_interventions(PROMPTS[:2], world.codes[:2], al.Add(torch.ones(48), schedule=made))
    if name.path == "analysis.study.Settings":
        made.check(world.lens, world.neutral)
    if name.path == "audiolens.prompts.PromptSet":
        made.balance()
        made.prompted("piano", "fast")
    if name.path == "audiolens.Directions":
        made.to_frame()
        al.steer(made, layer=1)
    if name.path in AT_HAND and name.path != "audiolens.ActivationCache":
        repr(made)


def arguments_of(world: World, trial: Trial) -> dict[str, Any]:
    """The arguments of a valid call, with one of them, or an item of it, replaced."""
    given = dict(baseline(world, trial.name))
    if trial.argument.endswith(INSIDE):
        argument = trial.argument.removesuffix(INSIDE)
        value = (values.POOL.get(trial.value) or (lambda: world.strangers[trial.value]))()
        return {**given, argument: within(given.get(argument), value, random.Random(str(trial)))}
    if trial.value == MISSING:
        given.pop(trial.argument, None)
    elif trial.value == UNKNOWN:
        given[trial.argument] = 1
    elif trial.value in values.POOL:
        given[trial.argument] = values.POOL[trial.value]()
    else:
        given[trial.argument] = world.strangers[trial.value]
    return given


def within(whole: Any, value: Any, draw: random.Random) -> Any:
    """A list or mapping with `value` in the place of one item, or of an item's item; a list of it for anything else."""
    if not isinstance(whole, list | tuple | dict) or not whole:
        return [value]
    places = list(whole) if isinstance(whole, dict) else range(len(whole))
    place = draw.choice(places)
    deeper = isinstance(whole[place], list | tuple | dict) and draw.random() < 0.5
    new = within(whole[place], value, draw) if deeper else value
    if isinstance(whole, dict):
        return {**whole, place: new}
    return type(whole)([*whole[:place], new, *whole[place + 1 :]])
