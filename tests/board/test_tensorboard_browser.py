"""TensorBoard through a real ssh tunnel, in a real browser, and as another host sees it."""

import base64
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from harness.training.tensorboard_log import TensorBoardLog
from tests.board.tensorboard_process import Board, make_run, wait_for
from tests.conftest import Harness
from tests.slurm.cluster import free_ports

pytestmark = pytest.mark.full

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
CHROMIUM_WORDS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

needs_browser = pytest.mark.skipif(
    not (SSHD and CHROMIUM and CHROMEDRIVER),
    reason="no tunnel or no browser; on Debian: apt-get install chromium chromium-driver "
    "openssh-server openssh-client",
)


@pytest.fixture
def ssh_config(tmp_path: Path) -> Iterator[Path]:
    """A configuration by which every host is this one, with a server that knows one key."""
    port = free_ports(1)[0]
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=60)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = tmp_path / "sshd_config"
    # Not strict: the keys lie below /tmp, which everyone may write into.
    server.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
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


@contextlib.contextmanager
def tunnel(board: Board, ssh_config: Path) -> Iterator[None]:
    """The printed command, run as it stands."""
    words = shlex.split(board.connection.read_text().splitlines()[0].partition(":")[2])
    if not board.target.startswith("/"):  # here the laptop is the node, where that port is taken
        port = free_ports(1)[0]
        words = [
            word.replace(f"{board.target.rpartition(':')[2]}:", f"{port}:", 1) for word in words
        ]
        board.address = board.address.replace(board.target.rpartition(":")[2], str(port))
    process = subprocess.Popen([words[0], "-F", str(ssh_config), *words[1:]])

    def answers() -> bool:
        try:
            runs = f"{board.address}data/runs"
            with urllib.request.urlopen(runs, timeout=10) as answer:  # noqa: S310 - http
                return "lstm/a/train" in json.load(answer)
        except OSError:
            return False

    try:
        wait_for(answers, "an answer through the tunnel")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


CARD = "[...document.querySelectorAll('scalar-card')].find(c => c.querySelector('[title=\"%s\"]'))"


class Browser:
    """A headless Chromium, driven over WebDriver's own HTTP (w3.org/TR/webdriver2)."""

    def __init__(self, folder: Path) -> None:
        assert CHROMEDRIVER
        port = free_ports(1)[0]
        self._top = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            [CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._is_ready, "chromedriver")
        words = [
            *CHROMIUM_WORDS,
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,1200",
        ]
        options = {"goog:chromeOptions": {"binary": CHROMIUM, "args": words}}
        made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._top += f"/session/{made['sessionId']}"

    def call(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._top + path, body, method=method)  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - http
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def draws(self, tag: str) -> bool:
        """Whether a tag's chart has pixels of a colour, which grid and letters have not."""
        chart = self.run(f"return {CARD % tag}?.querySelector('line-chart')")
        if not chart:
            return False
        (key,) = chart.values()
        png = base64.b64decode(self.call("GET", f"/element/{key}/screenshot"))
        pixels = imread(io.BytesIO(png))[:, :, :3]
        return bool((np.ptp(pixels, axis=2) > 0.25).sum() > 100)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.call("DELETE", "")
        self._driver.terminate()
        self._driver.wait()

    def _is_ready(self) -> bool:
        try:
            return bool(self.call("GET", "/status")["ready"])
        except OSError:
            return False


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    yield browser
    browser.close()


@needs_browser
def test_a_browser_draws_the_curves_through_the_tunnel(
    harness: Harness, ssh_config: Path, browser: Browser
) -> None:
    """The printed command and address are enough; each chart has its lines, a constant one too."""
    with TensorBoardLog(make_run(harness.runs / "lstm" / "a") / "tensorboard") as log:
        for epoch in range(1, 8):
            train = {"loss": 1 / epoch, "accuracy": 0.5, "learning_rate": 0.0005}
            log.epoch(epoch, train, {"loss": 2 / epoch, "accuracy": 0.25})
    board = Board(harness).wait()
    try:
        with tunnel(board, ssh_config):
            browser.call("POST", "/url", {"url": board.address})
            for tag in ("epoch/accuracy", "epoch/learning_rate", "epoch/loss"):
                wait_for(partial(browser.draws, tag), f"the curve {tag}")
            card = browser.run(f"return {CARD % 'epoch/loss'}.innerText")
            assert "lstm/a/train" in "".join(card.split())
            assert "lstm/a/validation" in "".join(card.split())
            asked = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
            assert len(asked) > 10
            tunnel_end = board.address.removesuffix(f"{board.secret}/")
            assert [url for url in asked if not url.startswith(tunnel_end)] == []
    finally:
        assert board.end()[0] == 0


@needs_browser
def test_the_page_reloads_by_itself_and_asks_its_tunnel_alone(
    harness: Harness, ssh_config: Path
) -> None:
    """In forty seconds of its own time, over the tunnel; nobody else hears the secret."""
    make_run(harness.runs / "lstm" / "a")
    board = Board(harness).wait()
    log = harness.folder / "net.json"
    try:
        with tunnel(board, ssh_config):
            assert CHROMIUM
            words = [CHROMIUM, *CHROMIUM_WORDS, f"--user-data-dir={harness.folder}/profile"]
            # Virtual time; charts, which are drawn in other threads, do not keep up with it.
            words += ["--virtual-time-budget=40000", f"--log-net-log={log}", "--dump-dom"]
            subprocess.run(
                [*words, board.address],
                check=True,
                timeout=120,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    finally:
        assert board.end()[0] == 0
    net = json.loads(log.read_text())
    begun = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    params = [event.get("params", {}) for event in net["events"] if event["type"] == begun]
    urls = [param["url"] for param in params if "url" in param]
    asked = [url for url in urls if url.startswith(board.address)]
    assert asked.count(f"{board.address}data/plugins_listing") >= 2
    assert all(board.secret not in url for url in urls if url not in asked)


@pytest.fixture
def other_host() -> Iterator[tuple[str, str]]:
    """A network namespace with a cable to this machine: its name, and this machine's address."""
    name, near, far = f"board{os.getpid()}", f"bn{os.getpid()}", f"bf{os.getpid()}"
    # TEST-NET-3 of RFC 5737, which is nobody's.
    commands = (
        f"netns add {name}",
        f"link add {near} type veth peer name {far} netns {name}",
        f"addr add 203.0.113.1/30 dev {near}",
        f"link set {near} up",
        f"-n {name} addr add 203.0.113.2/30 dev {far}",
        f"-n {name} link set {far} up",
        f"-n {name} link set lo up",
    )
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True, timeout=20)
        yield name, "203.0.113.1"
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"") or str(error).encode()
        pytest.skip(f"no network namespace can be made here: {reason.decode().strip()}")
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)


def test_another_host_can_not_even_connect(harness: Harness, other_host: tuple[str, str]) -> None:
    """What listens on all addresses is reached from there; TensorBoard refuses."""
    name, address = other_host
    make_run(harness.runs / "lstm" / "a")
    board = Board(harness).wait()
    program = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.partition(":")
    try:
        socket.create_connection((host, int(port)), 10).close()
        print("connected")
    except ConnectionRefusedError:
        print("refused")
"""
    port = board.target.rpartition(":")[2]
    try:
        with socket.create_server(("", 0)) as open_to_all:
            places = [f"{address}:{open_to_all.getsockname()[1]}"]
            places += [f"{address}:{port}", f"127.0.0.1:{port}"]
            done = subprocess.run(
                ["ip", "netns", "exec", name, sys.executable, "-c", program, *places],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
    finally:
        assert board.end()[0] == 0
    assert done.stdout.split() == ["connected", "refused", "refused"]
