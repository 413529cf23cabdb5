"""From a command's words to a run: data and devices, checked in the order of what they cost."""

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.compute.execution_plan import ExecutionPlan, choose, device_name, measured_ms
from harness.compute.strategy import (
    import_tensorflow,
    make_strategy,
    num_own_gpus,
    one_device,
    parse_devices,
)
from harness.compute.xla_cache import compiled_steps
from harness.data.dataset import Dataset
from harness.data.resolve import check_same, open_data, reopen_data
from harness.errors import InputError
from harness.job import Job
from harness.slurm.environment import SlurmEnvironment, given_cpus, visible_gpus
from harness.slurm.rendezvous import WorkerGroup
from harness.system.console import Console
from harness.system.resource_monitor import ResourceMonitor, idle_warning_min
from harness.system.signals import StopRequest
from harness.tracking.run_dir import RunDirectory, run_identity


def launch(
    run: RunDirectory,
    job: Job,
    *,
    devices: str | None,
    data: Path | None,
    full: bool,
    console: Console,
) -> dict[str, Any]:
    """Begin a run, or go on with one, and return its result.

    A run that goes on takes the devices and the data that its record names, unless told others.

    Raises:
        InputError: for devices or data that are not there, or a run that a later version wrote;
            nothing is written then.
        Interrupted, RunError: as `harness.training.train.train` says.
    """
    run.check_format()
    allocation = SlurmEnvironment.from_environment()
    if allocation and allocation.num_nodes > 1 and not allocation.in_step:
        raise InputError(
            f"an allocation of {allocation.num_nodes} nodes: should be used through srun, a task a "
            "node; start a script of slurm/, or srun --ntasks-per-node=1 harness …"
        )
    stop = StopRequest(alone=allocation is None or allocation.num_tasks == 1)
    stop.listen()
    devices = devices or run.read_json("provenance.json").get("devices_asked")
    asked = parse_devices(devices) if devices else None
    idle_min = idle_warning_min()
    dataset = dataset_of(run, job, data, full=full)
    record = run  # which every worker reads
    threads = plan_of(job, devices, record).threads
    with contextlib.ExitStack() as stack:
        worker_group = None
        if allocation and not stop.alone:
            purpose = run_identity(job, dataset.checksum)
            worker_group = stack.enter_context(WorkerGroup.join(allocation, purpose))
            if not worker_group.is_chief:
                # It does all that the chief does, and nobody reads what it writes and says.
                console.silent = True
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="harness-"))
                run = RunDirectory(Path(folder) / run.folder.name)
        if not worker_group:
            stack.enter_context(compiled_steps(job, threads))
        import_tensorflow(allocation, threads)
        strategy = make_strategy(asked, worker_group)
        # By the devices that are used: a GPU that Slurm gave need not be one that TensorFlow takes.
        plan = replace(plan_of(job, "gpu" if num_own_gpus() else "cpu", record), threads=threads)
        stop.listen()  # once more, over a handler that TensorFlow may have set
        # Every node's process warns of its own GPUs, so not by a screen that may be silent.
        monitor = stack.enter_context(
            ResourceMonitor(
                num_own_gpus(), given_cpus(allocation), idle_min=idle_min, warn=Console().warning
            )
        )
        announce(run, job, dataset, strategy.num_replicas_in_sync, console)

        from harness.training.train import train

        stack.enter_context(console)
        return train(
            run,
            job,
            dataset,
            strategy,
            devices_asked=devices,
            allocation=allocation,
            stop=stop,
            console=console,
            monitor=monitor,
            worker_group=worker_group,
            plan=plan,
        )


def plan_of(job: Job, devices: str | None, run: RunDirectory | None = None) -> ExecutionPlan:
    """How a job's steps are computed on the devices asked for, or seen; without TensorFlow.

    Args:
        job: the job.
        devices: as `--devices` names them.
        run: it may have begun, and have its plan.
    """
    kind = parse_devices(devices).kind if devices else "gpu" if visible_gpus() else "cpu"
    device = device_name(kind)
    begun = run.read_json("provenance.json").get("plan") if run else None
    times_ms = measured_ms(device, job)
    cpus = given_cpus(SlurmEnvironment.from_environment())
    return choose(job, kind, device, cpus, begun or {}, times_ms)


def announce(
    run: RunDirectory, job: Job, dataset: Dataset, replicas: int, console: Console
) -> None:
    """Say what is about to run, and what of it may surprise.

    Raises:
        InputError: if there are more replicas than reviews in a global batch.
    """
    if job.train.batch_size < replicas:
        raise InputError(
            f"train.batch_size = {job.train.batch_size}: is the global batch and should be at "
            f"least the {replicas} replicas; raise it, or ask for fewer devices"
        )
    for line in job.without_effect():
        console.warning(line)
    num_words = len(dataset.vocab) + 4  # and the indices that are no words
    if dataset.is_own and job.data.vocab_size > num_words:
        console.warning(
            f"data.vocab_size = {job.data.vocab_size}: the training reviews hold {num_words - 4:,} "
            f"words, so what is over {num_words} has no effect"
        )
    before = (run.read_json("provenance.json").get("starts") or [{}])[-1].get("devices", [])
    if before and len(before) != replicas:
        console.warning(
            f"the run had {len(before)} replicas and goes on with {replicas}: its numbers will "
            "agree to rounding, not to the byte"
        )
    if dataset.introduction:
        console.info(dataset.introduction)
    console.info(
        f"run {run.folder}: {job.model.architecture}, seed {job.train.seed}, "
        f"{replicas} replica{'s' if replicas > 1 else ''}, data: {dataset.title}"
    )


def dataset_of(run: RunDirectory, job: Job, data: Path | None, *, full: bool = False) -> Dataset:
    """The data of a run: what its record names, or for a new one what is found.

    Raises:
        InputError: if the data found are not the ones that the run was begun with.
    """
    recorded = run.read_json("provenance.json").get("dataset")
    if not recorded:
        return open_data(job, data, full=full)
    return reopen_data(recorded, job, data, f"run {run.folder}")


def prepare_quietly() -> None:
    """Have TensorFlow ready on one device, for a command that needs no strategy."""
    import_tensorflow(SlurmEnvironment.from_environment())


def evaluate_again(run: RunDirectory, data: Path | None) -> dict[str, Any]:
    """Score the model of a finished run on its test set, as the run itself did at its end.

    Raises:
        InputError: if the run is unfinished, or its data are not there.
    """
    if not run.finished():
        raise InputError(f"run {run.folder}: is unfinished; harness resume {run.folder} first")
    job = run.job()
    if not job.data.test:
        raise InputError(
            f"run {run.folder}: leaves the test set unread (data.test = false); train a run of "
            "it with --set data.test=true"
        )
    dataset = dataset_of(run, job, data)
    check_same(dataset, run.result()["dataset_checksum"], f"run {run.folder}")
    prepare_quietly()

    from harness.compute.train_step import Evaluator
    from harness.inference.model_file import load_model
    from harness.training.metrics import test_scores
    from harness.training.train import test_reviews

    test = test_reviews(job, dataset)
    model = load_model(run)
    probabilities = Evaluator(model, one_device(), job.data.maxlen).probabilities(test)
    return {"data": dataset.title, **test_scores(test.labels, probabilities)}
