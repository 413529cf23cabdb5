"""The hello by which processes on shared nodes know each other: real sockets."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.system import auth_channel
from harness.system.auth_channel import (
    NONCE_BYTES,
    AuthServer,
    Message,
    accept_hello,
    receive_exactly,
    say_hello,
    user_secret,
)
from tests.conftest import wait_for

SECRET = b"a secret"


class Server:
    """A server that says "welcome" to each that knows the secret."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.server = AuthServer(("127.0.0.1", 0), SECRET, self._handle)
        self.server.start()

    def _handle(self, connection: socket.socket, message: Message) -> None:
        self.messages.append(message)
        connection.sendall(b"welcome")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=10)

    def join(self, message: Message, secret: bytes = SECRET) -> bytes:
        with self.connect() as connection:
            say_hello(connection, secret, message)
            return receive_exactly(connection, 7)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.stop()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ended the connection and sent nothing more."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def test_who_knows_the_secret_is_welcome_with_its_message(server: Server) -> None:
    """The message arrives as it was sent, whatever characters it has."""
    message = {"rank": 3, "purpose": "\0 \n ünïcode"}
    assert server.join(message) == b"welcome"
    assert server.messages == [message]


def test_another_secret_is_refused(server: Server) -> None:
    """The server hangs up without an answer, and hands nothing on."""
    with pytest.raises(OSError, match=r"closed|reset"):
        server.join({}, b"a guess")
    assert server.messages == []


def test_a_server_without_the_secret_is_not_trusted() -> None:
    """A client sends nothing after its hello to a server that can't prove itself."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"c" * NONCE_BYTES)
        content = json.dumps({"proof": "00"}).encode()
        there.sendall(len(content).to_bytes(4, "big") + content)
        with pytest.raises(ValueError, match="does not know the secret"):
            say_hello(here, SECRET, {})


def test_a_hello_is_no_answer_to_itself() -> None:
    """A stranger that sends a client's own proof back, or the proof of a client as a server's."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"c" * NONCE_BYTES)

        def reflect() -> None:
            length = receive_exactly(there, 4)
            there.sendall(length + receive_exactly(there, int.from_bytes(length, "big")))

        thread = threading.Thread(target=reflect)
        thread.start()
        with pytest.raises(ValueError, match="does not know the secret"):
            say_hello(here, SECRET, {})
        thread.join()


def pass_on(source: socket.socket, target: socket.socket, wrong_digit: int | None) -> None:
    """Pass a part of a hello on, with one digit of its proof made wrong."""
    length = int.from_bytes(receive_exactly(source, 4), "big")
    message = json.loads(receive_exactly(source, length))
    if wrong_digit is not None:
        digits = list(message["proof"])
        digits[wrong_digit] = "1" if digits[wrong_digit] == "0" else "0"
        message["proof"] = "".join(digits)
    content = json.dumps(message).encode()
    target.sendall(len(content).to_bytes(4, "big") + content)


@pytest.mark.parametrize("digit", [0, 4, -1])
@pytest.mark.parametrize("whose", ["client", "server"])
def test_a_proof_with_one_wrong_digit_is_refused(server: Server, whose: str, digit: int) -> None:
    """Wherever the digit stands, the server hands nothing on, and the client does not go on."""
    here, there = socket.socketpair()

    def relay() -> None:
        with there, server.connect() as connection:
            there.sendall(receive_exactly(connection, NONCE_BYTES))
            pass_on(there, connection, digit if whose == "client" else None)
            if whose == "client":
                assert is_closed(connection)
            else:
                pass_on(connection, there, digit)

    with ThreadPoolExecutor(1) as pool, here:
        relayed = pool.submit(relay)
        with pytest.raises((ConnectionError, ValueError)):
            say_hello(here, SECRET, {"rank": 1})
        relayed.result()
    # The server hands the message on from a thread of its own, once it has sent its proof.
    expected = [] if whose == "client" else [{"rank": 1}]
    wait_for(lambda: server.messages == expected, timeout_s=10)


def test_a_replayed_hello_is_refused(server: Server) -> None:
    """What was overheard proves nothing to the next challenge."""
    here, there = socket.socketpair()
    overheard: list[bytes] = []

    def listen() -> None:
        with server.connect() as connection:  # between a client and the server
            there.sendall(receive_exactly(connection, NONCE_BYTES))
            length = receive_exactly(there, 4)
            overheard.append(length + receive_exactly(there, int.from_bytes(length, "big")))
            connection.sendall(overheard[0])
            while content := connection.recv(1 << 16):
                there.sendall(content)

    thread = threading.Thread(target=listen)
    thread.start()
    with here, there:
        say_hello(here, SECRET, {"rank": 1})
        thread.join()
    assert server.messages == [{"rank": 1}]
    with server.connect() as connection:
        receive_exactly(connection, NONCE_BYTES)
        connection.sendall(overheard[0])
        assert is_closed(connection)
    assert server.messages == [{"rank": 1}]


@pytest.mark.parametrize(
    "content",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\5hello", b"\0\0\0\2[]", b"\0\0\1\0" + b"[" * 256],
)
def test_nonsense_is_refused_at_once(server: Server, content: bytes) -> None:
    """Neither another protocol nor another form is waited for until the deadline."""
    begun = time.monotonic()
    with server.connect() as connection:
        receive_exactly(connection, NONCE_BYTES)
        connection.sendall(content)
        assert is_closed(connection)
    assert time.monotonic() - begun < auth_channel.HELLO_S - 1


def test_one_deadline_holds_for_a_hello_that_comes_byte_by_byte() -> None:
    """A peer that sends a byte ever again is cut off when the time for the whole is over."""
    here, there = socket.socketpair()

    def drip() -> None:
        with contextlib.suppress(OSError):
            there.sendall((100).to_bytes(4, "big"))
            for _ in range(50):
                there.sendall(b" ")
                time.sleep(0.1)

    thread = threading.Thread(target=drip)
    thread.start()
    begun = time.monotonic()
    with there:
        with here, pytest.raises(TimeoutError):
            accept_hello(here, SECRET, timeout_s=0.5)
        assert 0.4 < time.monotonic() - begun < 3
    thread.join()


def test_a_flood_of_hellos_keeps_nobody_out(server: Server) -> None:
    """The oldest of too many is cut off, by peer and in all, and a process of ours still joins."""
    newcomers = server.server._newcomers
    newcomers.limit_per_peer = 4
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(6):
            silent.append(stack.enter_context(server.connect()))
            receive_exactly(silent[-1], NONCE_BYTES)
        assert all(is_closed(connection) for connection in silent[:2])
        assert server.join({"rank": 1}) == b"welcome"
        assert is_closed(silent[2])
        silent[5].settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent[5].recv(1)
        newcomers.limit_per_peer, newcomers.limit = 100, 3
        assert server.join({"rank": 2}) == b"welcome"
        assert is_closed(silent[3])


def test_a_users_secret_is_its_own_and_of_one_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once, the same for the same purpose, and refused where others may read it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = user_secret("job 1")
    assert user_secret("job 1") == first
    assert user_secret("job 2") != first
    path = tmp_path / "cache" / "harness" / "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret"]
    path.chmod(0o640)
    with pytest.raises(InputError, match="mode 0600"):
        user_secret("job 1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        user_secret("job 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no links"))

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(InputError, match="Operation not permitted"):
        user_secret("job 1")
    assert list((tmp_path / "no links/harness").iterdir()) == []
