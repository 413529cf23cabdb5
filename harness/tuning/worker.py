"""A worker's process: `python -m harness.tuning.worker SWEEP NAME`, started by a command's pool."""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compute.gpus import check_gpus, promised_gpus
from harness.compute.strategy import (
    Numerics,
    import_tensorflow,
    num_own_gpus,
    parse_devices,
    title_of_devices,
)
from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError, TakenOver
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import gpu_name
from harness.system import watchdog
from harness.system.console import Console, log, take_any_text
from harness.system.guard import stand_guard
from harness.system.processes import end_with_parent, process_space
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.training.context import Observers
from harness.training.launch import may_use_gpus, tell_death
from harness.tuning.course import RENEW, STOPPED, Clean, Terms, Train, View, Worker
from harness.tuning.disk import Disk, died, patiently
from harness.tuning.pool import NODE_FAULT_CODE, RESTART_CODE, STOPPED_CODE
from harness.tuning.records import Attempt, Trial
from harness.tuning.sweep_dir import SweepDirectory

CODES = {RENEW: RESTART_CODE, STOPPED: STOPPED_CODE}
if TYPE_CHECKING:
    from harness.tuning.trial import Trials

LEAVE_S = 20.0  # for the last beat to be written
MAX_TRIALS = 50  # of a process: each leaves some megabytes behind


class Attempts:
    """Trains the attempts of a worker, with a beat of its own while it does."""

    def __init__(self, disk: Disk, terms: Terms, trials: "Trials") -> None:
        """Take the worker's folder, and the `Trials` of this process."""
        self.disk, self.terms, self.trials = Disk(disk.folder), terms, trials
        self.worker: Worker | None = None
        self.num_trials = 0

    def must_renew(self) -> bool:
        """Whether this process has trained many trials, or holds much memory."""
        return self.num_trials >= MAX_TRIALS or self.trials.has_grown()

    def act(self, operation: Train | Clean) -> Trial | None:
        """Carry out what is no operation on the folder.

        Raises:
            Interrupted: a signal came; the attempt is saved.
            OSError: the file system fails, which says nothing of the trial.
            NodeFault: this process can train no trial.
        """
        if isinstance(operation, Clean):
            self.trials.clean(operation.n, operation.k)
            return None
        self.num_trials += 1
        try:
            return self._train(operation.trial, operation.k)
        except (DiskError, TakenOver) as error:  # no lease is ever taken over here
            raise OSError(str(error)) from None

    def _train(self, trial: Trial, k: int) -> Trial | None:
        from harness.tuning.trial import Superseded

        step, ended, needless = 0, threading.Event(), threading.Event()

        def beat() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):  # tried again
                    saved = self.trials.saved(trial.n, k)
                    if self.worker and self.disk.run(
                        self.worker.tick(trial.n, k, step=step, saved=saved)
                    ):
                        needless.set()
                ended.wait(self.terms.beat_s)

        def check() -> None:
            nonlocal step
            step += 1
            if needless.is_set():
                raise Superseded("another worker, or the end of the search")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            return self.trials.run(trial, k, check)
        except Superseded:
            return None
        finally:
            ended.set()
            thread.join(LEAVE_S)


def work(sweep: SweepDirectory, arguments: argparse.Namespace) -> int:
    """Train trials until the search is over, or as many as one process should; the exit code.

    Raises:
        Interrupted: a signal came; the current trial is saved.
        InputError, RunError: this worker can't train any trial, and why.
    """
    if may_use_gpus(arguments.devices):
        stand_guard(on_death)
    with watchdog.from_settings():
        return _work(sweep, arguments)


def on_death(number: signal.Signals, text: str, process: int) -> None:
    """Say why a worker's process died; what is no fault of the node may be one of the trial.

    Raises:
        NodeFault: if the node is at fault; the worker is not started here again.
    """
    try:
        tell_death(number, text, process)
    except NodeFault:
        raise
    except RunError as error:
        log(logging.ERROR, str(error))


def _work(sweep: SweepDirectory, arguments: argparse.Namespace) -> int:
    signals = StopRequest()
    signals.listen()
    # Read once: what follows takes seconds, after which the disk may fail again.
    search = patiently(sweep.search, signals)
    job, terms = search.job, sweep.terms()
    dataset = patiently(lambda: sweep.dataset(job, arguments.data), signals)
    threads, devices = arguments.threads, arguments.devices
    import_tensorflow(SlurmEnvironment.from_environment(), threads, Numerics.of(job))
    # It warns about graphs that are traced again, as they are for each trial.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    requested = parse_devices(devices) if devices else None
    check_gpus(promised_gpus(requested, SlurmEnvironment.from_environment()), Console().warning)
    from harness.compute.device_check import checked_strategy

    strategy = checked_strategy(requested, None, job, Console())
    signals.check()
    from harness.tuning.trial import Trials, TrialStop

    stop = TrialStop()
    stop.listen()
    console = Console()
    title, name = title_of_devices(strategy, threads), arguments.name
    which = f" (GPU {os.environ.get('CUDA_VISIBLE_DEVICES')})" if num_own_gpus() else ""
    console.info(f"{title}{which}; data: {dataset.title}; worker {name} on {socket.gethostname()}")
    monitor = ResourceMonitor(num_own_gpus(), threads, warn=console.warning)
    with monitor:
        observers = Observers(console, monitor, stop)
        trials = Trials(sweep, search, dataset=dataset, strategy=strategy, observers=observers)
        disk = Disk(sweep.folder, stop)
        attempts = Attempts(disk, terms, trials)
        view = View(time.monotonic, terms, died, num_lifted=arguments.lifted)
        me = Attempt(
            worker=arguments.id,
            name=name,
            host=socket.gethostname(),
            process=os.getpid(),
            space=process_space(),
            has_gpu=num_own_gpus() > 0,
        )
        worker = Worker(view, me, search.table.trials, must_renew=attempts.must_renew)
        attempts.worker = worker
        return CODES.get(disk.run(worker.course(), attempts.act), 0)


def main(args: Sequence[str] | None = None) -> int:
    """Work for the sweep in the first argument to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.worker")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name", help="for people")
    parser.add_argument("--id", default=uuid.uuid4().hex, help="of this process alone")
    parser.add_argument("--lifted", type=int, default=0, help="stops after which it goes on")
    parser.add_argument("--devices")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", type=int, help="index among the GPUs that this process sees")
    arguments = parser.parse_args(args)
    end_with_parent()
    take_any_text()
    os.environ["HARNESS_CPUS"] = str(arguments.threads)  # the record of each trial names them
    if arguments.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_name(arguments.gpu)
    sweep = SweepDirectory(arguments.sweep)
    try:
        patiently(sweep.check_readable, StopRequest())
        return work(sweep, arguments)
    except (InputError, RunError, Interrupted) as end:
        log(logging.ERROR, " ".join(str(end).split()))
        if isinstance(end, NodeFault) and end.exit_code == Interrupted.exit_code:
            return NODE_FAULT_CODE
        if isinstance(end, InputError) and not sweep.is_readable():
            return RunError.exit_code  # the disk fails, and the user's input is not at fault
        return end.exit_code


if __name__ == "__main__":
    sys.exit(main())
