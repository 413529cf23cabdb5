"""`harness submit` on a real Slurm cluster."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

from tests.conftest import SHRUNK, Harness, results, write_program
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.project import JOB, SlurmProject, Submitted
from tests.slurm.test_scripts import JOBS
from tests.slurm.test_submit import copy_project, git_init
from tests.training.kills import newest_step


class Submitter:
    """Calls `harness submit` for a project on the cluster."""

    def __init__(self, cluster: SlurmCluster, folder: Path, project: Path, venv: Path) -> None:
        self.cluster = cluster
        self.harness = Harness(folder)
        self.harness.runs = folder / "100% of the runs"
        self.harness.environment |= {
            **cluster.environment,
            "HARNESS_HOME": str(project),
            "HARNESS_VENV": str(venv),
            "HARNESS_RUNS": str(self.harness.runs),
        }

    @classmethod
    def of(cls, project: SlurmProject) -> "Submitter":
        """Return a submitter for a project on a cluster."""
        stand_in = project.stand_in
        return cls(project.cluster, stand_in.outside, project.path, stand_in.venv)

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        return self.harness.run_here("submit", *words)

    def submit(self, *words: object) -> list[dict[str, Any]]:
        """Submit jobs, and return their records in order."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        ids = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if "job " in line]
        folder = self.harness.runs / ".submissions"
        return [json.loads((folder / f"{job_id}.json").read_text()) for job_id in ids]


def test_a_submitted_job_is_not_changed_by_later_edits(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Job file and code are edited while the job waits, but the job trains with its snapshot."""
    project = tmp_path / "it's a project"
    copy_project(project)
    git_init(project)
    version = project / "harness/__init__.py"
    version.write_text(f"{version.read_text()}# not committed\n")
    # This program runs the harness in the job's own code, the snapshot.
    program = f'exec {shlex.quote(sys.executable)} -m harness "$@"'
    (tmp_path / "venv").mkdir()
    write_program(tmp_path / "venv/bin/harness", program)
    submitter = Submitter(cluster, tmp_path, project, tmp_path / "venv")
    words = [*SHRUNK, "--gpus", "0", "--seeds", "3", "--", "--hold"]
    (record,) = submitter.submit(project / "jobs/lstm.toml", *words)

    shutil.rmtree(project / "jobs")
    version.write_text("raise SystemExit('edited while it waited')\n")
    (project / "slurm/common.sh").write_text("exit 3\n")
    cluster.run("scontrol", "release", record["job_id"])
    log, run = Path(record["logs"][0]), Path(record["runs"][0])
    Submitted(cluster, record["job_id"], log, run).wait(timeout_s=120)
    assert run == submitter.harness.runs / f"lstm/slurm-{record['job_id']}"
    assert str(run) in log.read_text()
    assert record["seeds"] == [3]
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["snapshot"] == record["snapshot"]
    assert "+# not committed\n" in provenance["uncommitted_diff"]
    assert len(provenance["commit"]) == 40
    assert (run / "result.json").is_file()


def test_all_jobs_and_their_comparison(stand_in: SlurmProject, cluster: SlurmCluster) -> None:
    """The comparison waits for five arrays, starts although one has failed, and gets all runs."""
    submitter = Submitter.of(stand_in)
    with (stand_in.path / "slurm/site.sh").open("a") as site:
        site.write("id=$SLURM_JOB_NAME/slurm-${SLURM_ARRAY_JOB_ID:-}_${SLURM_ARRAY_TASK_ID:-}\n")
        ends = 'mkdir -p "$HARNESS_RUNS/$id"; [[ $SLURM_JOB_NAME != gru ]]; exit'
        site.write(f"[[ $SLURM_JOB_NAME == compare ]] || {{ {ends}; }}\n")
    *trainings, comparison = submitter.submit("--all", "--seeds", "1-2", "--gpus", 0, "--", "-H")
    assert [record["job"] for record in trainings] == list(JOBS)
    assert (comparison["job"], comparison["runs"]) == ("compare", [])
    ids = [record["job_id"] for record in trainings]
    waiting = comparison["job_id"]
    cluster.run("scontrol", "release", waiting)
    wait_until(lambda: cluster.show(waiting)["Reason"] == "Dependency", timeout_s=30)
    for job_id in ids:
        assert f"afterany:{job_id}" in cluster.show(waiting)["Dependency"]
    cluster.run("scontrol", "release", ",".join(ids))
    cluster.wait(waiting, ["COMPLETED"])
    states = {record["job"]: cluster.state(f"{record['job_id']}_2") for record in trainings}
    assert states == {name: "FAILED" if name == "gru" else "COMPLETED" for name in JOBS}
    runs = [run for record in trainings for run in record["runs"]]
    command, option, out, *patterns = stand_in.stand_in.call()["argv"]
    assert (command, option) == ("compare", "--out")
    assert out == str(submitter.harness.runs / "comparison")
    compared = [run for pattern in patterns for run in glob(pattern)]  # noqa: PTH207
    assert sorted(compared) == sorted(runs)
    assert all(Path(log).exists() for record in trainings for log in record["logs"])
    assert Path(comparison["logs"][0]).exists()


def test_packed_seeds_are_shown_and_cancelled_by_themselves(
    project: SlurmProject, undisturbed: Path
) -> None:
    """Seed 3 is cancelled while the job waits, seed 2 while it trains; seed 1 ends as usual."""
    submitter = Submitter.of(project)
    harness = submitter.harness
    words = [*JOB, "--seeds", "1-3", "--pack", "--gpus", 0, "--", "--hold", "--cpus-per-task=3"]
    (record,) = submitter.submit(project.path / "jobs/lstm.toml", *words)
    first, second, third = map(Path, record["runs"])

    def states() -> list[str]:
        shown = json.loads(harness.run_here("status", first.parent, "--json").stdout)
        found = {each["folder"]: each["state"] for each in shown}
        return [found[str(run)] for run in (first, second, third)]

    assert states() == ["pending"] * 3
    done = harness.run_here("cancel", third)
    assert "will not start; to stop all seeds of its job: " in done.stdout, done.stderr
    assert states() == ["pending", "pending", "cancelled"]
    project.cluster.run("scontrol", "release", record["job_id"])
    wait_until(lambda: newest_step(second) >= 20, timeout_s=60, poll_s=0.05)
    done = harness.run_here("cancel", second)
    assert "saved at epoch" in done.stdout, done.stderr
    project.cluster.wait(record["job_id"], ["COMPLETED"], timeout_s=90)
    assert results(first) == results(undisturbed)
    assert (second / "result.json").exists() is (third / "job.toml").exists() is False
    assert states() == ["finished", "interrupted", "cancelled"]
    assert project.cluster.show(record["job_id"])["Restarts"] == "0"


def test_status_tells_why_a_job_was_killed(project: SlurmProject) -> None:
    """`status` finds the job and its log through the record of the submission."""
    submitter = Submitter.of(project)
    (record,) = submitter.submit(project.path / "jobs/gru.toml", "--gpus", 0, "--mem", "300M")
    project.cluster.wait(record["job_id"], ["FAILED", "OUT_OF_MEMORY"])
    said = "out of memory; .*--mem"

    def is_said() -> bool:
        done = submitter.harness.run_here("status", "--all")
        return re.search(said, " ".join(done.stdout.split())) is not None

    # `status` says this only when squeue's answer is newer than the run's heartbeat, because a
    # newer heartbeat could belong to a later start.
    wait_until(is_said, timeout_s=60)
