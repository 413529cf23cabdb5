"""Runs commands of the tests in forks of a server, which has imported TensorFlow.

An import of TensorFlow takes four seconds of a core, and the tests start hundreds of commands. A
fork shares the server's imports, and imports only the harness itself, perhaps from another copy of
the project. Each fork has its own arguments, folder, environment and files.

The server forks a helper for every connection. The helper forks the command, sends the
command's process id, waits for the command, and sends its exit status. If the client closes the
connection, the helper kills the command.
"""

import contextlib
import fcntl
import gc
import importlib
import io
import json
import math
import os
import random
import re
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
# The variable with this name contains the folder that xdist's workers share. The folder contains
# the socket, finished runs and compiled steps.
SHARED = "HARNESS_TEST_SHARED"
LIBRARIES = (
    *("tensorflow", "keras", "scipy.stats", "sklearn.linear_model", "pyarrow"),
    *("typer", "pydantic", "rich.console", "psutil", "tomli_w", "google_crc32c"),
    *("tensorboard.plugins.hparams.api", "matplotlib.backends.backend_agg"),
)
# TensorFlow's import reads this variable; in other processes, harness.compute.strategy sets it.
VARIABLES = {"TF_ENABLE_ONEDNN_OPTS": "0"}
# Names of variables that a process reads at its start or in an import. All forks have the server's
# values of these variables.
READ_AT_START = re.compile(r"PYTHON|LD_|LC_|LANG|TF_|XLA_|CUDA_|OMP_|OPENBLAS_|MALLOC_|GLIBC_|TZ")
BACKLOG = 64
END = b"\n"  # the end of a request
NUM_FILES = 3  # per request: standard input, output and error
PATIENCE_S = 300  # time limit of the server's imports, in seconds
CHECK_S = 5.0  # seconds between two checks whether the server's parent is alive


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that must have the same values in the server and in a command."""
    found = {name: value for name, value in environment.items() if READ_AT_START.match(name)}
    if Path(found.get("PYTHONPATH", os.devnull), "harness/__main__.py").exists():
        del found["PYTHONPATH"]  # a copy of the project, from which a fork imports the harness
    return found


def fits(environment: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a command can be a fork of the server, which may not have started yet.

    Args:
        environment: the environment variables of the command.
        usual: the result of `read_at_start` for most commands.
    """
    kept = Path(os.environ[SHARED], "preloaded.json")
    of_server = json.loads(kept.read_text()) if kept.exists() else usual
    return read_at_start(environment) == of_server == usual


@dataclass(frozen=True)
class Server:
    """A process whose forks run commands."""

    folder: Path  # the folder of the server's socket
    python: str | Path = sys.executable
    variables: Mapping[str, str] = field(default_factory=VARIABLES.copy)  # for the imports


def usual_server() -> Server:
    """Return the server that runs the Python of the tests."""
    return Server(Path(os.environ[SHARED]))


def sharing_steps() -> dict[str, str]:
    """Return variables that let processes share compiled steps.

    XLA needs as long as a short run to compile a step. TensorFlow logs an error for each compiled
    step that it loads, so the log level hides errors.
    """
    cache = f"--tf_xla_persistent_cache_directory={os.environ[SHARED]}"
    flags = f"{cache} --tf_xla_persistent_cache_device_types=CPU"
    return {"TF_XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"}


class Command:
    """A command in a fork. It has the methods of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        words: Sequence[object],
        folder: Path,
        environment: Mapping[str, str],
        *,
        stdin: str = "",
        server: Server | None = None,
    ) -> None:
        """Start `python -m harness` in a fork of the server.

        Args:
            words: the arguments of the command.
            folder: the working folder of the command.
            environment: the environment variables of the command.
            stdin: the text on the command's standard input.
            server: by default the usual server.
        """
        self.args = ["harness", *map(str, words)]
        self.returncode: int | None = None
        request = {"args": self.args, "folder": str(folder), "environment": dict(environment)}
        pipes = [os.pipe(), os.pipe()]  # not files, because log lines in files begin with a date
        outputs, inputs = zip(*pipes, strict=True)
        self.stdout, self.stderr = map(os.fdopen, outputs)
        self._connection = _connect(environment, server or usual_server())
        with tempfile.TemporaryFile() as typed:
            typed.write(stdin.encode())
            typed.seek(0)
            socket.send_fds(self._connection, [b"."], [typed.fileno(), *inputs])
        for each in inputs:
            os.close(each)
        self._connection.sendall(json.dumps(request).encode() + END)
        self._answers = self._connection.makefile()
        number = self._answers.readline()
        assert number, "the helper was killed"
        self.pid = int(number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the command; return its standard output and standard error.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; the command continues.
        """
        files = [each.fileno() for each in (self.stdout, self.stderr)]
        try:
            texts = _read(files, timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        self.wait(timeout)
        for each in (self.stdout, self.stderr):
            each.close()
        out, err = (io.TextIOWrapper(io.BytesIO(each)).read() for each in texts)
        return out, err

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command; return its exit code, or minus the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            status = self._answers.read()  # the helper's last message
            assert status, "the helper was killed"
            self.returncode = os.waitstatus_to_exitcode(int(status))
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code; None while the command runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            # The command may have ended although the helper has not sent its status yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def close(self) -> None:  # then the helper kills the command
        for each in (self._connection, self._answers, self.stdout, self.stderr):
            each.close()


Process = subprocess.Popen[str] | Command


def run(
    words: Sequence[object],
    folder: Path,
    environment: Mapping[str, str],
    stdin: str,
    timeout_s: float,
    server: Server | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m harness` in a fork of the server, like `subprocess.run`.

    Raises:
        subprocess.TimeoutExpired: after `timeout_s`; the command is killed.
    """
    started = Command(words, folder, environment, stdin=stdin, server=server)
    with contextlib.closing(started) as command:
        out, err = command.communicate(timeout_s)
        return subprocess.CompletedProcess(command.args, command.wait(), out, err)


def _read(files: Sequence[int], timeout_s: float | None) -> list[bytes]:
    """Read pipes until all writers have closed them, and return the contents.

    Raises:
        TimeoutError: after `timeout_s`.
    """
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    found = dict.fromkeys(files, b"")
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map():
            left_s = max(deadline - time.monotonic(), 0)
            ready = selector.select(None if timeout_s is None else left_s)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                found[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
    return list(found.values())


def _connect(environment: Mapping[str, str], server: Server) -> socket.socket:
    """Connect to the server; start it first if it does not run."""
    shared = server.folder
    address = str(shared / "preloaded")
    connection = socket.socket(socket.AF_UNIX)
    with (shared / "preloaded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.connect_ex(address) != 0:
            command = [server.python, "-m", "tests.preloaded", address]
            # Keras writes into the folder KERAS_HOME.
            own = {"KERAS_HOME": str(shared / "keras"), "PYTHONPATH": str(PROJECT)}
            with (shared / "preloaded.log").open("a") as log:
                process = subprocess.Popen(
                    command,
                    env={**environment, **server.variables, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            new = shared / "preloaded.new"
            new.write_text(json.dumps(read_at_start(environment)))
            new.rename(shared / "preloaded.json")
            deadline = time.monotonic() + PATIENCE_S
            while connection.connect_ex(address) != 0:
                is_starting = process.poll() is None and time.monotonic() < deadline
                assert is_starting, (shared / "preloaded.log").read_text()
                time.sleep(0.1)
    return connection


def main(address: str) -> None:
    """Serve until the parent of this process has ended."""
    for library in LIBRARIES:
        importlib.import_module(library)
    figure = importlib.import_module("matplotlib.figure").Figure()
    figure.suptitle("matplotlib reads its fonts")
    figure.savefig(io.BytesIO())
    gc.freeze()  # otherwise garbage collection in a fork would copy every page
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended helpers leave no zombies
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.settimeout(CHECK_S)
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if os.getppid() != parent:
                    return
                continue
            if os.fork() == 0:
                break
            connection.close()
    _become(_fork_command(connection))


def _fork_command(connection: socket.socket) -> dict[str, Any]:
    """Read a request and fork. Only the fork, which becomes the command, returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    _, files, _, _ = socket.recv_fds(connection, 1, NUM_FILES)
    text = b""
    while not text.endswith(END):
        part = connection.recv(1 << 16)
        if not part:  # the client has closed the connection
            os._exit(1)
        text += part
    command = os.fork()
    if command == 0:
        connection.close()
        return {**json.loads(text), "files": files}
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):  # the client may have ended
        connection.sendall(str(command).encode() + END)
    ended = os.pidfd_open(command)
    readable, _, _ = select.select([ended, connection.fileno()], [], [])
    if ended not in readable:  # the client has closed the connection
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Run the command of a request in this process."""
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # the command's TMPDIR may differ from the server's
    random.seed()  # as in a new process, so that tests notice a missing seed
    np.random.seed()
    sys.path[:2] = [request["folder"], request["environment"]["PYTHONPATH"]]
    sys.argv = request["args"]
    runpy.run_module("harness", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
