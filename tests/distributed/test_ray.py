"""A run on a Ray cluster writes the bytes of a run in one process, whichever workers are killed meanwhile."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from small_runs import MAKING, TINY, bare_pages, conditions, played, studied
from stops import assert_same, contents

import audiolens as al
from analysis import harvest
from analysis.distributed import Ray, address, cluster
from analysis.distributed.backend import WorkersLostError
from analysis.distributed.cluster import Cluster
from analysis.distributed.opening import backend_of
from analysis.distributed.ray_backend import RayListener
from analysis.harvest import planned, reading
from analysis.study import pipeline
from audiolens.errors import ActivationOverflow, AudioLensWarning, InputError, StoppedError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ear(lens: Any) -> Iterator[RayListener]:
    """Two workers and one that measures, on a cluster of this machine."""
    # The workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    mode = os.environ.get(address.MODE)
    with backend_of(lens, MAKING["measures"], ray=Ray("local", workers=2, listeners=1)) as found:
        assert isinstance(found, RayListener)
        yield found
    # Other clusters may ask for no token.
    assert os.environ.get(address.MODE) == mode
    assert not ray.is_initialized()


def test_the_bytes_are_those_of_one_process_although_a_worker_is_killed(
    lens: Any, ear: RayListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    submit = RayListener.submit

    def killing(own: RayListener, work: Any, number: int, wanted: Any) -> Any:
        if len(begun) == 3:
            os.kill(next(iter(own.cluster.ready.values())).process, signal.SIGKILL)
        begun.append(number)
        return submit(own, work, number, wanted)

    monkeypatch.setattr(RayListener, "submit", killing)
    played(lens, tmp_path / "ray", batch_size=2, listener=ear)
    played(lens, tmp_path / "alone", batch_size=2)
    assert_same(tmp_path / "ray", tmp_path / "alone")
    # What one worker generates, another measures.
    assert ray.get(ear._ears[0].__ray_call__.remote(lambda own: own._checked))
    # What is finished is not begun again.
    assert begun == list(range(8))
    (tmp_path / "ray" / "batches" / "00005.parquet").unlink()
    (tmp_path / "ray" / "clips.parquet").unlink()
    played(lens, tmp_path / "ray", batch_size=2, listener=ear)
    assert_same(tmp_path / "ray", tmp_path / "alone")
    assert begun == [*range(8), 5]


def broken(lens: Any, asked: Any, rows: range) -> Any:
    if rows.start == 2:
        raise ValueError("broken")
    return reading._read(lens, asked, rows)


def test_a_harvest_has_the_bytes_of_one_process_and_keeps_what_others_read_if_a_shard_fails(
    lens: Any, ear: RayListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "SHARD_BATCHES", 1)
    monkeypatch.setattr(cluster, "Cluster", lambda *_: nullcontext(ear.cluster))

    def harvested(name: str, where: Ray | None) -> None:
        prompts = ["fast song", "slow song", "calm piano", "jazz", "a dark guitar song"]
        harvest.harvest(lens, prompts, ["resid_post", "attn.z"], out=tmp_path / name, seconds=0.4, batch_size=2,
                        ray=where, progress=False)  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(reading, "_read", broken)
        with pytest.raises(ValueError, match="^broken$"):
            harvested("ray", Ray())
    assert sorted(path.stem for path in (tmp_path / "ray" / "shards").iterdir()) == ["000000", "000002"]
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_read_on", Mock(side_effect=WorkersLostError))
        with pytest.raises(StoppedError, match="a worker process died .* 3 of 5 clips are kept in .*; repeat the harv"):
            harvested("ray", Ray())
    harvested("ray", Ray())
    harvested("alone", None)
    assert_same(tmp_path / "ray", tmp_path / "alone")


def test_a_study_has_the_bytes_of_one_process(
    lens: Any, ear: RayListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bare_pages(), monkeypatch.context() as patch:
        patch.setattr(pipeline._Course, "_listener", ear)
        patch.setattr(ear, "measures", TINY.measures_of("tempo"))
        studied(lens, tmp_path / "ray", replace(TINY, n_jobs=None), ray=Ray())
    with bare_pages():
        studied(lens, tmp_path / "alone")
    # The summary states the number of processes.
    for part in ("stages", "tables"):
        assert contents(tmp_path / "alone" / part)
        assert_same(tmp_path / "ray" / part, tmp_path / "alone" / part)


def test_a_cluster_that_asks_for_a_token_gets_it_although_no_one_said_so(
    ear: RayListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ear.cluster.connection.address
    monkeypatch.delenv(address.MODE)
    assert address.answered(there) == address.Found(there, with_token=True)
    monkeypatch.setenv(address.MODE, "token")
    assert address.answered(there) == address.Found(there)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"asks for its authentication token\. Copy ~/\.ray/auth_token to this machine"
    ):
        address.answered(there)


def nan_once(lens: Any, file: str, number: int) -> int:
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return number
    raise ActivationOverflow("NaN at a broken device")


def nan(lens: Any, file: str) -> None:
    with open(file, "a") as tries:
        tries.write("again ")
    raise ActivationOverflow(f"NaN in {lens.name}")


def test_a_worker_that_returns_nan_is_asked_again_elsewhere(lens: Any, ear: RayListener, tmp_path: Path) -> None:
    work = ear.cluster.put(str(tmp_path / "tries"))
    call = ear.cluster.submit(nan_once, work, 7)
    with pytest.warns(AudioLensWarning, match="its batch was made again .NaN at a broken device"):
        assert call.result() == 7
    call = ear.cluster.submit(nan, work)
    with pytest.raises(ActivationOverflow, match=f"^NaN in {lens.name}$"):
        call.result()
    assert (tmp_path / "tries").read_text() == "again again "


def test_devices_that_differ_are_compared_and_stated(
    lens: Any, ear: RayListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, place = [*ear.cluster.ready.items()][-1]
    monkeypatch.setitem(ear.cluster._ready, worker, replace(place, device="another"))
    todo = conditions(lens.config.d_model)[:2]
    with pytest.warns(AudioLensWarning, match="Of the codes of 4 clips, 0.00% on another differ from those on cpu"):
        found = played(lens, tmp_path / "sweep", conditions=todo, listener=ear)
    assert found.settings["devices"] == {"another": 0.0}


def test_a_cluster_without_room_and_a_model_in_memory_are_refused(lens: Any, ear: RayListener) -> None:
    room = int(ray.cluster_resources()["CPU"])
    told = rf"workers={room + 1}: the Ray cluster .* has room for {room}\..*{room} CPUs and 0 GPUs on 1 machine"
    with pytest.raises(InputError, match=told):
        Cluster(lens, Ray(workers=room + 1))
    with pytest.raises(InputError, match="was given in memory"):
        Cluster(al.AudioLens(lens.model, lens.tokenizer), Ray())
    with pytest.raises(InputError, match="this process is already connected to Ray at"):
        Cluster(lens, Ray("192.0.2.1:6379"))
    with pytest.raises(InputError, match="gpus_per_worker=1: the model is on 'cpu' here"):
        Cluster(lens, Ray(gpus_per_worker=1))
