"""The way from a worker to its chief: KerasTuner's own port has no login, so ours stands before it.

The chief's oracle listens on a Unix socket in a folder that only its user may enter. The chief's
gate listens on one TCP port, and passes on those who know the sweep's secret. A worker's gate is a
Unix socket again, behind which each connection first proves itself to the chief, wherever the
chief is by then: its address is read anew each time.

A worker's first connection stays open for as long as it lives. By it the chief knows who is there:
a worker that is killed is missed at once, one whose node is lost after `LOST_S`.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HELLO_S = 5.0  # to say who one is
BEAT_S = 5.0
LOST_S = 30.0  # without a beat
NONCE_BYTES = 32
CHUNK = 1 << 16

Address = Callable[[], Mapping[str, Any]]


class _Threaded(socketserver.ThreadingMixIn):
    daemon_threads = True
    allow_reuse_address = True


class _TcpServer(_Threaded, socketserver.TCPServer):
    request_queue_size = 128


class _UnixServer(_Threaded, socketserver.UnixStreamServer):
    request_queue_size = 16


class ChiefGate:
    """The chief's side: passes workers on to the oracle's socket, and knows who is there.

    Raises OSError if the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        secret: bytes,
        oracle: Path,
        on_change: Callable[[str, bool], None],
    ) -> None:
        self._secret, self._oracle, self._on_change = secret, oracle, on_change
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    gate._serve(self.request)

        self._server = _TcpServer((host, port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(HELLO_S)
        challenge = secrets.token_bytes(NONCE_BYTES)
        connection.sendall(challenge)
        hello = _receive_line(connection)
        nonce, worker, purpose = str(hello["nonce"]), str(hello["worker"]), hello["purpose"]
        proof = _proof(self._secret, "worker", challenge.hex(), nonce, worker, purpose)
        if not hmac.compare_digest(proof, str(hello["proof"])):
            return
        answer = _proof(self._secret, "chief", nonce, challenge.hex())
        connection.sendall(json.dumps({"proof": answer}).encode() + b"\n")
        if purpose == "presence":
            self._watch(connection, worker)
        elif purpose == "oracle":
            with socket.socket(socket.AF_UNIX) as oracle:
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
        self._server.shutdown()
        self._server.server_close()


class WorkerGate:
    """A worker's side: `folder / "chief"` is the oracle's socket, wherever the chief is.

    Args:
        folder: of the worker alone, mode 0700.
        worker: its name.
        secret: the sweep's.
        address: gives `host` and `port` of the chief as they are now, empty while there is none.
    """

    def __init__(self, folder: Path, worker: str, secret: bytes, address: Address) -> None:
        self.path = folder / "chief"
        self._worker, self._secret, self._address = worker, secret, address
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                absent = contextlib.suppress(OSError, ValueError, KeyError)
                with absent, gate._connect("oracle") as chief:
                    _join(self.request, chief)

        self._server = _UnixServer(str(self.path), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        threading.Thread(target=self._be_present, daemon=True).start()

    def _connect(self, purpose: str) -> socket.socket:
        """A connection to the chief, both sides proven.

        Raises:
            OSError, ValueError, KeyError: if there is no chief, or somebody else.
        """
        address = self._address()
        connection = socket.create_connection((address["host"], address["port"]), HELLO_S)
        try:
            challenge = _receive(connection, NONCE_BYTES).hex()
            nonce = secrets.token_hex(NONCE_BYTES)
            proof = _proof(self._secret, "worker", challenge, nonce, self._worker, purpose)
            hello = {"nonce": nonce, "worker": self._worker, "purpose": purpose, "proof": proof}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            expected = _proof(self._secret, "chief", nonce, challenge)
            if not hmac.compare_digest(expected, str(_receive_line(connection)["proof"])):
                raise ValueError("not the chief")
        except BaseException:
            connection.close()
            raise
        connection.settimeout(None)
        return connection

    def _be_present(self) -> None:
        while True:
            absent = contextlib.suppress(OSError, ValueError, KeyError)
            with absent, self._connect("presence") as chief:
                while True:
                    chief.sendall(b".")
                    time.sleep(BEAT_S)
            time.sleep(1)


def _proof(secret: bytes, *words: str) -> str:
    return hmac.new(secret, "\0".join(words).encode(), hashlib.sha256).hexdigest()


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    content = b""
    while len(content) < num_bytes:
        part = connection.recv(num_bytes - len(content))
        if not part:
            raise ConnectionError("closed")
        content += part
    return content


def _receive_line(connection: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):  # by the byte: what follows the line is not ours to read
        line += _receive(connection, 1)
        if len(line) > 4096:
            raise ValueError("no greeting of ours")
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("no greeting of ours")
    return content


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
