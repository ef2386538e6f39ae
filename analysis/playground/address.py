"""The address at which the playground listens. This module imports neither torch nor the web server."""

from __future__ import annotations

import errno
import socket

# Before nnsight, which puts a method on `object` that this class would take for an attribute without a type.
from anyio.abc import SocketAttribute  # noqa: F401

from audiolens.checks import shown
from audiolens.errors import InputError


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, so that one in use is known before a model is opened.

    Raises:
        InputError: if the port is in use or may not be used, or if the address is not one of this machine.
    """
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
