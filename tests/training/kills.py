"""Kills a run after it has saved a given step."""

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
    """Start or resume the run `killed`, and kill it after it has saved `step` or a later step."""
    run = harness.runs / Path(job).name / "killed"
    step = max(step, newest_step(run) + 1)
    process = harness.start(*harness.train_words(job, "killed", *words))
    wait_for_step(process, run, step)
    process.kill()
    process.communicate()


def trained_with_kills(harness: Harness, job: str, steps: Iterable[int], *words: object) -> Path:
    """Train the run `killed`, which is killed after each of these steps; return its folder.

    Before the run is resumed for the last time, its newest checkpoint is removed. Otherwise no step
    would be left to train if the last kill comes after the last step, as on a busy machine.
    """
    for step in steps:
        kill_at(harness, job, step, *words)
    run = harness.runs / Path(job).name / "killed"
    assert not (run / "result.json").exists()
    for newest in sorted(run.glob("checkpoints/step-*.npz"))[-1:]:
        newest.unlink()
    return harness.trained(job, "killed", *words)


# Settings of the run that `killed_on_two` returns. It has 75 steps.
ON_TWO = (
    *("--devices", "cpu:2", "--set", "model.ngram_ratios=2"),
    *("--set", "train.reduce_lr_patience=1", "--set", "train.epochs=5"),
)


def killed_on_two(harness: Harness) -> Path:
    """Return a finished run on two replicas, which was killed in its third epoch."""
    return shared_run(
        harness, "bilstm", "killed", lambda: trained_with_kills(harness, "bilstm", [30], *ON_TWO)
    )


def killed_run(harness: Harness) -> Path:
    """Return the unfinished run `killed` of the LSTM, which was killed in its second epoch."""
    return shared_run(harness, "lstm", "killed", lambda: kill_at(harness, "lstm", 16))
