"""Connections of other users to TensorBoard, and their files among the runs."""

import contextlib
import os
import resource
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness.board.server import MAX_NEWCOMERS, Server
from tests.board.tensorboard_process import Board, make_run
from tests.conftest import Harness

pytestmark = pytest.mark.full

# Run a command as root, but without the capability to read other users' private files.
AS_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
AS_USER += ["--inh-caps=-dac_override,-dac_read_search"]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
PLANTED = """
set -eu
umask 022
mkdir lstm lstm/inside
for name in open closed half file; do cp -r "$1" lstm/$name; done
mkfifo lstm/open/tensorboard/events.out.tfevents.9.pipe
ln -s "$2/tensorboard/train" lstm/open/tensorboard/theirs
chmod 700 lstm/closed lstm/half/tensorboard/train
mv lstm/file/tensorboard/train/* lstm/file/tensorboard/train/tfevents.1
chmod 600 lstm/file/tensorboard/train/tfevents.1
echo >lstm/inside/job.toml
ln -s "$2/tensorboard" lstm/inside/tensorboard
ln -s "$2" lstm/link
"""
LEFT_OUT = {
    "lstm/closed can't be read: Permission denied",
    "lstm/file/tensorboard/train/tfevents.1 is not a readable file",
    "lstm/half/tensorboard/train can't be read: Permission denied",
    "lstm/inside/tensorboard is a symbolic link that belongs to nobody",
    "lstm/link is a symbolic link that belongs to nobody",
    "lstm/open/tensorboard/events.out.tfevents.9.pipe is not a readable file",
    "lstm/open/tensorboard/theirs is a symbolic link that belongs to nobody",
}
IDLE = 1200  # number of connections, above most sites' limit of open files


@pytest.mark.slow
def test_idle_connections_do_not_lock_the_user_out(harness: Harness) -> None:
    """A stranger's 1,200 connections delay no answer and occupy few threads.

    TensorBoard may open 1,024 files; this process may open more.
    """
    make_run(harness.runs / "lstm/a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 200:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    with Board(harness) as board, contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 200, hard))
        host, _, port = board.target.rpartition(":")
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        assert board.ask(f"/{board.secret}/data/runs")[0] == 200
        num_threads = len([*Path(f"/proc/{board.process.pid}/task").iterdir()])
        assert num_threads < MAX_NEWCOMERS + 100


@pytest.mark.parametrize(("path", "is_cut_off"), [("/secret/data", False), ("/guess", True)])
def test_newcomers_close_no_connection_with_the_secret(
    path: str, is_cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New connections do not cut off a long answer to a browser with the secret.

    Only requests with the secret keep TensorBoard alive.
    """
    used: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(lambda _environ, _start: [], listener, "secret", lambda: used.append(1))
    monkeypatch.setattr("harness.board.server.MAX_NEWCOMERS", 1)
    ours, theirs = socket.socketpair()
    with server, ours, theirs, socket.socket() as stranger:
        server.verify_request(ours, None)
        server.answer({"PATH_INFO": path, "werkzeug.socket": ours}, lambda *_: bool)
        server.verify_request(stranger, None)
        theirs.setblocking(False)
        expected = contextlib.nullcontext() if is_cut_off else pytest.raises(BlockingIOError)
        with expected:
            assert theirs.recv(1) == b""
    assert bool(used) is not is_cut_off


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as a second user")
def test_closed_folders_and_links_of_others_are_left_out() -> None:
    """A line gives path and reason; all other runs are shown."""
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        Path(name).chmod(0o755)
        harness, shared = Harness(Path(name, "h")), Path(name, "shared")
        mine, elsewhere = (make_run(Path(name, "h", folder)) for folder in ("mine", "elsewhere"))
        shared.mkdir()
        shared.chmod(0o1777)

        def plant(script: str) -> None:
            command = [*AS_NOBODY, "sh", "-c", script, "sh", str(mine), str(elsewhere)]
            subprocess.run(command, cwd=shared, check=True, timeout=60)

        plant(PLANTED)
        with Board(harness, shared, prefix=AS_USER) as board:
            board.wait_for_runs("lstm/open/train", "lstm/half")
            plant("chmod 700 lstm/open/tensorboard; cp -r $1 lstm/later")
            board.wait_for_runs("lstm/later/train")
            assert not [run for run in board.json("runs") if "theirs" in run or "link" in run]
            code, out, err = board.end()
    assert code == 0
    assert "Traceback" not in err
    told = {
        part.removeprefix("not shown: ").removeprefix(f"{shared}/")
        for line in out.splitlines()
        if line.startswith("not shown: ")
        for part in line.split("; ")
    }
    assert told >= {*LEFT_OUT, "lstm/open/tensorboard can't be read: Permission denied"}
