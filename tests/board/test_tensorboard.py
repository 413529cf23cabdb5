"""TensorBoard for one user: real processes, asked over HTTP by their owner and by others."""

import contextlib
import http.client
import os
import pty
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.board.tensorboard import Endpoint, Watch, _refresh, jump_host
from harness.slurm.environment import SlurmEnvironment
from harness.training.tensorboard_log import TensorBoardLog
from tests.board.tensorboard_process import Board, log_steps, make_run, sizes, wait_for
from tests.conftest import Harness

pytestmark = pytest.mark.full

NOBODY = 65534


@pytest.fixture(scope="module")
def place() -> Iterator[Harness]:
    """Three runs in a folder that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="board-") as folder:
        Path(folder).chmod(0o755)
        harness = Harness(Path(folder, "h"))
        for name in ("lstm/a", "lstm/b", "gru/a"):
            make_run(harness.runs / name)
        yield harness


@pytest.fixture(scope="module")
def board(place: Harness) -> Iterator[Board]:
    yield (board := Board(place).wait())
    if board.process.poll() is None:
        board.end()


@pytest.fixture
def start(harness: Harness) -> Iterator[Callable[..., Board]]:
    boards = []

    def start(*words: object, **options: Any) -> Board:
        boards.append(Board(harness, *words, **options))
        return boards[-1]

    yield start
    for board in boards:
        board.process.kill()
        board.process.communicate()


def test_who_knows_the_secret_sees_the_runs(board: Board) -> None:
    """The page and its data are there, by the names <job>/<run-id>."""
    status, page, _ = board.ask(f"/{board.secret}/")
    assert status == 200
    assert b'<script src="live.js"></script><script src="index.js' in page
    assert b"autoReload: true" in board.ask(f"/{board.secret}/live.js")[1]
    folders = [f"{run}{part}" for run in ("lstm/a", "lstm/b", "gru/a") for part in ("", "/train")]
    board.wait_for_runs(*folders)
    wait_for(lambda: board.num_points("gru/a/train") == 10, "ten points")


def test_a_request_without_the_secret_gets_one_and_the_same_404(board: Board) -> None:
    """Whatever is tried, the answer tells nothing and holds no part of the secret."""
    secret = board.secret
    tries = [
        "/", "/index.html", "/index.js", "/data/runs", "/data/environment", "/data/logdir",
        "/data/plugin/scalars/tags", "//", "/../", "/%2e%2e/", "*", "?", "http://127.0.0.1/",
        "/wrong/", f"/{'x' * len(secret)}/data/runs", f"/{secret}x/", f"/{secret}x/data/runs",
        f"/{secret[:-1]}/", f"/{secret.swapcase()}/", f"/x/{secret}/", f"/x/../{secret}/",
        f"/.//{secret}/", f"/%2F{secret}/", f"/%2F{secret}%2F", f"//x/{secret}/data/runs",
        f"/?{secret}", f"/#/{secret}/", f"/;/{secret}/", f"/{secret}%00/", f"/{secret}%20/",
        f"/%C3%A9{secret}/", f"/experiment/{secret}/", f"x{secret}/data/runs",
    ]  # fmt: skip
    answers = {path: board.ask(path) for path in tries}
    answers |= {f"{method} /": board.ask("/", method) for method in ("POST", "PUT", "OPTIONS")}
    for path, (status, body, headers) in answers.items():
        assert (status, body) == (404, b"Not found\n"), path
        assert secret not in str(headers), path
        assert "Location" not in headers, path
    assert board.ask("/", "HEAD")[0] == 404


def test_the_page_tells_other_sites_nothing(board: Board) -> None:
    """No answer lets a browser send the secret path along, nor data anywhere else."""
    for path in ("", "index.js", "data/runs", "data/plugin_entry.html?name=projector"):
        _, _, headers = board.ask(f"/{board.secret}/{path}")
        assert headers["Referrer-Policy"] == "no-referrer"
        if headers["Content-Type"].startswith("text/html"):
            assert "connect-src 'self';" in headers["Content-Security-Policy"]
    assert board.ask(f"/{board.secret}")[2]["Location"] == f"/{board.secret}/"


def test_the_secret_stands_nowhere_but_in_one_file_of_its_owner(board: Board) -> None:
    """Neither command line nor environment hold it, nor a file that others can read."""
    assert len(board.secret) >= 43  # 256 bits in base64
    for name in ("cmdline", "environ"):
        assert board.secret.encode() not in Path(f"/proc/{board.process.pid}/{name}").read_bytes()
    files = [p for top in (board.cache, board.temporary) for p in top.rglob("*") if p.is_file()]
    holding = [path for path in files if board.secret in path.read_text(errors="replace")]
    assert holding == [board.connection]
    assert stat.S_IMODE(board.connection.stat().st_mode) == 0o600
    assert stat.S_IMODE(board.connection.parent.stat().st_mode) == 0o700


def test_it_listens_on_one_socket_alone(board: Board) -> None:
    """On the loopback's IPv4 address; no child does."""
    process = Path(f"/proc/{board.process.pid}")
    assert {path.read_text() for path in process.glob("task/*/children")} <= {""}
    links = []
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it reads event files all the time
            links.append(str(descriptor.readlink()))
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    listening = []
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and words[3] == "0A":
                listening.append(words[1])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[6] in inodes and int(words[3], 16) & 0x10000:
            listening.append(words[7])
    assert listening == [f"0100007F:{int(board.target.rpartition(':')[2]):04X}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_of_the_machine_gets_nothing(board: Board) -> None:
    """Not the page, not the file with the secret, not the environment, not the links."""
    program = f"""
import encodings.idna, http.client, os
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
for path in ({str(board.connection)!r}, "/proc/{board.process.pid}/environ"):
    try:
        print(open(path).read())
    except PermissionError:
        print("refused")
try:
    print(os.listdir({str(next(board.temporary.glob("harness-*")))!r}))
except PermissionError:
    print("refused")
connection = http.client.HTTPConnection({board.target!r})
connection.request("GET", "/data/runs")
response = connection.getresponse()
print(response.status, response.read())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["refused", "refused", "refused", r"404 b'Not found\n'"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_at_once(
    start: Callable[..., Board], harness: Harness, number: signal.Signals
) -> None:
    """Exit code 0, nothing left behind, nothing said that others should not read."""
    run = make_run(harness.runs / "lstm" / "a")
    before = sorted(harness.runs.rglob("*"))
    board = start(run).wait()
    board.wait_for_runs("lstm/a/train")
    code, out, err = board.end(number)
    assert code == 0, err
    assert f"ended: {number.name} came" in out
    assert f"cat {board.connection}" in out
    assert board.secret not in out + err
    assert "Traceback" not in err
    assert board.leftovers() == []
    assert sorted(harness.runs.rglob("*")) == before


def test_a_signal_waits_for_no_search() -> None:
    """Over thousands of runs, or on a disk that hangs, one takes long."""
    disk, watch = threading.Event(), Watch(1, 60)
    slow: Any = SimpleNamespace(refresh=lambda: disk.wait(60))
    threading.Timer(0.3, watch._note, (signal.SIGTERM, None)).start()
    began_s = time.monotonic()
    assert not _refresh(slow, watch)
    assert time.monotonic() - began_s < 10
    disk.set()
    watch.signal = None
    assert _refresh(slow, watch)


@pytest.mark.slow
def test_a_signal_ends_it_within_seconds_over_5000_runs(
    start: Callable[..., Board], harness: Harness
) -> None:
    """In seconds of a processor, which do not depend on what else this machine does."""
    first = make_run(harness.folder / "first") / "tensorboard"
    log_steps(first.parent, 10, 250)
    for n in range(5_000):
        run = harness.runs / f"lstm/run{n:04}"
        shutil.copytree(first, run / "tensorboard", copy_function=os.link)
        (run / "job.toml").write_text("")
    board = start(harness.runs).wait()
    wait_for(lambda: len(board.json("plugin/scalars/tags")) == 5_000, "the curves", 400)
    before, others = psutil.Process(board.process.pid).cpu_times(), os.times()
    code, out, err = board.end()
    after = os.times()
    used_s = after.children_user - others.children_user - before.user
    used_s += after.children_system - others.children_system - before.system
    assert used_s < 4
    assert (code, err) == (0, "")
    assert "ended: SIGTERM came" in out
    assert board.leftovers() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--idle-minutes", "0.05"], "no request for 0.05 min"),
        (["--hours", "0.003"], "0.003 hours are over"),
    ],
)
def test_it_ends_by_itself(
    start: Callable[..., Board], harness: Harness, words: list[str], said: str
) -> None:
    """When its time is over, when nobody who knows the secret looks."""
    make_run(harness.runs / "lstm" / "a")
    board = start(*words).wait()
    while board.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it ends meanwhile
            board.ask("/")  # a stranger's request keeps nothing alive
        time.sleep(0.1)
    out, err = board.process.communicate(timeout=60)
    assert board.process.returncode == 0, err
    assert f"ended: {said}" in out
    assert board.leftovers() == []


def test_requests_with_the_secret_keep_it_alive(
    start: Callable[..., Board], harness: Harness
) -> None:
    """The idle limit counts from the last of them."""
    make_run(harness.runs / "lstm" / "a")
    board = start("--idle-minutes", "0.04").wait()
    for _ in range(8):
        time.sleep(0.5)
        board.json("runs")
    assert board.process.poll() is None


def test_it_shows_what_is_written_meanwhile(start: Callable[..., Board], harness: Harness) -> None:
    """New runs and new points come by themselves; a run that was not asked for does not."""
    harness.runs.mkdir()
    board = start().wait()
    assert board.json("runs") == []
    run = make_run(harness.runs / "sweep" / "trials" / "003")
    board.wait_for_runs("sweep.trials/003/train")
    wait_for(lambda: board.num_points("sweep.trials/003/train") == 10, "ten points")
    with TensorBoardLog(run / "tensorboard", sizes(run)) as log:
        log.steps(10, [0.4] * 5, [0.6] * 5, learning_rate=0.001, reviews_per_s=100.0)
        wait_for(lambda: board.num_points("sweep.trials/003/train") == 15, "five more points")


def test_only_the_runs_asked_for_are_shown(start: Callable[..., Board], harness: Harness) -> None:
    """Two of one name are told apart; a folder with spaces and quotes is a folder."""
    wanted = make_run(harness.runs / "lstm" / "a")
    make_run(harness.runs / "lstm" / "b")
    other = make_run(harness.folder / 'it\'s "mine"' / "lstm" / "a")
    (harness.folder / "link").symlink_to(wanted)
    waiting = harness.runs / "gru" / "new"
    waiting.mkdir(parents=True)
    (waiting / "job.toml").write_text("")
    board = start(wanted, other.parent.parent, "link", waiting).wait()
    parts = ("", "/train", "/validation")
    board.wait_for_runs(*(name + part for name in ("lstm/a", "lstm/a-2") for part in parts))
    assert len(board.json("runs")) == 6


@pytest.mark.parametrize(("mode", "told"), [(0o600, True), (0o640, False)])
def test_a_log_that_others_can_read_does_not_hold_the_secret(
    start: Callable[..., Board], harness: Harness, mode: int, told: bool
) -> None:
    """It holds the name of the file that does."""
    make_run(harness.runs / "lstm" / "a")
    log = harness.folder / "job.out"
    log.touch(mode)
    with log.open("a") as stdout:
        board = start(stdout=stdout).wait()
    wait_for(lambda: "ends after" in log.read_text(), "the last line")
    assert (board.address in log.read_text()) is told
    assert (board.secret in log.read_text()) is told
    assert (f"cat {board.connection}" in log.read_text()) is not told


def test_a_terminal_shows_the_command_and_the_address(
    start: Callable[..., Board], harness: Harness
) -> None:
    """They stand on one line each, however narrow it is."""
    make_run(harness.runs / "lstm" / "a")
    terminal, other_end = pty.openpty()
    board = start(stdout=other_end).wait()
    os.close(other_end)
    shown = ""
    while "ends after" not in shown:
        shown += os.read(terminal, 4096).decode()
    os.close(terminal)
    port = board.target.rpartition(":")[2]
    assert f"ssh -N -o ExitOnForwardFailure=yes -L {port}:127.0.0.1:{port} " in shown
    assert f"{board.address}\r\n" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], ("run nowhere", "no run has this folder, id or job")),
        (["empty"], ("RUN empty", "holds no run")),
        (["--runs", "nowhere"], ("--runs nowhere", "no such folder")),
        (["--runs", "empty", "--port", "TAKEN"], ("--port", "in use", "choose another")),
        (["--port", "80"], ("--port", "1024")),
        (["--hours", "0"], ("--hours 0", "greater than 0")),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    harness: Harness, words: list[str], said: tuple[str, ...]
) -> None:
    """The line names the thing and its remedy; nothing is left behind."""
    (harness.folder / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = harness.run_here(
            "tensorboard", *(port if word == "TAKEN" else word for word in words)
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert [part for part in said if part not in done.stderr] == []
    assert [path.name for path in harness.folder.iterdir()] == ["empty"]


def test_a_cache_that_cannot_be_written_is_one_line_and_exit_code_1(harness: Harness) -> None:
    """Without its file nobody could find the secret, so nothing goes on."""
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
    """The site's word comes first, then the host where the job was submitted."""
    monkeypatch.setenv("LOGNAME", "ME")
    host = jump_host(login, SlurmEnvironment.from_environment(environment))
    endpoint = Endpoint(4000, "secret", "node1", host)
    options = "-N -o ExitOnForwardFailure=yes -L 4000:127.0.0.1:4000"
    assert endpoint.tunnel == f"ssh {options} {jump}ME@node1"
