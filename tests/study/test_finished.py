"""A finished study is loaded from its folder and its page redrawn, without a model."""

# ruff: noqa: F811 - fixtures of another file are named as arguments

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
from command_line import Run
from damage_folders import tables_alone
from filelock import FileLock
from hub import running
from small_runs import TINY, bare_pages

from analysis import comparison, report, study
from analysis.listening_test import clips
from analysis.report import index
from analysis.store.folder import SUMMARY
from analysis.study import finished, stages
from analysis.study.made import made_of
from analysis.sweep import playing
from audiolens import AudioLens
from audiolens.errors import BusyError, DamagedError, InputError
from audiolens.files.integrity import MANIFEST, read_json, sealed_json

COMMAND = "audiolens study tempo --seconds 0.5"


@pytest.fixture(scope="module")
def made(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Study, Path]:
    out = tmp_path_factory.mktemp("finished") / "tempo"
    return study.run(lens, "tempo", out, settings=TINY, progress=False, command=COMMAND), out


@pytest.fixture
def out(made: tuple[study.Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, where no model can be opened or run."""

    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(AudioLens, "from_pretrained", none)
    monkeypatch.setattr(playing.Making, "generate", none)
    return shutil.copytree(made[1], tmp_path / "tempo")


def shown(folder: Path) -> dict[str, bytes]:
    """Numbers and sounds to the byte: all that is shown but the pictures."""
    kinds = (".csv", ".parquet", ".json", ".wav", ".safetensors")
    files = [path for path in folder.rglob("*") if path.suffix in kinds and stages.STAGES not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_read_again_is_what_was_found(made: tuple[study.Study, Path], out: Path) -> None:
    again, found = study.load_folder(out), made[0]
    assert repr(again) == repr(found)
    assert again.settings == found.settings
    assert again.outcomes == found.outcomes or str(again.outcomes) == str(found.outcomes)
    for name in ("response", "scan", "cross", "side_effects", "clips"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_exact=True)
    assert again.sounds.keys() == found.sounds.keys()


def test_a_folder_whose_summary_says_heard_by_opens_and_resumes(
    lens: Any, made: tuple[study.Study, Path], out: Path
) -> None:
    facts, used = read_json(out / SUMMARY), read_json(out / stages.MADE)["stages"].values()
    assert facts["settings"].pop("measured_by") == {}
    # No clip depends on the measure of another concept, so the folder is as a study with this setting left it.
    facts["settings"]["heard_by"] = {"timbre": "rolloff"}
    (out / SUMMARY).write_bytes(sealed_json(facts))
    (out / stages.MADE).write_bytes(made_of(out, out, used))
    chosen = replace(TINY, measured_by={"timbre": "rolloff"})
    assert study.load_folder(out).settings == chosen
    with pytest.raises(InputError, match="finished study with measured_by={'timbre': 'rolloff'}, but this one has {}"):
        study.run(lens, "tempo", out, settings=TINY, progress=False)
    # As no clip can be generated, every stage is read back.
    with bare_pages():
        again = study.run(lens, "tempo", out, settings=chosen, progress=False)
    assert repr(again) == repr(made[0])
    settings = read_json(out / SUMMARY)["settings"]
    assert (settings["measured_by"], "heard_by" in settings) == ({"timbre": "rolloff"}, False)


def test_the_page_is_drawn_anew_with_the_same_numbers(run: Run, made: tuple[study.Study, Path], out: Path) -> None:
    for name in ("index.html", "clips.csv"):
        (out / name).unlink()
    for name in ("tables", "figures", "audio"):
        shutil.rmtree(out / name)
    # What another choice of settings left beside the stages of this one.
    (decoy,) = (path for path in (out / "stages").glob("dose-response-*") if path.is_dir())
    shutil.copytree(decoy, decoy.with_name("dose-response-0000000000000000"))
    (decoy.with_name("dose-response-0000000000000000") / "clips.parquet").write_bytes(b"others")
    code, told, err = run("report", out)
    assert code == 0, err
    assert f"{made[0].finding}\n{made[0].qualification}\n" in told
    assert shown(out) == shown(made[1])
    page = (out / "index.html").read_text("utf-8")
    assert COMMAND in page
    assert page.count("<audio") == (made[1] / "index.html").read_text("utf-8").count("<audio")
    assert {path.name for path in (out / "figures").iterdir()} == {
        path.name for path in (made[1] / "figures").iterdir()
    }


def test_an_index_is_drawn_anew_with_its_studies(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def titled(found: study.Study, folder: Path, *, command: str = "", **_: Any) -> None:
        tables_alone(found, folder, command=command)
        (folder / "index.html").write_text(f"the page of {found.concept}")

    monkeypatch.setattr(report, "write", titled)
    place = out.parent / "studies"
    for name in ("tempo", "density"):
        shutil.copytree(out, place / name)
        used = read_json(out / "made.json")["stages"].values()
        for file in ("summary.json", "study.json"):
            (place / name / file).write_bytes(sealed_json({**read_json(out / file), "concept": name}))
        (place / name / "made.json").write_bytes(made_of(place / name, place / name, used))
        (place / name / "index.html").unlink()
    told = {"format": index.FORMAT, "concepts": ["tempo", "density"], "command": "audiolens study --concepts ..."}
    (place / "summary.json").write_bytes(sealed_json(told))
    found = study.redraw(place)
    assert "tempo, density" in repr(found)
    for name in ("tempo", "density"):
        assert (place / name / "index.html").read_text() == f"the page of {name}"
    assert "audiolens study --concepts ..." in (place / "index.html").read_text("utf-8")
    assert set(pd.read_csv(place / "cross_effects.csv")["measured_concept"]) == {"tempo", "density"}


def test_a_page_lists_all_finished_studies_of_a_folder(run: Run, out: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("tempo", "again"):
        shutil.copytree(out, runs / name)
    shutil.copytree(out, runs / "begun")
    (runs / "begun" / "summary.json").unlink()
    (runs / "notes").mkdir()
    (runs / "tempo" / "index.html").write_text("the page of tempo")
    code, told, err = run("report", runs, "--index")
    assert code == 0, err
    assert "lists 2 studies" in told
    assert "leaves out begun: not finished" in err
    page = (runs / "index.html").read_text("utf-8")
    assert [name for name in ("tempo", "again", "begun") if f'href="{name}/index.html"' in page] == ["tempo", "again"]
    assert (runs / "tempo" / "index.html").read_text() == "the page of tempo"
    # A folder with such a page is an index of studies: its studies can be compared and drawn again.
    assert [one.name for one in finished.study_folders(runs)] == ["again", "tempo"]
    first = page
    for name in ("cross_effects.svg", "cosines.csv"):
        (runs / name).write_text("mine")
    assert run("report", runs, "--index", "--json")[0] == 0
    assert (runs / "cosines.csv").read_text() == "mine"
    # An earlier index drew them, of other studies.
    facts = json.loads((runs / "summary.json").read_text("utf-8"))
    facts = {key: value for key, value in facts.items() if key != "sha256"} | {"cross_effects": [{}]}
    (runs / "summary.json").write_bytes(sealed_json(facts))
    assert run("report", runs, "--index", "--json")[0] == 0
    assert {one.name for one in runs.iterdir() if one.is_file()} == {"index.html", "summary.json"}
    assert (runs / "index.html").read_text("utf-8") == first


def test_a_folder_without_studies_or_with_another_page_is_left_alone(run: Run, out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(out, tmp_path / "runs" / "tempo")
    (tmp_path / "runs" / "index.html").write_text("mine")
    shutil.copytree(out, tmp_path / "noted" / "tempo")
    (tmp_path / "noted" / "summary.json").write_text("mine")
    for options, words in (
        (("empty", "--index"), "contains no finished studies"),
        (("nowhere", "--index"), "contains no finished studies"),
        (("runs", "--index"), "is not an index of studies"),
        (("noted", "--index"), "is not an index of studies"),
        (("runs", "--index", "--figures", "pdf"), "were both given"),
    ):
        code, told, err = run("report", *options)
        assert (code, told) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    assert (tmp_path / "runs" / "index.html").read_text() == "mine"
    assert (tmp_path / "noted" / "summary.json").read_text() == "mine"
    assert not list((tmp_path / "empty").iterdir())


def test_a_finished_study_shows_what_a_replaced_one_is_cleared_of(made: tuple[study.Study, Path]) -> None:
    assert {path.name for path in made[1].iterdir()} == {
        *stages.SHOWN, SUMMARY, stages.BEGUN, stages.STAGES, ".lock"
    }  # fmt: skip


def _remove(*names: str) -> Any:
    def change(out: Path) -> None:
        for name in names:
            for path in list(out.glob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _other_version(out: Path) -> None:
    facts = read_json(out / "study.json")
    facts["versions"]["librosa"] = "0.1"
    (out / "study.json").write_bytes(sealed_json(facts))


def _outside(out: Path) -> None:
    (out / "made.json").write_bytes(sealed_json({"stages": {"directions": "../../elsewhere"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove("*"), "contains no study"),
        (_remove("summary.json"), "unfinished study"),
        (_remove("made.json"), "has no made.json"),
        (_remove("stages/lost-*"), "missing or damaged"),
        (_remove("stages/dose-response-*/batches/*.parquet", "stages/*/clips.parquet"), "missing or damaged|no batch"),
        (_remove("stages/directions-*/samples.safetensors"), "missing or damaged"),
        (_other_version, "was made with librosa 0.1"),
        (_outside, "names no stages"),
        (lambda out: (out / "summary.json").write_text("{"), "cannot be read"),
        (lambda out: (out / "made.json").write_text("[]"), "contains a list"),
    ],
)
def test_a_folder_without_a_whole_study_is_one_line_and_left_alone(
    run: Run, out: Path, change: Any, message: str
) -> None:
    change(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    code, told, err = run("report", out)
    assert (code, told) == (2, "")
    assert pytest.raises(InputError, study.redraw, out).match(message)
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_a_study_at_work_is_not_drawn(out: Path) -> None:
    with FileLock(out / ".lock"), pytest.raises(BusyError, match="another process is at work"):
        study.redraw(out)


def test_a_manifest_of_gigabytes_is_damage_and_is_not_read_into_memory(out: Path) -> None:
    manifest = next((out / stages.STAGES).glob(f"lost-*/{MANIFEST}"))
    with manifest.open("r+b") as file:
        file.truncate(8 * 2**30)
    with pytest.raises(DamagedError, match=r"lost-.*manifest.json is too large"):
        study.load_folder(out)


def test_further_clips_of_a_listening_test_are_decoded_from_codes(
    made: tuple[study.Study, Path], out: Path, lens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study keeps the sound of one prompt. With two, all are decoded, and the kept one sounds the same."""
    _, (kept,) = clips.items_in(out, 1, None)
    monkeypatch.setattr(AudioLens, "from_pretrained", lambda name: lens)
    _, both = clips.items_in(out, 2, None)
    assert len({item.prompt for item in both}) == 2
    assert (both[0].prompt, both[0].seed) == (kept.prompt, kept.seed)
    assert both[0].sounds.keys() == {"unsteered", "positive", "negative"}
    for role, sound in kept.sounds.items():
        # The kept sound has 16 bits.
        np.testing.assert_allclose(both[0].sounds[role], sound, atol=2**-15)
    with pytest.raises(InputError, match="has 2 prompts x seeds, but 3 are needed"):
        clips.items_in(out, 3, None)


def test_a_study_is_pushed_to_a_hub_pulled_elsewhere_and_compared(
    made: tuple[study.Study, Path], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        study.load_folder(out).push_to_hub("user/tempo", out)
        files = hub.files["datasets/user/tempo"]
        assert made[0].poles[0] in files["README.md"].decode()
        loaded: list[Path] = []
        load = finished.load_folder
        monkeypatch.setattr(finished, "load_folder", lambda place: loaded.append(place) or load(place))
        found = study.from_hub("user/tempo", tmp_path / "pulled")
        assert repr(found) == repr(made[0])
        # Once, from the folder that was then renamed. Its sounds, directions and tables are in memory.
        assert len(loaded) == 1
        assert found.sounds.keys() == made[0].sounds.keys()
        assert repr(study.load_folder(tmp_path / "pulled")) == repr(found)
        content = files.pop("made.json")
        with pytest.raises(DamagedError, match="has no made.json"):
            study.from_hub("user/tempo", tmp_path / "less")
        assert not (tmp_path / "less").exists()
        files["made.json"] = content
        assert shown(tmp_path / "pulled") == shown(out)
        with pytest.raises(InputError, match="have the same clips"):
            comparison.compare([tmp_path / "pulled", out])
        files["summary.json"] = files["summary.json"].replace(b"tempo", b"timbre")
        with pytest.raises(DamagedError):
            study.from_hub("user/tempo", tmp_path / "damaged")
        assert not (tmp_path / "damaged").exists()
