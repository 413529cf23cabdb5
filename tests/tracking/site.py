"""Folders of runs as their processes leave them, and a squeue whose answer a test sets."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.job.job_file import load_job
from harness.slurm.client import Queue
from harness.slurm.environment import SlurmEnvironment
from harness.tracking.records import Heartbeat, RunStatus
from harness.tracking.run_dir import RunDirectory
from harness.tracking.status import survey
from tests.conftest import JOBS, Harness, write_program

ELSEWHERE = "node7"
NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")
RESULT = {
    "accuracy": 0.88,
    "val_accuracy": 0.87,
    "seed": 1,
    "architecture": "lstm",
    "dataset_checksum": "made up",
    "classes": ["negative", "positive"],
}


@dataclass
class Site:
    """A folder of runs, and stand-ins for Slurm's programs on the PATH."""

    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def program(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        write_program(self.folder / "bin" / name, script)

    def slurm(self, *lines: str, script: str = "") -> None:
        """Put a squeue on the PATH that prints these lines, or runs this script."""
        answer = self.folder / "answer"
        answer.write_text("".join(f"{line}\n" for line in lines))
        self.program("squeue", script or f"cat {answer}")

    def scancel(self) -> Path:
        """Put a scancel on the PATH; return the file that records its arguments."""
        noted = self.folder / "cancelled"
        self.program("scancel", f'echo "$@" >> "{noted}"')
        return noted

    def run(
        self,
        run_id: str,
        phase: str = "",
        age_s: float = 1.0,
        *,
        slurm_job: str | None = None,
        host: str = ELSEWHERE,
        process: int | None = None,
        log: Path | None = None,
        job: str = "lstm",
        **values: Any,
    ) -> RunDirectory:
        """Write a run whose process wrote its last heartbeat `age_s` seconds ago."""
        allocation = SlurmEnvironment.from_environment({"SLURM_JOB_ID": slurm_job or "0"})
        then = time.time() - age_s
        loaded = load_job(JOBS / f"{job}.toml")
        run = RunDirectory.new(self.runs, loaded, run_id)
        run.take_lease()
        run.write("job.toml", loaded.to_toml())
        heart = Heartbeat(run, allocation if slurm_job else None, clock=lambda: then)
        heart.state |= {"host": host, "log": str(log) if log else None}
        if process is not None:
            heart.state["process"] = process
        heart.note(job=job, architecture=loaded.model.architecture, seed=loaded.train.seed)
        if phase == "finished":
            heart.note(val_accuracy=RESULT["val_accuracy"], test_accuracy=RESULT["accuracy"])
        if phase:
            heart.beat(phase, **values)
            os.utime(run.path("state.json"), (then, then))
        if phase == "finished":
            run.write_json("result.json", RESULT)
        return run

    def submission(
        self, job_id: str, seeds: list[int], *, age_s: float = 30.0, **more: Any
    ) -> dict[str, Any]:
        """Write and return a record like that of `harness submit`, which is `age_s` seconds old."""
        then = time.time() - age_s
        names = [f"slurm-{job_id}{f'_{seed}' if len(seeds) > 1 else ''}" for seed in seeds]
        record = {
            "job_id": job_id,
            "job": "gru",
            "seeds": seeds,
            "runs": [str(self.runs / "gru" / name) for name in names],
            "logs": [str(self.folder / f"{name}.out") for name in names],
            "resumes": False,
            "job_file": None,
            **more,
        }
        folder = self.runs / ".submissions"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{job_id}.json").write_text(json.dumps(record))
        os.utime(folder / f"{job_id}.json", (then, then))
        return record

    def only(self) -> RunStatus:
        (status,) = survey(self.runs, Queue())
        return status


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harness: Harness) -> Site:
    """A machine without Slurm, until a test adds programs; the harness runs on this machine."""
    tools = tmp_path / "tools"  # /bin may contain Slurm's programs
    tools.mkdir()
    for name in ("cat", "sleep", "sh", "git"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tools}")
    harness.environment["PATH"] = os.environ["PATH"]
    return Site(tmp_path)
