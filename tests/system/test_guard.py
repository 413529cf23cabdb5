"""The guard ends as its child does, passes signals on, and explains the death of the child."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from signal import SIGINT, SIGKILL, SIGSEGV, SIGTERM, SIGUSR2

import psutil
import pytest

from tests.conftest import wait_for

GUARDED = """
import os, signal, sys, time
from harness.system import stderr_filter
from harness.system.stderr_filter import stand_guard

def on_death(number, text, process):
    print(f"{number.name} of the child: {process != os.getpid()}", file=sys.stderr)
    if "ECC" in text:
        raise SystemExit(f"explained: {stderr_filter.messages(text)[-1]}")

def note(number, frame):
    print(f"child got {signal.Signals(number).name}", file=sys.stderr)
    if number == signal.SIGTERM:
        sys.exit(75)

def wait():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, note)
    print(os.getpid(), flush=True)
    while True:
        time.sleep(0.01)

def say(text):
    os.write(2, text.encode())

stand_guard(on_death)
"""
ECC = r'say("F0000 00:00:1.1 7 a.cc:1] ECC\n*** Check failure\n    @ 0x7\n")'


def run(code: str) -> "subprocess.CompletedProcess[str]":
    args = [sys.executable, "-c", GUARDED + code]
    return subprocess.run(args, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("code", "status", "warned"),
    [
        ('say("unread"); print("a line", file=sys.stderr); sys.exit(75)', 75, "a line\n"),
        ("os.kill(os.getpid(), 9)", -SIGKILL, ""),
        ("os.kill(os.getpid(), 11)", -SIGSEGV, "SIGSEGV of the child: True\n"),
        (
            f"{ECC}; os.abort()",
            1,
            "SIGABRT of the child: True\n"
            "explained: F0000 00:00:1.1 7 a.cc:1] ECC *** Check failure @ 0x7\n",
        ),
    ],
)
def test_it_ends_as_its_child_does(code: str, status: int, warned: str) -> None:
    """The guard ends with the child's exit code or signal, unless messages explain the death."""
    done = run(code)
    assert (done.returncode, done.stderr) == (status, warned)


def test_messages_are_read_by_the_child_and_noise_is_not_shown() -> None:
    """A message includes its continuation lines; warnings of TensorFlow are not shown."""
    lines = [
        "E0000 00:00:1.1 7 dnn.cc:9] CUDNN_STATUS_X",
        "in cuda_dnn.cc",
        "W0000 00:00:1.1 7 op.cc:8] slow",
        "and why",
        "E0000 00:00:1.1 7 a.cc:1] Unable to register cuDNN factory",
        "stub line",
    ]
    code = f"say({chr(10).join([*lines, 'half'])!r}); print(stderr_filter.captured.read())"
    assert eval(run(code).stdout) == [  # noqa: S307 - a list of our own
        "E0000 00:00:1.1 7 dnn.cc:9] CUDNN_STATUS_X in cuda_dnn.cc",
        "W0000 00:00:1.1 7 op.cc:8] slow and why",
        "E0000 00:00:1.1 7 a.cc:1] Unable to register cuDNN factory stub line",
    ]
    shown = run(f"say({chr(10).join([*lines, ''])!r}); stderr_filter.show_rest()").stderr
    assert shown == "E0000 00:00:1.1 7 dnn.cc:9] CUDNN_STATUS_X in cuda_dnn.cc\n"


Guarded = tuple["subprocess.Popen[str]", psutil.Process]


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """A guard and its child, which waits for signals."""
    with subprocess.Popen(
        [sys.executable, "-c", f"{GUARDED}wait()"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        yield process, psutil.Process(int(process.stdout.readline()))
        process.kill()


@pytest.mark.parametrize(
    ("signals", "warned"),
    [
        ([SIGUSR2, SIGTERM], "child got SIGUSR2\nchild got SIGTERM\n"),
        ([SIGINT], "child got SIGTERM\n"),
    ],
)
def test_signals_are_passed_on(guarded: Guarded, signals: list[int], warned: str) -> None:
    """The child handles the signals. Without a terminal, the guard passes INT on as TERM."""
    process, _ = guarded
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (75, warned)


def test_the_child_dies_with_its_guard(guarded: Guarded) -> None:
    """If users kill the process that they started, the training process ends, too."""
    process, child = guarded
    process.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)


def test_ctrl_c_of_a_terminal_reaches_the_child_once() -> None:
    """The terminal sends SIGINT to both processes, so the guard does not pass it on."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", f"{GUARDED}wait()"])  # noqa: S606
    said = b""
    try:
        while b"\n" not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, b"\x03")
        time.sleep(0.5)
        os.kill(pid, SIGTERM)
        _, status = os.waitpid(pid, 0)
        said += os.read(terminal, 1000)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 75
    assert said.count(b"child got SIGINT") == 1
    assert said.count(b"child got SIGTERM") == 1
