"""From a command's arguments to a run: data and devices, the cheapest checks first."""

import contextlib
import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.compute.device_errors import check_results, died_of, of_death
from harness.compute.execution_plan import ExecutionPlan, choose
from harness.compute.gpus import check_gpus
from harness.compute.strategy import (
    describe_devices,
    devices_in_use,
    import_tensorflow,
    num_own_gpus,
    one_device,
    parse_devices,
    site_devices,
    title_of_devices,
)
from harness.data.dataset import Dataset
from harness.data.sources import check_same, open_data, reopen_data
from harness.errors import InputError, RunError, explain_interruption
from harness.inference.predict import read_ratios
from harness.job.keys import DataConfig, Job
from harness.slurm.environment import (
    SlurmEnvironment,
    given_cpus,
    node_name,
    resume_command,
)
from harness.slurm.nodes import WorkerGroup
from harness.system import gpu, stderr_filter, watchdog
from harness.system.console import Console, log
from harness.system.files import scratch_directory
from harness.system.guard import stand_guard
from harness.system.leased_dir import LeasedDirectory
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.system.site_settings import check_trusted_network
from harness.tracking.provenance import changes_since_first_start, code_of
from harness.tracking.records import record_death
from harness.tracking.run_dir import RECORD, RunDirectory
from harness.training.context import Compute, Observers, RunContext
from harness.training.parent import find_parent


@dataclass(frozen=True)
class LaunchOptions:
    """What a command says about this start of a run."""

    devices: str | None = None  # as `--devices` names them
    data: Path | None = None  # folder of IMDB
    full: bool = False  # refuse to fall back to the packaged sample
    strict: bool = False  # refuse what differs from the run's first start
    parent: Path | None = None  # the run that a new one begins with
    takes_back_cancel: bool = False  # of a run that shares its job with others


def launch(
    run: RunDirectory, job: Job, *, options: LaunchOptions, console: Console
) -> dict[str, Any]:
    """Begin or resume a run, and return its result; a finished one is left as it is.

    A resumed run uses the devices and the data in its record, unless others are given; one that
    goes on with another run, the devices and the plan in that one's record.

    Raises:
        InputError: for devices or data that are not there, a run that another version wrote, or
            one of another user's; nothing is written then.
        Interrupted, RunError: as `harness.training.train.train` says.
    """
    if run.finished():
        console.info(f"run {run.folder}: finished already, nothing to do")
        return run.result()
    # 1. What can be checked without TensorFlow.
    run.check_owner()
    run.check_format()
    allocation = own_allocation()
    guard_gpus(run, devices_to_use(run, options.devices))
    stop = StopRequest(alone=allocation is None or allocation.num_tasks == 1)
    stop.listen()
    dataset = dataset_of(run, job, options.data, full=options.full)
    context = RunContext.open(run, job, dataset)
    parent = find_parent(context, named=options.parent)
    is_new = not run.certain_json(RECORD)
    began = parent.run if parent and parent.continues and is_new else run
    devices = devices_to_use(began, options.devices)
    requested = parse_devices(devices) if devices else None
    threads = recorded_plan(began).get("threads") or given_cpus(allocation)
    with contextlib.ExitStack() as stack:
        remedy = f"checkpoint saved; continue with: {resume_command(run.folder)}"
        stack.enter_context(explain_interruption(remedy))
        stack.enter_context(watchdog.from_settings(on_nodes=not stop.alone))
        stack.callback(stderr_filter.show_rest)
        # 2. The other workers of a run on several nodes.
        worker_group = None
        if allocation and not stop.alone:
            worker_group, context = join_workers(allocation, context, console=console, stack=stack)
            threads = agreed(threads, worker_group)
        # 3. TensorFlow and its devices.
        begins = watchdog.Watched(f"TensorFlow's start on {node_name()}", "start it again")
        with watchdog.watching(begins):
            import_tensorflow(allocation, threads, job)
            watchdog.progress()
            from harness.compute.device_check import (
                checked_plan,
                checked_strategy,
                first_use_factor,
            )
            from harness.training.failures import explained_device_errors

            stack.enter_context(explained_device_errors())
            check_gpus(requested, allocation, console.warning)
            begins.first_use = first_use_factor(devices_in_use(requested)[1])
            strategy = checked_strategy(requested, worker_group, job, console)
            check_results()
        stop.listen()  # again, over a handler that TensorFlow may have set
        plan = plan_of(job, "gpu" if num_own_gpus() else "cpu", began, threads=threads)
        plan = ExecutionPlan(**agreed(asdict(checked_plan(plan, job)), worker_group))
        # It warns on a console of its own, which is never silent.
        monitor = ResourceMonitor(num_own_gpus(), given_cpus(allocation), warn=Console().warning)
        stack.enter_context(monitor)
        title = title_of_devices(strategy, plan.threads)
        console.info(f"{title}; data: {context.dataset.title}")
        devices_used = describe_devices(strategy, worker_group)
        of_start = context.run if began is run else began  # a worker may have a folder of its own
        warn_of_changes(of_start, devices_used, console, strict=options.strict)
        announce(context, strategy.num_replicas_in_sync, console)
        check_own_parts(context, console, is_new=is_new, compiled=plan.way == "xla")
        # 4. The run.
        from harness.training.train import train

        stack.enter_context(console)
        return train(
            context,
            Compute(strategy, plan, allocation, devices, worker_group),
            Observers(console, monitor, stop),
            parent=parent,
            takes_back_cancel=options.takes_back_cancel,
        )


def devices_to_use(run: RunDirectory, requested: str | None) -> str | None:
    """As the command says, else as the run began, else as HARNESS_DEVICES says for new runs."""
    return requested or run.certain_json(RECORD).get("devices_asked") or site_devices()


def guard_gpus(run: RunDirectory, devices: str | None) -> None:
    """Leave this process as the guard of the one that uses GPUs, which returns from here.

    A process that may use none stays as it is.

    Raises:
        SystemExit: in the guard, with the exit code of the other process.
        NodeFault, RunError: in the guard, if that one died of a fault of a GPU.
    """
    if not may_use_gpus(devices):
        return

    def on_death(number: signal.Signals, text: str, process: int) -> None:
        if run.finished():  # and died while it left, with nothing more to do
            raise SystemExit(0)
        try:
            tell_death(
                number, text, process, go_on=f"; continue with: {resume_command(run.folder)}"
            )
        except RunError as error:
            record_death(run, process, str(error))
            raise
        record_death(run, process, f"died of {number.name}")

    stand_guard(on_death)


def tell_death(number: signal.Signals, text: str, process: int, *, go_on: str = "") -> None:
    """Say why a process that used GPUs died.

    Args:
        text: what it has written on standard error.

    Raises:
        NodeFault, RunError: if that says why.
    """
    if error := of_death(text):
        raise error
    stderr_filter.show_last(text)
    log(logging.ERROR, f"{died_of(number, text)}{go_on}")


def may_use_gpus(devices: str | None) -> bool:
    """Whether a process with these `--devices` may use GPUs; without TensorFlow."""
    if devices and parse_devices(devices).kind == "cpu":
        return False
    return not gpu.hidden_by() and gpu.has_driver()


def own_allocation() -> SlurmEnvironment | None:
    """The Slurm allocation of this process, None outside of Slurm.

    Raises:
        InputError: on several nodes without srun, which would start a worker on each, or in a
            network that is not trusted.
    """
    allocation = SlurmEnvironment.from_environment()
    if allocation and allocation.num_nodes > 1 and not allocation.in_step:
        raise InputError(
            f"an allocation of {allocation.num_nodes} nodes: should be used through srun, one task "
            "per node; start a script of slurm/, or srun --ntasks-per-node=1 harness …"
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
    """Meet the other workers of a run on several nodes.

    A worker that is not the chief does all that the chief does, but nobody reads its files or its
    console: the context that it gets back has a temporary folder.
    """
    worker_group = stack.enter_context(
        WorkerGroup.join(allocation, context.run.folder.parent, context.identity)
    )
    if worker_group.is_chief:
        return worker_group, context
    console.silent = True
    run = RunDirectory(stack.enter_context(scratch_directory()) / context.run.folder.name)
    return worker_group, replace(context, run=run)


def recorded_plan(run: RunDirectory) -> dict[str, Any]:
    """The plan in the record of a run that has begun, else nothing."""
    return run.certain_json(RECORD).get("plan") or {}


def plan_of(
    job: Job, kind: str, run: RunDirectory | None = None, *, threads: int | None = None
) -> ExecutionPlan:
    """How a job is computed on a kind of device, cpu or gpu; without TensorFlow.

    Args:
        run: if it has begun, it keeps its plan.
        threads: of a new run, by default as many as there are CPUs given to this process.
    """
    threads = threads or given_cpus(SlurmEnvironment.from_environment())
    return choose(job, kind, threads, begun=recorded_plan(run) if run else {})


def agreed(value: Any, worker_group: WorkerGroup | None) -> Any:
    """The chief's value on all workers, as JSON holds it; they may have other CPUs and GPUs."""
    if worker_group is None:
        return value
    content = json.dumps(value).encode() if worker_group.is_chief else b""
    return json.loads(worker_group.share(content))


def announce(context: RunContext, num_replicas: int, console: Console) -> None:
    """Print what is about to run, and warn about settings that may surprise.

    Raises:
        InputError: if there are more replicas than reviews in a global batch, or a score is named
            that so few classes don't have.
    """
    from harness.training.metrics import CLASSES_FOR_TOP

    run, job, dataset = context.run, context.job, context.dataset
    if job.train.batch_size < num_replicas:
        raise InputError(
            f"train.batch_size = {job.train.batch_size}: is the global batch and should be at "
            f"least the {num_replicas} replicas; raise it, or request fewer devices"
        )
    watched = {job.train.monitor, job.train.keep} & {"val_top_5_accuracy"}
    if watched and len(dataset.classes) <= CLASSES_FOR_TOP:
        raise InputError(
            "val_top_5_accuracy, which train.monitor or train.keep names: needs more than "
            f"{CLASSES_FOR_TOP} classes, the data have {len(dataset.classes)}; give val_accuracy"
        )
    for line in job.without_effect():
        console.warning(line)
    if not job.train.deterministic:
        console.warning(
            "train.deterministic = false: another run of this job, or a resumed one, gives "
            "other bytes"
        )
    vocab_size = len(dataset.vocab) + 4  # and the indices that stand for no word
    # Of IMDB too, but not of its sample, which shares its jobs.
    if not dataset.is_sample and job.data.vocab_size > vocab_size:
        console.warning(
            f"data.vocab_size = {job.data.vocab_size}: the training reviews hold "
            f"{len(dataset.vocab):,} words, so anything above {vocab_size} has no effect"
        )
    if line := given_validation(job, dataset):
        console.info(line)
    if dataset.introduction:
        console.info(dataset.introduction)
    if context.vectors:
        trained = "trained" if job.model.train_embeddings else "left as they are"
        console.info(f"embeddings {context.vectors.title} found, {trained}")
    console.info(
        f"run {run.folder}: {job.model.architecture}, seed {job.train.seed}, "
        f"{num_replicas} replica{'s' if num_replicas > 1 else ''}, data: {dataset.title}"
    )


def check_own_parts(context: RunContext, console: Console, *, is_new: bool, compiled: bool) -> None:
    """Refuse what the user made and Keras does not take, before anything is written.

    A run that has begun trains as it did, even if a new one would be refused.

    Args:
        compiled: whether the run compiles its steps by XLA.

    Raises:
        InputError: in one line, for a function of the user's with its own error, file and line.
    """
    from harness.compute.loss import check_loss
    from harness.compute.network import check_network
    from harness.compute.optimizer import check_optimizer

    job = context.job
    if line := check_network(job, context.dataset.num_outputs, trains=is_new):
        console.warning(line)
    if is_new:
        check_loss(job, context.dataset.num_outputs, compiled=compiled)
        check_optimizer(job.train, job.code)


def warn_of_changes(
    run: RunDirectory, devices: Sequence[Mapping[str, str]], console: Console, *, strict: bool
) -> None:
    """Warn of what may change the bytes of a resumed run, or refuse it with `strict`.

    Raises:
        InputError: if it is refused.
    """
    if problem := code_of(run).get("git_problem"):
        console.warning(f"the version of the code is unknown: {problem}")
    changes = changes_since_first_start(run, devices)
    if strict and changes:
        raise InputError(
            f"--strict: run {run.folder}: {'; '.join(changes)}; put back what it began with "
            "(harness reproduce), or leave --strict out"
        )
    for change in changes:
        console.warning(f"since the run was begun: {change}; its bytes may differ")


def given_validation(job: Job, dataset: Dataset) -> str:
    """What becomes of the validation split of own texts; empty where they have none."""
    if not dataset.num_validation:
        return ""
    if job.data.validation_split == 0:
        return (
            "data.validation_split = 0: the reviews of the source's own validation split are "
            "trained on too"
        )
    line = "validated on the source's own validation split"
    if job.data.validation_split == DataConfig.model_fields["validation_split"].default:
        return f"{line}, in place of a share of the training reviews"
    return f"data.validation_split = {job.data.validation_split:g} has no effect: {line}"


def dataset_of(
    begun: LeasedDirectory, job: Job, data: Path | None, *, full: bool = False
) -> Dataset:
    """The data of a run or a sweep: those in its record, or for a new one those that are found.

    Raises:
        InputError: if the data found are not those that it began with.
        DiskError: if the record can't be read; without it other data could be found.
    """
    recorded = begun.certain_json(RECORD).get("dataset")
    if not recorded:
        return open_data(job, data, full=full)
    return reopen_data(recorded, job, data, whose=f"{begun.kind} {begun.folder}")


@contextlib.contextmanager
def computing(job: Job, threads: int | None = None) -> Iterator[None]:
    """Import TensorFlow and check its devices, for a command that needs no strategy.

    Args:
        threads: of operations; by default as many as there are CPUs given to this process.

    Raises:
        SystemExit: in the guard of a process that uses GPUs, with that one's exit code.
        NodeFault, RunError: for a GPU that fails or computes wrongly.
    """
    if may_use_gpus(site_devices()):
        stand_guard(tell_death)
    import_tensorflow(SlurmEnvironment.from_environment(), threads, job)
    from harness.compute.device_check import check_devices
    from harness.training.failures import explained_device_errors

    try:
        with explained_device_errors():
            check_devices(job, Console().warning)
            yield
    finally:
        stderr_filter.show_rest()


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
    ratios = read_ratios(run)
    with computing(job):
        from harness.compute.evaluator import Evaluator
        from harness.data.input_pipeline import test_reviews
        from harness.inference.model_file import load_model
        from harness.training.metrics import test_scores

        test = test_reviews(job, dataset, ratios)
        model = load_model(run)
        evaluator = Evaluator(model, one_device(), job, plan_of(job, "cpu", run))
        probabilities = evaluator.probabilities(test)
        return {"data": dataset.title, **test_scores(test.labels, probabilities)}
