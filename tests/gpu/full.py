"""The additional checks of `--full`: two workers, models on other devices."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness.doctor.doctor import Finding
from harness.errors import RunError
from harness.slurm.environment import TRUSTED_NETWORK, SlurmEnvironment
from harness.slurm.pool import gpu_name
from harness.system.console import strip_prefix
from harness.system.lenient_json import read_json
from tests import child
from tests.gpu.runs import ALONE, POLL_S, RUN_S, Checks, NotRun, Runs, judge

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
NODES = "two nodes"
NODES_JOB = "a Slurm job on two nodes: sbatch --nodes=2 slurm/doctor.sh --full"
LOST_S = 60.0  # after the death of a worker, the others must end within this time


def check_two_workers(runs: Runs) -> Iterator[Finding]:
    """Two processes with one device each have the losses of one process with one device."""
    with Workers.start(runs, "two-workers") as workers:
        workers.wait(RUN_S)
    run = runs.run("lstm", "two-workers")
    if any(workers.codes) or not run.result:
        remedy = "both must reach each other; see the line"
        yield Finding("red", workers.where, f"they failed: {workers.last_lines()}", remedy)
    else:
        difference = runs.calm("lstm").difference(run)
        yield judge(runs, workers.where, difference)
    yield from _not_run(runs, workers)


def check_killed_worker(runs: Runs) -> Iterator[Finding]:
    """After the death of a worker, the others end within a minute."""
    run = runs.run("lstm", "killed-worker")
    with Workers.start(runs, "killed-worker", "train.epochs=1000") as workers:
        deadline = time.monotonic() + RUN_S
        while run.saved_step < 1 and workers.all_run() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        state = read_json(run.folder / "state.json")
        pid = state.get("process")
        if not workers.all_run() or not isinstance(pid, int):
            raise RunError(f"they ended before one was killed: {workers.last_lines()}")
        if state.get("host") != socket.gethostname():  # as in an salloc shell on a login node
            raise NotRun("a job whose first node is this one")
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        is_over = workers.wait(2 * LOST_S)
        took_s = time.monotonic() - began
    name = f"killed worker, {workers.where}"
    if is_over and took_s <= LOST_S:
        yield Finding("green", name, f"the other ended after {took_s:.0f} s")
    else:
        how = f"ended after {took_s:.0f} s" if is_over else f"still hung after {took_s:.0f} s"
        yield Finding("red", name, f"the other {how}", "cancel such a job by hand")
    runs.values["killed worker"] = took_s
    yield from _not_run(runs, workers, "killed worker, ")


def _not_run(runs: Runs, workers: "Workers", name: str = "") -> Iterator[Finding]:
    """Yield a finding for each part that the two workers could not test here."""
    if workers.where != NODES:
        yield Finding("not run", f"{name}{NODES}", f"not run: needs {NODES_JOB}")
    if runs.kind == "cpu":
        yield Finding("not run", f"{name}NCCL", "not run: needs a GPU for each of two workers")


@dataclass
class Workers:
    """Two processes that train one model, on two nodes of a job or on this machine."""

    where: str
    processes: "list[subprocess.Popen[bytes]]"  # one srun, or the two workers
    logs: list[Path]

    @classmethod
    def start(cls, runs: Runs, run_id: str, *overrides: str) -> Self:
        """Start a run with one device per worker.

        Raises:
            NotRun: if two nodes or devices are missing, or if the network is not trusted.
        """
        job = runs.allocation if runs.allocation and runs.allocation.num_nodes > 1 else None
        if runs.kind == "gpu" and runs.num_devices < 2 and not job:
            raise NotRun(f"two GPUs, or {NODES_JOB}")
        if os.environ.get(TRUSTED_NETWORK) != "1":
            raise NotRun(f"{TRUSTED_NETWORK}=1 in slurm/site.sh")
        args = runs.args("lstm", run_id, runs.one, *overrides)
        # HARNESS_NODES is empty because srun chooses two of the job's nodes.
        environments = [{"HARNESS_NODE_FAULTS": "", "HARNESS_NODES": ""}]
        if job:
            args = [*_srun_args(job), *args]
        else:
            environments = two_workers()
            for i, variables in enumerate(environments if runs.kind == "gpu" else ()):
                variables["CUDA_VISIBLE_DEVICES"] = gpu_name(i)
        processes, logs = [], []
        for i, variables in enumerate(environments):
            logs.append(runs.folder / f"{run_id}-{i}.log")
            with logs[-1].open("wb") as log:
                processes.append(child.start(args, variables, stdout=log, stderr=subprocess.STDOUT))
        return cls(NODES if job else "two processes", processes, logs)

    @property
    def codes(self) -> list[int | None]:
        """The exit code of each process; None while a process runs."""
        return [process.poll() for process in self.processes]

    def all_run(self) -> bool:
        """Whether all processes are running."""
        return self.codes == [None] * len(self.processes)

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for all processes; return whether all have ended."""
        deadline = time.monotonic() + timeout_s
        while None in self.codes and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return None not in self.codes

    def last_lines(self) -> str:
        """Return the last line of each log."""
        lines = [log.read_text(errors="replace").splitlines() for log in self.logs]
        return "; ".join(strip_prefix(each[-1])[:200] for each in lines if each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _srun_args(job: SlurmEnvironment) -> list[str]:
    args = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL"]
    args += ["--overlap", "--kill-on-bad-exit=0", "--mem=0"]
    return [*args, *([f"--cpus-per-task={job.cpus_per_task}"] if job.cpus_per_task else [])]


def two_workers() -> list[dict[str, str]]:
    """Return variables with which two workers on this machine train as if on two nodes."""
    both = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "HARNESS_NODES": "localhost localhost",
        "HARNESS_INTERFACE": "",  # use localhost, not the interface that the site sets
        "HARNESS_NODE_FAULTS": "",
    }
    return [{**both, "SLURM_PROCID": rank} for rank in "01"]


def check_moved_model(runs: Runs) -> Iterator[Finding]:
    """A model has the same scores on CPU and GPU, no matter which device trained the model."""
    run = runs.calm("lstm")
    trained_on_cpu = runs.train("lstm", "on-cpu", "cpu:1") if runs.kind == "gpu" else None
    pairs = [(run, NO_GPU, f"of {runs.one} on the CPU")]
    if trained_on_cpu:
        pairs.append((trained_on_cpu, {}, "of the CPU on the GPU"))
    for each, variables, what in pairs:
        args: list[str | Path] = ["evaluate", each.folder, "--json"]
        args += ["--data", runs.data] if runs.data else []
        ended = child.run_module("harness", *args, timeout_s=RUN_S, **(ALONE | variables))
        if ended.code != 0:
            raise RunError(f"harness evaluate {ended}; see its message")
        scores: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
        yield judge(runs, f"model {what}", abs(scores["log_loss"] - each.result["log_loss"]))
    if not trained_on_cpu:
        yield Finding("not run", "model of the CPU on the GPU", "not run: needs a GPU")


CHECKS: Checks = {
    "two workers": check_two_workers,
    "killed worker": check_killed_worker,
    "moved model": check_moved_model,
}
