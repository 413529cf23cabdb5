"""Runs child processes that may import TensorFlow and crash; measures their time and memory."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.errors import RunError
from harness.system.console import strip_prefix
from harness.system.processes import own_code_first

NO_LIMIT_S = threading.TIMEOUT_MAX


@dataclass(frozen=True)
class Ended:
    """A child process that has ended."""

    code: int  # exit code, negative if a signal ended the process
    cpu_s: float  # CPU time of the process and of its children that have ended
    peak_memory_gb: float  # peak memory of the process, without its children
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last line on standard error, or else on standard output; empty if there is none."""
        lines = [*self.output.splitlines(), *self.errors.splitlines()]
        return strip_prefix(next((line for line in reversed(lines) if line.strip()), ""))

    def __str__(self) -> str:
        how = f"ended with code {self.code}"
        if self.code < 0:
            how = f"died of {signal.Signals(-self.code).name}"
        return f"{how} ({self.last_line[:300] or 'it printed nothing'})"


def run_module(
    module: str, *args: str | Path, timeout_s: float = NO_LIMIT_S, **variables: str
) -> Ended:
    """Run a Python module of this project and wait until it ends; see `run_process`."""
    return run_process([*module_args(module), *args], timeout_s=timeout_s, **variables)


def module_args(module: str) -> list[str | Path]:
    """Return the command that runs a Python module of this project."""
    # -P, because the current folder may contain another package named harness.
    return [sys.executable, "-P", "-m", module]


def run_process(
    args: Sequence[str | Path], *, timeout_s: float = NO_LIMIT_S, **variables: str
) -> Ended:
    """Run a command and wait until it ends.

    Args:
        variables: environment variables, in addition to those of this process.

    Raises:
        RunError: if the command takes longer than `timeout_s`; the caller adds a subject.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = start(args, variables, stdout=output, stderr=errors)
        timer = threading.Timer(timeout_s, child.kill)
        timer.start()
        try:
            # `Popen.wait` does not report how much time and memory the child used.
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            timer.cancel()
        wall_s = time.perf_counter() - began
        memory_gb = usage.ru_maxrss * 1024 / 1e9
        cpu_s = usage.ru_utime + usage.ru_stime
        ended = Ended(child.returncode, cpu_s, memory_gb, _text(output), _text(errors))
    if wall_s >= timeout_s:
        raise RunError(f"took over {timeout_s:.0f} s and was killed")
    return ended


def start(
    args: Sequence[str | Path],
    variables: Mapping[str, str] = {},
    *,
    stdout: BinaryIO | int = subprocess.DEVNULL,
    stderr: BinaryIO | int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start a command with empty standard input; `variables` are added to the environment."""
    return subprocess.Popen(
        list(map(str, args)),
        # Offline, because a download would distort the measured times.
        env={**own_code_first(), "HARNESS_OFFLINE": "1", **variables},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
