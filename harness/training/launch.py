"""Starts a run: opens its data and its devices. The cheapest checks come first."""

import contextlib
import json
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.compute.device_errors import explained_device_errors, tell_death
from harness.compute.execution_plan import ExecutionPlan, choose
from harness.compute.strategy import (
    describe_devices,
    import_tensorflow,
    num_own_gpus,
    one_device,
    parse_devices,
    site_devices,
    title_of_devices,
)
from harness.data.dataset import Dataset
from harness.data.sources import open_data, reopen_data
from harness.errors import InputError, RunError, explain_interruption
from harness.inference.predict import read_ratios
from harness.job.job_file import load_job
from harness.job.keys import KEYS, Job
from harness.job.own_code import forget_modules
from harness.slurm.environment import (
    SlurmEnvironment,
    check_trusted_network,
    given_cpus,
    node_name,
    resume_command,
)
from harness.slurm.nodes import JOIN_S, WorkerGroup
from harness.system import gpu, stderr_filter, watchdog
from harness.system.console import Console
from harness.system.files import scratch_directory
from harness.system.leased_dir import LeasedDirectory
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.system.stderr_filter import stand_guard
from harness.tracking.provenance import changes_since_first_start, code_of
from harness.tracking.records import record_death
from harness.tracking.run_dir import RECORD, RunDirectory, check_record, take_back_cancel
from harness.training.context import Compute, RunContext
from harness.training.parent import find_parent, recorded_parent

FEWEST_PER_GPU = 64  # with fewer reviews per step, starting kernels takes longer than computing


@dataclass(frozen=True)
class LaunchOptions:
    """The options of a command that starts a run."""

    devices: str | None = None  # the value of `--devices`
    data: Path | None = None  # the folder of IMDB
    full: bool = False  # if IMDB is missing, fail instead of using the packaged sample
    strict: bool = False  # fail if code, packages or machine changed since the first start
    parent: Path | None = None  # the value of `--from`, see `harness.training.parent`
    takes_back_cancel: bool = False  # undo an earlier `harness cancel` of this run


def launch(
    run: RunDirectory, job: Job, *, options: LaunchOptions, console: Console
) -> dict[str, Any]:
    """Begin or resume a run, and return its result. A finished run is not changed.

    By default, a resumed run uses the data that its record names, and the devices that its record
    stores as `devices_asked`. A new run that continues a parent's checkpoint uses the parent's plan
    and, by default, the devices that the parent requested.

    Raises:
        InputError: if devices or data are missing, or another version of harness or another user
            began the run; the run's folder is unchanged.
        Interrupted, RunError: see `harness.training.train.train`.
    """
    if options.parent:
        recorded_parent(run, options.parent)
    if run.finished():
        console.info(f"run {run.folder}: finished already, nothing to do")
        return run.result()
    # 1. Do all checks that don't need TensorFlow.
    run.check_owner()
    check_record(run)
    allocation = own_allocation()
    # With `--from`, the requested devices in the parent's record are not known yet.
    guard_gpus(run, options.devices if options.parent else devices_to_use(run, options.devices))
    stop = StopRequest(alone=allocation is None or allocation.num_tasks == 1)
    stop.listen()
    dataset = dataset_of(run, job, options.data, full=options.full)
    context = RunContext.open(run, job, dataset)
    parent = find_parent(context, named=options.parent)
    is_new = not run.certain_json(RECORD)
    began = parent.run if parent and parent.continues and is_new else run
    devices = devices_to_use(began, options.devices)
    requested = parse_devices(devices) if devices else None
    begun_plan = began.certain_json(RECORD).get("plan") or {}
    threads = begun_plan.get("threads") or given_cpus(allocation)
    with contextlib.ExitStack() as stack:
        remedy = f"continue with: {resume_command(run.folder)}"
        stack.enter_context(explain_interruption(remedy))
        stack.enter_context(watchdog.from_settings(on_nodes=not stop.alone))
        stack.callback(stderr_filter.show_rest)
        # 2. On several nodes, connect to the other workers.
        worker_group = None
        if allocation and not stop.alone:
            worker_group, context = join_workers(allocation, context, console=console, stack=stack)
            threads = agreed(threads, worker_group, JOIN_S)
        # 3. Import TensorFlow and check the devices.
        begin = watchdog.Watched(f"TensorFlow's start on {node_name()}", "start the run again")
        with watchdog.current.watching(begin):
            import_tensorflow(allocation, threads, job)
            watchdog.current.progress()
            from harness.compute.device_check import checked_plan, checked_strategy

            stack.enter_context(explained_device_errors())
            strategy = checked_strategy(requested, allocation, console, worker_group)
            watchdog.current.progress()
            # TensorFlow may have replaced the signal handlers, so install them again.
            stop.listen()
            plan = choose(job, "gpu" if num_own_gpus() else "cpu", threads, begun=begun_plan)
            plan = ExecutionPlan(**agreed(asdict(checked_plan(plan, job)), worker_group))
        monitor = ResourceMonitor(num_own_gpus(), given_cpus(allocation))
        devices_used = describe_devices(strategy, worker_group)
        title = title_of_devices(devices_used, plan.threads)
        console.info(f"{title}; data: {context.dataset.title}")
        # Only the chief warns of changes, because the folder of `context.run` is empty on the other
        # workers.
        of_start = context.run if began is run else began
        warn_of_changes(of_start, devices_used, console, strict=options.strict)
        announce(context, strategy.num_replicas_in_sync, console, on_gpus=num_own_gpus() > 0)
        # 4. Check the user's network, loss and optimizer before a new run writes anything.
        if is_new:
            check_own_parts(context, plan, strategy.num_replicas_in_sync, console)
        if options.takes_back_cancel:
            take_back_cancel(run.folder)
        # 5. Train.
        from harness.training.train import train

        stack.enter_context(console)
        return train(
            context,
            Compute(strategy, plan, console, monitor, stop, allocation, devices, worker_group),
            parent=parent,
        )


def devices_to_use(run: RunDirectory, requested: str | None) -> str | None:
    """Return `requested` if it is set, else the record's `devices_asked`, else HARNESS_DEVICES."""
    return requested or run.certain_json(RECORD).get("devices_asked") or site_devices()


def guard_gpus(run: RunDirectory, devices: str | None) -> None:
    """Fork if the run can use GPUs. The child trains; the parent waits until the child ends.

    Raises:
        SystemExit: in the parent, with the exit code of the child.
        NodeFault, RunError: in the parent, if a fault of a GPU killed the child.
    """
    if not may_use_gpus(devices):
        return

    def on_death(number: signal.Signals, text: str, process: int) -> None:
        if run.finished():  # the child died after it had written the result
            raise SystemExit(0)
        try:
            tell_death(
                number, text, process, go_on=f"; continue with: {resume_command(run.folder)}"
            )
        except RunError as error:
            with contextlib.suppress(RunError):  # a full disk must not hide the fault
                record_death(run, process, str(error))
            raise
        with contextlib.suppress(RunError):
            record_death(run, process, f"died of {number.name}")

    stand_guard(on_death)


def may_use_gpus(devices: str | None) -> bool:
    """Whether a process with these `--devices` can use GPUs; does not import TensorFlow."""
    if devices and parse_devices(devices).kind == "cpu":
        return False
    return not gpu.hidden_by() and gpu.has_driver()


def own_allocation() -> SlurmEnvironment | None:
    """Return the Slurm allocation of this process; None outside of Slurm.

    Raises:
        InputError: if several nodes are used without srun, or without HARNESS_TRUSTED_NETWORK.
    """
    allocation = SlurmEnvironment.from_environment()
    if allocation and allocation.num_nodes > 1 and not allocation.in_step:
        raise InputError(
            f"an allocation of {allocation.num_nodes} nodes: needs srun, which starts one task per "
            "node; submit a script from slurm/ with sbatch, or run: srun --ntasks-per-node=1 "
            "harness …"
        )
    if allocation:
        check_trusted_network(allocation.num_tasks)
    return allocation


def join_workers(
    allocation: SlurmEnvironment,
    context: RunContext,
    *,
    console: Console,
    stack: contextlib.ExitStack,
) -> tuple[WorkerGroup, RunContext]:
    """Connect to the other workers of a run on several nodes.

    All workers compute the same values, and each worker writes the run's files into its own folder:
    the chief into the run's folder, any other worker into a temporary folder. Only the chief's
    console prints.
    """
    worker_group = stack.enter_context(
        WorkerGroup.join(allocation, context.run.folder.parent, context.identity)
    )
    if worker_group.is_chief:
        return worker_group, context
    console.silent = True
    run = RunDirectory(stack.enter_context(scratch_directory()) / context.run.folder.name)
    return worker_group, replace(context, run=run)


def plan_of(job: Job, kind: str, run: RunDirectory) -> ExecutionPlan:
    """Return the plan in a run's record; without a record, choose a plan.

    This function doesn't import TensorFlow.

    Args:
        kind: the kind of device, cpu or gpu.
    """
    begun = run.certain_json(RECORD).get("plan") or {}
    cpus = given_cpus(SlurmEnvironment.from_environment())
    return choose(job, kind, cpus, begun=begun)


def agreed(value: Any, worker_group: WorkerGroup | None, wait_s: float = math.inf) -> Any:
    """Return the chief's value on every worker.

    Nodes may have different CPUs and GPUs, so workers may compute different values.
    """
    if worker_group is None:
        return value
    content = json.dumps(value).encode() if worker_group.is_chief else b""
    return json.loads(worker_group.share(content, wait_s))


def check_own_parts(
    context: RunContext, plan: ExecutionPlan, num_replicas: int, console: Console
) -> None:
    """Check the user's network, loss and optimizer before a new run trains; may warn.

    The checks create layers and variables, and draw random numbers.

    Raises:
        InputError: if the network, the loss or the optimizer can't be used.
    """
    from harness.compute.loss import check_loss
    from harness.compute.network import check_network
    from harness.compute.optimizer import check_optimizer

    job, num_outputs = context.job, context.dataset.num_outputs
    if line := check_network(job, num_outputs, num_replicas=num_replicas):
        console.warning(line)
    check_loss(job, num_outputs, compiled=plan.way == "xla")
    check_optimizer(job.train, job.code)
    forget_modules()  # a resumed run, which checks nothing, imports them later too


def announce(
    context: RunContext, num_replicas: int, console: Console, *, on_gpus: bool = False
) -> None:
    """Print a summary of the run; warn of settings that the user may want to change.

    Raises:
        InputError: if there are more replicas than reviews in a global batch, or the job uses
            `val_top_5_accuracy` with too few classes.
    """
    from harness.training.metrics import CLASSES_FOR_TOP

    run, job, dataset = context.run, context.job, context.dataset
    if job.train.batch_size < num_replicas:
        raise InputError(
            f"train.batch_size = {job.train.batch_size}: should be at least {num_replicas}, so "
            f"that each of the {num_replicas} replicas gets a review; raise it, or request fewer "
            "devices"
        )
    scores = {job.train.monitor, job.train.keep}
    if "val_top_5_accuracy" in scores and len(dataset.classes) <= CLASSES_FOR_TOP:
        raise InputError(
            "train.monitor or train.keep = 'val_top_5_accuracy': should be used with more than "
            f"{CLASSES_FOR_TOP} classes, but the data have {len(dataset.classes)}; use val_accuracy"
        )
    for line in job.without_effect():
        console.warning(line)
    share = job.data.validation_split
    if dataset.num_validation and share not in (0, KEYS["data.validation_split"].default):
        console.warning(
            f"data.validation_split = {share}: has no effect, because the texts have a validation "
            "split"
        )
    per_gpu = job.train.batch_size // num_replicas
    if on_gpus and num_replicas > 1 and per_gpu < FEWEST_PER_GPU:
        console.warning(
            f"a training step gives each GPU only {per_gpu} reviews, so the GPU mostly waits; "
            "use fewer GPUs, or raise train.batch_size together with train.learning_rate"
        )
    if not job.train.deterministic:
        console.warning(
            "train.deterministic = false: two runs of this job may give different results, and a "
            "resumed run may give another result than an uninterrupted run"
        )
    if dataset.introduction:
        console.info(dataset.introduction)
    if context.vectors:
        trained = "trained" if job.model.train_embeddings else "left unchanged"
        console.info(f"embeddings {context.vectors.title} found and {trained}")
    console.info(
        f"run {run.folder}: {job.model.architecture}, seed {job.train.seed}, "
        f"{num_replicas} replica{'s' if num_replicas > 1 else ''}, data: {dataset.title}"
    )


def warn_of_changes(
    run: RunDirectory, devices: Sequence[Mapping[str, str]], console: Console, *, strict: bool
) -> None:
    """Warn of changes since the first start that may change the results of a resumed run.

    Raises:
        InputError: if there is a change and `strict` is set.
    """
    if problem := code_of(run).get("git_problem"):
        console.warning(f"the version of the code is unknown: {problem}")
    changes = changes_since_first_start(run, devices)
    if strict and changes:
        raise InputError(
            f"--strict: run {run.folder}: {'; '.join(changes)}; undo these changes (harness "
            "reproduce restores the code), or leave --strict out"
        )
    for change in changes:
        console.warning(f"changed since the run began: {change}; this may change the run's result")


def dataset_of(
    begun: LeasedDirectory, job: Job, data: Path | None, *, full: bool = False
) -> Dataset:
    """Open the data that the record of a run or sweep names; without a record, the job's data.

    Raises:
        InputError: if the data have changed or are missing, or if `full` is set and the data are
            the sample.
        DiskError: if the record of the run or sweep can't be read because the disk fails.
    """
    recorded = begun.certain_json(RECORD).get("dataset")
    if not recorded:
        return open_data(job, data, full=full)
    whose = f"{begun.kind} {begun.folder}"
    dataset = reopen_data(recorded, job, data, whose=whose)
    if full and dataset.is_sample:
        raise InputError(
            f"--full: {whose} began with the SAMPLE of IMDB; leave --full out, or begin another "
            f"{begun.kind}"
        )
    return dataset


def moved_job(run: RunDirectory, data: Path | None) -> tuple[Job, Path | None]:
    """Return the job of a run, and the folder of IMDB.

    If `data` is not None, it is the new path of the data. For a run on IMDB, `data` is returned as
    the folder of IMDB. For a run on a user's own texts, `data` replaces the job's `data.source`,
    and the folder of IMDB is None.

    Raises:
        InputError: if another version of harness wrote the run, or its job file is broken.
    """
    job = run.job()
    if not data or not job.data.source:
        return job, data
    moved = f"data.source={json.dumps(str(data.absolute()), ensure_ascii=False)}"
    return load_job(run.path("job.toml"), [moved]), None


@contextlib.contextmanager
def computing(job: Job, threads: int | None = None, devices: str | None = None) -> Iterator[None]:
    """Import TensorFlow and check its devices, for a command that doesn't train.

    Args:
        threads: the number of threads per operation; by default one per CPU of this process.
        devices: the value of `--devices`, by default HARNESS_DEVICES; other GPUs are hidden
            from TensorFlow.

    Raises:
        SystemExit: in the parent process, with the exit code of the child. If GPUs can be used, the
            process forks, and the child computes.
        NodeFault, RunError: if a GPU fails or computes wrong results.
    """
    devices = devices or site_devices()
    if uses_gpus := may_use_gpus(devices):
        stand_guard(tell_death)
    tf = import_tensorflow(SlurmEnvironment.from_environment(), threads, job)
    gpus = tf.config.list_physical_devices("GPU") if uses_gpus else []
    tf.config.set_visible_devices(gpus[: parse_devices(devices).count if devices else None], "GPU")
    from harness.compute.device_check import check_devices

    try:
        with explained_device_errors():
            check_devices(Console().warning)
            yield
    finally:
        stderr_filter.show_rest()


def evaluate_again(run: RunDirectory, data: Path | None) -> dict[str, Any]:
    """Score the model of a finished run on the test set again, as the run did at its end.

    Args:
        run: the run.
        data: the new path of the data (the folder of IMDB, or the user's texts); None = not moved.

    Raises:
        InputError: if the run has no model or was not tested, or if its data are missing.
    """
    run.model_file()
    job, data = moved_job(run, data)
    if not job.data.test:
        raise InputError(
            f"run {run.folder}: was not tested (data.test = false); train its job again with "
            "--set data.test=true"
        )
    dataset = dataset_of(run, job, data)
    ratios, plan = read_ratios(run), plan_of(job, "cpu", run)
    with computing(job, plan.threads):
        from harness.compute.evaluator import Evaluator
        from harness.data.input_pipeline import test_reviews
        from harness.inference.model_file import load_model
        from harness.training.metrics import test_scores

        test = test_reviews(job, dataset, ratios)
        model = load_model(run)
        probabilities = Evaluator(model, one_device(), job, plan).probabilities(test)
        return {"data": dataset.title, **test_scores(test.labels, probabilities)}
