"""Worker processes generate the batches of a sweep; the bytes that it stores do not depend on them."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import CLIPS, MAKING, conditions, played
from stops import assert_same, contents

import audiolens as al
from analysis import sweep, workers
from analysis.heard import Heard, Wanted
from analysis.listening import Listener
from analysis.sweep import Condition, ledger, packed, playing
from audiolens.errors import AudioLensWarning, StoppedError
from audiolens.measure.failure import Levels

PATIENCE = 300


@pytest.fixture(scope="module")
def whole(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that one process did alone."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    played(lens, out)
    return out


@pytest.fixture(scope="module")
def ear(lens: Any) -> Iterator[Listener]:
    with Listener(lens, MAKING["measures"], 2) as found:
        yield found


def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The conditions of the batches that this process generates."""
    found: list[str] = []
    generate = playing.Making.generate

    def noted(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        found.extend({condition.name: None for condition, _ in batch})
        return generate(making, lens, plan, batch)

    monkeypatch.setattr(playing.Making, "generate", noted)
    return found


@pytest.mark.slow
def test_workers_generate_and_the_bytes_are_those_of_one_process(
    lens: Any, whole: Path, ear: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = here(monkeypatch)
    played(lens, tmp_path / "sweep", listener=ear)
    assert_same(tmp_path / "sweep", whole)
    assert ear.generates
    assert not generated


@pytest.mark.slow
def test_sound_codes_and_further_columns_come_back(lens: Any, ear: Listener) -> None:
    calls: list[int] = []

    def seeds(given: Any, made: al.Generation) -> list[float]:
        assert given is lens
        calls.append(len(made))
        return [float(seed) for seed in made.seeds or ()]

    asked: dict[str, Any] = {"also": {"seed_again": seeds}, "keep_audio": lambda one, clip: one.name == "up"}
    found, alone = played(lens, None, listener=ear, **asked), played(lens, None, **asked)
    assert calls == [4] * 8
    assert (found.table["seed_again"] == found.table["seed"]).all()
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)
    for name in ("baseline", "late"):
        assert torch.equal(found.codes(name), alone.codes(name))
    assert found.audio.keys() == alone.audio.keys() == {4, 5, 6, 7}
    assert all(np.array_equal(found.audio[row], alone.audio[row]) for row in found.audio)


@pytest.mark.slow
def test_a_function_of_the_users_is_called_in_the_users_process(
    lens: Any, ear: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated, seen, lock = here(monkeypatch), [], threading.Lock()

    def double(value: torch.Tensor) -> torch.Tensor:
        seen.append(os.getpid())
        return value * 2

    def late(seconds: float) -> float:
        # A lock cannot be pickled, and so neither can this schedule.
        with lock:
            return float(seconds > 0.2)

    vector = torch.ones(lens.config.d_model)
    todo = [
        Condition("baseline"),
        Condition("double", (al.Apply(double, layers=[0]),)),
        Condition("locked", (al.Add(vector, layers=[1], schedule=late),)),
        Condition("sent", (al.Add(vector, layers=[1], schedule=lambda seconds: float(seconds > 0.2)),)),
    ]
    found, alone = (played(lens, None, conditions=todo, **one) for one in ({"listener": ear}, {}))
    assert generated == ["double", "locked", "baseline", "double", "locked", "sent"]
    assert set(seen) == {os.getpid()}
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)
    assert torch.equal(found.codes("locked"), found.codes("sent"))


@pytest.mark.slow
def test_an_error_in_a_worker_keeps_what_is_finished(lens: Any, ear: Listener, tmp_path: Path) -> None:
    huge = Condition("huge", (al.Add(torch.full((lens.config.d_model,), 3e38)),))
    todo = [*conditions(lens.config.d_model)[:2], huge]
    with pytest.raises(al.errors.ActivationOverflow):
        played(lens, tmp_path / "sweep", conditions=todo, listener=ear)
    assert ledger.finished(tmp_path / "sweep") == {0, 1}


@pytest.mark.slow
def test_workers_use_the_threads_of_the_process_that_started_them(lens: Any, ear: Listener) -> None:
    assert ear.generates
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        done = ear.play(_asked(lens), Wanted())
    finally:
        torch.set_num_threads(before)
    assert done is not None
    done.result()
    # Each worker is busy long enough that the other one answers too.
    asked = [ear._pool.submit(lambda: (time.sleep(2), torch.get_num_threads())[1]) for _ in range(2)]
    assert 2 in {one.result() for one in asked}


@pytest.mark.slow
def test_warnings_are_given_once_by_the_process_that_sweeps(lens: Any, ear: Listener) -> None:
    todo = [Condition("baseline"), *(Condition(f"asked {n}", ask=lambda prompt: f"zither {prompt}") for n in range(3))]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        played(lens, None, conditions=todo, listener=ear)
    assert [str(one.message).split(".")[0] for one in said] == ["unknown to the model: 'zither'"]
    assert said[0].filename.endswith("small_runs.py")


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_sweep_resumes_with_other_numbers_of_workers(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, play = tmp_path / "sweep", Listener.play
    begun: list[Future[Heard]] = []

    def dying(ear: Listener, asked: Any, wanted: Any) -> Any:
        if len(begun) == 3:
            # As the system does to a process that takes too much memory.
            for worker in list(ear._pool._processes):
                os.kill(worker, signal.SIGKILL)
        found = play(ear, asked, wanted)
        assert found is not None
        begun.append(found)
        if len(begun) == 1:
            found.result()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Listener, "play", dying)
        with pytest.raises(StoppedError, match=r"a worker process died .* [1-3] of 4 batches are kept in .* resume"):
            played(lens, out, n_jobs=2)
    # The last batch is generated next to baselines that are only decoded again, by a single worker.
    for batch in ledger.finished(out) - {0, 2}:
        (out / "batches" / f"{batch:05d}.parquet").unlink()
    played(lens, out, n_jobs=3)
    assert_same(out, whole)
    for name in ("clips.parquet", "batches/00003.parquet"):
        (out / name).unlink()
    played(lens, out, n_jobs=1)
    assert_same(out, whole)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_without_a_word_from_them(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    script = (
        # A shell may start the tests with Ctrl-C ignored, which every process that they start would inherit.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from small_runs import played; from audiolens import AudioLens\n"
        # The sweep waits after its first batch, so that it cannot end before it is stopped.
        "import time; from analysis.sweep.batches import Batches; keep, waits = Batches.keep, iter([60])\n"
        "Batches.keep = lambda *given: (keep(*given), time.sleep(next(waits, 0)))\n"
        "played(AudioLens.from_pretrained(sys.argv[1]), Path(sys.argv[2]), n_jobs=2, batch_size=1)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", script, lens.name, str(out)], env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    until = time.monotonic() + PATIENCE
    while running.poll() is None and not ledger.finished(out) and time.monotonic() < until:
        time.sleep(0.02)
    # A terminal sends it to every process of the foreground group.
    os.killpg(running.pid, signal.SIGINT)
    told = running.communicate(timeout=PATIENCE)[1]
    # Python ends with 1 instead of the signal if anything at exit executes a string of code.
    assert running.returncode in (-signal.SIGINT, 1), told
    assert told.count("Traceback") == told.count("\nKeyboardInterrupt\n") == 1, told
    while _alive(running.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _alive(running.pid)
    assert 0 < len(ledger.finished(out)) < 16
    played(lens, out, batch_size=1)
    assert len(sweep.load_folder(out).table) == 16
    assert len(contents(out)) > len(contents(whole))


@pytest.mark.slow
def test_a_model_that_workers_cannot_open_is_generated_with_here(
    lens: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = here(monkeypatch)
    own = al.AudioLens(lens.model, lens.tokenizer, name="mine")
    todo = conditions(lens.config.d_model)[:2]
    with pytest.warns(
        AudioLensWarning, match=r"n_jobs=1: this process generates all clips.*in memory.*from_pretrained"
    ):
        found = played(own, None, conditions=todo, n_jobs=1)
    assert generated == ["baseline", "up"]
    pd.testing.assert_frame_equal(found.table, played(own, None, conditions=todo).table, check_exact=True)
    changed = al.AudioLens.from_pretrained(checkpoint)
    with torch.no_grad():
        changed.model.decoder.model.decoder.layers[1].fc1.weight[3, 5] += 1.0
    generated.clear()
    with pytest.warns(AudioLensWarning, match=r"n_jobs=1: this process generates all clips.*different weights"):
        found = played(changed, None, conditions=todo, n_jobs=1)
    assert generated == ["baseline", "up"]
    pd.testing.assert_frame_equal(found.table, played(changed, None, conditions=todo).table, check_exact=True)


def test_nothing_waits_for_the_baselines(lens: Any) -> None:
    begun: list[int] = []
    baseline: Future[Heard] = Future()

    class Ear:
        generates, ahead, measures = False, 4, ("loudness",)
        devices: frozenset[str] = frozenset()

        def hear(self, codes: torch.Tensor, wanted: Wanted) -> Future[Heard]:
            begun.append(len(begun))
            one = np.ones(len(codes))
            heard = Heard(
                codes.numpy(), pd.DataFrame({"loudness": one}), Levels(one, one), np.full(len(codes), 9), {}, 1
            )
            if len(begun) == 3:
                baseline.set_result(heard)
            if len(begun) == 1:
                return baseline
            done: Future[Heard] = Future()
            done.set_result(heard)
            return done

        def submit(self, *_: Any) -> None:
            return None

        def wait(self, pending: Any) -> None:
            raise AssertionError("every batch is measured already")

    ear: Any = Ear()
    plan = packed(conditions(lens.config.d_model)[:3], CLIPS, 4)
    found = [number for number, *_ in playing.heard_batches(lens, plan, playing.Making(0.4), ear)]
    assert found == begun == [0, 1, 2]


@pytest.mark.parametrize(
    ("cores", "threads", "n_jobs", "n_batches", "expected"),
    [
        (2, 1, None, None, (2, True)),
        (2, 1, None, 4, (2, True)),
        # Opening the model in two processes would take longer than generating two batches in this one.
        (2, 1, None, 2, (1, False)),
        (2, 2, None, None, (1, False)),
        (1, 1, None, None, (0, False)),
        (16, 2, None, None, (8, True)),
        (64, 1, None, None, (8, True)),
        (2, 1, 0, None, (0, False)),
        (2, 1, 1, None, (1, True)),
        (2, 1, 3, 9, (3, True)),
        (2, 1, 3, 2, (2, True)),
        (2, 2, 2, None, (2, True)),
    ],
)
def test_how_work_is_divided(
    lens: Any, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, n_jobs: Any, n_batches: Any, expected: Any
) -> None:
    monkeypatch.setattr(workers, "cpu_count", lambda: cores)
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(workers.os, "sysconf", {"SC_PHYS_PAGES": 64 * 2**18, "SC_PAGE_SIZE": 2**12}.__getitem__)
    assert workers.divided(lens, n_jobs, n_batches) == expected
    own = al.AudioLens(lens.model, lens.tokenizer)
    assert not workers.divided(own, n_jobs, n_batches)[1]


def test_processes_are_as_many_as_the_memory_holds(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cpu_count", lambda: 8)
    monkeypatch.setattr(workers.os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.__getitem__)
    # 4 GiB of memory, half of which hold two workers of 0.8 GB.
    assert workers.default_generating(lens) == 2
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        workers.share_cores(lens)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_more_threads_than_cores_are_told(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.listening.cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(workers, "generating", lambda *_: _NoPool())
    with pytest.warns(AudioLensWarning, match=r"n_jobs=2: each process computes with 2 threads.*set_num_threads\(1\)"):
        Listener(lens, ("loudness",), 2)


class _NoPool:
    def submit(self, *_: Any) -> Future[None]:
        return Future()


def _asked(lens: Any) -> dict[str, Any]:
    plan = packed(conditions(lens.config.d_model), CLIPS, 4)
    return playing.Making(0.4).asked(lens, plan, plan.batches[0])


def _alive(session: int) -> list[int]:
    """The processes of a session that still run."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid=,stat="], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if not line.split()[1].startswith("Z")]
