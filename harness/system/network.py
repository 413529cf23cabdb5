"""TCP ports of this machine."""

import socket
from collections.abc import Iterable

from harness.errors import RunError

ANY = (0,)  # a port that the system chooses


def free_port(host: str, ports: Iterable[int] = ANY) -> int:
    """The first of these ports that is free at an address; empty stands for all addresses.

    Another process may take it before the caller does.

    Raises:
        RunError: if none is free.
    """
    first = last = 0
    for port in ports:
        first, last = first or port, port
        if found := _listens(host, port):
            return found
    raise RunError(f"no port of {first} to {last} is free at {host or 'this machine'}")


def is_free(host: str, port: int) -> bool:
    """Whether a port can be listened on at an address."""
    return _listens(host, port) == port


def _listens(host: str, port: int) -> int:
    """Listen for a moment; returns the port, 0 where that is refused."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError):
        return 0
