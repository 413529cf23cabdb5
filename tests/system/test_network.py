"""Ports that are free, and addresses."""

import socket

import pytest

from harness.errors import RunError
from harness.system.network import free_port, with_port


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


@pytest.mark.parametrize(
    ("host", "text"), [("n1", "n1:5"), ("::1", "[::1]:5"), ("10.0.0.1", "10.0.0.1:5")]
)
def test_an_address_by_either_protocol(host: str, text: str) -> None:
    """The colons of IPv6 stand in brackets."""
    assert with_port(host, 5) == text
