"""From a worker to its chief: KerasTuner's own port has no login, so an authenticated one is put
in front of it.

The chief's oracle listens on a Unix socket in a folder that only its user may enter. The chief's
proxy listens on a TCP port, and passes on those who know the sweep's secret. A worker's proxy is a
Unix socket again, behind which each connection first proves itself to the chief; the chief's
address is read for each, since a restarted chief has another.

A worker's first connection stays open for as long as it lives. By it the chief knows who is there:
a worker that is killed is missed at once, one whose node is lost after `LOST_S`.
"""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.system.auth_channel import HELLO_S, AuthServer, Message, say_hello

BEAT_S = 5.0
LOST_S = 30.0  # without a beat
CHUNK = 1 << 16

Address = Callable[[], Mapping[str, Any]]


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 16


class ChiefProxy:
    """The chief's side: passes workers on to the oracle's socket, and knows who is there.

    Args:
        address: host and port to listen at, port 0 for a free one.
        secret: the sweep's.
        oracle: the Unix socket.
        on_change: is called with a worker's name, and whether it came or went.

    Raises OSError if the port is taken.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        secret: bytes,
        oracle: Path,
        on_change: Callable[[str, bool], None],
    ) -> None:
        self._oracle, self._on_change = oracle, on_change
        self._server = AuthServer(address, secret, self._serve)
        self._server.start()
        self.port = self._server.port

    def _serve(self, connection: socket.socket, message: Message) -> None:
        if message.get("purpose") == "presence":
            self._watch(connection, str(message.get("worker")))
        elif message.get("purpose") == "oracle":
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as oracle:
                oracle.connect(str(self._oracle))
                _join(connection, oracle)

    def _watch(self, connection: socket.socket, worker: str) -> None:
        self._on_change(worker, True)
        connection.settimeout(LOST_S)
        try:
            while connection.recv(16):
                pass
        except OSError:
            pass
        self._on_change(worker, False)

    def close(self) -> None:
        """Listen no longer."""
        self._server.stop()


class WorkerProxy:
    """A worker's side: `folder / "chief"` is the oracle's socket, wherever the chief is.

    Args:
        folder: of the worker alone, mode 0700.
        worker: its name.
        secret: the sweep's.
        address: gives `host` and `port` of the chief as they are now, empty while there is none.
    """

    def __init__(self, folder: Path, worker: str, secret: bytes, *, address: Address) -> None:
        self.path = folder / "chief"
        self._worker, self._secret, self._address = worker, secret, address
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                absent = contextlib.suppress(OSError, ValueError, KeyError)
                with absent, proxy._connect("oracle") as chief:
                    _join(self.request, chief)

        self._server = _UnixServer(str(self.path), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        threading.Thread(target=self._be_present, daemon=True).start()

    def _connect(self, purpose: str) -> socket.socket:
        """A connection to the chief, both sides proven.

        Raises:
            OSError, ValueError, KeyError: if there is no chief, or another process in its place.
        """
        address = self._address()
        connection = socket.create_connection((address["host"], address["port"]), HELLO_S)
        try:
            say_hello(connection, self._secret, {"worker": self._worker, "purpose": purpose})
        except BaseException:
            connection.close()
            raise
        return connection

    def _be_present(self) -> None:
        while True:
            absent = contextlib.suppress(OSError, ValueError, KeyError)
            with absent, self._connect("presence") as chief:
                while True:
                    chief.sendall(b".")
                    time.sleep(BEAT_S)
            time.sleep(1)


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass on what either says to the other, until one has ended."""
    one.settimeout(None)
    back = threading.Thread(target=_pass_on, args=(other, one), daemon=True)
    back.start()
    _pass_on(one, other)
    back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(CHUNK):
            target.sendall(content)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
