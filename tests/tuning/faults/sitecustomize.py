"""Simulates a failing disk and wrong clocks in every Python process that imports this file.

One in 100 operations on files below `FAULTS_BELOW` fails with EIO or ESTALE; half of these take
effect nevertheless. The clocks of a process are up to ten minutes wrong. TensorFlow and Keras are
affected, too, where they use Python's functions.
"""

import builtins
import errno
import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANCE = 1 / 100  # share of operations that fail
BELOW = os.environ["FAULTS_BELOW"]
LOG = os.environ["FAULTS_LOG"]
chance = random.Random(os.getpid() ^ time.time_ns())  # noqa: S311 - not a secret
ahead_s = chance.uniform(-600, 600)


def failing(name: str, real: Callable[..., Any], num_paths: int = 1) -> Callable[..., Any]:
    """Wrap a function of the system so that it sometimes fails."""

    def call(*args: Any, **options: Any) -> Any:
        paths = [str(each) for each in args[:num_paths]]
        if not any(BELOW in each for each in paths) or chance.random() > CHANCE:
            return real(*args, **options)
        code = chance.choice((errno.EIO, errno.ESTALE))
        if name not in ("open", "os.open") and chance.random() < 0.5:
            real(*args, **options)
        descriptor = real_open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{name} {errno.errorcode[code]} {paths[0]}\n".encode())
        os.close(descriptor)
        raise OSError(code, os.strerror(code), paths[0])

    return call


real_open = os.open
builtins.open = io.open = failing("open", io.open)
os.open = failing("os.open", os.open)
for function, num_paths in (("mkdir", 1), ("replace", 2), ("rename", 2), ("listdir", 1)):
    setattr(os, function, failing(function, getattr(os, function), num_paths))
real_fsync = os.fsync


def fsync(fd: Any) -> None:
    """Sync a file; sometimes fail if the file is below the folder."""
    path = Path(f"/proc/self/fd/{fd}").readlink()
    failing("fsync", lambda _: real_fsync(fd))(path)


os.fsync = fsync
for clock, unit in (("time", 1), ("time_ns", 10**9), ("monotonic", 1), ("monotonic_ns", 10**9)):
    real_clock, ahead = getattr(time, clock), ahead_s * unit
    ahead = int(ahead) if clock.endswith("ns") else ahead
    setattr(time, clock, lambda real=real_clock, ahead=ahead: real() + ahead)
