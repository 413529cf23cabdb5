"""A worker of a sweep: `python -m harness.tuning.worker SWEEP NAME`, started by the supervisor.

It asks the chief for a trial, trains it as a run of its own, reports the scores, and asks again. A
worker that is killed and started again under the same name gets its unfinished trial back, which
continues from its checkpoint.
"""

import argparse
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.compute.gpus import check_gpus, promised_gpus
from harness.compute.strategy import (
    Numerics,
    import_tensorflow,
    make_strategy,
    num_own_gpus,
    parse_devices,
    title_of_devices,
)
from harness.errors import InputError, Interrupted, RunError
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import gpu_name
from harness.system.console import Console, log
from harness.system.processes import end_with_parent
from harness.system.resource_monitor import ResourceMonitor, idle_warning_min
from harness.system.signals import StopRequest
from harness.training.context import Observers
from harness.tuning.auth_proxy import WorkerProxy
from harness.tuning.sweep_dir import RESTART_CODE, SweepDirectory


def work(
    sweep: SweepDirectory, name: str, *, devices: str | None, data: Path | None, threads: int
) -> bool:
    """Run trials until there are no more, or as many as one process should run.

    Returns:
        Whether there are more.

    Raises:
        Interrupted: a signal came; the current trial is saved.
        InputError, RunError: this worker can't run any trial, and why.
    """
    stop = StopRequest()
    stop.listen()
    job = sweep.search().job
    dataset, idle_min = sweep.dataset(job, data), idle_warning_min()
    import_tensorflow(SlurmEnvironment.from_environment(), threads, Numerics.of(job))
    # It warns about graphs that are traced again, as they are for each trial.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    requested = parse_devices(devices) if devices else None
    check_gpus(promised_gpus(requested, SlurmEnvironment.from_environment()), Console().warning)
    strategy = make_strategy(requested)
    stop.listen()

    from harness.tuning.trial import Trials
    from harness.tuning.worker_tuner import run_trials

    console = Console()
    title = title_of_devices(strategy, threads)
    which = f" (GPU {os.environ.get('CUDA_VISIBLE_DEVICES')})" if num_own_gpus() else ""
    console.info(f"{title}{which}; data: {dataset.title}; worker {name} on {socket.gethostname()}")
    monitor = ResourceMonitor(num_own_gpus(), threads, idle_min=idle_min, warn=console.warning)
    with monitor, tempfile.TemporaryDirectory(prefix="harness-worker-") as private:
        trials = Trials(sweep, dataset, strategy, observers=Observers(console, monitor, stop))
        proxy = WorkerProxy(Path(private), name, sweep.secret(), address=sweep.address)
        os.environ |= {
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "unix",
            "KERASTUNER_ORACLE_PORT": str(proxy.path),
        }
        return run_trials(sweep, trials, stop=stop, folder=Path(private))


def main(args: Sequence[str] | None = None) -> int:
    """Work for the sweep in the first argument to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.worker")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    parser.add_argument("--devices")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", type=int, help="index among the GPUs that this process sees")
    arguments = parser.parse_args(args)
    end_with_parent()
    if arguments.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_name(arguments.gpu)
    try:
        more = work(
            SweepDirectory.open(arguments.sweep),
            arguments.name,
            devices=arguments.devices,
            data=arguments.data,
            threads=arguments.threads,
        )
    except (InputError, RunError, Interrupted) as end:
        log(logging.ERROR, " ".join(str(end).split()))
        return end.exit_code
    return RESTART_CODE if more else 0


if __name__ == "__main__":
    sys.exit(main())
