"""The small runs of the checks: `harness train` processes and the files that they write."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.doctor.doctor import Finding
from harness.doctor.probe import FIRST_USE_S, JOBS
from harness.errors import RunError
from harness.slurm.environment import SlurmEnvironment
from harness.system.lenient_json import read_json
from harness.tracking.run_dir import untimed
from tests import child

# Limits of the difference between losses on two devices: rounding stays below the first, mistakes
# exceed the second (16 wrong bits of a mask or weight change a loss of 0.69 by at least 0.01).
ROUNDING, MISTAKE = 1e-4, 1e-3
RUN_S = FIRST_USE_S  # the time limit of a run
POLL_S = 0.01
# Two epochs of 25 steps. The last step of an epoch has 13 reviews, the others 16. 13 is prime, so
# several replicas get unequal parts.
SMALL = (
    *("data.limit=497", "data.validation_split=0.2"),
    *("train.batch_size=16", "train.epochs=2", "train.checkpoint_every_s=0.1"),
)
TINY = ("data.maxlen=40", "model.units=16")  # for a CPU
KILLED_FROM = 25  # a run is killed after it has saved a checkpoint of this step or a later step
# With these variables a process uses only this node and reports no faults to a job script.
ALONE = {"SLURM_JOB_NUM_NODES": "1", "HARNESS_NODES": "", "HARNESS_NODE_FAULTS": ""}


class NotRun(Exception):  # noqa: N818 - not an error
    """Raised if a check can't run; the message names what is missing."""


def unless_not_run(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check, or the finding `not run` if the check raises NotRun."""
    try:
        yield from check()
    except NotRun as reason:
        yield Finding("not run", name, f"not run: needs {reason}")


@dataclass
class Runs:
    """Starts the runs of the checks, all in one folder."""

    folder: Path
    kind: str  # kind of all devices: gpu or cpu
    num_devices: int
    data: Path | None = None
    allocation: SlurmEnvironment | None = None
    values: dict[str, Any] = field(default_factory=dict)  # measured values for the JSON file

    @property
    def one(self) -> str:
        """The value of `--devices` for one device."""
        return f"{self.kind}:1"

    def devices(self, count: int) -> str:
        """Return the value of `--devices` for `count` devices.

        Raises:
            NotRun: if the node has fewer GPUs.
        """
        if self.kind == "gpu" and self.num_devices < count:
            raise NotRun(f"{count} GPUs, {self.num_devices} here")
        return f"{self.kind}:{count}"

    def need_gpu(self) -> None:
        """Raise NotRun if the devices are not GPUs."""
        if self.kind != "gpu":
            raise NotRun("a GPU")

    def args(self, job: str, run_id: str, devices: str, *overrides: str) -> list[str | Path]:
        """Return the command that trains a small version of a job."""
        sizes = (*SMALL, *(TINY if self.kind == "cpu" else ()), *overrides)
        return [
            *(*child.module_args("harness"), "train", JOBS / f"{job}.toml"),
            *("--runs", self.folder, "--run-id", run_id, "--devices", devices),
            *(part for each in sizes for part in ("--set", each)),
            *(("--data", self.data) if self.data else ()),
        ]

    def run(self, job: str, run_id: str) -> "SmallRun":
        """Return a run, which may not have begun."""
        return SmallRun(self.folder / job / run_id)

    def train(self, job: str, run_id: str, devices: str, *overrides: str) -> "SmallRun":
        """Train a run to its end, unless it is already finished.

        Raises:
            RunError: if the run fails.
        """
        run = self.run(job, run_id)
        if not run.result:
            args = self.args(job, run_id, devices, *overrides)
            ended = child.run_process(args, timeout_s=RUN_S, **ALONE)
            if ended.code != 0:
                raise RunError(f"a run of {job} on {devices} {ended}; see its message")
        return run

    def calm(self, job: str) -> "SmallRun":
        """Return the undisturbed run on one device; train it if it is not finished."""
        return self.train(job, "calm", self.one)

    def kill(self, job: str, run_id: str, devices: str) -> int:
        """Train a run, kill its process in the second epoch, and return the last saved step.

        Raises:
            RunError: if the process ended before it was killed.
        """
        run = self.run(job, run_id)
        process = child.start(self.args(job, run_id, devices), ALONE)
        try:
            deadline = time.monotonic() + RUN_S
            while process.poll() is None and time.monotonic() < deadline:
                if run.saved_step >= KILLED_FROM:
                    break
                time.sleep(POLL_S)
        finally:
            process.kill()
            code = process.wait()
        if code != -signal.SIGKILL or run.result:
            raise RunError(f"a run of {job} that was to be killed ended with code {code} before")
        return run.saved_step


@dataclass(frozen=True)
class SmallRun:
    """The files of a run."""

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`; empty until the run has finished."""
        return read_json(self.folder / "result.json")

    @property
    def record(self) -> dict[str, Any]:
        """The content of `provenance.json`."""
        return read_json(self.folder / "provenance.json")

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; -1 without a checkpoint."""
        paths = self.folder.glob("checkpoints/step-*.npz")
        return max((int(path.stem.partition("-")[2]) for path in paths), default=-1)

    def losses(self) -> list[float]:
        """Return the training loss and the validation loss of each epoch."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [float(line[key]) for line in lines for key in ("loss", "val_loss")]

    def difference(self, other: "SmallRun") -> float:
        """Return the largest difference between the losses of two runs; NaN if a loss is NaN."""
        return float(np.max(np.abs(np.subtract(self.losses(), other.losses()))))

    def different_files(self, other: "SmallRun") -> list[str]:
        """Return the names of files that differ in more than measured times and the run's name."""
        mine, others = results(self.folder), results(other.folder)
        return [name for name, content in mine.items() if others[name] != content]


def results(folder: Path) -> dict[str, Any]:
    """Return the parts of a finished run that must be identical in an equal run."""
    names = ("metrics.jsonl", "model.keras", "predictions.npz", "validation_predictions.npz")
    files = {name: (folder / name).read_bytes() for name in names}
    result = json.loads((folder / "result.json").read_text())
    return {**files, "result.json": {**untimed(result), "run": None}}


Checks = dict[str, Callable[[Runs], Iterator[Finding]]]


def judge(runs: Runs, name: str, difference: float) -> Finding:
    """Rate a difference of losses, and keep it for the JSON file."""
    runs.values.setdefault("loss differences", {})[name] = difference
    found = f"losses differ by at most {difference:.1e}"
    if difference <= ROUNDING:
        return Finding("green", name, found)
    if difference <= MISTAKE:
        return Finding("yellow", name, f"{found}, more than usual rounding", "compare runs")
    return Finding("red", name, found, f"should be below {MISTAKE}: do not trust these devices")
