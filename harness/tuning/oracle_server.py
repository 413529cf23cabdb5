"""The chief of a sweep: `python -m harness.tuning.oracle_server SWEEP`, a child of the supervisor.

It holds KerasTuner's oracle, gives trials to workers, takes back the trials of lost workers, and
writes `leaderboard.csv` and `oracle/progress.json`. It ends when every trial has ended.
"""

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness.compute.strategy import import_tensorflow
from harness.errors import InputError, RunError, TakenOver
from harness.files.atomic_file import atomic_write
from harness.files.leased_dir import LeasedDirectory
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import log
from harness.system.processes import end_with_parent
from harness.tuning.auth_proxy import ChiefProxy
from harness.tuning.sweep_dir import (
    ADDRESS,
    LEADERBOARD,
    PROGRESS,
    SweepDirectory,
    gather,
    leaderboard_csv,
)

CHIEF = "chief"  # KerasTuner recognizes its chief by this word in the tuner's id
POLL_S = 0.5
GRACE_S = 15.0  # for a worker to come back under its name before another gets its trial
REPORT_S = 30.0  # longest time between reports, which show that the chief is alive
LEAVE_S = 20.0  # for the workers to learn that the search is over


class Chief:
    """The oracle and its workers."""

    def __init__(self, sweep: SweepDirectory, host: str, port: int) -> None:
        from harness.tuning.oracle import make_oracle

        self.sweep, self.search = sweep, sweep.search()
        self.folder = LeasedDirectory(sweep.path("oracle"))
        self.folder.kind = "chief of"
        self.folder.take_lease()
        self.oracle = make_oracle(self.search, self.folder.folder, sweep.trial_error)
        self.oracle.reload()
        self._lock = threading.Lock()
        self._connections: dict[str, int] = {}  # open ones of each worker
        # Workers with a trial that have not connected yet may be dead.
        self._gone = dict.fromkeys(self.oracle.ongoing_trials, time.monotonic())
        self._reported: dict[str, Any] = self.oracle.summary()
        self._reported_s = 0.0
        self._private = tempfile.TemporaryDirectory(prefix="harness-chief-")
        socket_path = Path(self._private.name) / "oracle"
        self._serve_oracle(socket_path)
        self.proxy = ChiefProxy(
            (host, port), secret=sweep.secret(), oracle=socket_path, on_change=self._note_connection
        )
        self.folder.write_json(
            ADDRESS, {"host": host, "port": self.proxy.port, "process": os.getpid()}
        )

    def _serve_oracle(self, path: Path) -> None:
        import keras_tuner

        # KerasTuner joins them to "unix:/path", which gRPC takes for a Unix socket.
        os.environ |= {
            "KERASTUNER_TUNER_ID": CHIEF,
            "KERASTUNER_ORACLE_IP": "unix",
            "KERASTUNER_ORACLE_PORT": str(path),
        }
        tuner = keras_tuner.engine.base_tuner.BaseTuner(
            self.oracle, directory=self.folder.folder, project_name="tuner", overwrite=True
        )
        # KerasTuner stops serving once all workers are gone, even if a lost worker's trial waits.
        # So one worker never goes, and `work` decides when the search is over.
        self.oracle.tuner_ids.add(CHIEF)
        threading.Thread(target=tuner.search, kwargs={"verbose": 0}, daemon=True).start()

    def _note_connection(self, worker: str, is_open: bool) -> None:
        with self._lock:
            self._connections[worker] = self._connections.get(worker, 0) + (1 if is_open else -1)
            if self._connections[worker] > 0:
                self._gone.pop(worker, None)
            else:
                self._gone[worker] = time.monotonic()

    def work(self) -> None:
        """Serve until every trial has ended.

        Raises:
            RunError: if trials fail with the same error, or the state can't be written.
        """
        while True:
            self.folder.check_lease()  # before anything is written over a newer chief's state
            self._release_lost()
            if self.oracle.problem:
                raise self.oracle.problem
            is_over = self.oracle.is_over()
            self._report(is_over)
            if error := self.oracle.same_failure():
                raise RunError(f"three trials failed alike: {error}")
            if is_over:
                break
            time.sleep(POLL_S)
        deadline = time.monotonic() + LEAVE_S
        while any(n > 0 for n in self._connections.values()) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _release_lost(self) -> None:
        now = time.monotonic()
        with self._lock:
            lost = [worker for worker, since in self._gone.items() if now - since > GRACE_S]
            for worker in lost:
                del self._gone[worker]
        for worker in lost:
            trial = self.oracle.release(worker)
            if trial is not None:
                log(logging.INFO, f"worker {worker} is lost; trial {trial} goes to the next")

    def _report(self, is_over: bool) -> None:
        """Write leaderboard and progress if anything changed."""
        summary = self.oracle.summary()
        now = {**summary, "is_over": is_over, "workers": self._workers()}
        if now == self._reported and time.monotonic() - self._reported_s < REPORT_S:
            return
        self._reported_s = time.monotonic()
        trials = gather(self.sweep, self.search, summary)
        content = leaderboard_csv(trials, self.search)
        atomic_write(self.sweep.path(LEADERBOARD), content)
        counts = {
            status: sum(trial.status == status for trial in trials)
            for status in ("finished", "running", "waiting", "failed")
        }
        finished = [t for t in trials if t.status == "finished" and t.score is not None]
        pick = max if self.search.goal == "max" else min
        best = pick(finished, key=lambda t: t.score or 0.0) if finished else None
        self.folder.write_json(
            PROGRESS,
            {
                **counts,
                "trials": self.oracle.max_trials,
                "is_over": is_over,
                "workers": self._workers(),
                "at": {t.worker: t.trial for t in trials if t.worker},
                "best": {"trial": best.trial, "score": best.score} if best else None,
                "time_s": round(time.time(), 3),
            },
        )
        before = {t["trial"]: t["status"] for t in self._reported["trials"]}
        for trial in trials:
            if trial.status in ("finished", "failed") and before.get(trial.trial) != trial.status:
                objective = self.search.table.objective
                score = "" if trial.score is None else f" {objective} {trial.score:.4f}"
                line = f"trial {trial.trial} {trial.status}{score} {trial.error}"
                log(logging.INFO, line.rstrip())
        self._reported = now

    def _workers(self) -> list[str]:
        with self._lock:
            return sorted(worker for worker, count in self._connections.items() if count > 0)


def main() -> int:
    """Serve the sweep in the first argument to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.oracle_server")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    end_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it computes nothing but would take GPU memory
    import_tensorflow(SlurmEnvironment.from_environment(), threads=1)
    try:
        Chief(SweepDirectory.open(arguments.sweep), arguments.host, arguments.port).work()
    except (InputError, RunError) as error:
        log(logging.ERROR, str(error))
        os._exit(TakenOver.exit_code if isinstance(error, TakenOver) else error.exit_code)
    except OSError as error:
        log(logging.ERROR, str(error.strerror or error))
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # at once, since KerasTuner's server thread would keep the process alive


if __name__ == "__main__":
    sys.exit(main())
