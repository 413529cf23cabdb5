"""Addresses, ports and new connections of this machine, by IPv4 and IPv6."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable

import psutil

from harness.errors import InputError, RunError

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


def _listens(host: str, port: int) -> int:
    """Listen for a moment; returns the port, 0 where that is refused."""
    family = address_family(host)
    try:
        with socket.create_server(
            (host, port), family=family, dualstack_ipv6=not host and family == socket.AF_INET6
        ) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError):
        return 0


def address_family(host: str) -> socket.AddressFamily:
    """IPv6 for such an address, and for all addresses where IPv6 can serve IPv4 too."""
    is_ipv6 = ":" in host or (not host and socket.has_dualstack_ipv6())
    return socket.AF_INET6 if is_ipv6 else socket.AF_INET


def with_port(host: str, port: int) -> str:
    """An address as `host:port`, an IPv6 one in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def interface_address(name: str, option: str) -> str:
    """The address of a network interface, IPv4 where it has one.

    Args:
        name: as `ip addr` names it, such as ib0.
        option: the setting that names it, for messages.

    Raises:
        InputError: if there is no such interface here, or it has no address.
    """
    interfaces = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for each in interfaces.get(name, ()):
            # A link-local address is not one of the whole network.
            if each.family == family and not each.address.startswith("fe80:"):
                return each.address
    known = ", ".join(sorted(interfaces))
    raise InputError(f"{option} {name}: no such interface with an address; here are {known}")


class Newcomers:
    """Connections whose other side has not shown yet who it is; the oldest of too many is cut off.

    A connection of ours shows it within milliseconds, so strangers that wait can't keep it out.
    """

    def __init__(self, limit: int, limit_per_peer: int) -> None:
        self.limit, self.limit_per_peer = limit, limit_per_peer
        self._peers: dict[socket.socket, str] = {}  # the oldest first
        self._lock = threading.Lock()

    def add(self, connection: socket.socket, peer: str) -> None:
        """Count a new connection, and cut off an older one where there are too many."""
        with self._lock:
            counts = Counter(self._peers.values())
            if counts[peer] >= self.limit_per_peer:
                self._cut_off_oldest_of(peer)
            elif len(self._peers) >= self.limit:
                self._cut_off_oldest_of(counts.most_common(1)[0][0])
            self._peers[connection] = peer

    def remove(self, connection: socket.socket) -> None:
        """Count a connection no longer: it has shown who it is, or has ended."""
        with self._lock:
            self._peers.pop(connection, None)

    def _cut_off_oldest_of(self, peer: str) -> None:
        oldest = next(each for each, whose in self._peers.items() if whose == peer)
        del self._peers[oldest]
        with contextlib.suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)  # which ends the wait of its thread
