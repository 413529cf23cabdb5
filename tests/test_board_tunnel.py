"""TensorBoard through a real ssh tunnel, in a real browser: by hand, with -m slow."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.board import Board, make_run, wait_for
from tests.conftest import Harness

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SSHD, reason="no sshd; on Debian: apt-get install openssh-server"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def ssh_config(tmp_path: Path) -> Iterator[Path]:
    """A configuration by which every host is this one, with a server that knows one key."""
    port = free_port()
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=60)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = tmp_path / "sshd_config"
    server.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nPasswordAuthentication no\n"
    )
    client = tmp_path / "ssh_config"
    client.write_text(
        f"Host *\nHostName 127.0.0.1\nPort {port}\nIdentityFile {tmp_path}/user\n"
        f"IdentitiesOnly yes\nUserKnownHostsFile {tmp_path}/known\n"
        "StrictHostKeyChecking accept-new\n"
    )
    assert SSHD
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(server)], stderr=subprocess.DEVNULL)
    yield client
    daemon.terminate()
    daemon.wait()


def test_a_browser_shows_the_runs_through_the_tunnel(harness: Harness, ssh_config: Path) -> None:
    """The printed command is enough; the page talks to its tunnel alone and reloads by itself."""
    make_run(harness.runs / "lstm" / "a")
    board = Board(harness, "--socket", "--port", free_port()).wait()
    words = shlex.split(board.connection.read_text().splitlines()[0].partition(":")[2])
    tunnel = subprocess.Popen([words[0], "-F", str(ssh_config), *words[1:]])

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{board.address}data/runs") as answer:  # noqa: S310 - http
                return "lstm/a/train" in json.load(answer)
        except OSError:
            return False

    try:
        wait_for(answers, "an answer through the tunnel")
        if not CHROMIUM:
            pytest.skip("the tunnel works; no Chromium for the page: apt-get install chromium")
        page, log = harness.folder / "page.png", harness.folder / "net.json"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
        options += [f"--user-data-dir={harness.folder}/profile", f"--log-net-log={log}"]
        # Virtual time: forty seconds of the page's own, in which it reloads once.
        options += ["--virtual-time-budget=40000", f"--screenshot={page}", board.address]
        subprocess.run([CHROMIUM, *options], check=True, timeout=120, stderr=subprocess.DEVNULL)
        assert page.stat().st_size > 50_000
        net = json.loads(log.read_text())
        begun = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        params = [event.get("params", {}) for event in net["events"] if event["type"] == begun]
        urls = [param["url"] for param in params if "url" in param]
        asked = [url for url in urls if url.startswith(board.address)]
        assert asked.count(f"{board.address}data/plugins_listing") >= 2
        assert all(board.secret not in url for url in urls if url not in asked)
    finally:
        tunnel.send_signal(signal.SIGTERM)
        tunnel.wait()
        assert board.end()[0] == 0
