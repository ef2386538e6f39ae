"""A lens across processes: forked during a run, pickled, sent to workers; and models that a lens refuses to open."""

import copy
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from joblib import Parallel, delayed
from nnsight.intervention.source import STATE

import audiolens as al
from audiolens.errors import BusyError, InputError
from audiolens.model.weight_hash import content_hash
from audiolens.tracing import model_calls

PATIENCE = 60.0


def codes_of(lens: Any, seed: int) -> torch.Tensor:
    return lens.generate("fast piano", 0.32, seeds=seed, sites="resid_post").codes


def in_a_fork(work: Callable[[], bool]) -> int:
    """The exit code of a forked process: 0 if `work` returned true, -9 if it hung and was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work() else 3
        finally:
            os._exit(code)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def own(checkpoint: Path) -> Any:
    """A lens that no other test uses."""
    return al.AudioLens.from_pretrained(checkpoint)


@pytest.mark.parametrize("site", ["resid_post", "attn.pattern"])
def test_a_fork_while_a_thread_runs_the_model_does_not_hang(own: Any, vector: Any, site: str) -> None:
    expected, inside, go_on = codes_of(own, 3), threading.Event(), threading.Event()

    def pausing(value: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert go_on.wait(PATIENCE)
        return value

    def same() -> bool:
        return bool(torch.equal(codes_of(own, 3), expected)) and codes_of(own, 3) is not None

    with ThreadPoolExecutor(1) as pool:
        held = al.Apply(pausing, layers=[1])
        running = pool.submit(lambda: own.generate("slow", 0.32, seeds=1, interventions=held, sites=site))
        assert inside.wait(PATIENCE)
        try:
            assert in_a_fork(same) == 0
        finally:
            go_on.set()
        assert running.result().codes.shape[-1] == 8
    assert torch.equal(codes_of(own, 3), expected)


def test_a_fork_inside_a_run_is_still_inside_it(own: Any) -> None:
    found: list[int] = []

    def busy() -> bool:
        with pytest.raises(BusyError):
            codes_of(own, 0)
        return True

    def forking(value: torch.Tensor) -> torch.Tensor:
        if not found:
            found.append(in_a_fork(busy))
        return value

    own.generate("slow", 0.32, seeds=1, interventions=al.Apply(forking, layers=[0]))
    assert found == [0]


def test_a_forked_process_computes_without_the_threads_it_does_not_have(own: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        codes_of(own, 0)
        assert in_a_fork(lambda: torch.get_num_threads() == 1 and codes_of(own, 0) is not None) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_pickled_lens_is_opened_again(own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(own)
    assert len(content) < 10_000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(content)
    assert again.model is not own.model
    assert (again.name, str(again.device), again.dtype) == (own.name, str(own.device), own.dtype)
    assert torch.equal(codes_of(again, 1), codes_of(own, 1))
    assert torch.equal(codes_of(pickle.loads(pickle.dumps(again)), 1), codes_of(own, 1))
    both = pickle.loads(pickle.dumps([own, own]))
    assert both[0] is both[1]


def test_a_relative_folder_and_a_dtype_go_along(checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(checkpoint.parent)
    lens = al.AudioLens.from_pretrained(checkpoint.name, dtype=torch.float64)
    lens.model.set_attn_implementation("eager")
    content = pickle.dumps(lens)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(content)
    assert (again.name, again.dtype) == (checkpoint.name, torch.float64)
    assert again.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_multiprocessing_take_a_lens(own: Any, method: Any) -> None:
    expected = codes_of(own, 2)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert torch.equal(pool.apply_async(codes_of, (own, 2)).get(PATIENCE), expected)


def test_workers_of_joblib_take_a_lens(own: Any) -> None:
    found: Any = Parallel(n_jobs=2, timeout=2 * PATIENCE)(delayed(codes_of)(own, seed) for seed in (0, 1))
    assert [torch.equal(one, codes_of(own, seed)) for seed, one in enumerate(found)] == [True, True]


def test_a_lens_on_a_model_given_in_memory_says_what_to_do(own: Any) -> None:
    lens = al.AudioLens(copy.deepcopy(own.model), own.tokenizer, name="mine")
    before = {name: set(vars(part)) for name, part in lens.model.named_modules()}
    for send in (pickle.dumps, lambda one: copy.copy(one).__reduce__(), lambda one: copy.deepcopy(one).__reduce__()):
        with pytest.raises(InputError, match=r"in memory \('mine'\).*save_pretrained.*from_pretrained\(folder\)"):
            send(lens)
    assert {name: set(vars(part)) for name, part in lens.model.named_modules()} == before
    own.model.decoder.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="has hooks"):
        pickle.dumps(own)


def test_the_hooks_with_which_transformers_collects_outputs_may_be_left_out(own: Any) -> None:
    ids = torch.zeros(4, 3, dtype=torch.long)
    own.model(**own.tokenizer(["calm"], return_tensors="pt"), decoder_input_ids=ids, output_hidden_states=True)
    assert own.model.decoder.model.decoder.layers[0]._forward_hooks  # transformers leaves them
    assert torch.equal(codes_of(pickle.loads(pickle.dumps(own)), 1), codes_of(own, 1))


def test_one_changed_weight_does_not_arrive_as_the_old_one(own: Any) -> None:
    with torch.no_grad():
        own.model.decoder.model.decoder.layers[1].fc1.weight[3, 5] += 1.0
    content = pickle.dumps(own)
    with pytest.raises(InputError, match="has different weights in this process.*in memory, or the files differ"):
        pickle.loads(content)


def test_copies_of_a_lens(own: Any) -> None:
    same, other = copy.copy(own), copy.deepcopy(own)
    assert same.model is own.model
    assert other.model is not own.model
    assert content_hash(other.model) == content_hash(own.model)
    assert torch.equal(codes_of(same, 1), codes_of(other, 1))
    assert pickle.loads(pickle.dumps(other)).name == own.name


def test_a_model_that_no_lens_takes_is_left_as_it_was(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiolens import lens as module

    model = type(own.model).from_pretrained(own.name)
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    model.train()
    with pytest.raises(InputError, match="training mode"):
        al.AudioLens(model, own.tokenizer)
    model.eval()

    def unproved(_: Any) -> None:
        raise RuntimeError("it is built otherwise")

    with monkeypatch.context() as patch:
        patch.setattr(module, "prove", unproved)
        with pytest.raises(RuntimeError, match="otherwise"):
            al.AudioLens(model, own.tokenizer)
    after = {name: dict(vars(part)) for name, part in model.named_modules()}
    assert {name: set(own) for name, own in after.items()} == {name: set(own) for name, own in before.items()}
    assert not any(STATE in vars(part) for part in model.modules())
    assert not model_calls._GUARDS.get(model, model_calls._Guard()).running
    assert torch.equal(codes_of(al.AudioLens(model, own.tokenizer), 1), codes_of(own, 1))


def test_a_lens_that_fails_leaves_another_on_the_same_model_whole(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiolens import lens as module

    expected = codes_of(own, 1)

    def unproved(_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(module, "prove", unproved)
        with pytest.raises(RuntimeError):
            al.AudioLens(own.model, own.tokenizer)
    assert torch.equal(codes_of(own, 1), expected)
