"""A child of `harness.checks.child` that does what a test asks for: every way to end."""

import os
import signal
import sys
import time
from typing import Any

from harness.errors import InputError, RunError
from tests.asked_child import answer_request


def add(a: int, b: int) -> dict[str, Any]:
    print("a library's chatter")  # noqa: T201
    return {"sum": a + b, "variable": os.environ.get("MADE_UP"), "first": sys.path[0]}


def refuse() -> dict[str, Any]:
    raise InputError("a: is no number; give one")


def fail() -> dict[str, Any]:
    raise RunError("the disk is full")


def crash() -> dict[str, Any]:
    raise KeyError("own")


def die() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hang() -> dict[str, Any]:
    time.sleep(600)
    return {}


def fill(num_bytes: int) -> dict[str, Any]:
    return {"filled": len(b"x" * num_bytes)}


if __name__ == "__main__":
    answer_request({each.__name__: each for each in (add, refuse, fail, crash, die, hang, fill)})
