"""Connect this process to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

from joblib import cpu_count

from analysis.distributed import address
from analysis.distributed.address import MODE, TOKEN
from analysis.distributed.settings import AUTO, LOCAL, Ray
from audiolens.checks import shown
from audiolens.errors import InputError, one_line

TRIES = 5
"""How often a cluster is started. Ray gives up if one has not started within 30 s, as can happen on a busy machine."""
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Connection:
    """A connection of this process to a cluster.

    Attributes:
        address: host:port of the cluster.
        dashboard: host:port of Ray's dashboard, or an empty string if it is not installed.
        is_own: whether this run connected, and therefore disconnects, or the process was connected before.
        started_here: whether this run started the cluster, which ends with the connection.
        mode: what `RAY_AUTH_MODE` was before, which Ray reads and sets.
    """

    address: str
    dashboard: str
    is_own: bool
    started_here: bool
    mode: str | None = None

    def end(self) -> None:
        """Disconnect, if this run connected, and let Ray's settings be what they were."""
        if self.is_own:
            import ray

            ray.shutdown()
            _set_mode(self.mode)


def connect(where: Ray) -> Connection:
    """Connect to a cluster.

    Raises:
        InputError: if it does not answer within 10 s, has other versions of Ray or Python, or is not the one that this
            process is already connected to.
        MissingPackageError: if the package ray is missing.
    """
    is_own = "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    found = address.found(where) if is_own else None
    mode = os.environ.get(MODE)
    import ray

    try:
        if is_own and found is None:
            # There may be more workers than cores, as there may be more processes.
            context = started(max(cpu_count(), (where.workers or 1) + (where.listeners or 0)))
        else:
            if found is not None and found.with_token:
                _set_mode(TOKEN)
            context = ray.init(found and found.address, ignore_reinit_error=True, **_QUIET)
    except Exception as error:
        # Ray raises errors of many kinds.
        _set_mode(mode)
        raise InputError(f"ray={shown(where.address)}: {shortened(error)}") from None
    # Ray prints to stdout that a worker was killed, where a command may be printing JSON.
    vars(sys.modules["ray._private.worker"])["_worker_logs_enabled"] = False
    facts: Any = context
    there = facts.address_info["gcs_address"]
    if not is_own and where.address not in (AUTO, LOCAL, there):
        raise InputError(
            f"ray={shown(where.address)}: this process is already connected to Ray at {there}. Use 'auto', or call "
            "ray.shutdown() before."
        )
    return Connection(there, facts.dashboard_url, is_own, is_own and found is None, mode)


def started(cpus: int, **options: Any) -> Any:
    """Start a cluster on this machine, and return Ray's context of it."""
    import ray

    # By default, the workers have a lower priority than all other processes of this machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for left in reversed(range(TRIES)):
        try:
            return ray.init(LOCAL, num_cpus=cpus, **_QUIET, **options)
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError


def _set_mode(mode: str | None) -> None:
    """Set `RAY_AUTH_MODE`, or remove it, and let Ray read it again."""
    if os.environ.get(MODE) == mode:
        return
    if mode is None:
        del os.environ[MODE]
    else:
        os.environ[MODE] = mode
    vars(sys.modules["ray._raylet"])["Config"].initialize("")


def shortened(error: object) -> str:
    """Return an error of Ray's in one line of bounded length."""
    return one_line(str(error), _MOST_CHARACTERS)


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
