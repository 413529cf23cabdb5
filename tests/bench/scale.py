"""How the costs of `status` and `prune` grow with the number of runs.

The last column compares with 10 runs: 0.10 means ten times their cost. Times are CPU times, which
other work on the machine changes little. The number of file calls shows how long `status` takes on
a slow disk.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from harness import PROJECT
from harness.doctor import child
from harness.doctor.child import Ended
from harness.job.job_file import load_job
from harness.system.leased_dir import to_json
from harness.tracking.run_dir import RunDirectory
from tests.bench.measured import Measured
from tests.bench.processes import Bench

SIZES = (10, 100, 1_000, 10_000)
STRACE = ("strace", "-f", "-qq", "-e", "trace=%file,getdents64")
JOB = PROJECT / "jobs" / "lstm.toml"
RESULT = {
    "job": "lstm",
    "architecture": "lstm",
    "seed": 1,
    "accuracy": 0.88,
    "val_accuracy": 0.89,
    "dataset_checksum": "made up",
    "classes": ["negative", "positive"],
}


def scale(bench: Bench) -> Iterator[Measured]:
    """Measure the commands over growing numbers of finished runs."""
    folders = {f"{num:,} runs": _make_runs(bench.folder / f"of{num}", num) for num in SIZES}
    commands: dict[str, Callable[[Path], Ended]] = {
        "status": lambda runs: _status(bench, runs),
        "status --all": lambda runs: _status(bench, runs, "--all"),
        "status of one": lambda runs: _status(bench, runs, "run00007"),
        "prune": lambda runs: bench.harness("prune", "--runs", runs),
    }
    for name, command in commands.items():
        ways = {size: partial(_cpu_ms, command, runs) for size, runs in folders.items()}
        yield _grown(name, "CPU ms", bench.in_turn(name, ways)["value"])
    if shutil.which("strace"):
        calls = {size: (_file_calls(bench, runs),) for size, runs in folders.items()}
        yield _grown("status: file calls", "calls", calls)
    else:
        bench.console.warning("strace is not installed: file calls are not counted")


def _grown(name: str, unit: str, values: Mapping[str, tuple[float, ...]]) -> Measured:
    return Measured(name, unit, False, {**values}, f"{SIZES[0]:,} runs")


def _cpu_ms(command: Callable[[Path], Ended], runs: Path) -> dict[str, float]:
    return {"value": 1000 * command(runs).cpu_s}


def _status(bench: Bench, runs: Path, *more: str, tracer: Sequence[str] = ()) -> Ended:
    return bench.process([*tracer, *child.module_args("harness"), "status", *more, "--runs", runs])


def _file_calls(bench: Bench, runs: Path) -> float:
    """Return how many system calls of `status` name a file or list a folder."""
    trace = bench.folder / "trace"
    _status(bench, runs, tracer=[*STRACE, "-o", str(trace)])
    with trace.open(errors="replace") as lines:
        return float(sum(1 for _ in lines))


def _make_runs(runs: Path, num: int) -> Path:
    """Write finished runs with only the files that the commands read; return their folder."""
    job, now_s = load_job(JOB).to_toml(), time.time()
    for index in range(num):
        run = RunDirectory(runs / "lstm" / f"run{index:05}")
        run.folder.mkdir(parents=True)
        run.path("job.toml").write_text(job)
        state = {"phase": "finished", "epoch": 7, "num_epochs": 7, "time_s": now_s + index}
        state |= {key: RESULT[key] for key in ("job", "architecture", "seed", "val_accuracy")}
        state["test_accuracy"] = RESULT["accuracy"]
        for name, content in (("state.json", state), ("result.json", RESULT)):
            run.path(name).write_text(to_json(content))
    return runs
