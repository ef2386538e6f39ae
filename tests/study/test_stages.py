"""A study stopped at any point resumes and ends with the same tables; another study's folder is refused."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_runs import TINY, bare_pages, studied
from stops import assert_same, contents

from analysis import study, sweep
from analysis.placement import place as place_by
from analysis.study import pipeline, stages
from analysis.sweep import ledger, playing
from audiolens.directions import pole_reader
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.errors import InputError
from audiolens.files.integrity import read_json, sealed_json


@pytest.fixture(scope="module", autouse=True)
def _bare_pages() -> Iterator[None]:
    with bare_pages():
        yield


@pytest.fixture(scope="module")
def whole(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "tempo"
    studied(lens, out)
    return out


class Stopped(Exception):
    """What a test stops a study with."""


def stopped_at_once(lens: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a study in the place of the one that is there, and stop before its first stage."""

    def stop(*_: Any) -> Any:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("analysis.study.experiment._run", stop)
        with pytest.raises(Stopped):
            studied(lens, out, overwrite=True)


def test_stopped_before_every_stage_it_ends_with_the_same_bytes(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told, left = tmp_path / "tempo", [], [0]
    tell = pipeline.Teller.tell

    def stopping(teller: pipeline.Teller, line: str) -> None:
        told.append(line)
        tell(teller, line)
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    monkeypatch.setattr(pipeline.Teller, "tell", stopping)
    stops = 0
    while True:
        left[0] = stops + 1
        try:
            studied(lens, out)
        except Stopped:
            stops += 1
        else:
            break
    assert stops >= 9
    assert sum("kept from before" in line for line in told) >= 8
    assert_same(out, whole)


def test_a_finished_study_is_not_made_again(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    (out / "notes.txt").write_text("mine")

    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model ran")

    monkeypatch.setattr(playing.Making, "generate", none)
    monkeypatch.setattr(pole_reader.PoleReader, "__init__", none)
    again = studied(lens, out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert_same(out, whole)
    assert again.seconds.keys() == {
        "directions", "patching", "placement", "strength", "dose-response", "controls", "lost",
    }  # fmt: skip
    assert min(again.seconds.values()) > 0


def test_only_what_follows_from_a_change_is_made_again(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    made: list[str] = []
    generate = playing.Making.generate

    def noted(making: Any, lens: Any, plan: Any, batch: Any) -> Any:
        made.append(batch[0][0].labels["split"])
        return generate(making, lens, plan, batch)

    monkeypatch.setattr(playing.Making, "generate", noted)
    changed = replace(TINY, n_random=2)
    with pytest.raises(InputError, match="finished study with n_random=1, but this one has 2.*--force"):
        studied(lens, out, changed)
    assert_same(out, whole)
    assert not made
    studied(lens, out, changed, overwrite=True)
    assert set(made) == {"test"}
    assert json.loads((out / "summary.json").read_text())["settings"]["n_random"] == 2
    studied(lens, out, overwrite=True)
    made.clear()
    # What changes nothing but the time it takes is no other study.
    studied(lens, out, replace(TINY, n_jobs=1))
    studied(lens, out)
    assert not made
    before = {name: content for name, content in contents(whole).items() if not name.startswith("stages")}
    after = contents(out)
    assert [name for name, content in before.items() if after[name] != content] == []


def test_each_stage_depends_on_the_code_that_it_runs(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: dict[str, set[str]] = {}
    stage = stages.Stages.stage

    def noted(self: stages.Stages, name: str, *more: Any) -> Any:
        found = stage(self, name, *more)
        reached[name] = set(found.modules or ())
        return found

    monkeypatch.setattr(stages.Stages, "stage", noted)
    studied(lens, shutil.copytree(whole, tmp_path / "tempo"))
    assert reached.keys() == {"directions", "patching", "placement", "strength", "dose-response", "controls", "lost"}

    def of(*modules: str) -> set[str]:
        return {name for name, mine in reached.items() if mine & {*modules}}

    swept = {"strength", "dose-response", "controls"}
    for engine in ("lens", "tracing.plan", "tracing.sampling", "model.families.musicgen", "interventions"):
        assert of(f"audiolens.{engine}") == {*reached}
    assert of("audiolens.measure.rhythm") == {*reached}
    assert of("audiolens.directions.difference_in_means") == {"directions", "placement"}
    assert of("analysis.patching.engine") == {"patching", "placement"}
    assert of("analysis.study.where") == {"patching"}
    assert of("analysis.placement.experiment") == {"placement"}
    assert of("analysis.listening", "analysis.sweep.playing") == swept
    assert of("analysis.study.side_effects") == {"lost"}
    assert of("audiolens.measure.frechet") == {"patching", "placement", "lost"}
    assert of("analysis.study.pipeline", "analysis.study.test_result", "analysis.study.assembly") == set()
    drawing = re.compile(r"analysis\.(report|figures|commands|cli)\b|\.(figures|plots|screen|spectrograms)$")
    assert [module for mine in reached.values() for module in mine if drawing.search(module)] == []


def test_a_stage_refuses_an_argument_with_code_that_its_key_lacks(tmp_path: Path) -> None:
    stage = stages.Stages(tmp_path).stage("directions", {}, difference_in_means)
    with pytest.raises(TypeError, match=r"its key does not cover an argument's code in analysis\.sweep\.experiment"):
        stage.made("lens", position=partial(sweep.play))


def test_a_description_that_another_program_wrote_is_never_replaced(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    (out / "study.json").write_text('{"years": "of work"}')
    for overwrite in (False, True):
        with pytest.raises(InputError, match="study.json does not describe a study: choose another folder"):
            studied(lens, out, overwrite=overwrite)
    assert (out / "study.json").read_text() == '{"years": "of work"}'


def test_a_damaged_stage_is_made_again(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    files = ("directions-*/samples.safetensors", "patching-*/facts.json", "placement-*/evidence.parquet",
             "lost-*/lost.parquet")  # fmt: skip
    for file in files:
        (path,) = (out / "stages").glob(file)
        path.write_bytes(path.read_bytes()[:-20])
    studied(lens, out)
    assert_same(out, whole)


def test_other_code_weights_or_settings_are_other_stages(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = stages.common_of(lens)

    def place(common: dict[str, Any] = own, make: Any = difference_in_means, seconds: float = 1.0) -> Path | None:
        return stages.Stages(Path("x"), common).stage("directions", {"seconds": seconds}, make).place

    first = place()
    assert first == place(stages.common_of(lens))
    others = [{**own, "weights": "0"}, {**own, "versions": {**own["versions"], "torch": "0"}}]
    assert len({first, *map(place, others), place(make=place_by), place(seconds=2.0)}) == 5
    weight = lens.model.decoder.model.decoder.layers[1].fc1.weight
    with torch.no_grad():
        kept = float(weight[3, 5])
        weight[3, 5] += 0.5
        try:
            assert stages.common_of(lens)["weights"] != own["weights"]
        finally:
            weight[3, 5] = kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concept": "timbre"}, "contains another study: it is of 'timbre', not 'tempo'"),
        ({"weights": "0" * 64, "model": "mine"}, "it is of another model ('mine'; this is"),
        ({"versions": {"torch": "1.0"}}, "was begun with"),
        ({"format": "audiolens.run.0"}, "it has format audiolens.run.0"),
        ({"versions": None}, "study.json cannot be used: versions is None, expected an object: the stages are kept"),
    ],
)
def test_another_study_is_refused_and_replaced_only_when_asked(
    lens: Any, whole: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out = tmp_path / "tempo"
    (out / "stages" / "scan-0123").mkdir(parents=True)
    (out / "stages" / "scan-0123" / "clips.parquet").write_bytes(b"hours")
    (out / "study.json").write_bytes(sealed_json({**read_json(whole / "study.json"), **change}))
    before = contents(out)
    with pytest.raises(InputError, match="with --force") as refused:
        studied(lens, out)
    assert message in str(refused.value)
    assert contents(out) == before
    if "concept" in change:
        studied(lens, out, overwrite=True)
        assert_same(out, whole)


@pytest.mark.parametrize("old", [{"concept": "timbre"}, {"weights": "0" * 64}, None])
def test_a_replaced_study_shows_nothing_until_the_new_one_is_done(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, str] | None
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    for name in ("index.html", "notes.txt"):
        (out / name).write_text("mine" if name == "notes.txt" else "bright")
    if old is None:
        # A study of an earlier version says what it is in its summary alone.
        (out / "study.json").unlink()
        (out / "summary.json").write_text(json.dumps({"format": "audiolens.study.1"}))
    else:
        (out / "study.json").write_bytes(sealed_json({**read_json(whole / "study.json"), **old}))
    stopped_at_once(lens, out, monkeypatch)
    assert {path.name for path in out.iterdir()} == {"study.json", "stages", ".lock", "notes.txt"}
    assert json.loads((out / "study.json").read_text())["concept"] == "tempo"
    studied(lens, out)
    (out / "notes.txt").unlink()
    assert_same(out, whole)


def test_repeating_a_study_leaves_its_page_until_the_new_one_is_done(
    lens: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole, tmp_path / "tempo")
    stopped_at_once(lens, out, monkeypatch)
    assert_same(out, whole)


def test_in_memory_and_in_a_folder_are_the_same_study(lens: Any, whole: Path) -> None:
    found = study.run(lens, "tempo", settings=TINY, progress=False)
    kept = pd.read_parquet(whole / "clips.parquet")
    pd.testing.assert_frame_equal(found.clips, kept, check_dtype=False, check_exact=True)
    assert ledger.finished(next(path for path in (whole / "stages").glob("strength-*") if path.is_dir()))


@pytest.mark.slow
def test_several_processes_make_the_same_stages(lens: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "tempo"
    studied(lens, out, replace(TINY, n_jobs=2))
    # The summary and the page state the settings.
    assert_same(out / "stages", whole / "stages")
