"""Start workers on a Ray cluster that hold a model each, and let them call functions of the package.

A call names a function, its work and further arguments, and must depend on nothing else. A call whose worker was killed
is repeated by Ray, in the same worker, which is started again. If Ray gives up, or if a worker returned infinite or NaN
values, the call is repeated once by another worker. If that one fails in the same way, so does the call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

from analysis import workers
from analysis.distributed.actors import Place, Worker
from analysis.distributed.backend import WorkersLostError
from analysis.distributed.connection import connect, shortened
from analysis.distributed.settings import Ray
from analysis.store.versions import versions
from audiolens.checks import MOST_JOBS
from audiolens.errors import ActivationOverflow, AudioLensError, AudioLensWarning, InputError
from audiolens.model.tokens import callers_level
from audiolens.tracing.reopening import elsewhere

if TYPE_CHECKING:
    from audiolens import AudioLens

REPEATS = 5
"""How often Ray repeats a call whose worker was killed."""
QUEUED = 2
"""Number of calls that a worker is given at a time, so that it need not wait for the next one."""
_SLOW_SECONDS = 60
"""Time after which a person is told why no worker has started."""


class Call:
    """A call that a worker was asked for. It has the methods of a `Future` that a run needs."""

    def __init__(self, begin: Callable[[Any], tuple[Any, Any]], own: Callable[[Any], Any]) -> None:
        self._begin, self._own = begin, own
        self._worker: Any
        self._reference: Any
        self._worker, self._reference = begin(None)
        self._first: Exception | None = None
        self._outcome: tuple[Any, Exception | None] | None = None

    @property
    def references(self) -> list[Any]:
        """The reference to wait for, or none if the call is done."""
        return [] if self._reference is None else [self._reference]

    def done(self) -> bool:
        """Whether the call has returned or failed. A call that failed may be begun again here."""
        import ray

        while self._outcome is None and ray.wait(self.references, timeout=0)[0]:
            self._take()
        return self._outcome is not None

    def result(self) -> Any:
        """Return what the function returned, or raise the error that it raised.

        Raises:
            WorkersLostError: if the workers died again and again.
        """
        import ray

        while not self.done():
            ray.wait(self.references)
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def cancel(self) -> bool:
        """Do nothing: the call is finished, so that its result is not lost."""
        return False

    def _take(self) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            self._outcome = self._own(ray.get(self._reference)), None
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if not isinstance(cause, AudioLensError):
                # Show where in the worker it happened, because it is a bug.
                cause.__cause__ = None if cause is error else error
            self._again_or(cause) if isinstance(cause, ActivationOverflow) else self._fail(cause)
        except RayError as error:
            self._again_or(WorkersLostError(shortened(error)))
        if self._outcome is not None:
            # Otherwise, the result would stay in Ray's memory.
            self._reference = None
            if self._first is not None and self._outcome[1] is None:
                warnings.warn(
                    f"a worker failed, and its batch was made again ({shortened(self._first)}) "
                    "If this happens often, check the machine and the device of that worker.",
                    AudioLensWarning,
                    stacklevel=callers_level(),
                )

    def _again_or(self, error: Exception) -> None:
        if self._first is None:
            self._first = error
            self._worker, self._reference = self._begin(self._worker)
        else:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._outcome = None, error


class Cluster(AbstractContextManager["Cluster"]):
    """Workers on a Ray cluster, which hold the same model as `lens`. They end when the context ends.

    Args:
        lens: the model. It must have been opened by name or from a folder that every machine has.
        where: the cluster and the workers.
        n_calls: number of calls to come, if known. There are never more workers than calls.

    Raises:
        InputError: if the cluster does not answer or has no room for the workers, or if the model was given in memory.
        MissingPackageError: if the package ray is missing.
    """

    def __init__(self, lens: AudioLens, where: Ray, n_calls: int | None = None) -> None:
        self.lens, self.expected = lens, versions()
        self.gpus = _gpus(lens, where)
        opening = workers.dumps(elsewhere(lens))
        self._actors: list[Any] = []
        self._opening: dict[Any, Any] = {}
        self._ready: dict[Any, Place] = {}
        self._calls: dict[Any, list[Any]] = {}
        self.connection = connect(where)
        try:
            self._start(opening, where, n_calls)
        except BaseException:
            self.__exit__(None)
            raise

    @property
    def ready(self) -> dict[Any, Place]:
        """The workers that have opened the model. The first call waits for one of them.

        Raises:
            InputError: if a worker has other versions or weights.
        """
        self._note_opened(0 if self._ready else _SLOW_SECONDS)
        if not self._ready:
            warnings.warn(
                f"no worker has opened the model within {_SLOW_SECONDS} s. A worker needs {self._needs()}, which other "
                "programs on the cluster may be using: `ray status` shows it. Still waiting.",
                AudioLensWarning,
                stacklevel=callers_level(),
            )
            while not self._ready:
                self._note_opened(None)
        return self._ready

    @property
    def ahead(self) -> int:
        """Number of calls that keep the workers busy that are ready now."""
        return QUEUED * len(self.ready)

    @property
    def about(self) -> str:
        """A line that names the cluster, its workers and Ray's dashboard."""
        board = (
            f"dashboard http://{self.connection.dashboard}"
            if self.connection.dashboard
            else "for Ray's dashboard: pip install 'ray[default]'"
        )
        count = "1 worker" if self.n_workers == 1 else f"{self.n_workers} workers"
        return f"Ray at {self.connection.address}: {count} with {self._needs()} each; {board}"

    def actor(self, kind: type, **resources: float) -> Any:
        """Return a class as Ray's actor, which is started again if it is killed, and then repeats the lost call."""
        import ray

        return ray.remote(kind).options(num_cpus=1, max_restarts=-1, max_task_retries=REPEATS, **resources)

    def start(self, actor: Any, *arguments: Any) -> Any:
        """Start an actor that ends with this cluster."""
        self._actors.append(actor.remote(*arguments))
        return self._actors[-1]

    def put(self, work: Any) -> list[Any]:
        """Pickle work for the workers, and return it as `submit` takes it. It is sent to each worker once."""
        import ray

        return [ray.put(workers.dumps(work))]

    def submit(
        self,
        function: Callable[..., Any],
        work: list[Any],
        *arguments: Any,
        then: Callable[[Any], Any] | None = None,
        own: Callable[[Any], Any] = lambda value: value,
    ) -> Call:
        """Let the worker with the fewest calls call `function(lens, work, *arguments)`.

        Args:
            function: a function of a module of the package, which the workers have too.
            work: from `put`.
            then: takes the reference to the result, and returns that of a further step.
            own: called with the result here, for example to copy arrays that lie in Ray's memory.
        """

        def begin(failed: Any) -> tuple[Any, Any]:
            worker = self._freest(failed)
            reference = self._called(worker, function, work, *arguments)
            return worker, reference if then is None else then(reference)

        return Call(begin, own)

    def on_each_device(self, function: Callable[..., Any], work: list[Any], *arguments: Any) -> dict[str, Any]:
        """Return what `function(lens, work, *arguments)` returns on each kind of device of the workers, by its name."""
        workers_of = {place.device: worker for worker, place in reversed(self.ready.items())}
        calls = {
            device: Call(lambda _, on=worker: (on, self._called(on, function, work, *arguments)), lambda value: value)
            for device, worker in reversed(workers_of.items())
        }
        return {device: call.result() for device, call in calls.items()}

    def wait(self, calls: Collection[Call]) -> None:
        """Wait until at least one of these calls may be done, or another worker has opened the model."""
        import ray

        self._note_opened(0)
        if not any(call.done() for call in calls):
            ray.wait([*(reference for call in calls for reference in call.references), *self._opening], num_returns=1)

    def __exit__(self, *_: Any) -> None:
        import ray
        from ray.exceptions import RayError

        for worker in self._actors:
            # If the cluster is gone, its workers are gone too.
            with suppress(RayError):
                ray.kill(worker)
        self._actors = []
        self.connection.end()

    def _start(self, opening: bytes, where: Ray, n_calls: int | None) -> None:
        import ray

        nodes = [_counted(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        room = sum(_room(node, self.gpus) for node in nodes)
        if room < (where.workers or 1):
            there = " and ".join(f"{sum(node[kind] for node in nodes):g} {kind}s" for kind in ("CPU", "GPU"))
            raise InputError(
                f"workers={where.workers or 1}: the Ray cluster at {self.connection.address} has room for {room}. A "
                f"worker needs {self._needs()}, and the cluster has {there} on {len(nodes)} machine(s)."
            )
        # A cluster that was started here has the memory of this machine.
        most = min(room, workers.default_generating(self.lens)) if self.connection.started_here else room
        self.n_workers = min(where.workers or most, n_calls or MOST_JOBS)
        self.spare_cpus = sum(int(node["CPU"]) for node in nodes) - self.n_workers
        actor = self.actor(Worker, num_gpus=self.gpus)
        for _ in range(self.n_workers):
            worker = self.start(actor, opening, self.expected)
            self._opening[worker.open.remote()] = worker

    def _note_opened(self, seconds: float | None) -> None:
        """Wait until a worker has opened the model, at most for a time, and note all that have."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not self._opening:
            return
        ray.wait([*self._opening], num_returns=1, timeout=seconds)
        for reference in ray.wait([*self._opening], num_returns=len(self._opening), timeout=0)[0]:
            worker = self._opening.pop(reference)
            try:
                self._ready[worker] = ray.get(reference)
            except RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, AudioLensError) else InputError(_failed_start(cause)) from None
            except RayError as error:
                raise InputError(_failed_start(error)) from None

    def _called(self, worker: Any, function: Callable[..., Any], work: list[Any], *arguments: Any) -> Any:
        reference = worker.call.remote(function, work, workers.torch_settings(), *arguments)
        self._calls.setdefault(worker, []).append(reference)
        return reference

    def _freest(self, failed: Any) -> Any:
        """Return the worker with the fewest unfinished calls, and not the one that failed if there is another."""
        import ray

        ready = [worker for worker in self.ready if worker != failed] or [*self.ready]
        for worker in ready:
            calls = self._calls.setdefault(worker, [])
            self._calls[worker] = ray.wait(calls, num_returns=len(calls), timeout=0)[1] if calls else []
        return min(ready, key=lambda worker: len(self._calls[worker]))

    def _needs(self) -> str:
        return f"1 CPU and {self.gpus:g} GPU" if self.gpus else "1 CPU"


def _gpus(lens: AudioLens, where: Ray) -> float:
    """Return the GPUs of each worker. Workers use the kind of device that the model is on here."""
    on_gpu = lens.device.type == "cuda"
    gpus = float(on_gpu) if where.gpus_per_worker is None else where.gpus_per_worker
    if bool(gpus) != on_gpu:
        raise InputError(
            f"gpus_per_worker={gpus:g}: the model is on {lens.device.type!r} here, and workers use the same kind of "
            f"device: give {'more' if on_gpu else '0'}, or open the model on another device."
        )
    return gpus


def _counted(resources: Mapping[str, float]) -> dict[str, float]:
    return {kind: resources.get(kind, 0.0) for kind in ("CPU", "GPU")}


def _room(node: dict[str, float], gpus: float) -> int:
    """Return how many workers a machine has room for."""
    cpus = int(node["CPU"])
    if not gpus:
        return cpus
    # A worker's share lies on one GPU, unless it needs whole ones.
    return min(cpus, int(node["GPU"] // gpus) if gpus >= 1 else int(node["GPU"]) * int(1 / gpus))


def _failed_start(error: Any) -> str:
    return (
        f"a worker could not be started: {shortened(error)} Every machine of the cluster needs "
        "audiolens and its packages in the same versions."
    )
