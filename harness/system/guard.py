"""A parent process, the guard, explains why the process that computes on GPUs has died.

CUDA reports some errors late. After such an error TensorFlow aborts its process, and no `except`
prevents the abort. Therefore TensorFlow runs in a child of the guard. The guard never imports
TensorFlow, passes signals on to the child, and reads the child's standard error.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from harness.system import stderr_filter
from harness.system.processes import SHOW_CURSOR, STOPPING, end_at_once

# Signals that kill a process after a fault in this code or in a library.
FAULTS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def stand_guard(on_death: Callable[[signal.Signals, str, int], None]) -> None:
    """Fork this process, and return only in the child.

    The parent waits for the child, and ends with the same exit code or signal as the child. Call
    this function before this process imports TensorFlow or uses CUDA: a process that has done
    either can't be forked safely.

    Args:
        on_death: a function that the parent calls if a signal in `FAULTS` kills the child. The
            arguments of `on_death` are the signal, the child's messages and the child's process id.
            After `on_death` has returned, the parent kills itself with the signal that killed the
            child.

    Raises:
        SystemExit: in the parent, with the child's exit code.
    """
    messages = os.memfd_create("messages")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    guard = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if not child:
        _die_with(guard)
        stderr_filter.capture(messages)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    numbers = _signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = _wait(child, numbers)
    if os.WIFEXITED(status):
        raise SystemExit(os.WEXITSTATUS(status))
    number = signal.Signals(os.WTERMSIG(status))
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR)  # the child's progress bar may have hidden the cursor
    if number in FAULTS:
        text = os.pread(messages, os.fstat(messages).st_size, 0).decode(errors="replace")
        on_death(number, text, child)
    _die_of(number)


def _die_with(guard: int) -> None:
    """Make the kernel kill this process if the guard, its parent, is killed."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != guard:  # the guard died before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def _signals() -> int:
    """Return a file descriptor that receives the numbers of incoming signals from now on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (*STOPPING, signal.SIGCHLD):
        signal.signal(number, _leave)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _leave(number: int, frame: FrameType | None) -> None:
    """Do nothing, because this handler only has to exist.

    Python writes a signal's number to the wakeup pipe only if the signal has a Python handler.
    """


def _wait(child: int, numbers: int) -> int:
    """Pass signals on to the child until it ends; return its exit status."""
    pressed = 0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        for number in os.read(numbers, 64):
            if number == signal.SIGINT and not _is_foreground():
                pressed += 1
                if pressed > 1:
                    end_at_once()
                # scancel may have sent SIGINT to the child too. A second SIGINT would end the child
                # without a checkpoint, so send SIGTERM.
                os.kill(child, signal.SIGTERM)
            elif number in STOPPING and number != signal.SIGINT:
                os.kill(child, number)


def _is_foreground() -> bool:
    """Whether Ctrl-C in a terminal reaches both this process and the child."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _die_of(number: signal.Signals) -> NoReturn:
    """Kill this process with the signal that killed the child, so the caller sees the signal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump of the guard would be useless
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # reached only if the signal is blocked
