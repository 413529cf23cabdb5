"""Removes TensorFlow's messages that no user can act on and that its log level does not hide.

TensorFlow writes some of these messages before it reads the log level, and logs others as errors.
In a process that computes on GPUs, `capture` keeps all messages in a file in memory, because a
message may be the only sign that a step was computed wrongly, or the only explanation of why the
process died.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence

from harness.system.console import echo
from harness.system.gpu import has_driver, hidden_by

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
LAST_LINES = 60  # number of lines, enough for a message and a stack trace

descriptor = 2  # the real standard error; differs from 2 while file descriptor 2 is redirected


class Capture:
    """Reads what was written to file descriptor 2 since the call of `capture`."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._at = 0  # number of bytes read
        self._rest = b""  # the last line while it is incomplete
        # `ask_for_messages` makes TensorFlow write warnings; show them only if the user wants them.
        self.shows_warnings = os.environ.get(LEVEL, "") in ("0", "1")

    def read(self) -> list[str]:
        """Return the messages that were written since the last call, each as one line."""
        while part := os.pread(self.file, 1 << 20, self._at):
            self._at += len(part)
            self._rest += part
        whole, newline, self._rest = self._rest.rpartition(b"\n")
        return messages((whole + newline).decode(errors="replace"))

    def show(self, found: Sequence[str]) -> None:
        """Write messages to standard error, but leave out those that no user can act on.

        Warnings are left out too, unless the user set TF_CPP_MIN_LOG_LEVEL to 0 or 1.
        """
        for line in found:
            begin = BEGIN.match(line)
            is_hidden = begin is not None and begin["level"] in "IW" and not self.shows_warnings
            if not is_hidden:
                _write(line)


captured: Capture | None = None


def capture(file: int) -> None:
    """Redirect file descriptor 2 to a file. `sys.stderr` still writes to the old target."""
    global captured, descriptor
    sys.stderr.flush()
    descriptor = os.dup(2)
    sys.stderr = os.fdopen(  # line-buffered, as before
        descriptor, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    captured = Capture(file)
    os.dup2(file, 2)


def ask_for_messages() -> None:
    """Set TensorFlow's log level; call this function before TensorFlow is imported.

    By default TensorFlow then logs only errors; in a process that called `capture`, also warnings.
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


def show_last(text: str) -> None:
    """Write the last lines of a process's output."""
    for line in text.splitlines()[-LAST_LINES:]:
        _write(line)


@contextlib.contextmanager
def filtered_stderr() -> Iterator[list[str]]:
    """Hold back what the block writes to file descriptor 2; then write all lines except noise.

    Yields:
        A list, which is empty until the end of the block and then contains all lines that were held
        back, including noise.
    """
    lines: list[str] = []
    global descriptor
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
    original = descriptor = os.dup(2)
    os.dup2(file, 2)
    try:
        yield lines
    finally:
        descriptor = 2
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
            echo(line, err=True)
