"""State how a run is distributed over a Ray cluster. Sweeps, studies and harvests take this value.

This module imports neither torch nor Ray, so that the command line can check its arguments at once.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from audiolens.checks import MOST_JOBS, checked_amount, checked_count, shown
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError, MissingPackageError

AUTO, LOCAL = "auto", "local"
MOST_GPUS = 64


@guarded
@dataclass(frozen=True)
class Ray:
    """A Ray cluster, and the workers that a run starts on it.

    Attributes:
        address: "auto" uses the cluster that was started on this machine with `ray start`, or that `RAY_ADDRESS` names,
            and starts one on this machine if there is none. "local" always starts one. "host:port" is the address that
            `ray start --head` printed; this machine must be part of that cluster.
        workers: number of workers, each with its own copy of the model (default: as many as the cluster has room for).
        gpus_per_worker: GPUs of each worker, such as 1, or 0.5 for two workers per GPU (default: 1 if the model is on a
            GPU, otherwise 0).
        listeners: number of further workers, without a GPU, that measure finished clips, so that no GPU waits for it
            (default: up to 4 per worker if the model is on a GPU). With 0, workers measure their own clips.
    """

    address: str = AUTO
    workers: int | None = None
    gpus_per_worker: float | None = None
    listeners: int | None = None

    def __post_init__(self) -> None:
        checked_kinds(self)
        host, _, port = self.address.rpartition(":")
        if "://" in self.address:
            raise InputError(
                f"ray={shown(self.address)}: expected 'auto', 'local' or host:port. A run cannot be started from "
                "outside the cluster: start it on one of its machines, or with `ray job submit`."
            )
        if self.address not in (AUTO, LOCAL) and not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise InputError(
                f"ray={shown(self.address)}: expected 'auto', 'local' or host:port, such as 10.0.0.1:6379."
            )
        for name, least in (("workers", 1), ("listeners", 0)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_count(name, getattr(self, name), least, MOST_JOBS))
        if self.gpus_per_worker is not None:
            gpus = checked_amount("gpus_per_worker", self.gpus_per_worker)
            if not 0 <= gpus <= MOST_GPUS or (gpus > 1 and gpus != int(gpus)):
                raise InputError(
                    f"gpus_per_worker={shown(self.gpus_per_worker)}: expected a whole number, or a fraction between 0 "
                    "and 1."
                )
            object.__setattr__(self, "gpus_per_worker", gpus)


def refuse_without_ray() -> None:
    """Raise an error if Ray is not installed.

    Raises:
        MissingPackageError: if the package ray is missing.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("distributing a run needs the package ray: pip install 'audiolens[ray]'.")
