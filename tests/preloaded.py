"""Commands of the tests in forks of a process that has imported the libraries.

To import TensorFlow takes four seconds of a core, and the tests start hundreds of commands. A fork
begins where that import has ended. It imports the harness itself, as any process does, and has its
own arguments, folder, environment and files.

A server forks a helper for each connection. The helper forks the command, waits for it, and answers
with its exit code; if the connection is closed before, it kills the command.
"""

import contextlib
import fcntl
import gc
import importlib
import io
import json
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
from pathlib import Path
from typing import Any

import numpy as np

# Names the folder that all workers of xdist share: the server's socket, finished runs, and compiled
# steps. Each command has a cache of its own, but compiling takes as long as a short training, and
# is not what most tests are about.
SHARED = "HARNESS_TEST_SHARED"
LIBRARIES = ("tensorflow", "keras", "scipy.stats", "sklearn.linear_model", "pyarrow")
# As harness.compute.strategy sets them before the import, which reads them.
VARIABLES = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
# What the start of a process or an import reads of the environment; a fork can't be given others.
READ_AT_START = re.compile(r"PYTHON|LD_|LC_|LANG|TF_|XLA_|CUDA_|OMP_|OPENBLAS_|MALLOC_|GLIBC_|TZ")
BACKLOG = 64
END = b"\n"  # of a request
NUM_FILES = 3  # that come with it: standard input, output and error
PATIENCE_S = 120  # for the imports
CHECK_S = 5.0  # how often the server looks whether the process that started it is there


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a command must share with the server."""
    return {name: value for name, value in environment.items() if READ_AT_START.match(name)}


def fits(environment: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a command may be a fork of the server, or of one that has yet to start.

    Args:
        environment: of the command.
        usual: what the start of most commands reads, of which a server is started.
    """
    kept = Path(os.environ[SHARED], "preloaded.json")
    of_server = json.loads(kept.read_text()) if kept.exists() else usual
    return read_at_start(environment) == of_server == usual


def run(
    words: Sequence[object],
    folder: Path,
    environment: Mapping[str, str],
    stdin: str,
    timeout_s: float,
) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` says of `python -m harness`, from a fork of the server.

    Args:
        words: after `harness`.
        folder: the command's current one.
        environment: of the command.
        stdin: what it reads.
        timeout_s: after which it is killed.

    Raises:
        subprocess.TimeoutExpired: if it was.
    """
    args, deadline = list(map(str, words)), time.monotonic() + timeout_s
    request = {"words": args, "folder": str(folder), "environment": dict(environment)}
    pipes = [os.pipe(), os.pipe()]  # lines in a file would have a date
    outputs, inputs = zip(*pipes, strict=True)
    try:
        with _connect(environment) as connection, tempfile.TemporaryFile() as typed:
            typed.write(stdin.encode())
            typed.seek(0)
            try:
                socket.send_fds(connection, [b"."], [typed.fileno(), *inputs])
                connection.sendall(json.dumps(request).encode() + END)
            finally:
                for each in inputs:
                    os.close(each)
            answer, out, err = _read((connection.fileno(), *outputs), deadline)
    except TimeoutError:  # the command ends with the connection
        raise subprocess.TimeoutExpired(args, timeout_s) from None
    finally:
        for each in outputs:
            os.close(each)
    assert answer, "the helper was killed"
    texts = (io.TextIOWrapper(io.BytesIO(each)).read() for each in (out, err))
    return subprocess.CompletedProcess(args, os.waitstatus_to_exitcode(int(answer)), *texts)


def _read(files: Sequence[int], deadline: float) -> list[bytes]:
    """What comes from each until all have ended.

    Raises:
        TimeoutError: if they have not by the deadline.
    """
    found = dict.fromkeys(files, b"")
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                found[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
    return list(found.values())


def _connect(environment: Mapping[str, str]) -> socket.socket:
    """A connection to the server, which the first of all workers of xdist starts."""
    shared = Path(os.environ[SHARED])
    address = str(shared / "preloaded")
    connection = socket.socket(socket.AF_UNIX)
    with (shared / "preloaded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.connect_ex(address) != 0:
            command = [sys.executable, "-m", "tests.preloaded", address]
            own = {"KERAS_HOME": str(shared / "keras")}  # Keras writes into it
            with (shared / "preloaded.log").open("a") as log:
                server = subprocess.Popen(
                    command,
                    env={**environment, **VARIABLES, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            new = shared / "preloaded.new"
            new.write_text(json.dumps(read_at_start(environment)))
            new.rename(shared / "preloaded.json")
            deadline = time.monotonic() + PATIENCE_S
            while connection.connect_ex(address) != 0:
                is_starting = server.poll() is None and time.monotonic() < deadline
                assert is_starting, (shared / "preloaded.log").read_text()
                time.sleep(0.1)
    return connection


def main(address: str) -> None:
    """Serve until the process that started this one has ended."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # else a collection in a fork copies every page
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets helpers that have ended
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
    """The request that comes over the connection, in a fork that is to become its command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    _, files, _, _ = socket.recv_fds(connection, 1, NUM_FILES)
    text = b""
    while not text.endswith(END):
        part = connection.recv(1 << 16)
        if not part:  # whoever asked has gone
            os._exit(1)
        text += part
    command = os.fork()
    if command == 0:
        connection.close()
        return {**json.loads(text), "files": files}
    for file in files:
        os.close(file)
    ended = os.pidfd_open(command)
    readable, _, _ = select.select([ended, connection.fileno()], [], [])
    if ended not in readable:  # whoever asked has gone
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Run the command in this process."""
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR may be another
    random.seed()  # as in a process of its own, or nobody would see that a seed is missing
    np.random.seed()
    sys.path[0] = request["folder"]
    sys.argv = ["harness", *request["words"]]
    runpy.run_module("harness", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
