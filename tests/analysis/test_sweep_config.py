"""A sweep's settings are written beside its result, and the same settings give the same sweep."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run

from analysis import sweep
from analysis.commands import sweep as command
from analysis.sweep import config
from analysis.sweep.ledger import read_facts
from analysis.sweep.planned import plan_hash
from audiolens.errors import InputError

SMALL = ("--seconds", 0.4, "--prompts", 2, "--seeds", 1, "--controls", 1, "--jobs", 0, "--strengths=-4,4",
         "--layers", "1")  # fmt: skip


def hash_of(folder: Path) -> str:
    return plan_hash(read_facts(folder))


@pytest.mark.parametrize(
    "settings",
    [
        config.Settings(),
        config.Settings(
            strengths=(-1, 0.25), strategies=("one-to-band", "one-to-all"), band=(0, 2), layers=(1, 2),
            branches=("cond", "both"), split="test", prompts=3, seeds=1, n_random=0, n_shuffled=2,
            control_strengths=(-1.0,), opposed=True, seconds=2, guidance_scale=1, batch_size=8, n_jobs=2,
            engine="exact", sound="flac", poles=5, codes="own", measured="brightness",
        ),
        config.Settings(strategies=("heads",), heads=3),
        config.Settings(
            strengths=[np.float32(0.3)], layers=[np.int64(2)], seeds=np.int64(3), seconds=np.float32(4.3),
            opposed=np.bool_(True), band=[0, np.int64(1)], n_jobs=np.int32(1),
        ),
    ],
)  # fmt: skip
def test_settings_are_read_as_they_were_written(settings: config.Settings, tmp_path: Path) -> None:
    stated = config.Config(concepts=("tempo", 'a "b" ü\\n\x7f.csv'), model="etude", revision="v1", others=("timbre",))
    path = tmp_path / config.FILE
    path.write_text(config.text_of(stated, settings), "utf-8")
    found = config.read(path)
    assert (found.concepts, found.model, found.revision, found.others) == (
        stated.concepts, stated.model, stated.revision, stated.others,
    )  # fmt: skip
    assert repr(config.Settings(**found.settings)) == repr(settings)


def test_a_name_that_no_file_can_state_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / config.FILE
    path.write_text(config.text_of(config.Config(concepts=("\udce9.csv",), model="etude"), config.Settings()), "utf-8")
    assert config.read(path).concepts is None


def test_settings_are_assigned_by_name() -> None:
    found = config.assigned(["layers=4", "strengths=[-1, 1]", "strategies=one-to-all", "control_strengths=none"])
    settings = config.Settings(**found)
    assert (settings.layers, settings.strengths, settings.strategies) == ((4,), (-1.0, 1.0), ("one-to-all",))
    assert settings.control_strengths is None
    with pytest.raises(InputError, match="Did you mean 'layers'"):
        config.assigned(["layer=4"])


def test_the_file_of_a_sweep_gives_its_plan_again(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    words = ("sweep", "tempo", "-m", checkpoint, *SMALL, "--poles", 2, "--others", "timbre", "--opposed")
    code, _, err = run(*words, "-o", "one")
    assert code == 0, err
    one = tmp_path / "one"
    stated = config.read(one / config.FILE)
    assert (stated.concepts, stated.model, stated.others) == (("tempo",), str(checkpoint), ("timbre",))
    code, _, err = run("sweep", "--config", "one/sweep.toml", "-o", "two")
    assert code == 0, err
    assert hash_of(one) == hash_of(tmp_path / "two")
    assert (one / config.FILE).read_bytes() == (tmp_path / "two" / config.FILE).read_bytes()
    assert (one / "clips.parquet").read_bytes() == (tmp_path / "two" / "clips.parquet").read_bytes()
    # The sweep that is there is resumed, with the file in its own folder.
    code, _, err = run("sweep", "--config", "one/sweep.toml", "-o", "one")
    assert code == 0, err
    assert "are already finished" in err


def test_python_repeats_a_sweep_from_its_file(run: Run, checkpoint: Path, lens: Any, tmp_path: Path) -> None:
    words = ("sweep", "tempo", "-m", checkpoint, *SMALL, "--poles", 2, "-o", "one")
    assert run(*words)[0] == 0
    arguments = sweep.load_arguments(lens, tmp_path / "one" / config.FILE)
    sweep.run(lens, **arguments, out=tmp_path / "two", progress=False)
    assert hash_of(tmp_path / "one") == hash_of(tmp_path / "two")
    assert config.read(tmp_path / "two" / config.FILE) == config.read(tmp_path / "one" / config.FILE)
    more = sweep.load_arguments(lens, tmp_path / "one" / config.FILE, seeds=2)
    assert len(sweep.plan(lens, timed=False, **more).plan.clips) == 4
    with pytest.raises(InputError, match="unknown 'seed'.*Did you mean 'seeds'"):
        sweep.load_arguments(lens, tmp_path / "one" / config.FILE, seed=2)
    (tmp_path / "bare.toml").write_text("[settings]\nseeds = 1\n")
    with pytest.raises(InputError, match="concepts is missing"):
        sweep.load_arguments(lens, tmp_path / "bare.toml")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[config.Settings, Any]]:
    """The settings and the model of each call of the command, which then stops."""
    found: list[tuple[config.Settings, Any]] = []
    check = command._check

    def seen(settings: config.Settings, concepts: Any) -> None:
        check(settings, concepts)
        found.append((settings, concepts))

    def opened(model: Any) -> None:
        found[-1] = (*found[-1], model)
        raise InputError("far enough")

    monkeypatch.setattr(command, "_check", seen)
    monkeypatch.setattr("analysis.commands.early.check_model", opened)
    return found


def test_options_have_the_defaults_of_settings(run: Run, planned: list[Any]) -> None:
    assert "far enough" in run("sweep", "tempo", "-o", "out")[2]
    assert planned[0][0] == config.Settings()


def test_a_given_option_changes_one_setting_of_a_file_alone(run: Run, planned: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    stated = config.Config(concepts=("timbre",), model="facebook/musicgen-small", revision="v1", others=("tempo",))
    settings = config.Settings(seeds=3, n_random=7, strengths=(-2.0, 2.0), engine="exact", layers=(1,), batch_size=8)
    path.write_text(config.text_of(stated, settings))
    for options, changes, opened, sources in (
        ((), {}, ("facebook/musicgen-small", "v1"), ("timbre",)),
        (("--seeds", 2), {"seeds": 2}, ("facebook/musicgen-small", "v1"), ("timbre",)),
        # Also if the option has its default.
        (("--controls", 5, "--layers", "all", "--engine", "auto", "--batch", "auto"),
         {"n_random": 5, "layers": None, "engine": "auto", "batch_size": 64}, ("facebook/musicgen-small", "v1"),
         ("timbre",)),
        (("--set", "seeds=4", "--set", "sound=wav"), {"seeds": 4, "sound": "wav"}, ("facebook/musicgen-small", "v1"),
         ("timbre",)),
        (("--revision", "v2"), {}, ("facebook/musicgen-small", "v2"), ("timbre",)),
        (("--model", "etude"), {}, ("etude", None), ("timbre",)),
        (("register",), {}, ("facebook/musicgen-small", "v1"), ["register"]),
    ):  # fmt: skip
        _, _, err = run("sweep", *options, "--config", path, "-o", "out")
        assert "far enough" in err, err
        found, concepts, model = planned[-1]
        assert asdict(found) == {**asdict(settings), **changes}
        assert (model.model, model.revision) == opened
        assert concepts == sources


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("concepts = 3", "concepts is 3: expected a list"),
        ("concepts = 'tempo'", "expected a list of texts"),
        ("model = 3", "model is 3: expected a text"),
        ("concpts = ['tempo']", "Did you mean 'concepts'"),
        ("[setings]\nseeds = 3", "Did you mean 'settings'"),
        ("[[settings]]\nseeds = 3", "expected a table"),
        ("seeds = 3", "seeds is above the table"),
        ("[settings]\nmodel = 'etude'", "model is in the table"),
        ("[settings]\nseed = 3", "Did you mean 'seeds'"),
        ("[settings]\nseeds = 'x'", "seeds='x': expected a whole number"),
        ("[settings]\nstrengths = '-1:1:3'", "strengths="),
        ("[settings]\nband = [1]", "band=(1,)"),
        ("[settings]\nopposed = 'no'", "opposed='no': expected True or False"),
        ("[settings]\nengine = 'quick'", "expected 'auto', 'exact', 'fast'"),
        ("[settings]\nseeds = 3", "name what to sweep"),
        ("concepts = ['tempi']", "Did you mean 'tempo'"),
        ("concepts = [", "not TOML"),
        ("concepts = ['tempo']\n[settings]\nlayers = [2, 2]", "expected each layer once"),
        ("concepts = ['tempo']\n[settings]\nbranches = 'null'\nguidance_scale = 1", "needs guidance"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(run: Run, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    code, out, err = run("sweep", "--config", "own.toml", "-o", "out")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_with_other_concepts_is_taken_without_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def sources_of(names: Any, *_: Any) -> Any:
        asked.append(names)
        if len(asked) == 2:
            raise InputError("far enough")

    monkeypatch.setattr("analysis.sweep.sources.sources_of", sources_of)
    (tmp_path / "own.toml").write_text("concepts = ['tempo']\nothers = ['timbre']")
    for options, others in (((), ("timbre",)), (("--others", "none"), ()), (("--others", "register"), ("register",))):
        asked.clear()
        assert "far enough" in run("sweep", "--config", "own.toml", *options, "-o", "out")[2]
        assert asked == [("tempo",), others]


def test_set_and_an_option_are_not_both_given(run: Run) -> None:
    code, _, err = run("sweep", "tempo", "--controls", 3, "--set", "n_random=4", "-o", "out")
    assert code == 2
    assert "--set n_random and an option (controls) were both given" in err


def test_a_folder_whose_plan_is_lost_is_restored_beside_its_settings(
    run: Run, checkpoint: Path, file: Path, tmp_path: Path
) -> None:
    words = ("sweep", file, "-m", checkpoint, *SMALL, "-o", "one")
    assert run(*words)[0] == 0
    stored = json.loads((tmp_path / "one" / "plan.json").read_text())
    (tmp_path / "one" / "plan.json").unlink()
    code, _, err = run(*words)
    assert code == 0, err
    assert json.loads((tmp_path / "one" / "plan.json").read_text())["conditions"] == stored["conditions"]
