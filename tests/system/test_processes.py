"""Which processes are still a run's, and how old this one is."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from harness.system.processes import has_died, is_elsewhere, is_run_alive, process_space
from tests.conftest import wait_for

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes with a command line that begins like a run's, or does not."""
    started = []

    def start(*args: str) -> "subprocess.Popen[bytes]":
        code = "print(flush=True); import time; time.sleep(600)"
        command = [sys.executable, "-c", code, *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("args", "alive"),
    [
        (["/venv/bin/harness", "train", "jobs/lstm.toml"], True),
        (["/code/harness/__main__.py", "resume", "runs/lstm/1"], True),
        (["-m", "harness.tuning.worker", "sweep"], True),
        (["/venv/bin/harness", "status"], False),
        (["vim", "train"], False),
    ],
)
def test_a_run_is_known_by_its_command(start: Start, args: list[str], alive: bool) -> None:
    """Only a command that trains keeps a heartbeat."""
    assert is_run_alive(start(*args).pid, time.time()) == alive


def test_a_number_that_was_given_again_is_not_the_run(start: Start) -> None:
    """A process that is younger than the heartbeat did not write it; an ended one is not alive."""
    process = start("harness", "train")
    assert is_run_alive(process.pid, time.time())
    assert not is_run_alive(process.pid, time.time() - 60)
    process.kill()
    wait_for(lambda: not is_run_alive(process.pid, time.time()))  # a zombie: nobody waited for it
    process.wait()
    assert not is_run_alive(process.pid, time.time())
    assert not any(is_run_alive(number, time.time()) for number in (0, -1, 2**22 + 1, 2**70))


def test_who_has_died_is_seen_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if nobody waited for it; not a process that /proc hides, nor one of another machine."""
    here = process_space()
    with subprocess.Popen(["true"]) as process:
        wait_for(lambda: has_died(process.pid, here))
    assert has_died(process.pid, here)
    assert not any(has_died(process.pid, space) for space in ("", "elsewhere"))
    assert not any(has_died(number, here) for number in (os.getpid(), 0, -1, 2**70))

    def refuse(number: int, _: int) -> None:
        raise PermissionError(number)

    monkeypatch.setattr(os, "kill", refuse)
    assert not has_died(process.pid, here)


def test_a_container_of_this_machine_is_elsewhere() -> None:
    """Not what an earlier start of the machine left, nor what does not say where it was."""
    here = process_space()
    boot, _, _ = here.partition(" ")
    spaces = {f"{boot} 7": True, here: False, "earlier 7": False, "": False}
    assert {space: is_elsewhere(space) for space in spaces} == spaces
