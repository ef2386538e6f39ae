"""What a run needs of a Ray cluster is checked before anything runs. None of these tests starts a cluster."""

import importlib.util
import pickle
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from small_runs import CLIPS, conditions

import audiolens as al
from analysis import sweep, workers
from analysis.distributed import Ray, actors, address
from analysis.distributed.opening import check_ray
from analysis.store.versions import versions
from analysis.sweep import Condition, packed, playing
from analysis.sweep.factorial import Factors, named
from analysis.sweep.factorial import conditions as factorial
from audiolens.errors import InputError, MissingPackageError
from audiolens.prompts import load
from audiolens.tracing.reopening import elsewhere

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.2:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"address": "ray://10.0.0.1:10001"}, "start it on one of its machines"),
        ({"address": "10.0.0.1"}, "expected 'auto', 'local' or host:port, such as 10.0.0.1:6379"),
        ({"address": "10.0.0.1:port"}, "expected 'auto', 'local' or host:port"),
        ({"workers": 0}, "workers=0: expected a whole number of at least 1"),
        ({"listeners": -1}, "listeners=-1"),
        ({"gpus_per_worker": 1.5}, "a whole number, or a fraction between 0 and 1"),
        ({"gpus_per_worker": -1}, "gpus_per_worker=-1"),
    ],
)
def test_a_cluster_that_cannot_be_meant_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ray(**asked)


@needs_ray
def test_an_address_that_does_not_answer_is_told_in_time(
    run: Run, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("sweep", "tempo", "-o", "out", "--ray", "127.0.0.2:1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "ray='127.0.0.2:1': no Ray cluster answers there within 10 s." in err
    monkeypatch.setattr(address, "PATIENCE", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", silent)
    code, out, err = run("study", "tempo", "-o", "out", "--ray", "auto")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"ray='{silent}': no Ray cluster answers there" in err
    code, out, err = run("harvest", "tempo", "-o", "out", "--ray", "auto")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"ray='{silent}': no Ray cluster answers there" in err
    assert not Path("out").exists()


def test_options_that_need_or_exclude_a_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, options, message in (
        ("sweep", ("--workers", 2), "--workers 2: only a Ray cluster has workers"),
        ("study", ("--gpus-per-worker", 1), "--gpus-per-worker 1.0: only a Ray cluster has workers"),
        ("harvest", ("--workers", 2), "--workers 2: only a Ray cluster has workers"),
        ("train-sae", ("--layer", 1, "--workers", 2), "--workers 2: only a Ray cluster has workers"),
        ("sweep", ("--ray", "auto", "--jobs", 2), "--jobs and --ray were both given"),
    ):
        code, _, err = run(command, "tempo", "-o", "out", *options)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for command in (("sweep",), ("study",), ("harvest",), ("train-sae", "--layer", 1)):
        code, _, err = run(*command, "tempo", "-o", "out", "--ray", "auto")
        assert code == 2
        assert "needs the package ray: pip install 'audiolens[ray]'" in err
    with pytest.raises(MissingPackageError):
        address.found(Ray())
    with pytest.raises(InputError, match="n_jobs=2 and ray= were both given"):
        check_ray(2, Ray())


@needs_ray
def test_a_worker_with_other_versions_or_weights_names_them(lens: Any) -> None:
    opening = elsewhere(lens)
    with pytest.raises(InputError, match=r"a worker on .* has librosa .*, but the run was started with 0\.1:"):
        actors.Worker(workers.dumps(opening), {**versions(), "librosa": "0.1"}).open()
    other = partial(opening.func, *opening.args[:-1], "0" * 64)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="a worker on .* cannot open the same model: .* has different weights"):
        actors.Worker(workers.dumps(other), versions()).open()


def test_a_plan_can_be_sent_without_the_users_functions(lens: Any) -> None:
    prefix = "loud"
    todo = [
        *conditions(lens.config.d_model),
        Condition("asked", ask=lambda prompt: f"{prefix} {prompt}"),
        Condition("double", (al.Apply(lambda value: value * 2, layers=[0]),)),
    ]
    work = playing.Playing(packed(todo, CLIPS, 4), playing.Making(0.4, also={"one": lambda *_: [1.0]}))
    copy, local = work.sent()
    assert local == {5}
    found = pickle.loads(workers.dumps(copy))
    for number in range(5):
        mine, theirs = work.asked(lens, number), found.asked(lens, number)
        assert torch.equal(*(lens.generate(**one).codes for one in (mine, theirs)))


def test_the_plan_of_a_factorial_sweep_can_be_pickled(lens: Any, vector: torch.Tensor) -> None:
    sets = load("tempo", lens=lens)
    d = al.difference_in_means(lens, ["fast song"], ["slow song"], seconds=0.4, label="tempo", progress=False)
    plan = packed(factorial(named(d), Factors(layers=1, opposed=True), {"tempo": sets}), sweep.clips(["a song"], 1))
    found = pickle.loads(pickle.dumps(plan))
    assert found.labels.equals(plan.labels)
