"""Start TensorBoard for tests, and send requests to it."""

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.training.tensorboard_log import TensorBoardLog
from tests.conftest import Harness, wait_for
from tests.preloaded import SHARED


def write_steps(log: TensorBoardLog, first: int, num: int) -> None:
    values = np.full(num, 0.5)
    log.steps(first, values, values, {})


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text("")
    with TensorBoardLog(folder / "tensorboard") as log:
        write_steps(log, 0, 10)
    return folder


class Board:
    """A running `harness tensorboard`, which is killed at the end of a `with` block."""

    def __init__(
        self,
        harness: Harness,
        *words: object,
        stdout: Any = subprocess.PIPE,
        prefix: Sequence[str] = (),
    ) -> None:
        self.cache = harness.cache
        self.temporary = Path(os.environ[SHARED], f"t{harness.folder.stat().st_ino}")
        self.temporary.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [*prefix, *harness.command("tensorboard", *words)],
            cwd=harness.folder,
            env=harness.environment | {"TMPDIR": str(self.temporary)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.connection = Path()
        self.address = self.target = self.secret = ""

    def __enter__(self) -> "Board":
        return self.wait()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait(self) -> "Board":
        """Wait until TensorBoard serves requests."""
        pattern = f"harness/tensorboard/*-{self.process.pid}.txt"

        def find() -> list[Path]:
            assert self.process.poll() is None, self.process.communicate()
            return list(self.cache.glob(pattern))

        self.connection = wait_for(find)[0]
        words = self.connection.read_text().split()
        self.address = words[-1]
        self.target = words[words.index("-L") + 1].partition(":")[2]
        self.secret = self.address.split("/")[3]
        return self

    def ask(self, path: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
        """Send a request; return status, body and headers. The path is sent without any change."""
        connection = http.client.HTTPConnection(self.target, timeout=30)
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())

    def json(self, path: str) -> Any:
        status, body, _ = self.ask(f"/{self.secret}/data/{path}")
        assert status == 200, body
        return json.loads(body)

    def wait_for_runs(self, *names: str) -> None:
        wait_for(lambda: set(names) <= set(self.json("runs")))

    def num_points(self, run: str, tag: str = "step/loss") -> int:
        status, body, _ = self.ask(
            f"/{self.secret}/data/plugin/scalars/scalars?run={run}&tag={tag}&format=json"
        )
        return len(json.loads(body)) if status == 200 else 0

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send the signal; return TensorBoard's exit code, standard output and standard error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def leftovers(self) -> list[Path]:
        return [*self.temporary.iterdir(), *self.cache.rglob("*.txt")]
