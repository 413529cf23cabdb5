"""TensorBoard in a browser, through an ssh tunnel."""

import base64
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from harness.training.tensorboard_log import TensorBoardLog
from tests.board.tensorboard_process import Board, make_run
from tests.conftest import Harness, wait_for
from tests.slurm.cluster import free_ports

pytestmark = pytest.mark.full

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
CHROMIUM_WORDS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1400,1200",
)


@pytest.fixture
def ssh_config(tmp_path: Path) -> Iterator[Path]:
    """Start an ssh server; yield a client's configuration in which every host is this machine."""
    port = free_ports(1)[0]
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=60)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = tmp_path / "sshd_config"
    # StrictModes would refuse keys below /tmp, because everyone can write there.
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


def answer_of(url: str) -> str:
    """Return the answer of a server; "" as long as there is none."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())
    return ""


@contextlib.contextmanager
def tunnel(board: Board, ssh_config: Path) -> Iterator[None]:
    """Run the printed ssh command during a `with` block."""
    words = shlex.split(board.connection.read_text().splitlines()[0].partition(":")[2])
    port, other = board.target.rpartition(":")[2], str(free_ports(1)[0])  # the first one is in use
    words = [word.replace(f"{port}:", f"{other}:", 1) for word in words]
    board.address = board.address.replace(port, other)
    process = subprocess.Popen([words[0], "-F", str(ssh_config), *words[1:]])
    try:
        wait_for(lambda: "lstm/a/train" in answer_of(f"{board.address}data/runs"))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


CARD = "[...document.querySelectorAll('scalar-card')].find(c => c.querySelector('[title=\"%s\"]'))"


class Browser:
    """A headless Chromium, controlled by the HTTP requests of WebDriver (w3.org/TR/webdriver2)."""

    def __init__(self, folder: Path) -> None:
        assert CHROMEDRIVER
        port = free_ports(1)[0]
        self._top = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            [CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: '"ready":true' in answer_of(f"{self._top}/status"))
        words = [*CHROMIUM_WORDS, f"--user-data-dir={folder / 'profile'}"]
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
        """Whether the tag's chart contains coloured pixels; only curves have a colour."""
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


@pytest.mark.skipif(
    not (SSHD and CHROMIUM and CHROMEDRIVER),
    reason="no tunnel or no browser; on Debian: apt-get install chromium chromium-driver "
    "openssh-server openssh-client",
)
def test_a_browser_draws_the_curves_through_the_tunnel(harness: Harness, ssh_config: Path) -> None:
    """The printed command and address suffice; each chart has a curve, even for a constant."""
    with TensorBoardLog(make_run(harness.runs / "lstm" / "a") / "tensorboard") as log:
        for epoch in range(1, 8):
            line = {"loss": 1 / epoch, "accuracy": 0.5, "learning_rate": 0.0005}
            log.epoch({"epoch": epoch, **line, "val_loss": 2 / epoch, "val_accuracy": 0.25})
    with (
        contextlib.closing(Browser(harness.folder)) as browser,
        Board(harness) as board,
        tunnel(board, ssh_config),
    ):
        browser.call("POST", "/url", {"url": board.address})
        for tag in ("epoch/accuracy", "epoch/learning_rate", "epoch/loss"):
            wait_for(partial(browser.draws, tag))
        card = browser.run(f"return {CARD % 'epoch/loss'}.innerText")
        assert "lstm/a/train" in "".join(card.split())
        assert "lstm/a/validation" in "".join(card.split())
        asked = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
        assert len(asked) > 10
        tunnel_end = board.address.removesuffix(f"{board.secret}/")
        assert [url for url in asked if not url.startswith(tunnel_end)] == []
        assert board.end()[0] == 0
