"""A worker's process: `python -m harness.tuning.worker SWEEP NAME`, started by a command's pool."""

import argparse
import logging
import os
import signal
import socket
import sys
import time
import tomllib
import uuid
from collections.abc import Sequence
from pathlib import Path

from harness.compute.gpus import check_gpus, promised_gpus
from harness.compute.strategy import (
    Numerics,
    import_tensorflow,
    num_own_gpus,
    parse_devices,
    title_of_devices,
)
from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError
from harness.search_space import SEARCH_FILE
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import gpu_name
from harness.sweep_protocol.mailbox import Terms, patiently
from harness.sweep_protocol.worker import (
    ALONE_CODE,
    NODE_FAULT_CODE,
    Alone,
    StopClock,
    TrialStop,
    Worker,
)
from harness.system import watchdog
from harness.system.console import Console, log, take_any_text
from harness.system.guard import stand_guard
from harness.system.processes import end_with_parent
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.training.context import Observers
from harness.training.launch import may_use_gpus, tell_death
from harness.tuning.sweep_dir import SweepDirectory


def work(sweep: SweepDirectory, arguments: argparse.Namespace) -> int:
    """Train trials until the sweep is over, or as many as one process should; the exit code.

    Raises:
        Interrupted: a signal came, or nobody supervises the sweep; the current trial is saved.
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
    signals, stop = StopRequest(), TrialStop()
    signals.listen()
    # Read once: what follows takes seconds, after which the disk may fail again.
    search = patiently(sweep.search, StopClock(signals))
    terms, job = patiently(sweep.terms, StopClock(signals)), search.job
    dataset = patiently(lambda: sweep.dataset(job, arguments.data), StopClock(signals))
    threads, devices = arguments.threads, arguments.devices
    import_tensorflow(SlurmEnvironment.from_environment(), threads, Numerics.of(job))
    # It warns about graphs that are traced again, as they are for each trial.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    requested = parse_devices(devices) if devices else None
    check_gpus(promised_gpus(requested, SlurmEnvironment.from_environment()), Console().warning)
    from harness.compute.device_check import checked_strategy

    strategy = checked_strategy(requested, None, job, Console())
    signals.check()
    stop.listen()

    from harness.tuning.trial import Trials

    console = Console()
    title, name = title_of_devices(strategy, threads), arguments.name
    which = f" (GPU {os.environ.get('CUDA_VISIBLE_DEVICES')})" if num_own_gpus() else ""
    console.info(f"{title}{which}; data: {dataset.title}; worker {name} on {socket.gethostname()}")
    monitor = ResourceMonitor(num_own_gpus(), threads, warn=console.warning)
    shared = sweep.shared(StopClock(stop), terms)
    with monitor:
        observers = Observers(console, monitor, stop)
        trials = Trials(
            sweep, search, shared, dataset=dataset, strategy=strategy, observers=observers
        )
        worker = Worker(shared, arguments.id, trials, name=name, has_gpu=num_own_gpus() > 0)
        return worker.run()


def open_sweep(folder: Path) -> SweepDirectory:
    """The sweep, which the command that started this process has opened: only the disk may hide it.

    Raises:
        DiskError: if the disk does so for long.
    """
    sweep, terms, since_s = SweepDirectory(folder), Terms(), time.monotonic()
    while not _is_readable(sweep):
        if time.monotonic() - since_s > terms.patience_s:
            raise DiskError(f"{folder / SEARCH_FILE}: can't be read; make the disk readable again")
        time.sleep(terms.idle_s)
    return sweep


def _is_readable(sweep: SweepDirectory) -> bool:
    try:
        content = sweep.disk.read(sweep.path(SEARCH_FILE))
        tomllib.loads((content or b"").decode())
    except (OSError, ValueError):
        return False
    return content is not None


def main(args: Sequence[str] | None = None) -> int:
    """Work for the sweep in the first argument to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.worker")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name", help="for people")
    parser.add_argument("--id", default=uuid.uuid4().hex, help="of this process alone")
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
    try:
        return work(open_sweep(arguments.sweep), arguments)
    except (InputError, RunError, Interrupted) as end:
        log(logging.ERROR, " ".join(str(end).split()))
        if isinstance(end, NodeFault) and end.exit_code == Interrupted.exit_code:
            return NODE_FAULT_CODE
        if isinstance(end, InputError) and not _is_readable(SweepDirectory(arguments.sweep)):
            return RunError.exit_code  # the disk fails, and the user's input is not at fault
        return ALONE_CODE if isinstance(end, Alone) else end.exit_code


if __name__ == "__main__":
    sys.exit(main())
