"""Find a Ray cluster, and check within seconds that it answers.

Ray itself waits two minutes for an address that does not answer, and then ends the process. Ray's server speaks HTTP/2
(gRPC), in which the first message of every server is of type SETTINGS, so a short exchange shows whether it is there.
"""

from __future__ import annotations

import os
import socket
import time

from analysis.distributed.settings import AUTO, LOCAL, Ray, refuse_without_ray
from audiolens.checks import shown
from audiolens.errors import InputError

PATIENCE = 10.0
"""Time in seconds within which an address must answer."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 client sends first: a fixed text, and empty settings."""
_HEADER_BYTES, _SETTINGS = 9, 4
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def found(ray: Ray) -> str | None:
    """Return the address of the cluster, or `None` if one is to be started on this machine.

    Raises:
        InputError: if the cluster does not answer within 10 s.
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
            if not answers(address):
                raise InputError(
                    f"ray={shown(address)}: no Ray cluster answers there within {PATIENCE:g} s. Start one with `ray "
                    "start --head`, use the address that it prints, or leave it to 'auto'."
                )
            return address
    from ray._private.utils import read_ray_address

    # Where `ray start` was not followed by `ray stop`, the address of a cluster remains that no longer exists.
    started = read_ray_address()
    return started if started and answers(started) else None


def answers(address: str) -> bool:
    """Return whether a server that could be Ray's answers at host:port within 10 s."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    until = time.monotonic() + PATIENCE
    if host in _LOOPBACK:
        # Ray replaces these by the address that this machine has in its network, where its server listens.
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
    return _greets(host, int(port), until)


def _greets(host: str, port: int, until: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_left(until)) as server:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return True
            server.sendall(_GREETING)
            answer = b""
            while len(answer) < _HEADER_BYTES:
                server.settimeout(_left(until))
                if not (part := server.recv(_HEADER_BYTES - len(answer))):
                    return False
                answer += part
            return answer[3] == _SETTINGS
    except (OSError, UnicodeError):
        return False


def _left(until: float) -> float:
    return max(0.01, until - time.monotonic())
