"""What TensorFlow says on file descriptor 2 whatever its log level, and nobody can mend.

Some of it is written before any log level is read, some of it as an error that is none.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

KNOWN_NOISE = re.compile(
    # TensorFlow 2.21, at every start on a machine without a GPU.
    r"cudart_stub|cuda_platform.*cuInit|INTERNAL: CUDA Runtime error|before absl::InitializeLog"
    r"|cpu_feature_guard|To enable the following instructions|oneDNN custom operations"
    r"|computation_placer already registered|Unable to register cu"
    # Where a compiled step is loaded: it is tried as a text first, and two hints to the compiler
    # are taken for abilities that the processor lacks.
    r"|text_format.*XlaSerializedCacheEntry|cpu_aot_loader.*feature \+prefer-no-(scatter|gather)"
)


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, and write all but the noise afterwards."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if line.strip() and not KNOWN_NOISE.search(line):
                    print(line, file=sys.stderr)  # noqa: T201
