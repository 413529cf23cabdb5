"""KerasTuner's oracle in a process of its own: `python -m harness.tuning.oracle_process SWEEP`.

It takes the trials' results on its standard input and writes the trials that it proposes on its
standard output, a JSON line each. So a proposal may take its time without a worker's being waited
for, and the memory of KerasTuner and TensorFlow is freed once all trials are proposed. What it
writes is a function of what it reads: a process that was killed is started again.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from harness.errors import InputError, RunError
from harness.files.plain_file import is_said_of_disk
from harness.search_space import GUIDED, SearchSpec, load_search
from harness.slurm.environment import SlurmEnvironment
from harness.sweep_protocol.journal import Ledger, Proposal
from harness.sweep_protocol.mailbox import Clock, Report, patiently
from harness.sweep_protocol.schedule import Schedule
from harness.system.console import strip_prefix
from harness.system.processes import own_code_first
from harness.tuning.pool import MAX_IN_OUTAGE, OUTAGE_AGAIN_S

MAX_STARTS = 3  # without a proposal in between
QUEUED = 64  # proposals that are read ahead


class OracleProcess:
    """The oracle as the supervisor uses it: no call waits for it."""

    def __init__(self, search_file: Path, log: Path, ledger: Ledger) -> None:
        """Start it; the ledger holds the trials that it has proposed, and results from then on."""
        self.search_file, self.log, self.ledger = search_file, log, ledger
        self._num_starts, self._not_before_s = 0, 0.0
        self._start()

    def _start(self) -> None:
        self._num_starts += 1
        self._proposals: queue.Queue[Proposal] = queue.Queue(QUEUED)
        self._input: queue.Queue[str] = queue.Queue()
        self._end = ""  # its last word: over, or an error
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - no shell
                [sys.executable, "-m", "harness.tuning.oracle_process", str(self.search_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                # One thread: sums in another order would give other proposals in a replay.
                env={**own_code_first(), "CUDA_VISIBLE_DEVICES": "", **threads},
            )
        for proposal in self.ledger.proposals:
            self._input.put(json.dumps({"known": asdict(proposal)}))
        self._input.put(json.dumps({"begin": True}))
        for work in (self._feed, self._read):
            threading.Thread(target=work, args=(self._process,), daemon=True).start()

    def _feed(self, process: "subprocess.Popen[str]") -> None:
        lines, stdin = self._input, process.stdin
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was closed
            while stdin:
                stdin.write(lines.get() + "\n")
                stdin.flush()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        proposals = self._proposals
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout or ():
                content = json.loads(line)
                if "n" in content:
                    proposals.put(Proposal(**content))
                elif process is self._process:
                    self._end = content["end"]

    def offer(self, n: int, report: Report) -> None:
        """Take a trial's result."""
        self._input.put(json.dumps({"n": n, "report": report.model_dump(exclude={"figures"})}))

    def take(self, limit: int) -> list[Proposal]:
        """New trials, at most so many, those that are there.

        Raises:
            RunError: if the oracle fails.
        """
        new: list[Proposal] = []
        with contextlib.suppress(queue.Empty):
            while len(new) < limit:
                new.append(self._proposals.get_nowait())
        if new:
            self._num_starts = 0
        elif self._end not in ("", "over"):
            raise RunError(self._end)
        elif not self._end and self._process.poll() is not None and self._proposals.empty():
            self._restart()
        return new

    def _restart(self) -> None:
        if time.monotonic() < self._not_before_s:
            return
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        last = strip_prefix(lines[-1]) if lines else f"exit code {self._process.returncode}"
        is_outage = is_said_of_disk(last)  # of the disk with the environment
        if self._num_starts >= (MAX_IN_OUTAGE if is_outage else MAX_STARTS):
            raise RunError(f"the oracle failed {self._num_starts} times: {last} (log {self.log})")
        self._not_before_s = time.monotonic() + is_outage * OUTAGE_AGAIN_S
        self._start()
        for n, (_, report) in self.ledger.accepted.items():
            self.offer(n, report)

    @property
    def is_over(self) -> bool:
        """Whether no trial will come any more."""
        return self._end == "over" and self._proposals.empty()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def make_schedule(search: SearchSpec, known: list[Proposal]) -> Schedule:
    """The schedule of a search with KerasTuner's oracle."""
    from harness.tuning.oracle import make_oracle

    table = search.table
    return Schedule(
        make_oracle(search, known),
        num_trials=search.max_trials or 0,
        width=table.parallel if table.tuner in GUIDED else None,
        known=known,
    )


def propose(search: SearchSpec, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The messages of the process, by those that it gets: trials, at last an end."""
    known: list[Proposal] = []
    for line in lines:
        message = json.loads(line)
        if "begin" in message:
            break
        known.append(Proposal(**message["known"]))
    schedule = make_schedule(search, known)
    while True:
        for proposal in schedule.advance():
            if proposal.n >= len(known):
                yield asdict(proposal)
        if schedule.is_over:
            yield {"end": "over"}
            return
        if not (line := next(lines, "")):
            return
        message = json.loads(line)
        schedule.offer(message["n"], Report.model_validate(message["report"]))


def main() -> int:
    """Serve the sweep in the first argument; returns the exit code."""
    # What others print goes to the log, not between the messages.
    messages: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from harness.compute.strategy import import_tensorflow

    import_tensorflow(SlurmEnvironment.from_environment(), threads=1)
    try:
        search = patiently(lambda: load_search(Path(sys.argv[1])), Clock())
        for message in propose(search, iter(sys.stdin.readline, "")):
            messages.write(json.dumps(message) + "\n")
    except (InputError, RunError) as error:
        messages.write(json.dumps({"end": str(error)}) + "\n")
    except BrokenPipeError:  # the supervisor has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
