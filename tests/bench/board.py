"""The costs of a TensorBoard until it shows the curves of many runs."""

import http.client
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from harness.doctor import child
from harness.errors import RunError
from tests import asked_child

POLL_S = 0.3
LONGEST_S = 1_800.0
STEPS_TOGETHER = 10


def costs_to_show(runs: Path, num: int, scratch: Path) -> dict[str, float]:
    """Start `harness tensorboard` for `num` runs, and wait until it shows the curves of all.

    Returns:
        CPU seconds until the curves of ten and of all runs are shown, and the memory in GB.

    Raises:
        RunError: if TensorBoard ends, or does not show all curves within half an hour.
    """
    cache = scratch / f"{runs.name}-cache"
    args = [*child.module_args("harness"), "tensorboard", runs, "--runs", runs]
    began = time.perf_counter()
    with child.start(args, {"XDG_CACHE_HOME": str(cache)}) as process:
        board = psutil.Process(process.pid)
        try:
            first_s = 0.0
            while (shown := _num_shown(cache, process.pid)) < num:
                first_s = first_s or (_used_s(board) if shown >= 10 else 0.0)
                if process.poll() is not None or time.perf_counter() - began > LONGEST_S:
                    raise RunError(f"harness tensorboard {runs}: showed only {shown} of {num} runs")
                time.sleep(POLL_S)
            all_s = _used_s(board)
            memory_gb = board.memory_info().rss / 1e9
        finally:
            process.terminate()
    return {"first ten": first_s or all_s, "all curves": all_s, "memory": memory_gb}


def _used_s(board: psutil.Process) -> float:
    times = board.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _num_shown(cache: Path, process: int) -> int:
    """Return the number of runs whose loss TensorBoard shows; 0 if it doesn't answer."""
    for file in cache.glob(f"harness/tensorboard/*-{process}.txt"):
        host, _, path = file.read_text().split()[-1].removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=LONGEST_S)
        try:
            connection.request("GET", f"/{path}data/plugin/scalars/tags")
            tags = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        return sum("step/loss" in each for each in tags.values())
    return 0


# Called in a child process, because it imports TensorFlow


def make_log(to: str, steps: int) -> dict[str, Any]:
    """Write the TensorBoard log of a run with `steps` steps; return its size."""
    from harness.training.tensorboard_log import TensorBoardLog

    values = np.linspace(1, 0, steps)
    with TensorBoardLog(Path(to), num_steps=steps) as log:
        for start in range(0, steps, STEPS_TOGETHER):
            part = values[start : start + STEPS_TOGETHER]
            measured = {"step/duration_ms": 20.0, "device/cpu_share": 0.5, "device/memory_gb": 1.0}
            speed = {"learning_rate": 0.001, "reviews_per_s": 900.0}
            log.steps(start + 1, part, 1 - part, **speed, measured=measured)
        for epoch in range(1, 8):
            line = {"loss": 1 / epoch, "accuracy": 0.5}
            log.epoch(epoch, {**line, "learning_rate": 0.001, "reviews_per_s": 900.0}, line)
        log.test({"accuracy": 0.88, "f1": 0.88})
    files = [path for path in Path(to).rglob("*") if path.is_file()]
    return {"kilobytes": sum(path.stat().st_size for path in files) / 1e3}


def main() -> None:
    """Answer the request in the first command-line argument."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    asked_child.answer_request({"log": make_log})


if __name__ == "__main__":
    main()
