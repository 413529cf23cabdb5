"""A test that leaves a daemon and never ends; only `test_guard.py` runs it."""

import subprocess
import time


def test_daemon() -> None:
    """The daemon has its own session, an empty environment and no living parent."""
    subprocess.run(["/bin/sh", "-c", "setsid sleep 600 &"], env={}, check=True)
    time.sleep(600)
