"""Directions read from one model are rejected by another model, even one of the same width."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_model

import audiolens as al
from analysis import sweep
from audiolens.errors import InputError

FOREIGN = "means nothing in another model"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with the same sizes but other weights."""
    lens = al.AudioLens.from_pretrained(write_model(tmp_path_factory.mktemp("other")))
    with torch.no_grad():
        for parameter in lens.model.decoder.parameters():
            parameter.add_(0.01)
    return lens


@pytest.fixture(scope="module")
def theirs(other: Any) -> al.Directions:
    return al.difference_in_means(other, ["fast"], ["slow"], seconds=0.3, progress=False)


@pytest.fixture(scope="module")
def ours(lens: Any) -> al.Directions:
    return al.difference_in_means(lens, ["fast"], ["slow"], seconds=0.3, progress=False)


@pytest.mark.parametrize("operator", ["add", "ablate", "clamp"])
@pytest.mark.parametrize("strategy", ["one-to-one", "one-to-all"])
def test_a_run_refuses_what_was_read_from_another_model(
    lens: Any, other: Any, theirs: Any, ours: Any, codes: torch.Tensor, operator: Any, strategy: Any
) -> None:
    steps = al.steer(theirs, strategy, layer=1, operator=operator)
    assert all(step.meta == theirs.meta for step in steps)
    for run in (
        lambda: lens.generate("fast", 0.3, seeds=0, interventions=steps),
        lambda: lens.run_with_cache("fast", codes[:1], interventions=steps),
        lambda: lens.run_with_interventions("fast", codes[:1], steps),
        lambda: sweep.play(lens, [sweep.Condition("baseline"), sweep.Condition("more", tuple(steps))], [("fast", 0)]),
    ):
        with pytest.raises(InputError, match=FOREIGN):
            run()
    other.generate("fast", 0.3, seeds=0, interventions=steps, decode=False)
    lens.generate("fast", 0.3, seeds=0, interventions=al.steer(ours, strategy, layer=1), decode=False)


def test_a_bare_tensor_and_an_unknown_hash_are_taken_as_they_are(lens: Any, theirs: Any, codes: torch.Tensor) -> None:
    unknown = replace(theirs, meta=replace(theirs.meta, weights=""))
    for steps in (al.Add(theirs[1], layers=1), al.steer(unknown, layer=1)):
        lens.run_with_interventions("fast", codes[:1], steps)
    cache = lens.run_with_cache("fast", codes[:1])[1]
    cache.project(theirs.vectors)
    cache.project(unknown)


def test_a_cache_refuses_directions_of_another_model(
    lens: Any, other: Any, ours: Any, theirs: Any, codes: torch.Tensor, tmp_path: Path
) -> None:
    cache = lens.run_with_cache("fast", codes[:1])[1]
    kept = al.ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))
    for one in (cache, cache.rows([0]), kept):
        assert torch.equal(one.project(ours), cache.project(ours.vectors))
        with pytest.raises(InputError, match=FOREIGN):
            one.project(theirs)
    other.run_with_cache("fast", codes[:1])[1].project(theirs)
    # A pickled cache does not include the model, but names its weights.
    with pytest.raises(InputError, match=FOREIGN):
        pickle.loads(pickle.dumps(cache)).project(theirs)
