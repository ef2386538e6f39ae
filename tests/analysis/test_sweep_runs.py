"""A sweep that runs out of memory goes on with smaller batches, and states where its clips were generated."""

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import played
from stops import contents, killed

import audiolens as al
from analysis import sweep
from analysis.heard import hear
from analysis.listening import Listener
from analysis.sweep import experiment, runs
from audiolens.errors import AudioLensWarning, InputError
from audiolens.files.integrity import read_json, sealed_json
from audiolens.model import devices
from audiolens.tracing import fast_clips, model_calls

CPU = devices.described(torch.device("cpu"))


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The largest number of rows for which the device has memory ("most"), after how many batches the run is stopped
    ("last"), and the numbers of rows that were tried."""
    limit: dict[str, Any] = {"most": 99, "last": 99, "tried": []}
    for module in (model_calls, fast_clips):

        def generate(one: Any, run: Any, *rest: Any, own: Any = module.generate, **named: Any) -> Any:
            limit["tried"].append(len(run.layout.rows))
            if len(limit["tried"]) > limit["last"]:
                raise KeyboardInterrupt
            if len(run.layout.rows) > limit["most"]:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return own(one, run, *rest, **named)

        monkeypatch.setattr(module, "generate", generate)
    return limit


def test_a_batch_that_does_not_fit_is_halved_and_a_resumed_sweep_begins_with_what_fitted(
    lens: Any, tmp_path: Path, limited: dict[str, Any]
) -> None:
    whole = played(lens, tmp_path / "whole")
    assert [(one.device, one.at_once, one.rows) for one in whole.runs] == [(CPU, None, 16)]
    out = tmp_path / "sweep"
    # The first of four batches fits, the second does not, and the third is stopped.
    for most, last in ((99, 1), (2, 4)):
        limited.update(most=most, last=last, tried=[])
        with pytest.raises(KeyboardInterrupt), warnings.catch_warnings(record=True) as warned:
            played(lens, out)
    assert [str(one.message)[:54] for one in warned] == ["4 clips of 0.4 s do not fit in the free memory of cpu,"]
    assert limited["tried"] == [4, 2, 2, 2, 2]
    limited.update(last=99, tried=[])
    found = played(lens, out)
    assert limited["tried"] == [2, 2, 2, 2]
    assert [(one.at_once, one.rows) for one in found.runs] == [(None, 4), (2, 12)]
    assert read_json(out / "plan.json")["runs"][1] == {"device": CPU, "at_once": 2, "batches": [[1, 3]]}
    for name in ("baseline", "up", "down", "late"):
        assert torch.equal(found.codes(name), whole.codes(name))
    assert contents(out)["clips.parquet"] == contents(tmp_path / "whole")["clips.parquet"]
    # The plan's batches are the same, so the folder is still that of this sweep without a limit.
    limited["most"] = 99
    assert played(lens, out).whole


def test_a_sweep_in_memory_states_it_too(lens: Any, limited: dict[str, Any]) -> None:
    limited["most"] = 3
    with pytest.warns(AudioLensWarning, match="at most 2 run at once"):
        found = played(lens, None)
    assert [(one.at_once, one.rows) for one in found.runs] == [(2, 16)]


def test_later_batches_begin_with_the_rows_that_fitted_in_a_worker(lens: Any, limited: dict[str, Any]) -> None:
    with Listener(lens, ("brightness",), 0) as ear:
        ear._generates = True

        def play(asked: Any, wanted: Any) -> Future[Any]:
            made, done = lens.generate(**asked), Future[Any]()
            done.set_result(hear(made.codes.numpy(), lens.decode_codes(made.codes).numpy(), 16_000, wanted, made))
            return done

        ear.play = play
        limited["most"] = 2
        with pytest.warns(AudioLensWarning, match="4 clips do not fit .* at most 2 run at once"):
            found = played(lens, None, listener=ear)
    assert limited["tried"] == [4, *[2] * 8]
    assert [(one.at_once, one.rows) for one in found.runs] == [(2, 16)]


def test_another_card_is_stated_and_another_kind_of_device_or_dtype_is_refused(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    monkeypatch.setattr(devices, "described", lambda device: "NVIDIA A")
    killed(lambda: played(lens, out), 1 + 2 * 6)
    monkeypatch.setattr(devices, "described", lambda device: "NVIDIA B")
    with pytest.warns(AudioLensWarning, match="was begun on NVIDIA A, and goes on on NVIDIA B"):
        found = played(lens, out)
    assert [(one.device, one.rows) for one in found.runs] == [("NVIDIA A", 8), ("NVIDIA B", 8)]
    assert "8 on NVIDIA A, 8 on NVIDIA B" in repr(sweep.load_folder(out))
    before = contents(out)
    # Nothing is left to generate, so a third card is not named.
    monkeypatch.setattr(devices, "described", lambda device: "NVIDIA C")
    assert len(played(lens, out).runs) == 2
    with pytest.raises(InputError, match="begun with dtype float32, but this is bfloat16"):
        played(al.AudioLens.from_pretrained(lens.name, dtype="bfloat16"), out)
    with pytest.raises(InputError, match="begun with a codec in float32, but this one computes in bfloat16"):
        played(al.AudioLens.from_pretrained(lens.name, codec_dtype="bfloat16"), out)
    stated = experiment.facts_of

    def on_a_gpu(*given: Any, **named: Any) -> dict[str, Any]:
        facts = stated(*given, **named)
        return {**facts, "model": {**facts["model"], "device": "cuda"}}

    monkeypatch.setattr(experiment, "facts_of", on_a_gpu)
    with pytest.raises(InputError, match="begun with device cpu, but this is cuda"):
        played(lens, out)
    assert contents(out) == before


def test_a_sweep_of_an_earlier_version_without_runs_and_dtype_resumes(lens: Any, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    killed(lambda: played(lens, out), 1 + 3 * 6)
    plan = read_json(out / "plan.json")
    del plan["runs"], plan["model"]["dtype"], plan["model"]["codec_dtype"]
    (out / "plan.json").write_bytes(sealed_json(plan))
    assert [(one.device, one.rows) for one in played(lens, out).runs] == [("cpu", 12), (CPU, 4)]


def test_a_batch_belongs_to_the_last_run_that_lists_it_and_runs_beyond_the_plan_are_refused() -> None:
    plan: dict[str, Any] = {"batches": [4, 4, 4, 3], "model": {"device": "cuda"}}
    assert [(one.device, one.rows) for one in runs.made(plan, [1, 3])] == [("cuda", 7)]
    plan["runs"] = [{"device": "A", "at_once": None, "batches": [[0, 3]]}]
    plan = runs.changed(plan, [0, 2, 3], at_once=2)
    assert plan["runs"][1] == {"device": "A", "at_once": 2, "batches": [[0, 0], [2, 3]]}
    assert [(one.at_once, one.rows) for one in runs.made(plan, range(4))] == [(None, 4), (2, 11)]
    assert runs.changed(plan, [3], at_once=2) == runs.changed(plan, [3], device="A") == plan
    runs.check(Path("plan.json"), plan)
    for wrong in ([[0, 4]], [[2, 1]], [[2, 3], [0, 1]], [[-1, 1]]):
        with pytest.raises(InputError, match="its runs do not fit its batches"):
            runs.check(Path("plan.json"), {**plan, "runs": [{"device": "A", "at_once": None, "batches": wrong}]})


def test_the_devices_of_workers_elsewhere_are_stated(lens: Any, tmp_path: Path) -> None:
    class Elsewhere(Listener):
        elsewhere = True

        def hear(self, codes: Any, wanted: Any) -> Any:
            self.devices = frozenset(("NVIDIA B", "NVIDIA A"))
            return super().hear(codes, wanted)

    with Elsewhere(lens, ("brightness", "loudness"), 0) as ear:
        for out in (None, tmp_path / "sweep"):
            found = played(lens, out, listener=ear)
            assert [(one.device, one.rows) for one in found.runs] == [("NVIDIA A and NVIDIA B", 16)]
