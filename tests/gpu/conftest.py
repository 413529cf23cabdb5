"""The rig: an environment with the null GPU, a GPU that computes nothing.

The environment is built once for all tests.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import preloaded
from tests.gpu.null_gpu.make import DRIVER, SOURCES, TOOLKIT, make

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Rig:
    """Runs commands in the environment with the null GPU."""

    environment: Path
    folder: Path  # the folder of a test

    def run(
        self, args: Sequence[str | Path], gpus: int = 1, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run the rig's Python in the test's folder, for example with `-m harness train …`.

        LD_LIBRARY_PATH contains only the folder of the stub driver.
        """
        return subprocess.run(
            [self.environment / "bin/python", *args],
            cwd=self.folder,
            env={**self.variables(gpus), **env},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )

    def train(
        self, job: str, *args: str, gpus: int = 1, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Train a job on 200 reviews for an epoch, in the folder `runs/<job>/rig`.

        The command runs in a fork, or in a new process if `env` sets LD_LIBRARY_PATH.
        """
        words = ["train", f"{PROJECT}/jobs/{job}.toml", "--run-id", "rig"]
        words += ["--set", "data.limit=200", "--set", "train.epochs=1", *args]
        if "LD_LIBRARY_PATH" in env:
            return self.run(["-m", "harness", *words], gpus, env)
        variables, server = {**self.variables(gpus), **env}, server_of(self.environment)
        return preloaded.run(words, self.folder, variables, "", TIMEOUT_S, server)

    def variables(self, gpus: int) -> dict[str, str]:
        """Return a command's environment variables; they turn off the check of the results."""
        return {
            "HOME": str(self.folder / "home"),
            "PATH": f"{self.environment / 'bin'}:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(self.environment / DRIVER),
            "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={self.environment / TOOLKIT}",
            "PYTHONPATH": str(PROJECT),  # the environment may have another checkout's harness
            "STUB_GPUS": str(gpus),
            "STUB_COUNTS": str(self.folder / "counts"),
            "HARNESS_CHECK_DEVICES": "0",
        }

    def counts(self) -> Counter[str]:
        """Return how often all ended processes of the test called each stub function."""
        counts = Counter[str]()
        for line in (self.folder / "counts").read_text().splitlines():
            _, _, function, count = line.split()
            counts[function] += int(count)
        return counts


PROJECT = Path(__file__).resolve().parents[2]


def server_of(environment: Path) -> preloaded.Server:
    """Return the server of the rig: it imports TensorFlow, but does not list devices."""
    folder = Path(os.environ[preloaded.SHARED], "rig")
    folder.mkdir(exist_ok=True)
    variables = {**preloaded.VARIABLES, "TF_CPP_MIN_LOG_LEVEL": "1"}
    return preloaded.Server(folder, environment / "bin/python", variables)


@pytest.fixture(scope="session")
def null_environment() -> Path:
    """Return a copy of this environment with the null GPU; build the copy if needed."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc: apt-get install gcc libc6-dev")
    environment = Path(sys.prefix)
    target = environment.with_name(f"{environment.name}-gpu")
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.is_file())
    lock = environment / "harness-lock.sha256"
    made_of = lock.read_bytes() if lock.exists() else b""
    stamp = hashlib.sha256(sources + made_of).hexdigest()
    with environment.with_name(f"{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another pytest worker may build it now
        path = target / "null-gpu.sha256"
        if not path.exists() or path.read_text() != stamp:
            make(target)
            path.write_text(stamp)
    return target


@pytest.fixture
def rig(null_environment: Path, tmp_path: Path) -> Rig:
    """Return the rig with the folder of this test."""
    (tmp_path / "home").mkdir()
    return Rig(null_environment, tmp_path)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of standard error, such as an error message."""
    return done.stderr.splitlines()[-1] if done.stderr else os.linesep
