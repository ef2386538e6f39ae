"""The options of every command that opens a model: device, dtype, revision, device map, attention and batch size."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import Run

import audiolens as al
from analysis.commands import common
from analysis.commands.common import ETUDE, ModelOptions
from analysis.commands.sizes import Sizes
from audiolens.errors import InputError, SiteError
from audiolens.model import devices

OPENING = (
    "study",
    "sweep",
    "place",
    "probe",
    "patch",
    "directions read",
    "generate",
    "harvest",
    "train-sae",
    "features",
)


@pytest.mark.parametrize("command", OPENING)
def test_every_command_that_opens_a_model_has_the_same_options(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    for option in ("--device ", "--dtype", "--revision", "--device-map", "--attention", "cuda:1"):
        assert option in out


def test_a_command_opens_the_model_with_its_options(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--dtype", "bfloat16", "--device", "cpu", "--attention", "eager")
    asked = ("directions", "tempo", "-m", checkpoint, "--seconds", 0.4, "--position", "first", "--codes", "own")
    code, out, err = run(*asked, *options, "--json", "-o", "d.safetensors")
    assert code == 0, err
    assert json.loads(out)["device"].startswith("cpu ")
    assert json.loads(out)["dtype"] == "bfloat16"
    assert "running on" not in err
    opened: dict[str, Any] = {}
    monkeypatch.setattr(al.AudioLens, "from_pretrained", lambda name, **given: opened.update(given, name=name))
    with pytest.raises(AttributeError):
        common.open_lens(ModelOptions("facebook/musicgen-small", revision="main", device_map="auto"))
    assert (opened["revision"], opened["device_map"], opened["device"]) == ("main", "auto", None)


def test_auto_says_in_one_line_that_it_has_taken_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lens = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    monkeypatch.setattr(al.AudioLens, "from_pretrained", lambda name, **given: lens)
    monkeypatch.setattr(devices, "described", lambda device: "NVIDIA H200")
    common.open_lens(ETUDE)
    assert capsys.readouterr().err == (
        "audiolens: running on NVIDIA H200 in bfloat16 (--device cpu and --dtype float32 change this).\n"
    )
    common.open_lens(ModelOptions(device="cuda"))
    lens.device = torch.device("cpu")
    common.open_lens(ETUDE)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["probe tempo", "sweep tempo -o out", "study tempo", "generate song"])
def test_a_gpu_that_is_not_there_is_one_line_before_the_model_is_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(al.AudioLens, "from_pretrained", lambda *_, **__: pytest.fail("the model was opened"))
    code, _, err = run(*command.split(), "--device", "cuda:1")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("audiolens: device='cuda:1' is not available: torch ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("probe tempo --layers 12", "layer 12 does not exist: this model has layers 0 to 7"),
        ("probe tempo --heads 6", "this model has heads 0 to 5"),
        ("probe tempo --heads 0", "resid_post has no heads"),
        ("probe tempo --site attn.pattern", "expected a site with one vector per step"),
        ("probe tempo --site atn.z", "Did you mean 'attn.z'"),
        ("probe tempo --seconds 99", "this model makes clips of"),
        ("probe tempo --position eos", "MusicGen reads its text through cross-attention"),
        ("patch tempo --site resid", "unknown site 'resid'"),
        ("patch tempo --seconds 99", "this model makes clips of"),
        ("place tempo --seconds 99", "this model makes clips of"),
        ("directions tempo --position eos", "MusicGen reads its text through cross-attention"),
        ("generate song --seconds 99", "this model makes clips of"),
        ("generate song --seconds 60 --window 99", "window=99"),
        ("harvest tempo -o out --layers 8", "layer 8 does not exist"),
        ("sweep tempo -o out --layers 3-8", "layer 8 does not exist"),
        ("sweep tempo -o out --seconds 99", "this model makes clips of"),
        ("sweep tempo -o out --strategy one-to-band", "needs band=(first, last)"),
        ("sweep tempo -o out --strategy one-to-band --band 2-9", "layer 9 does not exist"),
        ("sweep tempo -o out --control-strengths=3", "expected some of"),
        ("sweep tempo -o out --strengths=1,1", "expected different finite numbers"),
        ("sweep tempo -o out --prompts 0", "there are 40 neutral development prompts"),
    ],
)
def test_what_the_configuration_tells_is_checked_before_the_model_is_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.setattr(al.AudioLens, "from_pretrained", lambda *_, **__: pytest.fail("the model was opened"))
    code, _, err = run(*arguments.split())
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_the_sizes_in_a_configuration_are_those_of_the_opened_model(
    lens: Any, stereo_lens: Any, melody_lens: Any, tmp_path: Path
) -> None:
    for one in (lens, stereo_lens, melody_lens):
        assert Sizes.stated(ModelOptions(str(one.name))) == Sizes.of(one)
    melody = Sizes.of(melody_lens)
    melody.check(eos=True)
    with pytest.raises(SiteError, match="no cross-attention"):
        melody.check(site="cross_attn.q")
    with pytest.raises(InputError, match="makes clips of"):
        melody.check(seconds=99)
    # What cannot be read is left to the opening of the model.
    for content in ("{}", "[", '{"decoder": {}, "audio_encoder": 3}'):
        (tmp_path / "config.json").write_text(content)
        assert Sizes.stated(ModelOptions(str(tmp_path))) is None


def test_the_batch_size_reaches_a_sweep_and_a_study(
    run: Run, checkpoint: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analysis import study

    words = ("sweep", file, "-m", checkpoint, "-o", "out", "--plan", "--json", "--layers", 1, "--seconds", 0.4)
    code, out, err = run(*words, "--batch-size", 5)
    assert code == 0, err
    assert max(json.loads(out)["batches"]) == 5
    asked: dict[str, Any] = {}

    def stopped(*_: Any, settings: Any, **__: Any) -> None:
        asked["rows"] = settings.batch_size
        raise InputError("enough.")

    monkeypatch.setattr(study, "run", stopped)
    for given, rows in ((("--batch-size", 9), 9), ((), 64)):
        run("study", "tempo", "-m", checkpoint, *given)
        assert asked["rows"] == rows


def test_memory_that_runs_out_is_one_line(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(al.AudioLens, "generate", full)
    code, _, err = run("generate", "song", "-m", checkpoint)
    assert (code, err.count("\n")) == (2, 1)
    assert "the device ran out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in err
