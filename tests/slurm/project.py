"""A copy of the project on a test cluster."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import preloaded
from tests.conftest import PROJECT, SHRUNK, Harness
from tests.slurm.cluster import SEARCH_PATH, SlurmCluster, wait_until
from tests.slurm.stand_in import Project
from tests.training.kills import newest_step

# This program runs the harness of this checkout, which need not be installed.
HARNESS = f"""#!/bin/sh
export PYTHONPATH={shlex.quote(str(PROJECT))}
exec {shlex.quote(sys.executable)} -m harness "$@"
"""

# Arguments of a training that is long enough for a disturbance in the middle.
JOB = [*SHRUNK, "--set", "train.epochs=40"]


@dataclass(frozen=True)
class Submitted:
    """A submitted job."""

    cluster: SlurmCluster
    job_id: str
    log: Path
    run: Path

    def wait(self, *states: str, timeout_s: float = 90) -> None:
        """Wait until the job is in one of the states, by default COMPLETED."""
        try:
            self.cluster.wait(self.job_id, states or ("COMPLETED",), timeout_s)
        except Exception as error:
            said = self.log.read_text() if self.log.exists() else "nothing"
            error.add_note(f"The job said: {said}")
            raise

    def wait_for_step(self, step: int) -> None:
        """Wait until a checkpoint of the run is at `step` or later."""
        wait_until(lambda: newest_step(self.run) >= step, timeout_s=60, poll_s=0.02)

    def warn(self, name: str = "USR2") -> None:
        """Send the batch script a signal, as Slurm does before the time limit."""
        self.cluster.run("scancel", "--batch", f"--signal={name}", self.job_id)

    def record(self) -> dict[str, Any]:
        """Return the heartbeat of the run."""
        state: dict[str, Any] = json.loads((self.run / "state.json").read_text())
        return state

    @property
    def counters(self) -> Path:
        """The file with the counters of the run's starts."""
        named = "-".join(("ends", self.job_id, *self.run.parts[-2:]))
        return self.run.parents[1] / f".submissions/{named}.json"

    def requeues(self) -> int:
        """Return how often Slurm has requeued the job."""
        return int(self.cluster.show(self.job_id)["Restarts"])


class SlurmProject:
    """A project on a cluster; its job scripts train if `real`, and otherwise call a stand-in."""

    def __init__(self, cluster: SlurmCluster, folder: Path, *, real: bool) -> None:
        self.cluster = cluster
        self.stand_in = Project(folder)
        self.path = self.stand_in.path
        shutil.copytree(PROJECT / "jobs", self.path / "jobs")
        # `harness submit` copies the files that git lists.
        subprocess.run(["git", "init", "--quiet"], cwd=self.path, timeout=60, check=True)
        if real:
            self.stand_in.executable(self.stand_in.venv / "bin/harness", HARNESS)
        # The settings of the site; KERAS_HOME and XDG_CACHE_HOME hide this machine's data.
        settings = {
            "HARNESS_VENV": str(self.stand_in.venv),
            "HARNESS_EXTRA": "none",
            "HARNESS_OFFLINE": "1",
            "KERAS_HOME": str(folder / "keras"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "NOTE": str(self.stand_in.note),
            "HARNESS_TRUSTED_NETWORK": "1",
        }
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()]
        # The simulated GPUs have no driver; a test that uses them makes this variable empty.
        lines.append("export HARNESS_DEVICES=${HARNESS_DEVICES-cpu}\n")
        shared = " ".join(f"{k}={shlex.quote(v)}" for k, v in preloaded.sharing_steps().items())
        lines.append(f"[[ $HARNESS_DEVICES != cpu ]] || export {shared}\n")
        (self.path / "slurm/site.sh").write_text("".join(lines))

    def sbatch(
        self,
        job: str,
        *flags: str,
        arguments: list[str] | None = None,
        cwd: Path | None = None,
        **variables: str,
    ) -> Submitted:
        """Submit `slurm/<job>.sh` in the project's folder, by default with the arguments JOB.

        The job gets one CPU, with which TensorFlow computes the same bytes in less CPU time.
        """
        at = cwd or self.path
        job_id = self.cluster.sbatch(
            self.path / f"slurm/{job}.sh",
            *("--cpus-per-task=1", *flags),
            cwd=at,
            arguments=JOB if arguments is None else arguments,
            env=variables,
        )
        return self.submitted(job, job_id, at / f"logs/{job}-{job_id}.out")

    def submitted(self, job: str, job_id: str, log: Path) -> Submitted:
        """Return the job that has this id, such as `12` or `12_1`."""
        return Submitted(self.cluster, job_id, log, self.path / f"runs/{job}/slurm-{job_id}")


class Watcher(Harness):
    """The harness on the login node of the project's cluster."""

    def __init__(self, project: SlurmProject) -> None:
        super().__init__(project.path)
        self.environment |= project.cluster.environment | {"PATH": SEARCH_PATH}

    def seen(self, *words: object) -> dict[str, dict[str, Any]]:
        """Return the rows of `status --json`, by run."""
        done = self.run("status", "--json", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return {each["run"]: each for each in json.loads(done.stdout)}
