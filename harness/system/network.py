"""Addresses and ports of this machine, by IPv4 and IPv6."""

import socket
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
