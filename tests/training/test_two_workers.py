"""Two processes of this machine train one model, as if on two nodes."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from harness.system.lenient_json import read_json
from tests.conftest import Harness, wait_for
from tests.gpu.full import two_workers
from tests.preloaded import Process

LONG = ["--set", "train.epochs=1000", "--set", "train.batch_size=8"]  # 57 steps per epoch
LOST_S, HANGS_S = 60, 120  # limits until the other worker ends

# A callback that hangs in the second worker after two epochs.
HANGS = """
import os, threading
import keras
class Hangs(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2 and os.environ["SLURM_PROCID"] == "1":
            threading.Event().wait()
def make(): return Hangs()
"""


class Pair(contextlib.AbstractContextManager["Pair"]):
    """The two workers of a run, the chief first; the end of a `with` block kills them."""

    def __init__(self, harness: Harness, *words: object) -> None:
        self.run = harness.runs / "lstm" / "pair"
        self.processes: list[Process] = []
        before = dict(harness.environment)
        for variables in two_workers():
            harness.environment = before | variables | {"HARNESS_TRUSTED_NETWORK": "1"}
            options = ["--devices", "cpu", *LONG, *words]
            self.processes.append(harness.start(*harness.train_words("lstm", "pair", *options)))
        harness.environment = before

    def wait_for_step(self, step: int) -> None:
        """Wait until the chief's heartbeat reports `step` or a later step."""

        def is_reached() -> bool:
            assert [each.poll() for each in self.processes] == [None, None]
            return (read_json(self.run / "state.json").get("step") or 0) >= step

        wait_for(is_reached, 180)

    def num_threads(self) -> list[int]:
        """Return the number of threads of each process."""
        return [len([*Path(f"/proc/{each.pid}/task").iterdir()]) for each in self.processes]

    def end_of(self, rank: int, within_s: float) -> str:
        """Check that an interrupted worker ends in time, and return the errors it printed."""
        process = self.processes[rank]
        assert process.wait(timeout=within_s) == 75
        printed, errors = process.communicate()
        assert bool(printed) == (rank == 0), "only the chief has a console"
        return errors

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()


def test_threads_stay_as_many_and_a_signal_is_obeyed_in_seconds(harness: Harness) -> None:
    """The number of threads doesn't grow with the number of steps."""
    with Pair(harness) as pair:
        pair.wait_for_step(60)
        before = pair.num_threads()
        pair.wait_for_step(120)
        for num, num_before in zip(pair.num_threads(), before, strict=True):
            assert num <= num_before + 10, (num, num_before)
        for process in pair.processes:
            os.kill(process.pid, signal.SIGUSR2)
        for rank in (0, 1):
            assert "interrupted by SIGUSR2; checkpoint saved; continue with" in pair.end_of(rank, 5)


def test_a_stopped_worker_ends_the_other(harness: Harness) -> None:
    """The other worker names the lost worker; a checkpoint exists. The run began with weights.

    `tests/slurm/test_cluster_trouble.py` kills a worker.
    """
    harness.succeed(*harness.train_words("lstm", "parent"))
    with Pair(harness, "--from", harness.runs / "lstm/parent") as pair:
        pair.wait_for_step(60)
        os.kill(pair.processes[1].pid, signal.SIGSTOP)
        line = pair.end_of(0, LOST_S).splitlines()[-1]
    assert "interrupted by a lost worker on localhost; continue with" in line
    assert list(pair.run.glob("checkpoints/*.npz"))


@pytest.mark.slow
def test_a_worker_that_hangs_in_python_ends_the_other(harness: Harness, tmp_path: Path) -> None:
    """The hanging process still answers, so only the time without a step reveals the hang.

    Under Slurm, srun ends the hanging process a minute later.
    """
    (tmp_path / "hangs.py").write_text(HANGS)
    with Pair(harness, "--set", f'train.callbacks=["{tmp_path}/hangs.py:make"]') as pair:
        pair.wait_for_step(2 * 57)
        said = pair.end_of(0, HANGS_S)
    assert "or another worker (localhost): no step, batch or compilation" in said
    assert "has ended for 1.5 min (HARNESS_STALL_MIN); the process ends; continue with" in said
