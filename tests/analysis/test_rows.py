"""Rows of finished batches go to a function of the user's, and no tracker can stop, change or repeat a sweep."""

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_runs import TINY, bare_pages, played, studied
from stops import contents, killed

from analysis import study, sweep, trackers
from analysis.study import study_set
from audiolens.errors import AudioLensWarning, InputError, InputTypeError, MissingPackageError


def gathered(found: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(found).sort_index()


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_every_row_is_handed_on_once_with_its_number(lens: Any, tmp_path: Path, where: str) -> None:
    found: list[pd.DataFrame] = []
    out = None if where == "memory" else tmp_path / "sweep"
    result = played(lens, out, on_rows=found.append)
    assert [len(one) for one in found] == [4, 4, 4, 4]
    pd.testing.assert_frame_equal(gathered(found), result.table, check_dtype=False, check_index_type=False)


def test_a_resumed_sweep_hands_on_new_rows_alone(lens: Any, tmp_path: Path) -> None:
    out, first, second = tmp_path / "sweep", [], []

    def stopped(rows: pd.DataFrame) -> None:
        first.append(rows)
        if len(first) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(lens, out, on_rows=stopped)
    result = played(lens, out, on_rows=second.append)
    assert [one.index[0] for one in first] == [0, 4]
    assert [one.index[0] for one in second] == [8, 12]
    assert result.whole
    played(lens, out, on_rows=lambda _: pytest.fail("nothing is new"))


def test_a_tracker_changes_no_byte_and_loses_no_row_when_it_fails(lens: Any, tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(rows: pd.DataFrame) -> None:
        calls.append(len(rows))
        rows.loc[:, "brightness"] = 0.0
        raise OSError("the network is down")

    plain = played(lens, tmp_path / "plain")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracked = played(lens, tmp_path / "tracked", on_rows=broken)
        in_memory = played(lens, None, on_rows=broken)
    told = [str(one.message) for one in caught if "on_rows failed" in str(one.message)]
    # Once for each of the two sweeps.
    assert len(told) == 2
    assert "OSError: the network is down" in told[0]
    assert calls == [4] * 8
    assert contents(tmp_path / "plain") == contents(tmp_path / "tracked")
    pd.testing.assert_frame_equal(plain.table, tracked.table)
    pd.testing.assert_frame_equal(in_memory.table, plain.table.drop(columns="file"), check_dtype=False)


def test_what_is_no_function_is_refused_before_anything_runs(lens: Any, tmp_path: Path) -> None:
    with pytest.raises(InputTypeError, match="on_rows='tensorboard': expected a function"):
        played(lens, tmp_path / "sweep", on_rows="tensorboard")
    with pytest.raises(InputTypeError, match="on_rows=3: expected a function"):
        study.run(lens, "tempo", tmp_path / "study", settings=TINY, on_rows=3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_study_name_their_stage_and_come_once(lens: Any, tmp_path: Path) -> None:
    found: list[pd.DataFrame] = []
    with bare_pages():
        made = studied(lens, tmp_path / "study", on_rows=found.append)
    rows = pd.concat(found)
    assert set(rows["stage"]) == {"strength", "dose-response", "controls"}
    # The table of the study has the baseline of its controls only once.
    assert len(rows) - sum((rows["stage"] == "controls") & (rows["kind"] == "baseline")) == len(made.clips)
    assert rows.groupby("stage").apply(lambda one: one.index.is_unique).all()
    again: list[pd.DataFrame] = []
    with bare_pages():
        studied(lens, tmp_path / "study", on_rows=again.append)
    assert again == []


def test_rows_of_several_studies_name_their_concept(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from plants import tables as planted

    from analysis.sweep.rows import of_stage

    def ran(*given: Any, on_rows: Callable[[pd.DataFrame], None], **_: Any) -> Any:
        of_stage(on_rows, "scan", pd.DataFrame({"x": [1]}))
        return planted.study()

    monkeypatch.setattr("analysis.study.experiment.run", ran)
    found: list[pd.DataFrame] = []
    study_set.run(lens, ["tempo", "timbre"], settings=TINY, on_rows=found.append, progress=False)
    assert [one["stage"].tolist() for one in found] == [["tempo/scan"], ["timbre/scan"]]


ROWS = pd.DataFrame(
    {
        "condition": ["baseline", "a", "b"], "kind": ["baseline", "steered", "prompted"],
        "concept": [None, "tempo", "tempo"], "strategy": [None, "one-to-one", None], "layer": [np.nan, 4, np.nan],
        "strength": [0.0, -0.5, np.nan], "pole": [None, None, "fast"], "prompt": ["p", "p", "p"], "seed": [0, 0, 0],
        "tempo_ioi": [100.0, 50.0, np.nan], "onsets": [8, 4, 9], "failed": [False, True, False],
    },
    index=[4, 5, 6],
)  # fmt: skip
SERIES = [
    (4, {"tempo_ioi/baseline": 100.0, "onsets/baseline": 8.0, "failed/baseline": 0.0}),
    (5, {"tempo_ioi/tempo_steered_-0.5": 50.0, "onsets/tempo_steered_-0.5": 4.0, "failed/tempo_steered_-0.5": 1.0}),
    (6, {"onsets/tempo_prompted_fast": 9.0, "failed/tempo_prompted_fast": 0.0}),
]


def test_series_are_a_measure_and_what_was_done() -> None:
    assert [*trackers.scalars(ROWS)] == SERIES
    assert [*trackers.scalars(ROWS.convert_dtypes())] == SERIES
    with pytest.raises(InputError, match="no column 'condition'"):
        [*trackers.scalars(ROWS[["onsets"]])]
    staged = ROWS.assign(stage="scan")
    assert [*trackers.scalars(staged)][0][1]["onsets/scan/baseline"] == 8.0


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    for opening, package in (
        (lambda: trackers.to_tensorboard(tmp_path / "log"), "tensorboard"), (lambda: trackers.to_wandb("p"), "wandb"),
        (lambda: trackers.to_mlflow("e"), "mlflow"), (lambda: trackers.asked("mlflow:e"), "mlflow"),
    ):  # fmt: skip
        with pytest.raises(
            MissingPackageError, match=rf"needs {package}, which is not installed: pip install {package}"
        ):
            opening()
    for text in ("mlflow", "mlflow:", "comet:x", ":x"):
        with pytest.raises(InputError, match="expected tensorboard:FOLDER, wandb:PROJECT, mlflow:EXPERIMENT"):
            trackers.asked(text)
    assert list(tmp_path.iterdir()) == []


class Double:
    """Modules that record what is called, with the names and signatures of the real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(trackers, "find_spec", lambda _: True)
        self.patch = monkeypatch

    def module(self, name: str, **names: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(names)
        self.patch.setitem(sys.modules, name, made)


def test_wandb_gets_rows_by_their_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    double = Double(monkeypatch)

    class Run:
        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            double.calls.append(("metric", name, step_metric))

        def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
            assert step is commit is None
            double.calls.append(("log", data))

        def finish(self, exit_code: int | None = None) -> None:
            double.calls.append(("finish", exit_code))

    def init(project: str, **options: Any) -> Run:
        double.calls.append(("init", project, options))
        return Run()

    double.module("wandb", init=init)
    with trackers.to_wandb("tempo", mode="offline") as log:
        log(ROWS)
    assert double.calls == [
        ("init", "tempo", {"mode": "offline"}), ("metric", "row", None), ("metric", "*", "row"),
        *(("log", {"row": number, **values}) for number, values in SERIES), ("finish", 0),
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError), trackers.to_wandb("tempo"):
        raise ZeroDivisionError
    assert double.calls[-1] == ("finish", 1)

    def refused(**_: Any) -> None:
        raise RuntimeError("no API key")

    double.module("wandb", init=refused)
    with pytest.raises(InputError, match="Weights & Biases could not be opened .RuntimeError: no API key"):
        trackers.to_wandb("tempo")


def test_a_tracker_that_cannot_be_closed_gives_a_warning() -> None:
    def end(failed: bool) -> None:
        raise OSError("gone")

    with (
        pytest.warns(AudioLensWarning, match="could not be closed .OSError: gone"),
        trackers.Tracker(lambda _: None, end) as log,
    ):
        log(ROWS)


def test_tensorboard_has_every_value_in_its_event_files(lens: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out, place = tmp_path / "sweep", tmp_path / "log"

    def begun() -> None:
        with trackers.to_tensorboard(place) as log:
            played(lens, out, on_rows=log)

    killed(begun, 1 + 3 * 6)
    with trackers.to_tensorboard(place) as log:
        table = played(lens, out, on_rows=log).table
    assert sweep.load_folder(out).whole
    found: dict[str, list[tuple[int, float]]] = {}
    for file in place.iterdir():
        events = accumulator.EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((one.step, one.value) for one in events.Scalars(name))
    expected: dict[str, list[tuple[int, float]]] = {}
    for number, values in trackers.scalars(table):
        for name, value in values.items():
            expected.setdefault(name, []).append((number, value))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert sorted(found[name]) == [(number, pytest.approx(value, rel=1e-6)) for number, value in values]


def test_mlflow_has_every_value_in_its_store(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    many = pd.concat([ROWS.assign(prompt=str(place)) for place in range(200)], ignore_index=True)
    with trackers.to_mlflow("tempo", uri=uri) as log:
        log(many)
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tempo")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "tempo_ioi/tempo_steered_-0.5")
    assert sorted((one.step, one.value) for one in history) == [(number, 50.0) for number in range(1, 600, 3)]
    with trackers.to_mlflow("tempo", uri=uri, run_id=run.info.run_id) as log:
        log(ROWS.set_axis([600, 601, 602]))
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(client.get_metric_history(run.info.run_id, "tempo_ioi/tempo_steered_-0.5")) == 201
