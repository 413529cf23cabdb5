"""Who gets through to a sweep's oracle, and who is there."""

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.tuning.auth_proxy import ChiefProxy, WorkerProxy

SECRET = b"a secret of the sweep"


class Echo(socketserver.StreamRequestHandler):
    """Stands for the oracle: says back what it hears."""

    def handle(self) -> None:
        while content := self.request.recv(1 << 16):
            self.request.sendall(content)


class Chief:
    """An oracle behind its proxy."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[tuple[str, bool]] = []
        path = folder / "oracle"
        self.oracle = socketserver.ThreadingUnixStreamServer(str(path), Echo)
        self.oracle.daemon_threads = True
        threading.Thread(target=self.oracle.serve_forever, daemon=True).start()
        self.proxy = ChiefProxy(
            ("127.0.0.1", 0),
            secret=SECRET,
            oracle=path,
            on_change=lambda worker, there: self.seen.append((worker, there)),
        )

    def address(self) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": self.proxy.port}


@pytest.fixture
def chief(tmp_path: Path) -> Iterator[Chief]:
    chief = Chief(tmp_path)
    yield chief
    chief.proxy.close()
    chief.oracle.shutdown()


def says_back(path: Path, content: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as worker:
        worker.settimeout(10)
        worker.connect(str(path))
        worker.sendall(content)
        heard = b""
        while len(heard) < len(content):
            try:
                part = worker.recv(1 << 16)
            except ConnectionResetError:
                part = b""
            if not part:
                break
            heard += part
        return heard


def wait_for(seen: list[tuple[str, bool]], event: tuple[str, bool]) -> None:
    deadline = time.monotonic() + 10
    while event not in seen:
        assert time.monotonic() < deadline, f"{event} is not among {seen}"
        time.sleep(0.02)


def test_who_knows_the_secret_reaches_the_oracle(chief: Chief, tmp_path: Path) -> None:
    """A worker's connections go through, whole, wherever the chief is by then."""
    where = chief.address()
    proxy = WorkerProxy(tmp_path, "w0", SECRET, address=lambda: where)
    content = os.urandom(3_000_000)
    assert says_back(proxy.path, content) == content
    wait_for(chief.seen, ("w0", True))
    (tmp_path / "other").mkdir()
    other = Chief(tmp_path / "other")  # the chief was started again on another port
    where = other.address()
    chief.proxy.close()
    assert says_back(proxy.path, b"hello") == b"hello"
    other.proxy.close()


def test_who_does_not_know_it_gets_nothing(chief: Chief, tmp_path: Path) -> None:
    """Neither with another secret nor with KerasTuner's own protocol, nor by saying nothing."""
    proxy = WorkerProxy(tmp_path, "w0", b"a guess", address=chief.address)
    assert says_back(proxy.path, b"hello") == b""
    for content in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b'{"worker": "w0"}\n', b"x" * 5000):
        with socket.create_connection(("127.0.0.1", chief.proxy.port)) as stranger:
            stranger.settimeout(10)
            assert len(stranger.recv(32)) == 32  # the challenge
            stranger.sendall(content)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(32) == b""
    assert chief.seen == []


def test_a_worker_does_not_trust_a_strangers_port(tmp_path: Path) -> None:
    """A chief that does not know the secret hears a proof for its challenge, no word more."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        proxy = WorkerProxy(
            tmp_path, "w0", SECRET, address=lambda: {"host": "127.0.0.1", "port": port}
        )
        with socket.socket(socket.AF_UNIX) as worker:
            worker.settimeout(10)
            worker.connect(str(proxy.path))
            worker.sendall(b"the scores of a trial")
            heard = []
            for _ in range(2):  # its presence, and its call
                connection = stranger.accept()[0]
                connection.settimeout(2)
                connection.sendall(b"c" * 32)
                heard.append(connection.recv(4096))
                connection.sendall(b'\0\0\0\x0f{"proof": "00"}')
                assert connection.recv(4096) == b""
            with contextlib.suppress(ConnectionResetError):  # what it sent was never read
                assert worker.recv(64) == b""
    assert not any(b"scores" in words or SECRET in words for words in heard)


def test_a_killed_worker_is_missed_at_once(chief: Chief, tmp_path: Path) -> None:
    """Its presence ends with its process."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from harness.tuning.auth_proxy import WorkerProxy\n"
        "WorkerProxy(Path(sys.argv[1]), 'w7', sys.argv[2].encode(),"
        " address=lambda: {'host': '127.0.0.1', 'port': int(sys.argv[3])})\n"
        "time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path), SECRET.decode(), str(chief.proxy.port)]
    process = subprocess.Popen(words)
    wait_for(chief.seen, ("w7", True))
    assert ("w7", False) not in chief.seen
    process.kill()
    process.wait()
    wait_for(chief.seen, ("w7", False))
