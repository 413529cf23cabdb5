"""Which processes are still a run's, and how old this one is."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from harness.system.processes import age_s, is_run_alive
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


def test_age_is_measured_to_a_hundredth() -> None:
    """The age that a process sees lies between what its parent measures from outside."""
    code = "from harness.system.processes import age_s; print(age_s())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < time.monotonic() - began + 0.02
    before = age_s()
    time.sleep(0.2)
    after = age_s()
    assert before is not None
    assert after is not None
    assert 0.19 < after - before < 5
