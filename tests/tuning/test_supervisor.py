"""The supervisor's clocks, without processes."""

import time
from pathlib import Path

import pytest

from harness.slurm.placement import Slot
from harness.system.console import Console
from harness.tuning.supervisor import START_STALL_S, Supervisor, WorkerRequest
from tests.conftest import JOBS
from tests.tuning.made_up_sweep import make_sweep


class Alive:
    """A process that runs."""

    def poll(self) -> None:
        return None


@pytest.mark.parametrize(
    ("gpu", "phase", "limit_s"),
    [
        (None, "starting", 900),
        (None, "training", 900),
        (0, None, START_STALL_S),
        (0, "starting", START_STALL_S),
        (0, "training", 900),
        (0, "validating", 900),
    ],
)
def test_a_gpu_may_compile_before_the_first_step(
    tmp_path: Path, gpu: int | None, phase: str | None, limit_s: float
) -> None:
    """From the first step on, and on CPUs, a worker is stalled after 15 minutes."""
    sweep = make_sweep(tmp_path / "sweep", (JOBS / "tune_lstm.toml").read_text())
    if phase:
        folder = sweep.folder / "trials" / "0001-seed1"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(f'{{"phase": "{phase}"}}')
    slot = Slot(None, gpu, 1, 1)
    watch = Supervisor(sweep, WorkerRequest(), [slot], allocation=None, console=Console())
    (worker,) = watch.workers
    ended: list[object] = []
    worker.popen = Alive()  # type: ignore[assignment]
    watch.pool.kill = ended.extend  # type: ignore[method-assign, assignment]
    now = time.monotonic()
    for after_s in (0, limit_s - 1):
        watch._end_stalled({"at": {"w0": "0001"}}, now + after_s)
    assert ended == []
    watch._end_stalled({"at": {"w0": "0001"}}, now + limit_s + 1)
    assert ended == [worker]
