"""A test run that is ended from outside takes everything along that it started."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT, wait_for

Process = psutil.Process


def is_alive(process: Process) -> bool:
    """Whether the process still runs; a zombie waits for a parent that may never ask."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def args_of(process: Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_all_of_pytest(started: Process) -> None:
    """SIGKILL to everything that is called pytest, and to xdist's workers."""
    below = started.children(recursive=True)
    for process in [started, *below]:
        if "pytest" in args_of(process) or "import sys;exec(eval(" in args_of(process):
            process.kill()


def interrupt_started(started: Process) -> None:
    """SIGINT to the one process that was started."""
    started.send_signal(signal.SIGINT)


def ends_everything(
    folder: Path,
    tests: list[str],
    expected: set[str],
    end: Callable[[Process], None],
    *options: str,
) -> None:
    """Start the tests, wait until every program expected runs, end them, and see nothing left."""
    path = Path(__file__).with_name("leave_processes.py")
    # In pytest's own folder it would first remove what earlier runs have left there.
    options = (*options, f"--basetemp={folder / 'temporary'}")
    args = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    with subprocess.Popen(
        [*args, *(f"{path}::{test}" for test in tests)], cwd=PROJECT, stdout=subprocess.DEVNULL
    ) as started:
        top = Process(started.pid)

        def missing() -> set[str]:
            assert started.poll() is None
            running = "\n".join(args_of(p) for p in top.children(recursive=True))
            return {program for program in expected if program not in running}

        try:
            wait_for(lambda: not missing(), timeout_s=300)
            processes = top.children(recursive=True)
            end(top)
            started.wait(timeout=30)
            _, left = psutil.wait_procs(processes, timeout=15)
            assert [args_of(process) for process in left if is_alive(process)] == []
        finally:
            started.kill()


@pytest.mark.parametrize(("end", "workers"), [(kill_all_of_pytest, 1), (interrupt_started, 0)])
def test_a_daemon_ends_with_its_tests(
    tmp_path: Path, end: Callable[[Process], None], workers: int
) -> None:
    """A daemon that hides from its parent is caught, with and without xdist's workers."""
    ends_everything(tmp_path, ["test_daemon"], {"sleep 600"}, end, f"--numprocesses={workers}")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_and_a_sweep_end_with_their_tests(tmp_path: Path) -> None:
    """Slurm's daemons, a job that trains, a search's command and its workers."""
    expected = {"munged", "slurmctld", "slurmd -D -N n4", "slurmstepd", "harness train"}
    expected |= {"harness tune", "harness.tuning.worker"}
    tests = ["test_cluster", "test_sweep"]
    ends_everything(tmp_path, tests, expected, kill_all_of_pytest, "-n2", "--dist=load")
