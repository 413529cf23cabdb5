"""Filters messages of TensorFlow that ignore its log level and that no user can act on.

Some are written before any log level is read, some are logged as errors without being any.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

from harness.system.console import echo
from harness.system.cuda import has_driver, hidden_by

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

descriptor = 2  # of standard error, elsewhere while it is filtered


@contextlib.contextmanager
def filtered_stderr() -> Iterator[list[str]]:
    """Hold back what is written to file descriptor 2, and write all but the noise afterwards.

    Yields:
        A list that has all the lines, the noise included, once the block has ended.
    """
    lines: list[str] = []
    global descriptor
    try:
        held = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError:  # a full disk is no reason to end a run that writes elsewhere
        yield lines
        return
    sys.stderr.flush()
    original = os.dup(2)
    with held:
        os.dup2(held.fileno(), 2)
        descriptor = original
        try:
            yield lines
        finally:
            descriptor = 2
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            lines += held.read().decode(errors="replace").splitlines()
            for line in lines:
                is_noise = KNOWN_NOISE.search(line) or (
                    NO_DRIVER_NOISE.search(line) and (hidden_by() or not has_driver())
                )
                if line.strip() and not is_noise:
                    with contextlib.suppress(OSError):  # nor is one under the log
                        echo(line, err=True)
