"""Find a Ray cluster, and check within seconds that it answers and what it asks for.

For an address that does not answer, Ray itself tries for minutes and writes every attempt to the terminal. A process of
its own therefore asks with Ray's client, and is ended after 10 s.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.distributed.settings import AUTO, LOCAL, Ray, refuse_without_ray
from audiolens.checks import shown
from audiolens.errors import InputError

PATIENCE = 10.0
"""Time in seconds within which an address must answer."""
MODE, TOKEN = "RAY_AUTH_MODE", "token"
"""The variable that states whether this process gives its authentication token to the cluster, and its value then."""
_WRONG_TOKEN = 3
_ASK = f"""
import os, sys, threading
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
threading.Timer(float(sys.argv[2]), os._exit, (1,)).start()
try:
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    GcsClient(address=sys.argv[1])
    code = 0
except AuthenticationError:
    code = {_WRONG_TOKEN}
except Exception:
    code = 1
os._exit(code)
"""
"""What asks a cluster for its identity. Only the time counts in which it could answer, and not that to import Ray."""
_STARTING_SECONDS = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Found:
    """A cluster that answers.

    Attributes:
        address: host:port of the cluster.
        with_token: whether `RAY_AUTH_MODE` must be "token" to connect to it, although it is not set.
    """

    address: str
    with_token: bool = False


def found(ray: Ray) -> Found | None:
    """Return the cluster, or `None` if one is to be started on this machine.

    Raises:
        InputError: if the cluster does not answer within 10 s, or refuses this machine's authentication token.
        MissingPackageError: if the package ray is missing.
    """
    refuse_without_ray()
    if ray.address == LOCAL:
        return None
    named = os.environ.get("RAY_ADDRESS") if ray.address == AUTO else ray.address
    if named == LOCAL:
        return None
    if named:
        address = Ray(named).address
        if address != AUTO:
            if (answer := answered(address)) is None:
                raise InputError(
                    f"ray={shown(address)}: no Ray cluster answers there within {PATIENCE:g} s. Start one with `ray "
                    "start --head`, use the address that it prints, or leave it to 'auto'."
                )
            return answer
    from ray._private.utils import read_ray_address

    # Where `ray start` was not followed by `ray stop`, the address of a cluster remains that no longer exists.
    started = read_ray_address()
    return answered(started) if started else None


def answered(address: str) -> Found | None:
    """Return the cluster at host:port, or `None` if none answers within 10 s.

    Raises:
        InputError: if the cluster asks for another authentication token than this machine has.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    until = time.monotonic() + PATIENCE
    if host in _LOOPBACK:
        # Ray replaces these by the address that this machine has in its network, where its server listens.
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
    if not _listens(host, int(port), until):
        return None
    there = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    code = _asked(there, _left(until), os.environ)
    with_token = code == _WRONG_TOKEN and MODE not in os.environ
    if with_token:
        # Ray asks for a token by default if one exists where the cluster is started, but does not give it by default.
        code = _asked(there, PATIENCE, {**os.environ, MODE: TOKEN})
    if code == _WRONG_TOKEN:
        raise InputError(
            f"ray={shown(address)}: this cluster asks for its authentication token. Copy ~/.ray/auth_token to this "
            f"machine from the one that started the cluster, and set {MODE}={TOKEN}; or use 'local'."
        )
    return Found(address, with_token) if code == 0 else None


def _listens(host: str, port: int, until: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_left(until)):
            return True
    except (OSError, UnicodeError):
        return False


def _asked(address: str, seconds: float, environment: Mapping[str, str]) -> int | None:
    """Return the exit code of a process that asks a cluster for its identity; 0 if it answers."""
    try:
        return subprocess.run(
            [sys.executable, "-c", _ASK, address, str(seconds)], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_STARTING_SECONDS + seconds, check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _left(until: float) -> float:
    return max(0.01, until - time.monotonic())
