"""Connections between one user's processes on nodes that they share with other users.

Both sides prove that they know a secret: the server sends a random challenge, the client answers
with a nonce of its own, its message and an HMAC over all three, the server with an HMAC over both
nonces. What was overheard is worth nothing for a second connection, and a stranger learns nothing.
One deadline holds for this whole hello, so a stranger can't stretch it byte by byte.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

from harness.errors import InputError
from harness.files.paths import cache_folder
from harness.system.network import Newcomers, address_family

HELLO_S = 5.0  # from the connection to the last byte of the hello
MAX_HELLO_BYTES = 4096  # of each part of it
NONCE_BYTES = 32
MAX_HELLOS, MAX_HELLOS_PER_PEER = 256, 64  # that a server has open at a time

Message = dict[str, Any]


class AuthServer(socketserver.ThreadingTCPServer):
    """Hands each connection that proves itself to `handle`, in a thread of the connection's own.

    The connection is closed when `handle` returns. Where too many hellos are open, the oldest is
    cut off. An empty host listens on all addresses, by IPv4 and IPv6.

    Raises OSError if the port is taken.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        secret: bytes,
        handle: Callable[[socket.socket, Message], None],
    ) -> None:
        self.address_family = address_family(address[0])
        super().__init__(address, socketserver.BaseRequestHandler)
        self._secret, self._handle = secret, handle
        self._newcomers = Newcomers(MAX_HELLOS, MAX_HELLOS_PER_PEER)
        self.port: int = self.server_address[1]

    def start(self) -> None:
        """Serve from now on, in a thread."""
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def stop(self) -> None:
        """Accept no more connections; those that are open stay."""
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Listen by IPv4 too where it is on all addresses."""
        if self.address_family == socket.AF_INET6 and not self.server_address[0]:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Count a new connection."""
        self._newcomers.add(request, str(client_address[0]))
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a connection prove itself, then handle it."""
        del client_address
        try:
            message = accept_hello(request, self._secret)
        except (OSError, ValueError):
            return
        finally:
            self._newcomers.remove(request)
        self._handle(request, message)


def accept_hello(connection: socket.socket, secret: bytes, timeout_s: float = HELLO_S) -> Message:
    """The server's side of a hello, on a new connection.

    Returns:
        The client's message.

    Raises:
        OSError: if the connection ends, or the time is over.
        ValueError: if the client does not know the secret.
    """
    deadline = time.monotonic() + timeout_s
    challenge = secrets.token_bytes(NONCE_BYTES)
    _send(connection, challenge, deadline)
    hello = _receive_json(connection, deadline)
    nonce, message = str(hello.get("nonce")), str(hello.get("message"))
    _check(hello, _proof(secret, "client", challenge.hex(), nonce, message))
    _send_json(connection, {"proof": _proof(secret, "server", challenge.hex(), nonce)}, deadline)
    connection.settimeout(None)
    return _parse(message)


def say_hello(
    connection: socket.socket, secret: bytes, message: Message, *, timeout_s: float = HELLO_S
) -> None:
    """The client's side of a hello, on a new connection.

    Raises:
        OSError: if the connection ends, or the time is over.
        ValueError: if the server does not know the secret.
    """
    deadline = time.monotonic() + timeout_s
    challenge = receive_exactly(connection, NONCE_BYTES, deadline).hex()
    nonce, text = secrets.token_hex(NONCE_BYTES), json.dumps(message)
    proof = _proof(secret, "client", challenge, nonce, text)
    _send_json(connection, {"nonce": nonce, "message": text, "proof": proof}, deadline)
    _check(_receive_json(connection, deadline), _proof(secret, "server", challenge, nonce))
    connection.settimeout(None)


def receive_exactly(
    connection: socket.socket, num_bytes: int, deadline: float | None = None
) -> bytes:
    """The next bytes of a connection.

    Args:
        connection: whose own timeout holds for each part where there is no deadline.
        deadline: for the last of them, by `time.monotonic()`.

    Raises:
        OSError: if the connection ends or the time is over before that.
    """
    parts = []
    while num_bytes:
        if deadline is not None:
            connection.settimeout(_left_s(deadline))
        part = connection.recv(min(num_bytes, 1 << 20))
        if not part:
            raise ConnectionError("closed")
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the hello took too long")
    return left_s


def _send(connection: socket.socket, content: bytes, deadline: float) -> None:
    connection.settimeout(_left_s(deadline))
    connection.sendall(content)


def _send_json(connection: socket.socket, message: Message, deadline: float) -> None:
    content = json.dumps(message).encode()
    assert len(content) <= MAX_HELLO_BYTES, "the message is too long for a hello"  # noqa: S101
    _send(connection, len(content).to_bytes(4, "big") + content, deadline)


def _receive_json(connection: socket.socket, deadline: float) -> Message:
    length = int.from_bytes(receive_exactly(connection, 4, deadline), "big")
    if length > MAX_HELLO_BYTES:
        raise ValueError("not a hello of ours")
    return _parse(receive_exactly(connection, length, deadline))


def _parse(text: str | bytes) -> Message:
    try:
        message = json.loads(text)
    except RecursionError:  # brackets in brackets
        message = None
    if not isinstance(message, dict):
        raise ValueError("not a hello of ours")
    return message


def _proof(secret: bytes, *parts: str) -> str:
    return hmac.new(secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def _check(message: Message, proof: str) -> None:
    if not hmac.compare_digest(proof.encode(), str(message.get("proof")).encode()):
        raise ValueError("the other side does not know the secret")


def user_secret(purpose: str) -> bytes:
    """A secret that only this user's processes can derive, from a file in the user's cache.

    Args:
        purpose: makes it a secret of its own, such as a job's.

    Raises:
        InputError: if the file can't be made, or other users may read it.
    """
    path = cache_folder() / "secret"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".secret.{secrets.token_hex(8)}.tmp")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_hex(32))
                with contextlib.suppress(FileExistsError):  # another process was faster
                    os.link(draft, path)
            finally:
                draft.unlink()
        with path.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read(MAX_HELLO_BYTES)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; it holds the secret of processes on several nodes: set "
            "XDG_CACHE_HOME to a folder of yours that all nodes see, or use a script of slurm/"
        ) from None
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or len(content) < NONCE_BYTES:
        raise InputError(
            f"{path}: should be yours, with mode 0600, and hold a secret; remove it, and it is "
            "made again"
        )
    return hmac.new(content, purpose.encode(), hashlib.sha256).digest()
