"""A command's proposer: `python -m harness.tuning.proposer SWEEP --ahead N`.

It has KerasTuner's oracle and makes the trials' folders, each with its values. A proposal may take
its time while the workers train, and the memory of KerasTuner and TensorFlow is freed once all
trials are proposed. What it proposes is a function of the search and of the accepted results, so
each command may have one, and one that was killed is started again.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from harness.errors import InputError, Interrupted, RunError
from harness.search_space import GUIDED, SearchSpec
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import log, take_any_text
from harness.system.processes import end_with_parent
from harness.system.signals import StopRequest
from harness.tuning.course import STOPPED, Proposer, View
from harness.tuning.disk import Disk, patiently
from harness.tuning.pool import RESTART_CODE, STOPPED_CODE
from harness.tuning.records import Trial
from harness.tuning.schedule import Schedule
from harness.tuning.sweep_dir import SweepDirectory


def schedule_of(search: SearchSpec, known: list[Trial]) -> Schedule:
    """The schedule of a search, of which the first trials are known; the list may grow."""
    from harness.tuning.oracle import make_oracle

    return Schedule(
        make_oracle(search, known),
        num_trials=search.max_trials or 0,
        width=search.table.parallel if search.table.tuner in GUIDED else None,
        known=known,
    )


def propose(sweep: SweepDirectory, arguments: argparse.Namespace) -> int:
    """Propose trials to the last one; the exit code.

    Raises:
        Interrupted: a signal came.
        InputError, RunError: the oracle can't go on, and why.
    """
    stop = StopRequest()
    stop.listen()
    search = patiently(sweep.search, stop)
    view = View(time.monotonic, sweep.terms(), num_lifted=arguments.lifted)
    is_guided = search.table.tuner in GUIDED
    begin, num_asked = partial(schedule_of, search), search.table.trials
    proposer = Proposer(view, begin, num_asked, ahead=arguments.ahead, is_guided=is_guided)
    try:
        how = Disk(sweep.folder, stop).run(proposer.course())
    except RunError:
        if sweep.search().table.trials == num_asked:
            raise
        return RESTART_CODE  # another command has asked for more trials
    return STOPPED_CODE if how == STOPPED else 0


def main(args: Sequence[str] | None = None) -> int:
    """Propose for the sweep in the first argument to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.proposer")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--ahead", type=int, default=2, help="trials that wait for a worker")
    parser.add_argument("--lifted", type=int, default=0, help="stops after which it goes on")
    arguments = parser.parse_args(args)
    end_with_parent()
    take_any_text()
    # One thread: sums in another order would give other proposals.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        from harness.compute.strategy import import_tensorflow

        import_tensorflow(SlurmEnvironment.from_environment(), threads=1)
        return propose(SweepDirectory(arguments.sweep), arguments)
    except (InputError, RunError, Interrupted) as end:
        log(logging.ERROR, " ".join(str(end).split()))
        return end.exit_code


if __name__ == "__main__":
    sys.exit(main())
