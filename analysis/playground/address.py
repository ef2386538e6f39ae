"""The address at which the playground listens. This module imports neither torch nor the web server."""

from __future__ import annotations

import errno
import ipaddress
import socket

# Before nnsight, which puts a method on `object` that this class would take for an attribute without a type.
from anyio.abc import SocketAttribute  # noqa: F401

from audiolens.checks import shown
from audiolens.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, so that one in use is known before a model is opened.

    Raises:
        InputError: if the port is in use or may not be used, or if the address is not one of this machine.
    """
    if not host.strip():
        # The system would take this for every address of the machine.
        raise InputError("--host is empty: give an address, such as 127.0.0.1.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(64)
    except (OSError, OverflowError, UnicodeError) as error:
        bound.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use, perhaps by another playground: choose one with --port."
            ) from None
        raise InputError(f"--host {shown(host)} --port {port}: cannot be listened to ({error}).") from None
    return bound


def is_local(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def visitors_names(host: str) -> tuple[str, ...] | None:
    """Return the names under which browsers may ask for the page, or `None` if the network may give it any name."""
    return (*LOOPBACK, host.lower(), f"[{host}]") if is_local(host) else None


def url_of(host: str, port: int) -> str:
    """Return the address that a browser on this machine opens, also if `host` stands for all addresses."""
    try:
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
    except ValueError:
        pass
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
