"""After a time limit, the watchdog prints one line and ends a process that hangs."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from signal import SIGCONT, SIGINT, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2

import pytest

from harness.errors import DiskError, InputError, Interrupted, RunError, TakenOver
from harness.system import stderr_filter, watchdog
from harness.system.watchdog import Watchdog, Watched

End = tuple[str, int]


def watch(
    record: Callable[[Interrupted], object] | None = None, stall_s: float = 600, stop_s: float = 60
) -> tuple[Watchdog, list[End]]:
    """Return a watchdog that has no thread, and a list of the lines and exit codes of its ends."""
    ends: list[End] = []
    dog = Watchdog(stall_s, stop_s, lambda line, code: ends.append((line, code)))
    dog.watched = Watched("gpu:0 of n7", "continue with: harness resume r", record)
    dog.count(0)
    return dog, ends


def test_a_process_without_progress_ends() -> None:
    """The limit counts from the last result. The line names the device and the next command.

    Steps run asynchronously, so the loop is first asked to wait for a result.
    """
    dog, ends = watch()
    dog.count(59)
    assert not dog.asks
    dog.count(1)
    assert dog.asks
    dog.count(539)
    dog.progress()
    assert not dog.asks
    dog.count(30)
    dog.count(570)
    assert ends == []
    dog.count(30)
    assert ends == [
        (
            "gpu:0 of n7: no step, batch or compilation has ended for 10 min (HARNESS_STALL_MIN); "
            "the process ends; continue with: harness resume r",
            75,
        )
    ]


def test_time_counts_only_while_watching() -> None:
    """Time spent waiting for a trial or in a user's code does not count; 0 means no limit."""
    dog, ends = watch()
    with dog.pausing():
        dog.count(9e9)
    dog.count(1)
    dog.count(598)
    assert ends == []
    dog, ends = watch(stall_s=0, stop_s=0)
    dog.note(SIGTERM)
    dog.count(9e9)
    assert (ends, dog.asks) == ([], False)


@pytest.mark.parametrize(
    ("setting", "on_nodes", "first_use", "limits"),
    [
        ("", False, 1.0, (600, 600)),
        ("", False, 6.0, (3600, 600)),  # the first step may compile kernels
        ("", True, 1.0, (600, 90)),  # if one node hangs, all nodes wait
        ("30", True, 1.0, (1800, 1800)),
    ],
)
def test_the_limit_depends_on_the_work(
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    on_nodes: bool,
    first_use: float,
    limits: tuple[int, int],
) -> None:
    """The end of the first step may lower the limit. The site's setting has priority."""
    monkeypatch.setenv("HARNESS_STALL_MIN", setting)
    dog = watchdog.from_settings(on_nodes=on_nodes)
    dog.first_use, dog.watched = first_use, Watched("here", "go on")
    before = dog.limit_s
    dog.first_step_done()
    assert (before, dog.limit_s) == limits


@pytest.mark.parametrize(
    ("numbers", "name"), [([SIGUSR1], "SIGUSR1"), ([SIGINT, SIGTERM, SIGUSR2], "SIGTERM")]
)
def test_a_signal_ends_the_process_at_its_limit(numbers: list[int], name: str) -> None:
    """Progress does not reset the time since the first signal. TERM (a cancel) has priority."""
    reasons: list[Interrupted] = []
    dog, ends = watch(reasons.append)
    for number in numbers:
        dog.note(number)
        dog.count(19)
        dog.progress()
    dog.count(45)
    assert list(map(str, reasons)) == [name]
    ((line, code),) = ends
    assert line.startswith(f"interrupted by {name}; gpu:0 of n7 did not answer for 60 s, so only")
    assert code == 75


@pytest.mark.parametrize(("error", "code"), [(TakenOver("by n9"), 1), (DiskError("full"), 75)])
def test_a_run_that_another_process_took_over_is_not_requeued(error: RunError, code: int) -> None:
    """Code 75 would requeue the job, whose next start would take the run back."""

    def refuse(reason: Interrupted) -> None:
        raise error

    dog, ends = watch(refuse)
    dog.count(600)
    ((line, ended),) = ends
    assert (ended, "by n9" in line) == (code, code == 1)


@pytest.mark.parametrize("is_stuck", [False, True])
def test_the_last_messages_are_shown(
    is_stuck: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorFlow's last messages come before the end, unless the main thread holds a lock."""
    file = os.memfd_create("messages")
    os.write(file, b"E0000 00:00:1.5 7 gpu.cc:9] the GPU has fallen off the bus\n")
    monkeypatch.setattr(stderr_filter, "captured", stderr_filter.Capture(file))
    lock = threading.Lock()
    if is_stuck:
        lock.acquire()
        monkeypatch.setattr(stderr_filter, "SHOW_S", 0.1)
        monkeypatch.setattr("harness.system.console.echo", lambda *_, **__: lock.acquire())
    dog, ends = watch()
    dog.count(600)
    os.close(file)
    if is_stuck:
        lock.release()
    assert len(ends) == 1
    assert ("fallen off the bus" in capsys.readouterr().err) is not is_stuck


BLOCKED = """
import ctypes, os, sys
from harness.system import watchdog
from harness.system.processes import StopRequest
from harness.system.stderr_filter import filtered_stderr

stop = StopRequest()
stop.listen()
with watchdog.from_settings() as dog, dog.watching(watchdog.Watched("here", "go on")):
    with filtered_stderr():
        lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex)
        print("waits", flush=True)
        lock(mutex)  # waits for ever in C
"""


@pytest.fixture
def blocked() -> Iterator["subprocess.Popen[str]"]:
    """A process whose main thread waits in C code, as for a device."""
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED],
        env=os.environ | {"HARNESS_STALL_MIN": "0.1", "HARNESS_STOP_S": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("signals", "line", "least_s", "most_s"),
    [
        ([0, SIGSTOP, SIGCONT], "here: no step, batch or compilation has ended for 0.1", 9, 16),
        ([SIGTERM], "interrupted by SIGTERM; here did not answer for 1 s, so only", 0, 6),
        ([SIGINT, SIGINT], "interrupted by Ctrl-C and ended at once; saved files are kept", 0, 3),
    ],
    ids=["a suspension", "a signal", "Ctrl-C twice"],
)
def test_a_main_thread_that_waits_in_c_ends(
    blocked: "subprocess.Popen[str]", signals: list[int], line: str, least_s: float, most_s: float
) -> None:
    """The process writes one line to the real standard error, and its exit code is 75.

    The time of a suspension by SIGSTOP, here longer than the limit of 6 s, does not count.
    """
    began = time.monotonic()
    for number in signals:
        blocked.send_signal(number)
        time.sleep({0: 1.3, SIGSTOP: 6.5}.get(number, 0.2))  # a tick takes 1 s
    _, warned = blocked.communicate(timeout=30)
    assert (blocked.returncode, len(warned.splitlines())) == (75, 1)
    assert warned.startswith(f"harness: {line}")
    assert least_s < time.monotonic() - began < most_s


@pytest.mark.parametrize("value", ["-1", "ten", "nan", "1e99"])
def test_a_limit_that_is_no_number_in_the_range_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty value means the default, and 0 means no limit."""
    monkeypatch.setenv("HARNESS_STALL_MIN", value)
    with pytest.raises(InputError, match=rf"HARNESS_STALL_MIN={value}: should be a number of min"):
        watchdog.from_settings()
    monkeypatch.setenv("HARNESS_STALL_MIN", "")
    monkeypatch.setenv("HARNESS_STOP_S", "0")
    assert watchdog.from_settings().stop_s == 0
