"""Messages on file descriptor 2 that no user can act on."""

import subprocess
import sys

CODE = """
import os
from harness.system.stderr_filter import filtered_stderr

try:
    with filtered_stderr():
        os.write(2, b"E0000 cuda_platform.cc:51] failed call to cuInit: INTERNAL\\n")
        os.write(2, b"\\n")
        os.write(2, b"a message of a library\\n")
        raise KeyError
except KeyError:
    os.write(2, b"cuInit later\\n")
"""


def test_noise_is_dropped_and_the_rest_comes_through() -> None:
    """Other messages are printed, after an error too, and later ones are not filtered."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "a message of a library\ncuInit later\n"
