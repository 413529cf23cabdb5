"""Kills runs at a step."""

import time
from pathlib import Path

from tests.conftest import Harness, shared_run
from tests.preloaded import Process


def newest_step(run: Path) -> int:
    """The step of the run's newest checkpoint, -1 before the first."""
    paths = run.glob("checkpoints/step-*.npz")
    return max((int(path.stem.partition("-")[2]) for path in paths), default=-1)


def wait_for_step(process: Process, run: Path, step: int) -> None:
    """Wait for a checkpoint at `step` or later."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if newest_step(run) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at step {step}: {process.poll()}")


def kill_at(harness: Harness, job: str, step: int, *words: object) -> None:
    """Start the run `killed`, and end it by SIGKILL once it has saved `step` or a later one."""
    run = harness.runs / Path(job).name / "killed"
    step = max(step, newest_step(run) + 1)
    process = harness.start(*harness.train_words(job, "killed", *words))
    wait_for_step(process, run, step)
    process.kill()
    process.communicate()


def killed_run(harness: Harness, job: str) -> Path:
    """The run `killed`, which SIGKILL ended in its second epoch."""
    return shared_run(harness, job, "killed", lambda: kill_at(harness, job, 16))
