"""Ports that are free, addresses, and connections of strangers."""

import contextlib
import socket

import pytest

from harness.errors import RunError
from harness.system.network import Newcomers, free_port, with_port


def test_a_port_in_use_is_skipped() -> None:
    """The first free one of those offered is taken; where none is, the refusal says which."""
    free = free_port("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        assert free_port("127.0.0.1", [used, free]) == free
        with pytest.raises(RunError, match=f"no port of {used} to {used} is free at 127.0.0.1"):
            free_port("127.0.0.1", [used])
    with pytest.raises(RunError, match="is free at this machine"):
        free_port("", [70_000])


def test_the_oldest_newcomer_of_the_peer_with_the_most_makes_room() -> None:
    """By peer and in all: a stranger's flood costs only the stranger's own connections."""
    newcomers = Newcomers(4, 3)
    pairs = [socket.socketpair() for _ in range(6)]
    peers = ["a", "b", "b", "b", "b", "c"]
    for (ours, _), peer in zip(pairs, peers, strict=True):
        newcomers.add(ours, peer)
    closed = []
    for number, (ours, theirs) in enumerate(pairs):
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            assert theirs.recv(1) == b""
            closed.append(number)
        ours.close()
        theirs.close()
    assert closed == [1, 2]  # one for b's limit, one of b's for the limit of all


@pytest.mark.parametrize(
    ("host", "text"), [("n1", "n1:5"), ("::1", "[::1]:5"), ("10.0.0.1", "10.0.0.1:5")]
)
def test_an_address_by_either_protocol(host: str, text: str) -> None:
    """The colons of IPv6 stand in brackets."""
    assert with_port(host, 5) == text
