"""Fixtures and helpers that run harness commands on the packaged sample, with small jobs."""

import contextlib
import fcntl
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest

from harness.cli.main import main
from tests import guard, preloaded
from tests.gpu.runs import results as results
from tests.preloaded import SHARED
from tests.slurm.cluster import REMEDY, is_installed

# Child processes inherit these handlers; a shell or nohup may have ignored the signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Without HARNESS_TEST_GPU the tests run on the CPU, so that all machines give the same results.
# Tests with the mark `gpu` show the GPUs to their commands.
OUTER_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
if not os.environ.get("HARNESS_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Read here, because TensorFlow changes some of these variables when a test imports it.
READ_AT_START = preloaded.read_at_start(os.environ)

PROJECT = Path(__file__).resolve().parent.parent
JOBS = PROJECT / "jobs"

# The test files that take longest, the longest first.
LONGEST = (
    *("test_sweep.py", "test_cluster_trouble.py", "test_exactness.py", "test_cluster_jobs.py"),
    *("test_audit.py", "test_train_step.py", "test_trainer.py", "test_gpu_step.py"),
    *("test_gpu_faults.py", "test_simulation.py", "test_cluster_elsewhere.py"),
    *("test_two_workers.py", "test_recipes.py", "test_cluster_sweep.py", "test_own_network.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Start the guard in the main process, so that it also guards xdist's workers."""
    if not hasattr(config, "workerinput"):
        if "mutmut" not in sys.modules:  # no guard, because mutmut starts pytest repeatedly
            guard.enter()
        os.environ[SHARED] = tempfile.mkdtemp(prefix="harness-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder that all tests share."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests with the garbage collector off: TensorFlow creates a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a cluster, skip them without Slurm, and run the longest files first.

    A long file that starts last would leave the other workers idle.
    """
    for item in items:
        if {"cluster", "elsewhere"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")
        if item.get_closest_marker("cluster") and not is_installed():
            item.add_marker(pytest.mark.skip(reason=REMEDY))
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


class Hang(BaseException):
    """A command takes too long. No command catches this error, as it might catch an Exception."""


HANGS_S = 60  # time limit of a command in this process, in seconds


class Harness:
    """Starts `harness` commands without access to the user's data or the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.cache = folder.with_name(f"{folder.name}-cache")
        # Tests that import TensorFlow in this process set CUBLAS_WORKSPACE_CONFIG.
        hidden = ("HARNESS_", "SLURM_", "KERAS_HOME", "CUBLAS_WORKSPACE_CONFIG")
        at_start = preloaded.read_at_start(os.environ)
        others = {
            k: v for k, v in os.environ.items() if not (k in at_start or k.startswith(hidden))
        }
        self.environment = {
            **others,
            **READ_AT_START,
            **preloaded.sharing_steps(),
            "HARNESS_OFFLINE": "1",
            "HARNESS_HERE": "1",  # avoids a warning on machines with Slurm
            "HARNESS_RUNS": str(self.runs),
            "KERAS_HOME": str(folder / "keras"),
            "XDG_CACHE_HOME": str(self.cache),
            "PYTHONPATH": str(PROJECT),
        }
        self.usual_start = preloaded.read_at_start(self.environment)

    def program(self, name: str, script: str) -> None:
        """Write a program and put it first on the PATH of the commands."""
        path = write_program(self.folder / "bin" / name, script)
        self.environment["PATH"] = f"{path.parent}:{os.environ['PATH']}"

    def hide_slurm(self) -> None:
        """Leave only git on the PATH of the commands."""
        program = self.folder / "only-git/git"
        program.parent.mkdir(parents=True)
        program.symlink_to(str(shutil.which("git")))
        self.environment["PATH"] = str(program.parent)

    def show_gpus(self) -> None:
        """Let the commands use this machine's GPUs."""
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)
        if OUTER_GPUS is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = OUTER_GPUS

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "harness", *map(str, words)]

    def start(self, *words: object, is_forked: bool = True) -> preloaded.Process:
        """Start a command in a fork, or in a new process if the server's imports do not fit."""
        if is_forked and preloaded.fits(self.environment, self.usual_start):
            return preloaded.Command(words, self.folder, self.environment)
        return subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *words: object, stdin: str = "", timeout_s: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        if preloaded.fits(self.environment, self.usual_start):
            return preloaded.run(words, self.folder, self.environment, stdin, timeout_s)
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run_here(self, *words: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command in this process. Any import of TensorFlow fails."""
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.chdir(self.folder),
            without("tensorflow"),
        ):
            return run_here(*map(str, words), stdin=stdin)

    def refuse(self, *words: object) -> str:
        """Run a command in this process, assert that one line refuses it, and return the line."""
        done = self.run_here(*words)
        assert (done.returncode, done.stdout) == (2, ""), (words, done.stderr)
        assert done.stderr.count("\n") == 1, (words, done.stderr)
        return done.stderr

    def train(self, job: str, run_id: str, *words: object) -> "subprocess.CompletedProcess[str]":
        return self.run(*self.train_words(job, run_id, *words))

    def succeed(self, *words: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command that must end with exit code 0."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def trained(self, job: str, run_id: str, *words: object) -> Path:
        """Train a run to its end, and return its folder."""
        self.succeed(*self.train_words(job, run_id, *words))
        return self.runs / Path(job).name / run_id

    def train_words(self, job: str, run_id: str, *words: object) -> list[object]:
        return ["train", JOBS / f"{job}.toml", "--run-id", run_id, *SHRUNK, *words]


def run_here(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command in this process. An exception in the command fails the test.

    Raises:
        Hang: if the command takes longer than HANGS_S.
    """

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang

    args = ["harness", *words]
    out, err, text = io.StringIO(), io.StringIO(), io.TextIOWrapper(io.BytesIO(stdin.encode()))
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, hang)
    os.umask(umask := os.umask(0o022))
    signal.alarm(HANGS_S)
    try:
        with (
            mock.patch.multiple(sys, argv=args, stdin=text),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main()
    finally:
        signal.alarm(0)
        os.umask(umask)  # restores the umask, which `tensorboard` changes
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Make imports of a module fail, even if other tests have imported it."""
    before = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before:
            sys.modules[name] = before


def write_program(path: Path, script: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return found


def failing(real: Callable[..., Any], path: object, number: int) -> Callable[..., Any]:
    """Return a function that raises OSError if its first argument is `path`, else calls `real`."""

    def fail(first: object, *others: Any, **options: Any) -> Any:
        if first == path:
            raise OSError(number, os.strerror(number), str(path))
        return real(first, *others, **options)

    return fail


# Settings for small jobs: an epoch has 15 steps; the last step has 2 reviews, the others 32.
SHRUNK = [
    *("--set", "data.limit=500"),
    *("--set", "data.maxlen=30"),
    *("--set", "model.units=8"),
    *("--set", "train.batch_size=32"),
    *("--set", "train.epochs=3"),
    *("--set", "train.ema_momentum=0.9"),
    *("--set", "train.log_every_steps=3"),
    *("--set", "train.checkpoint_every_s=0.2"),
]


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


@pytest.fixture
def default_precision() -> Iterator[None]:
    """Restore Keras's default precision after the test."""
    yield
    import keras

    keras.config.set_dtype_policy("float32")


def shared_run(harness: Harness, job: str, run_id: str, make: Callable[[], object]) -> Path:
    """Return a run or sweep that is made once for all workers of xdist; later calls get a copy."""
    run = harness.runs / job / run_id
    shared = Path(os.environ[SHARED], f"{job}-{run_id}")
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shared.exists():
            shutil.copytree(shared, run)
        else:
            make()
            shutil.copytree(run, shared)
    return run


def calm_run(harness: Harness, job: str) -> Path:
    """Return a finished, undisturbed run named `calm`."""

    return shared_run(harness, job, "calm", lambda: harness.trained(job, "calm"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, Path]:
    """A finished run of the bidirectional LSTM, for tests that only read it."""
    harness = Harness(tmp_path_factory.mktemp("finished"))
    return harness, calm_run(harness, "bilstm")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of each epoch of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
