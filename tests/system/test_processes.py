"""Signals that stop a run, and checks whether a process is alive."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT

import psutil
import pytest

from harness.system.processes import (
    has_died,
    is_alive,
    process_space,
)
from tests.conftest import Harness, wait_for
from tests.preloaded import Process


def test_a_process_is_known_by_its_id_its_start_and_its_space() -> None:
    """A process that is younger than the heartbeat is not the run; a zombie is dead.

    A process of another machine or container may be alive.
    """
    here = process_space()
    of_other = here.replace(f" {os.getuid()}", " 4711")
    with subprocess.Popen(["sleep", "600"]) as process:
        assert is_alive(process.pid, time.time())
        assert not is_alive(process.pid, time.time() - 60)
        assert not has_died(process.pid, here)
        process.kill()
        wait_for(lambda: has_died(process.pid, here))
    assert has_died(process.pid, here)
    assert not any(has_died(process.pid, space) for space in ("", "elsewhere", of_other))
    assert not any(has_died(number, here) for number in (0, -1))
    assert not any(is_alive(n, time.time()) for n in (process.pid, 0, -1, 2**22 + 1, 2**70))


AT_ONCE = "harness: interrupted by Ctrl-C and ended at once; saved files are kept\n"

WAITING = """
import subprocess, time
from harness.system.processes import StopRequest
from harness.system.stderr_filter import filtered_stderr

stop = StopRequest()
stop.listen()
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
with filtered_stderr():
    while not stop.signal:
        time.sleep(0.01)
    print("first", flush=True)
    try:
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)
"""


def test_the_second_ctrl_c_ends_everything_at_once() -> None:
    """One line reaches standard error past the filter, children die, and no `finally` runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    process.send_signal(SIGINT)
    assert process.stdout.readline() == "first\n"
    process.send_signal(SIGINT)
    said, warned = process.communicate(timeout=10)
    assert (process.returncode, said, warned) == (75, "", AT_ONCE)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)


IN_AN_IMPORT = """
import os, sys
from signal import SIGINT
from harness.system import watchdog
from harness.system.processes import ctrl_c_waits

with watchdog.from_settings(), ctrl_c_waits():
    for _ in range(int(sys.argv[1])):
        os.kill(os.getpid(), SIGINT)
    print("imported")
print("went on")
"""


@pytest.mark.parametrize(
    ("times", "code", "said", "warned"),
    [(0, 0, "imported\nwent on\n", ""), (1, -SIGINT, "imported\n", None), (2, 75, "", AT_ONCE)],
)
def test_an_import_keeps_ctrl_c(times: int, code: int, said: str, warned: str | None) -> None:
    """The first Ctrl-C takes effect after the import. A second Ctrl-C takes effect immediately."""
    command = [sys.executable, "-c", IN_AN_IMPORT, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, said)
    assert warned in (None, done.stderr)


def press_until_it_ends(process: Process) -> str:
    """Send one SIGINT after another; return what the process wrote to standard error."""
    family = psutil.Process(process.pid).children(recursive=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(SIGINT)
        time.sleep(0.05)
    _, warned = process.communicate(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    return warned


def has_loaded(process: Process, library: str) -> Callable[[], bool]:
    return lambda: library in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize("library", ["_pydantic_core", "libtensorflow"])
def test_ctrl_c_during_an_import_is_one_line(harness: Harness, library: str) -> None:
    """The exit code is 75, whether the command line or TensorFlow is being imported."""
    process = harness.start(*harness.train_words("lstm", "stopped"), is_forked=False)
    wait_for(has_loaded(process, library))
    warned = press_until_it_ends(process)
    assert process.returncode == 75
    assert warned in (AT_ONCE, "harness: interrupted before anything began\n")


@pytest.mark.slow
def test_ctrl_c_ends_runs_side_by_side(harness: Harness) -> None:
    """The runs end with the process that started them."""
    words = harness.train_words("lstm", "stopped", "--set", "train.epochs=200")
    process = harness.start(*words, "--seeds", "1-2", "--workers", "2")
    wait_for(lambda: len(list(harness.runs.glob("lstm/*/state.json"))) == 2, 120)
    warned = press_until_it_ends(process)
    assert (process.returncode, warned) == (75, AT_ONCE)
