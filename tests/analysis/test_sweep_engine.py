"""A sweep uses the fast engine only where it gives the same clips, and keeps its engine when it resumes."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_runs import played
from stops import contents, killed

from analysis import sweep
from analysis.sweep import engine as engines
from analysis.sweep import experiment, ledger
from analysis.sweep.planned import PLAN, facts_of
from audiolens.errors import InputError
from audiolens.files.integrity import read_json, sealed_json
from audiolens.tracing import fast_clips


@pytest.fixture(autouse=True)
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compare engines for small sweeps too, and anew in every test."""
    monkeypatch.setattr(engines, "LEAST", 2)
    engines._COMPARED.clear()
    yield
    engines._COMPARED.clear()


@pytest.fixture(scope="module")
def exact(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "sweep"
    assert played(lens, out, engine="exact").settings["engine"] == "exact"
    return out


def test_auto_takes_the_fast_engine_and_gives_the_same_table(lens: Any, exact: Path, tmp_path: Path) -> None:
    found = played(lens, tmp_path / "sweep")
    assert found.settings["engine"] == "fast"
    assert read_json(tmp_path / "sweep" / PLAN)["model"]["engine"] == "fast"
    pd.testing.assert_frame_equal(found.table, sweep.load_folder(exact).table)
    in_memory = played(lens, None, engine="fast")
    assert in_memory.settings["engine"] == "fast"
    pd.testing.assert_frame_equal(
        in_memory.table, sweep.load_folder(exact).table.drop(columns="file"), check_dtype=False
    )


def test_a_small_sweep_is_not_worth_the_comparison(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LEAST", 64)
    assert played(lens, None).settings["engine"] == "exact"


@pytest.mark.parametrize("steered", [False, True])
def test_one_other_code_in_either_kind_of_clip_keeps_the_exact_engine(
    lens: Any, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steered: bool
) -> None:
    generate = fast_clips.generate

    def flipped(traced: Any, run: Any, *rest: Any) -> torch.Tensor:
        codes = generate(traced, run, *rest).clone()
        row = -1 if steered else 0
        codes[row, 0, 3] = (codes[row, 0, 3] + 1) % 32
        return codes

    monkeypatch.setattr(fast_clips, "generate", flipped)
    assert played(lens, tmp_path / "sweep").settings["engine"] == "exact"
    assert contents(tmp_path / "sweep")["clips.parquet"] == contents(exact)["clips.parquet"]


def test_a_sweep_resumes_with_its_own_engine(lens: Any, exact: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    killed(lambda: played(lens, out, engine="exact"), 1 + 3 * 6)
    assert ledger.finished(out)
    with pytest.raises(InputError, match=r"was begun with engine='exact': use it or 'auto'"):
        played(lens, out, engine="fast")
    assert played(lens, out).settings["engine"] == "exact"
    assert contents(out)["clips.parquet"] == contents(exact)["clips.parquet"]


def older_facts(*given: Any, **named: Any) -> dict[str, Any]:
    """The description of a sweep by an earlier version: its engine, dtypes and random numbers had no name."""
    facts = facts_of(*given, **named)
    later = {"engine", "dtype", "codec_dtype"}
    model = {name: value for name, value in facts["model"].items() if name not in later}
    return {**{name: value for name, value in facts.items() if name != "noise"}, "model": model}


def test_a_sweep_of_an_earlier_version_is_read_but_not_resumed(
    lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    with monkeypatch.context() as earlier:
        earlier.setattr(experiment, "facts_of", older_facts)
        killed(lambda: played(lens, out, engine="exact"), 1 + 3 * 6)
    before = contents(out)
    for engine in ("auto", "exact"):
        with pytest.raises(InputError, match="its clips were drawn with other random numbers, by another version"):
            played(lens, out, engine=engine)
    assert contents(out) == before
    assert sweep.load_folder(out).settings["engine"] == "exact"
    facts = {key: value for key, value in read_json(out / PLAN).items() if key != "sha256"}
    assert "noise" not in facts
    facts["model"]["engine"] = "quick"
    (out / PLAN).write_bytes(sealed_json(facts))
    with pytest.raises(InputError, match=r"it was begun with engine 'quick'"):
        sweep.load_folder(out)


@pytest.mark.parametrize("engine", ["exact", "fast"])
@pytest.mark.parametrize("lose", [lambda plan: plan.unlink(), lambda plan: plan.write_bytes(plan.read_bytes()[:40])])
def test_a_lost_plan_does_not_mix_engines(lens: Any, tmp_path: Path, engine: str, lose: Any) -> None:
    out, other = tmp_path / "sweep", {"exact": "fast", "fast": "exact"}[engine]
    killed(lambda: played(lens, out, engine=engine), 1 + 3 * 6)
    lose(out / PLAN)
    with pytest.raises(InputError, match=f"was begun with engine='{engine}'"):
        played(lens, out, engine=other)
    assert played(lens, out).settings["engine"] == engine
    lose(out / PLAN)
    assert played(lens, out).settings["engine"] == engine


def test_a_fast_sweep_does_not_resume_where_the_fast_engine_cannot_run(lens: Any, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    killed(lambda: played(lens, out, engine="fast"), 1 + 3 * 6)
    handle = lens.model.register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(InputError, match=r"begun with the fast engine, which cannot be used now, because .*hook"):
            played(lens, out)
        assert played(lens, None).settings["engine"] == "exact"
    finally:
        handle.remove()


def test_other_sampling_settings_are_compared_anew(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert played(lens, None).settings["engine"] == "fast"
    generate = fast_clips.generate
    monkeypatch.setattr(fast_clips, "generate", lambda *given: (generate(*given) + 1) % 32)
    assert played(lens, None, temperature=0.5).settings["engine"] == "exact"


def test_an_unknown_engine_is_refused_before_anything_runs(lens: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine='quick': expected 'exact', 'fast' or 'auto'"):
        played(lens, tmp_path / "sweep", engine="quick")
    assert not (tmp_path / "sweep").exists()


def test_comparing_engines_adds_no_warnings(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens.traced_model.model.generation_config, "max_length", 2)

    def warned(engine: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            played(lens, None, engine=engine)
        return [str(one.message) for one in caught]

    compared = warned("auto")
    assert any("trained on longer clips" in text for text in compared)
    assert compared == warned("exact")
