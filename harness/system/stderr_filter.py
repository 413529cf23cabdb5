"""Filters messages of TensorFlow that ignore its log level and that no user can act on.

Some are written before any log level is read, some are logged as errors without being any. In a
process that computes on GPUs all messages go into a file in memory (`capture`): some of them alone
say that a step was computed wrongly, or why the process died.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence

from harness.system.console import echo
from harness.system.gpu import has_driver, hidden_by

# TensorFlow 2.21, at every start where it sees no GPU. With a driver whose GPUs are not hidden it
# is no noise.
NO_DRIVER_NOISE = re.compile(r"cudart_stub|cuda_platform.*cuInit|INTERNAL: CUDA Runtime error")
KNOWN_NOISE = re.compile(
    r"before absl::InitializeLog"
    r"|cpu_feature_guard|To enable the following instructions|oneDNN custom operations"
    r"|computation_placer already registered|Unable to register cu"
    # When a compiled step is loaded: it is first read as text, and two hints to the compiler are
    # mistaken for features that the processor lacks.
    r"|text_format.*XlaSerializedCacheEntry|cpu_aot_loader.*feature \+prefer-no-(scatter|gather)"
)
# How TensorFlow begins a message: its level, date, time, thread and place. Lines without it belong
# to the message before.
BEGIN = re.compile(r"(?P<level>[IWEF])\d{4} \d\d:\d\d:\d+\.\d+ +\d+ [\w./-]+:\d+\] ")

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
LAST_LINES = 60  # a message and where the process was

descriptor = 2  # of standard error, elsewhere while it is filtered or captured


class Capture:
    """What was written to file descriptor 2 since `capture`."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._at = 0  # what was read so far, in bytes
        self._rest = b""  # of a line that has not ended
        # TensorFlow is asked for its warnings, which only a user who asked for them wants to see.
        self.shows_warnings = os.environ.get(LEVEL, "") in ("0", "1")

    def read(self) -> list[str]:
        """The messages since the last call, each in one line."""
        while part := os.pread(self.file, 1 << 20, self._at):
            self._at += len(part)
            self._rest += part
        whole, newline, self._rest = self._rest.rpartition(b"\n")
        return messages((whole + newline).decode(errors="replace"))

    def show(self, found: Sequence[str]) -> None:
        """Write messages to standard error, but for noise and warnings."""
        for line in found:
            begin = BEGIN.match(line)
            is_hidden = begin is not None and begin["level"] in "IW" and not self.shows_warnings
            if not is_hidden:
                _write(line)


captured: Capture | None = None


def capture(file: int) -> None:
    """Let all that is written to file descriptor 2 go to a file, but for what Python writes."""
    global captured, descriptor
    sys.stderr.flush()
    descriptor = os.dup(2)
    sys.stderr = os.fdopen(  # buffered by lines, as before
        descriptor, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    captured = Capture(file)
    os.dup2(file, 2)


def ask_for_messages() -> None:
    """Set TensorFlow's log level before it is imported: errors, and warnings if they are read."""
    if captured:
        os.environ[LEVEL] = min(os.environ.get(LEVEL, "1"), "1")
    else:
        os.environ.setdefault(LEVEL, "2")


def messages(text: str) -> list[str]:
    """TensorFlow's messages in what it wrote, each with the lines that belong to it in one."""
    found: list[str] = []
    for line in text.splitlines():
        if BEGIN.match(line) or not (found and BEGIN.match(found[-1])):
            found.append(line)
        else:
            found[-1] += f" {line.strip()}"
    return found


def show_rest() -> None:
    """Write what was captured and not yet read."""
    if captured:
        captured.show(captured.read())


def show_last(text: str) -> None:
    """Write the end of what a process wrote, as it is."""
    for line in text.splitlines()[-LAST_LINES:]:
        _write(line)


@contextlib.contextmanager
def filtered_stderr() -> Iterator[list[str]]:
    """Hold back what is written to file descriptor 2, and write all but the noise afterwards.

    Yields:
        A list that has all the lines, the noise included, once the block has ended.
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
    file = os.memfd_create("messages")  # not a file of a disk, which may be full
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
        with contextlib.suppress(OSError):  # a full disk under the log ends no run
            echo(line, err=True)
