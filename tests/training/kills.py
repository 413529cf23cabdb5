"""Kills a run once it has saved a given step."""

import time
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import Harness, shared_run
from tests.preloaded import Process


def newest_step(run: Path) -> int:
    """Return the step of the run's newest checkpoint, or -1 without a checkpoint."""
    paths = run.glob("checkpoints/step-*.npz")
    return max((int(path.stem.partition("-")[2]) for path in paths), default=-1)


def wait_for_step(process: Process, run: Path, step: int) -> None:
    """Wait until the run has a checkpoint of `step` or a later step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if newest_step(run) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at step {step}: {process.poll()}")


def kill_at(harness: Harness, job: str, step: int, *words: object) -> None:
    """Start or resume the run `killed`, and kill it once it has saved `step` or a later step."""
    run = harness.runs / Path(job).name / "killed"
    step = max(step, newest_step(run) + 1)
    process = harness.start(*harness.train_words(job, "killed", *words))
    wait_for_step(process, run, step)
    process.kill()
    process.communicate()


def trained_with_kills(harness: Harness, job: str, steps: Iterable[int], *words: object) -> Path:
    """Train the run `killed`, which is killed after each of these steps; return its folder."""
    for step in steps:
        kill_at(harness, job, step, *words)
    assert not (harness.runs / Path(job).name / "killed" / "result.json").exists()
    return harness.trained(job, "killed", *words)


def killed_run(harness: Harness, job: str) -> Path:
    """Return the run `killed`, which was killed in its second epoch."""
    return shared_run(harness, job, "killed", lambda: kill_at(harness, job, 16))
