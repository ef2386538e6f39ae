"""Log the rows of a running sweep or study to TensorBoard, Weights & Biases or MLflow.

Each function opens a run of a tracker, and returns a `Tracker` to give as `on_rows`:

    with trackers.to_tensorboard("runs/log") as log:
        sweep.run(lens, directions, out="runs/tempo", on_rows=log)

audiolens needs none of these packages; each is imported only when its function is called. `on_rows` also takes any
other function of a table of rows.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from audiolens.checks import checked_text, shown
from audiolens.door import guarded
from audiolens.errors import AudioLensWarning, InputError, MissingPackageError
from audiolens.files.atomic import as_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Tracker", "scalars", "to_mlflow", "to_tensorboard", "to_wandb"]

KINDS = {"tensorboard": "FOLDER", "wandb": "PROJECT", "mlflow": "EXPERIMENT"}
"""The trackers that the command line names, and what follows the name."""
_NAMES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow"}
_PER_CALL = 1000
"""The largest number of values that MLflow takes in one call."""
Logged = tuple[int, Mapping[str, float]]
"""The number of a row, and its values by the name of their series."""


@guarded
@dataclass(frozen=True, eq=False)
class Tracker:
    """A run of a tracker that is open, as a function of rows. At the end of a `with` block, the run is closed.

    Attributes:
        log: a function that logs values, given as (number of the row, values by the name of their series).
        end: a function that closes the run. Its argument says whether the block has failed.
    """

    log: Callable[[Sequence[Logged]], object]
    end: Callable[[bool], object]

    def __call__(self, rows: pd.DataFrame) -> None:
        """Log the rows of a batch."""
        self.log([*scalars(rows)])

    def close(self) -> None:
        """Close the run. A tracker that fails at this point gives a warning."""
        self._close(failed=False)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(failed=kind is not None)

    def _close(self, *, failed: bool) -> None:
        try:
            self.end(failed)
        except Exception as error:
            message = f"a tracker could not be closed ({type(error).__name__}: {str(error)[:200]}): it may miss rows."
            warnings.warn(AudioLensWarning(message), stacklevel=3)


@guarded
def scalars(rows: pd.DataFrame) -> Iterator[Logged]:
    """Yield the number of each row, and its values by the name of their series, as all trackers log them.

    A series is a measure, the stage of a study, and what was done to the clip: its concept, kind and strength, as in
    "brightness/dose-response/timbre_steered_0.5". Values that could not be measured are left out. Places and strategies
    share a series, and the table of the sweep has them apart.
    """
    from pandas.api.types import is_numeric_dtype

    from analysis.sweep.factorial import LABELS

    if "condition" not in rows:
        raise InputError(f"rows: no column 'condition' in {shown([*rows])}: expected rows of a sweep.")
    labels = {*LABELS, "heads", "stage", "condition", "prompt", "asked", "seed", "file"}
    measured = [name for name in rows if name not in labels and is_numeric_dtype(rows[name])]
    # Columns that can lack a number, as pandas stores whole numbers and truth values, become floats.
    rows = rows.astype(dict.fromkeys(measured, float))
    for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
        done = _done(row)
        stage = [stage] if isinstance(stage := row.get("stage"), str) else []
        # TensorBoard accepts only these characters, and MLflow more.
        names = {name: re.sub(r"[^-/\w.]", "_", "/".join([str(name), *stage, done])) for name in measured}
        values = {names[name]: float(row[name]) for name in measured}
        yield int(number), {name: value for name, value in values.items() if abs(value) < float("inf")}


def _done(row: Mapping[Any, Any]) -> str:
    """Return what was done to a clip, such as "timbre_steered_0.5"."""
    if not isinstance(row.get("kind"), str):
        # Conditions of the user's own need not have a kind.
        return str(row["condition"])
    parts = [part for part in map(row.get, ("concept", "kind", "pole")) if isinstance(part, str)]
    strength = row.get("strength")
    if isinstance(strength, int | float) and strength == strength and strength:
        parts.append(f"{strength:g}")
    return "_".join(parts)


@guarded
def to_tensorboard(folder: str | os.PathLike[str]) -> Tracker:
    """Write event files of TensorBoard to a folder. A resumed sweep adds a file with its new rows.

    Raises:
        MissingPackageError: if tensorboard is not installed.
        InputError: if the folder cannot be written.
    """
    place = as_path(folder)
    refuse_missing("tensorboard")
    with _opening("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter(str(place))

    def log(found: Sequence[Logged]) -> None:
        for number, values in found:
            for name, value in values.items():
                writer.add_scalar(name, value, number)
        writer.flush()

    return Tracker(log, lambda _: writer.close())


@guarded
def to_wandb(project: str, **options: Any) -> Tracker:
    """Open a run of Weights & Biases in a project.

    Args:
        options: further arguments of `wandb.init`, such as `mode="offline"`, or `id="tempo", resume="allow"` to let a
            resumed sweep continue its run.

    Raises:
        MissingPackageError: if wandb is not installed.
        InputError: if the run cannot be opened, for example without an API key.
    """
    checked_text("project", project)
    refuse_missing("wandb")
    with _opening("wandb"):
        import wandb  # pyright: ignore[reportMissingImports]

        run: Any = wandb.init(project=project, **options)
        # Batches can finish in any order, and steps of W&B only rise.
        run.define_metric("row")
        run.define_metric("*", step_metric="row")

    def log(found: Sequence[Logged]) -> None:
        for number, values in found:
            run.log({"row": number, **values})

    return Tracker(log, lambda failed: run.finish(exit_code=int(failed)))


@guarded
def to_mlflow(experiment: str, *, uri: str | None = None, run_id: str | None = None) -> Tracker:
    """Open a run of MLflow in an experiment, which is created if it does not exist.

    Args:
        uri: the address of the tracking server or store (default: that of MLflow, such as MLFLOW_TRACKING_URI).
        run_id: a run to continue, so that a resumed sweep adds to it (default: a new run).

    Raises:
        MissingPackageError: if mlflow is not installed.
        InputError: if the run cannot be opened.
    """
    checked_text("experiment", experiment)
    refuse_missing("mlflow")
    with _opening("mlflow"):
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        client: Any = MlflowClient(tracking_uri=uri)
        if run_id is None:
            known = client.get_experiment_by_name(experiment)
            place = client.create_experiment(experiment) if known is None else known.experiment_id
            run_id = str(client.create_run(place).info.run_id)
        else:
            client.update_run(run_id, status="RUNNING")

    def log(found: Sequence[Logged]) -> None:
        now = int(1000 * time.time())
        # MLflow accepts only these characters in names.
        metrics = [Metric(name, value, now, number) for number, values in found for name, value in values.items()]
        for start in range(0, len(metrics), _PER_CALL):
            client.log_batch(run_id, metrics=metrics[start : start + _PER_CALL])

    return Tracker(log, lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"))


def asked(text: str) -> tuple[str, str]:
    """Parse KIND:NAME of the option `--log`, such as tensorboard:runs/log, and check that its package is installed.

    Raises:
        InputError: if the kind is unknown or the name is missing.
        MissingPackageError: if the package is not installed.
    """
    kind, _, name = text.partition(":")
    if kind not in KINDS or not name:
        known = ", ".join(f"{known}:{what}" for known, what in KINDS.items())
        raise InputError(f"--log {shown(text)}: expected {known}.")
    refuse_missing(kind)
    return kind, name


def opened(kind: str, name: str) -> Tracker:
    """Open the tracker that `--log` names."""
    opening: dict[str, Callable[[str], Tracker]] = {
        "tensorboard": to_tensorboard, "wandb": to_wandb, "mlflow": to_mlflow,
    }  # fmt: skip
    return opening[kind](name)


def refuse_missing(package: str) -> None:
    """Raise a `MissingPackageError` if a package is not installed."""
    if find_spec(package) is None:
        raise MissingPackageError(f"{_NAMES[package]} needs {package}, which is not installed: pip install {package}.")


@contextmanager
def _opening(package: str) -> Iterator[None]:
    """Raise what goes wrong while a tracker is opened as an `InputError`, because the run has not begun."""
    try:
        yield
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:300]}"
        raise InputError(f"{_NAMES[package]} could not be opened ({told}).") from error
