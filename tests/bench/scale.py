"""How the costs of commands over many runs grow with the number of runs.

Commands are measured over 10 to 10,000 runs; `compare` and TensorBoard over up to 1,000. The last
column compares with 10 runs: 0.10 means ten times their cost. Times are CPU times, which other work
on the machine changes little. Separate rows show how long a command waits for a slow disk.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from harness import PROJECT
from harness.data.sources import open_dataset
from harness.doctor import child
from harness.doctor.child import Ended
from harness.job.job_file import load_job
from harness.report.html import REPORT
from harness.system.leased_dir import to_json
from harness.tracking.run_dir import RunDirectory
from tests import asked_child
from tests.bench.board import costs_to_show
from tests.bench.measured import Measured
from tests.bench.processes import Bench
from tests.made_up_runs import write_jobs

SIZES = (10, 100, 1_000, 10_000)
SIZES_COMPARED = (10, 100, 1_000)  # runs; five of each job
SIZES_ON_BOARD = (10, 100, 200, 1_000)  # TensorBoard shows the newest 200, or all of a named folder
LOGGED_STEPS = 5_000
STRACE = ("strace", "-f", "-qq", "-e", "trace=%file,getdents64")
SLOW_CALL_MS = 1.0  # delay of a call on a busy network file system
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
    """Measure status, prune, compare and TensorBoard over growing numbers of finished runs."""
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
        slow = f"calls of {SLOW_CALL_MS:g} ms"
        traced = (("file calls", "calls", _file_calls), (slow, "ms", _slow_ms))
        for what, unit, measure in traced:
            values = {size: (measure(bench, runs),) for size, runs in folders.items()}
            yield _grown(f"status: {what}", unit, values)
    else:
        bench.console.warning("strace is not installed: file calls are neither counted nor delayed")
    yield from _comparisons(bench)
    yield from _boards(bench)


def _comparisons(bench: Bench) -> Iterator[Measured]:
    """Measure `compare` as text and as a report. Its baselines are fit beforehand."""
    dataset = open_dataset(bench.settings.data)
    folders = {
        f"{num:,} runs": write_jobs(bench.folder / f"compared{num}", num, dataset)
        for num in SIZES_COMPARED
    }
    bench.console.info("compare: fitting the baselines")
    _compare(bench, folders[f"{SIZES_COMPARED[0]:,} runs"], "--baseline", "ngrams")
    as_text = {name: partial(_cpu_s, bench, runs) for name, runs in folders.items()}
    yield _grown("compare", "CPU s", bench.in_turn("compare", as_text)["value"])
    as_report = {name: partial(_report, bench, runs) for name, runs in folders.items()}
    values = bench.in_turn("compare --out", as_report)
    for quantity, unit in (("time", "CPU s"), ("memory", "GB"), ("HTML", "KB")):
        yield _grown(f"compare --out: {quantity}", unit, values[quantity])


def _compare(bench: Bench, runs: Path, *more: str | Path) -> Ended:
    data = ("--data", bench.settings.data) if bench.settings.data else ()
    return bench.harness(
        *("compare", runs, *data, *more), XDG_CACHE_HOME=str(bench.folder / "baselines")
    )


def _cpu_s(bench: Bench, runs: Path) -> dict[str, float]:
    return {"value": _compare(bench, runs).cpu_s}


def _report(bench: Bench, runs: Path) -> dict[str, float]:
    out = runs.with_name(f"{runs.name}-report")
    ended = _compare(bench, runs, "--out", out)
    return {
        "time": ended.cpu_s,
        "memory": ended.peak_memory_gb,
        "HTML": (out / REPORT).stat().st_size / 1e3,
    }


def _boards(bench: Bench) -> Iterator[Measured]:
    log = bench.folder / "log"
    request = {"do": "log", "to": log, "steps": LOGGED_STEPS}
    answer, _ = asked_child.ask("tests.bench.board", request)
    bench.console.info(f"a log of {LOGGED_STEPS:,} steps has {answer['kilobytes']:.0f} KB")
    shown: dict[str, dict[str, float]] = {}
    for num in SIZES_ON_BOARD:
        bench.console.info(f"TensorBoard: {num:,} runs")
        runs = _with_logs(bench.folder / f"on{num}", num, log)
        shown[f"{num:,} runs"] = costs_to_show(runs, num, bench.folder)
        shutil.rmtree(runs)
    for quantity, unit in (("all curves", "CPU s"), ("first ten", "CPU s"), ("memory", "GB")):
        values = {name: (each[quantity],) for name, each in shown.items()}
        yield _grown(f"TensorBoard: {quantity}", unit, values)


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


def _slow_ms(bench: Bench, runs: Path) -> float:
    delay = f"inject=%file,getdents64:delay_enter={1000 * SLOW_CALL_MS:.0f}"
    tracer = [*STRACE, "-e", delay, "-o", "/dev/null"]
    return 1000 * _status(bench, runs, tracer=tracer).wall_s


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


def _with_logs(runs: Path, num: int, log: Path) -> Path:
    """Write finished runs with copies of one TensorBoard log; return their folder."""
    for run in _make_runs(runs, num).glob("lstm/*"):
        shutil.copytree(log, run / "tensorboard")
    return runs
