"""Messages on file descriptor 2 that no user can act on."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys
from harness.system import stderr_filter

stderr_filter.has_driver = lambda: sys.argv[1] != "none"
stderr_filter.hidden_by = lambda: sys.argv[1] == "hidden"
try:
    with stderr_filter.filtered_stderr():
        os.write(2, b"E0000 cuda_platform.cc:51] failed call to cuInit: INTERNAL\\n")
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\\n")
        os.write(2, b"\\n")
        os.write(2, b"a message of a library\\n")
        raise KeyError
except KeyError:
    os.write(2, b"cuInit later\\n")
"""


@pytest.mark.parametrize(
    ("machine", "first"),
    [
        ("none", ""),
        ("hidden", ""),
        ("driver", "E0000 cuda_platform.cc:51] failed call to cuInit: INTERNAL\n"),
    ],
)
def test_noise_is_dropped_and_the_rest_comes_through(machine: str, first: str) -> None:
    """Other messages are printed, after an error too, and later ones are not filtered.

    What TensorFlow says of a driver is noise where there is none, and where its GPUs are hidden.
    """
    args = [sys.executable, "-c", CODE, machine]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == f"{first}a message of a library\ncuInit later\n"


FULL = """
import os, tempfile
from harness.system import stderr_filter

full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 2)
with stderr_filter.filtered_stderr():
    os.write(2, b"a message of a library\\n")

def no_room():
    raise OSError("No space left on device")

tempfile.TemporaryFile = no_room
with stderr_filter.filtered_stderr():
    print("goes on")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_ends_no_run() -> None:
    """Neither one under the log nor one for temporary files."""
    args = [sys.executable, "-c", FULL]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "goes on\n"
