"""TensorBoard for one user: real processes, with HTTP requests of their owner and of others."""

import os
import pty
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.board.tensorboard import Signalled, Watch, how_to_connect
from harness.slurm.environment import SlurmEnvironment
from harness.training.tensorboard_log import TensorBoardLog
from tests.board.tensorboard_process import Board, make_run, write_steps
from tests.conftest import Harness, wait_for, write_program

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A TensorBoard of three runs."""
    harness = Harness(tmp_path_factory.mktemp("board"))
    for name in ("lstm/a", "lstm/b", "gru/a"):
        make_run(harness.runs / name)
    with Board(harness) as board:
        yield board


def test_requests_with_the_secret_get_the_runs(board: Board) -> None:
    """The answers are the page and its data, in which runs are named <job>/<run-id>."""
    status, page, _ = board.ask(f"/{board.secret}/")
    assert status == 200
    assert b'<script src="live.js"></script><script src="index.js' in page
    assert b"autoReload: true" in board.ask(f"/{board.secret}/live.js")[1]
    folders = [f"{run}{part}" for run in ("lstm/a", "lstm/b", "gru/a") for part in ("", "/train")]
    board.wait_for_runs(*folders)
    wait_for(lambda: board.num_points("gru/a/train") == 10)


def test_requests_without_the_secret_get_a_404(board: Board) -> None:
    """The answer is always the same, and does not contain the secret."""
    secret = board.secret
    tries = [
        "/", "/index.js", "/data/runs", "//", "/../", "*", "?", "http://127.0.0.1/", "/wrong/",
        f"/{'x' * len(secret)}/data/runs", f"/{secret}x/data/runs", f"/{secret[:-1]}/",
        f"/{secret.swapcase()}/", f"/x/{secret}/", f"/x/../{secret}/", f"/.//{secret}/",
        f"/%2F{secret}/", f"//x/{secret}/data/runs", f"/?{secret}", f"/#/{secret}/",
        f"/;/{secret}/", f"/{secret}%00/", f"/%C3%A9{secret}/", f"x{secret}/data/runs",
    ]  # fmt: skip
    answers = {path: board.ask(path) for path in tries}
    methods = ("POST", "OPTIONS", "HEAD", "PUT")
    answers |= {f"{method} /": board.ask("/", method) for method in methods}
    for path, (status, body, headers) in answers.items():
        assert (status, body) == (404, b"" if path == "HEAD /" else b"Not found\n"), path
        assert secret not in str(headers), path
        assert "Location" not in headers, path


def test_the_page_reveals_nothing_to_other_sites(board: Board) -> None:
    """Headers forbid the browser to send the secret path or the data to other sites."""
    for path in ("", "index.js", "data/runs", "data/plugin_entry.html?name=projector"):
        _, _, headers = board.ask(f"/{board.secret}/{path}")
        assert headers["Referrer-Policy"] == "no-referrer"
        if headers["Content-Type"].startswith("text/html"):
            assert "connect-src 'self';" in headers["Content-Security-Policy"]
    assert board.ask(f"/{board.secret}")[2]["Location"] == f"/{board.secret}/"


def test_the_secret_is_only_in_a_private_file(board: Board) -> None:
    """The command line, the environment and other files do not contain the secret."""
    assert len(board.secret) >= 43  # 256 bits in base64
    for name in ("cmdline", "environ"):
        assert board.secret.encode() not in Path(f"/proc/{board.process.pid}/{name}").read_bytes()
    files = [p for top in (board.cache, board.temporary) for p in top.rglob("*") if p.is_file()]
    holding = [path for path in files if board.secret in path.read_text(errors="replace")]
    assert holding == [board.connection]
    assert stat.S_IMODE(board.connection.stat().st_mode) == 0o600
    assert stat.S_IMODE(board.connection.parent.stat().st_mode) == 0o700


def test_it_listens_on_one_socket(board: Board) -> None:
    """The socket has the IPv4 loopback address; there are no child processes."""
    process = psutil.Process(board.process.pid)
    assert process.children() == []
    sockets = process.net_connections("all")
    served = [each.laddr for each in sockets if each.status in ("LISTEN", "NONE") and each.laddr]
    assert served == [("127.0.0.1", int(board.target.rpartition(":")[2]))]


def test_it_ends_at_its_time_limit_without_requests_or_by_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request does not extend the time limit.

    The first signal ends a search for runs; a second does not interrupt a removal of files.
    """
    limited, watch = Watch(0), Watch(1)
    limited.used()
    assert (limited.reason(), watch.reason()) == ("0 hours are over", None)
    monkeypatch.setattr("harness.board.tensorboard.IDLE_MIN", 0)
    assert watch.reason() == "no request for 0 min"
    with pytest.raises(Signalled):
        watch._end(signal.SIGTERM, None)
    watch._end(signal.SIGINT, None)
    assert watch.reason() == "received SIGTERM"


def test_it_shows_new_runs_and_points_until_a_signal(harness: Harness) -> None:
    """TensorBoard also shows a search's trials; it leaves no file and does not print the secret."""
    harness.runs.mkdir()
    with Board(harness) as board:
        assert board.json("runs") == []
        run = harness.runs / "sweep" / "trials" / "003"
        run.mkdir(parents=True)
        (run / "job.toml").touch()
        with TensorBoardLog(run / "tensorboard") as log:
            write_steps(log, 0, 10)
            wait_for(lambda: board.num_points("sweep.trials/003/train") == 10)
            write_steps(log, 10, 5)
            wait_for(lambda: board.num_points("sweep.trials/003/train") == 15)
        before = sorted(harness.runs.rglob("*"))
        code, out, err = board.end()
    assert (code, err) == (0, "")
    assert "ended: received SIGTERM" in out
    assert f"cat {board.connection}" in out
    assert board.secret not in out
    assert board.leftovers() == []
    assert sorted(harness.runs.rglob("*")) == before


def test_it_opens_a_browser_and_ends_with_its_runs(harness: Harness) -> None:
    """The browser's command line names a private file that leads to the page, not the secret."""
    run = make_run(harness.runs / "lstm" / "done")
    (run / "result.json").write_text("{}")
    seen = harness.folder / "seen"
    script = f'exec >{seen}\nstat -c "%a $1" "${{1#file://}}"\ncat "${{1#file://}}"'
    browser = write_program(harness.folder / "browser", script)
    harness.environment["BROWSER"] = f"{browser} %s"
    done = harness.run("tensorboard", "--open", "--until-finished")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ended: all runs have finished" in done.stdout
    command, page = seen.read_text().splitlines()
    assert re.fullmatch(r"600 file:///.*/open\.html", command)
    secret = re.search(r"url=http://127\.0\.0\.1:\d+/([^/]{40,})/", page)
    assert secret
    assert secret[1] not in command + done.stdout


def test_a_terminal_shows_the_command_and_the_address(harness: Harness) -> None:
    """Command and address are one line each, even on a narrow terminal; SIGHUP ends TensorBoard.

    The line about the end has a date, because the time limit can be days away.
    """
    make_run(harness.runs / "lstm" / "a")
    terminal, other_end = pty.openpty()
    end = time.strftime("at the latest %a %d %b ", time.localtime(time.time() + 3600 * 200))
    with Board(harness, "--hours", 200, stdout=other_end) as board:
        os.close(other_end)
        shown = ""
        while "\n" not in shown.partition("ends after")[2]:
            shown += os.read(terminal, 4096).decode()
        assert (board.end(signal.SIGHUP)[0], board.leftovers()) == (0, [])
    os.close(terminal)
    port = board.target.rpartition(":")[2]
    assert f"ssh -N -o ExitOnForwardFailure=yes -L {port}:127.0.0.1:{port} " in shown
    assert f"{board.address}\r\n" in shown
    assert end in shown


def test_a_cache_that_cannot_be_written_is_one_line_and_exit_code_1(harness: Harness) -> None:
    """Without a file in the cache, nobody would know the secret."""
    harness.runs.mkdir()
    harness.environment |= {"XDG_CACHE_HOME": "/dev/null", "TMPDIR": str(harness.folder)}
    done = harness.run_here("tensorboard")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "set XDG_CACHE_HOME" in done.stderr
    assert list(harness.folder.iterdir()) == [harness.runs]


@pytest.mark.parametrize(
    ("login", "environment", "jump"),
    [
        (None, {}, ""),
        ("me@login.site.edu", {}, "-J me@login.site.edu "),
        (None, {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login1"}, "-J ME@login1 "),
        ("me@l", {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login1"}, "-J me@l "),
        (None, {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": socket.gethostname()}, ""),
    ],
)
def test_the_tunnel_goes_through_the_login_node(
    login: str | None, environment: dict[str, str], jump: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The login node is HARNESS_LOGIN, or else the host on which the job was submitted."""
    monkeypatch.setattr("harness.board.tensorboard.owner_name", lambda _: "ME")
    text = how_to_connect(4000, "S", login, SlurmEnvironment.from_environment(environment))
    options = "-N -o ExitOnForwardFailure=yes -L 4000:127.0.0.1:4000"
    assert f"  ssh {options} {jump}ME@{socket.gethostname()}\n" in text
