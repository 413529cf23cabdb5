"""The filter on file descriptor 2, which drops messages that are of no use to users."""

import subprocess
import sys

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
def test_noise_is_dropped_and_the_rest_is_printed(machine: str, first: str) -> None:
    """Messages about a driver are noise if there is no driver or if all GPUs are hidden."""
    args = [sys.executable, "-c", CODE, machine]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == f"{first}a message of a library\ncuInit later\n"
