"""The guard ends all processes of the tests when pytest is killed or interrupted."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT, wait_for

Process = psutil.Process
DAEMON = Path(__file__).with_name("leave_processes.py")


def args_of(process: Process) -> str:
    try:
        return " ".join(process.cmdline())  # empty if it is a zombie
    except psutil.Error:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_a_daemon_ends_with_its_tests(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    """SIGKILL ends all processes of pytest and xdist; SIGINT reaches only the one that was started.

    The daemon runs in a session of its own.
    """
    args = ["-p", "no:cacheprovider", f"--numprocesses={workers}", f"--basetemp={tmp_path / 't'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *args, str(DAEMON)], cwd=PROJECT, stdout=subprocess.DEVNULL
    ) as started:
        top = Process(started.pid)
        try:
            wait_for(lambda: "sleep 600" in map(args_of, top.children(recursive=True)), 300)
            processes = top.children(recursive=True)
            for process in [top, *processes] if number == signal.SIGKILL else [top]:
                if "pytest" in args_of(process) or "import sys;exec(eval(" in args_of(process):
                    process.send_signal(number)
            started.wait(timeout=30)
            _, left = psutil.wait_procs(processes, timeout=15)
            assert [line for line in map(args_of, left) if line] == []
        finally:
            started.kill()
