"""`python -m tests.gpu [--full]`: tests the README's promises on this node by real runs.

The command prints a numbered line per check and writes a JSON file. A check that could not run has
the level `not run`, never green. Without a GPU, two virtual CPU devices are tested. The command
does not need pytest. `sbatch slurm/doctor.sh` starts it in a job.
"""

import argparse
import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from harness import __version__
from harness.cli.options import confirm_here
from harness.compute.strategy import MAX_DEVICES, parse_devices, site_devices
from harness.doctor.doctor import Finding, examine
from harness.doctor.probe import ask_child
from harness.errors import InputError, Interrupted, RunError
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import echo, log, take_any_text
from harness.system.files import atomic_write, make_folder
from harness.system.processes import nvidia_driver, processor
from tests.gpu import full
from tests.gpu.checks import CHECKS, check_gpus
from tests.gpu.runs import Checks, Runs, unless_not_run

LEVELS = ("green", "yellow", "red", "not run")


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks; return 0, 1 (red check or error), 2 (input refused) or 75 (interrupted)."""
    take_any_text()
    options = parser().parse_args(words)
    try:
        confirm_here(here=options.here)
        name = f"acceptance-{socket.gethostname()}-{time.strftime('%Y-%m-%dT%H%M%S')}.json"
        out = options.runs / name
        devices = options.devices or site_devices()
        report = accept(devices, options.data, options.runs, is_full=options.full)
        text = json.dumps(report, indent=2)
        try:
            atomic_write(out, text, remedy="choose another folder with --runs")
        except RunError:  # the report took minutes, so show it anyway
            echo(text)
            raise
    except (InputError, RunError) as error:
        log(logging.ERROR, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        log(logging.ERROR, "interrupted; no report is written")
        return Interrupted.exit_code
    levels = [each["level"] for each in report["checks"]]
    echo(f"{', '.join(f'{levels.count(each)} {each}' for each in LEVELS)}; written to {out}")
    return int("red" in levels)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description="Test this node by real runs; this takes ten minutes.",
    )
    add = made.add_argument
    add(
        "--full",
        action="store_true",
        help="also check two processes that use NCCL, and models on other devices",
    )
    add("--devices", metavar="KIND:N", help="gpu:1, cpu:2, …; default: all GPUs, or cpu:2")
    add("--data", type=Path, metavar="DIR", help="folder with imdb.npz")
    runs = Path(os.environ.get("HARNESS_RUNS") or "runs")
    folder = "folder of the JSON file; with several nodes also of the runs, for a few minutes"
    add("--runs", type=Path, metavar="DIR", default=runs, help=folder)
    add("--here", action="store_true", help="run on this machine even if it has sbatch")
    return made


def accept(
    devices: str | None, data: Path | None, folder: Path, *, is_full: bool
) -> dict[str, Any]:
    """Run the checks in order, print their lines, and return the content of the JSON file.

    Args:
        devices: the value of `--devices`; by default all GPUs or, without a GPU, two CPU devices.
            On CPUs at least two devices are tested.
        data: the folder of the dataset.
        folder: if the job has several nodes, the runs train below this folder, which all nodes see.
        is_full: whether to run the checks of `full.py`, too.

    Raises:
        InputError: if `devices` is wrong, or if this job step has several tasks.
        RunError: if TensorFlow can't list its devices.
    """
    allocation = SlurmEnvironment.from_environment()
    if allocation and allocation.num_tasks > 1:
        raise InputError(
            f"tests.gpu runs in {allocation.num_tasks} tasks: should be 1; use --ntasks=1"
        )
    requested = parse_devices(devices) if devices else None
    seen = ask_child(devices)
    kind = requested.kind if requested else "gpu" if seen["gpus"] else "cpu"
    count = requested.count if requested else None
    num = min(len(seen["gpus"]), count or MAX_DEVICES) if kind == "gpu" else max(2, count or 2)
    checks: Checks = {"devices": partial(check_gpus, seen), **CHECKS}
    if is_full:
        checks |= full.CHECKS
    lines: list[dict[str, Any]] = []
    has_nodes = allocation and allocation.num_nodes > 1
    if has_nodes:
        make_folder(folder)
    parent = folder.absolute() if has_nodes else None
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as scratch:
        runs = Runs(Path(scratch), kind, num, data, allocation)
        for name, check in checks.items():
            began = time.perf_counter()
            for finding in examine(name, partial(unless_not_run, name, partial(check, runs))):
                took_s = round(time.perf_counter() - began, 1)
                lines.append({"number": len(lines) + 1, **asdict(finding), "took_s": took_s})
                _print(len(lines), finding)
    return {
        "harness": __version__,
        "host": socket.gethostname(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processor": processor(),
        "driver": nvidia_driver(),
        "seen": seen,
        "devices": f"{kind}:{num}",
        "full": is_full,
        "checks": lines,
        "values": runs.values,
    }


def _print(number: int, finding: Finding) -> None:
    level = "-" if finding.level == "not run" else finding.level
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    echo(f"{number:3} {level:7}{finding.name:24} {' '.join(f'{finding.found}{remedy}'.split())}")


if __name__ == "__main__":
    sys.exit(main())
