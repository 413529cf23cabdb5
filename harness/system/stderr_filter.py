"""Filters TensorFlow's messages, and explains why a process that computes on GPUs has died.

Some of TensorFlow's messages are noise: users can't act on them. This module removes the noise from
the output. The log level does not suppress the noise, because TensorFlow writes some of the noise
before reading the log level, and logs the rest as errors.

If CUDA reports an error late, TensorFlow aborts its process, and no `except` prevents the abort.
Therefore TensorFlow runs in a child process, and the parent process (the guard) explains why the
child died. The parent never imports TensorFlow, and passes signals on to the child. A file in
memory keeps all messages of the child, because a message may be the only sign that a step was
computed wrongly, or the only explanation of why the child died.
"""

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from harness.system import console
from harness.system.gpu import has_driver, hidden_by
from harness.system.processes import SHOW_CURSOR, STOPPING, call_within, end_at_once

# Messages that TensorFlow 2.21 writes at every start without a GPU. The messages matter only if a
# driver exists and its GPUs are not hidden.
NO_DRIVER_NOISE = re.compile(r"cudart_stub|cuda_platform.*cuInit|INTERNAL: CUDA Runtime error")
KNOWN_NOISE = re.compile(
    r"before absl::InitializeLog"
    r"|cpu_feature_guard|To enable the following instructions|oneDNN custom operations"
    r"|computation_placer already registered|Unable to register cu"
    # When TensorFlow loads a compiled step, it first tries to parse the step as text, and it
    # mistakes two compiler hints for processor features that are missing.
    r"|text_format.*XlaSerializedCacheEntry|cpu_aot_loader.*feature \+prefer-no-(scatter|gather)"
)
# Matches the level, date, time, thread id, source file and line number at the beginning of a
# TensorFlow message. A message may span several lines.
BEGIN = re.compile(r"(?P<level>[IWEF])\d{4} \d\d:\d\d:\d+\.\d+ +\d+ [\w./-]+:\d+\] ")

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
SHOW_S = 5.0  # seconds to wait for the output of the last messages if the process hangs
LAST_LINES = 60  # number of lines, enough for a message and a stack trace

# Signals that kill a process after a fault in its code or in a library.
FAULTS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Capture:
    """Reads what was written to file descriptor 2 since the call of `capture`."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._at = 0  # number of bytes read
        self._rest = b""  # the incomplete last line
        # Whether the user wants warnings; `ask_for_messages` makes TensorFlow write them anyway.
        self.shows_warnings = os.environ.get(LEVEL, "") in ("0", "1")

    def read(self) -> list[str]:
        """Return the messages that were written since the last call, each as one line."""
        while part := os.pread(self.file, 1 << 20, self._at):
            self._at += len(part)
            self._rest += part
        whole, newline, self._rest = self._rest.rpartition(b"\n")
        return messages((whole + newline).decode(errors="replace"))

    def show(self, found: Sequence[str]) -> None:
        """Write messages to standard error, except noise: messages that users can't act on.

        Information and warnings are written only if the user set TF_CPP_MIN_LOG_LEVEL to 0 or 1.
        """
        for line in found:
            begin = BEGIN.match(line)
            is_hidden = begin is not None and begin["level"] in "IW" and not self.shows_warnings
            if not is_hidden:
                _write(line)


captured: Capture | None = None


def capture(file: int) -> None:
    """Redirect file descriptor 2 to a file.

    `sys.stderr` still writes to the earlier target of descriptor 2, the terminal or the log.
    """
    global captured
    console.settle_output()
    console.error_descriptor = os.dup(2)
    sys.stderr = os.fdopen(  # line-buffered, as before
        console.error_descriptor, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    captured = Capture(file)
    os.dup2(file, 2)


def ask_for_messages() -> None:
    """Set TensorFlow's log level; call this function before TensorFlow is imported.

    By default, TensorFlow logs only errors. If `capture` was called before, TensorFlow logs errors
    and warnings.
    """
    if captured:
        os.environ[LEVEL] = min(os.environ.get(LEVEL, "1"), "1")
    else:
        os.environ.setdefault(LEVEL, "2")


def messages(text: str) -> list[str]:
    """Split TensorFlow's output into messages, and join the lines of each message."""
    found: list[str] = []
    for line in text.splitlines():
        if BEGIN.match(line) or not (found and BEGIN.match(found[-1])):
            found.append(line)
        else:
            found[-1] += f" {line.strip()}"
    return found


def show_rest() -> None:
    """Write the captured messages that were not read yet."""
    if captured:
        captured.show(captured.read())


def show_rest_soon() -> None:
    """Call `show_rest` for a process that is about to end, and wait at most SHOW_S seconds.

    The messages are written in another thread, because the main thread may hold a lock.
    """
    call_within(SHOW_S, show_rest)


def show_last(text: str) -> None:
    """Write the last lines of a process's output."""
    for line in text.splitlines()[-LAST_LINES:]:
        _write(line)


@contextlib.contextmanager
def filtered_stderr() -> Iterator[list[str]]:
    """Hold back what a `with` block writes to file descriptor 2.

    At the end of the block, write the output except noise (messages that users can't act on).

    Yields:
        A list, which is empty until the block ends. It then contains all lines of the output,
        including noise.
    """
    lines: list[str] = []
    if captured:
        show_rest()
        try:
            yield lines
        finally:
            lines += captured.read()
            captured.show(lines)
        return
    file = os.memfd_create("messages")  # in memory, because a disk may be full
    sys.stderr.flush()
    original = console.error_descriptor = os.dup(2)
    os.dup2(file, 2)
    try:
        yield lines
    finally:
        console.error_descriptor = 2
        os.dup2(original, 2)
        os.close(original)
        lines += os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace").splitlines()
        os.close(file)
        for line in lines:
            _write(line)


def _write(line: str) -> None:
    is_noise = KNOWN_NOISE.search(line) or (
        NO_DRIVER_NOISE.search(line) and (hidden_by() or not has_driver())
    )
    if line.strip() and not is_noise:
        with contextlib.suppress(OSError):  # the run continues if the log's disk is full
            console.echo(line, err=True)


# The guard


def stand_guard(on_death: Callable[[signal.Signals, str, int], None]) -> None:
    """Fork this process, and return only in the child.

    The parent waits for the child, and ends with the same exit code or signal as the child. Call
    this function before this process imports TensorFlow or uses CUDA, because afterwards the
    process can't be forked safely.

    Args:
        on_death: a function that the parent calls if a signal in `FAULTS` kills the child. The
            arguments of `on_death` are the signal, the child's messages and the child's process id.
            After `on_death` has returned, the parent kills itself with the signal that killed the
            child.

    Raises:
        SystemExit: in the parent, with the child's exit code.
    """
    file = os.memfd_create("messages")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    guard = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if not child:
        _die_with(guard)
        capture(file)
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
        text = os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
        on_death(number, text, child)
    _die_of(number)


def _die_with(guard: int) -> None:
    """Make the kernel kill this process if the guard, which is this process's parent, is killed."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != guard:  # the guard died before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def _signals() -> int:
    """Return a file descriptor that receives the numbers of incoming signals from now on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (*STOPPING, signal.SIGCHLD):
        # Python writes a signal's number to the pipe only if the signal has a Python handler.
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


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
    """Kill this process with the signal that killed the child, so that a shell or srun sees it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump of the guard would be useless
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # reached only if the signal is blocked
