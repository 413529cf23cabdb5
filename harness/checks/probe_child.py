"""The child processes of the probe: `python -m harness.checks.probe_child REQUEST`.

They trace and measure with the training step and input pipeline of real runs.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.checks.child import answer_request
from harness.checks.probe import ARCHITECTURES, JOBS
from harness.compute.execution_plan import choose, without_cudnn
from harness.compute.memory import keep_gpu_gb, measure_gpu_gb
from harness.data.dataset import validation_cut
from harness.errors import InputError
from harness.job import Job
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from harness.system import cuda
from harness.system.console import Console
from harness.system.host import installed_version
from harness.system.processes import age_s
from harness.system.resource_monitor import ResourceMonitor
from harness.training.launch import plan_of

if TYPE_CHECKING:
    from harness.compute.train_step import TrainStep
    from harness.inputs.input_pipeline import Batch, Reviews


WARM_UP_STEPS = 20  # by when graphs are traced and buffers are warm
TRAIN_SHARE = 0.75  # of the measuring time, the rest is for the evaluation
TIMED_BATCHES = 8  # of an evaluation
FULL_REVIEWS = 25_000  # of each split, where only the sample is there to measure on


def main() -> None:
    """Answer the request in the first argument."""
    answer_request({"devices": _devices, "kernels": _kernels, "speed": _speed})


def _devices() -> dict[str, Any]:
    from harness.compute.strategy import import_tensorflow

    began = time.perf_counter()
    tf = import_tensorflow(SlurmEnvironment.from_environment())
    from harness.compute.device_check import card_of, has_passed

    gpus = tf.config.list_physical_devices("GPU")
    build = tf.sysconfig.get_build_info()
    cudnn = installed_version("nvidia-cudnn-cu12")
    cards = [card_of(gpu) for gpu in gpus]
    return {
        "import_s": time.perf_counter() - began,
        "gpus": [card.name for card in cards],
        "capabilities": [list(card.capability) for card in cards],
        "passed": [card.name for card in cards if has_passed(card)],
        "libraries": describe_libraries() if cuda.has_driver() else None,
        "targets": list(build.get("cuda_compute_capabilities", ())),
        "cuda": str(build.get("cuda_version", "")),
        "cudnn": cudnn,
        "cuda_packages": cudnn is not None,
    }


def describe_libraries() -> dict[str, Any]:
    """Those of CUDA that are missing here, and those of the site that are used instead."""
    missing = [*cuda.missing_libraries(), *([] if cuda.has_nvml() else [cuda.NVML])]
    return {"missing": missing, "site": cuda.shadowing_libraries()}


def _kernels(devices: str | None) -> dict[str, Any]:
    from harness.compute.strategy import make_strategy, parse_devices

    answer = _devices()
    try:
        strategy = make_strategy(parse_devices(devices) if devices else None)
    except InputError as refusal:  # what was found before is reported all the same
        return {**answer, "refused": str(refusal)}

    import numpy as np

    from harness.compute.strategy import describe_devices
    from harness.compute.train_step import TrainStep
    from harness.inputs.epoch_order import BatchShape
    from harness.inputs.input_pipeline import Reviews, batches

    device = describe_devices(strategy)[0]["device"].partition(":")[0]
    reviews = Reviews(np.ones(64, np.int32), np.arange(65), np.zeros(64, np.int32))
    answer["kernels"] = {}
    for name in ARCHITECTURES:
        try:
            # Length and vocabulary do not affect the choice of a kernel.
            small = ["data.vocab_size=100", "data.maxlen=8"]
            job = load_job(JOBS / f"{name}.toml", small)
            train_step = TrainStep(job, strategy, plan_of(job, devices))
            batch_size = job.train.batch_size
            order = np.arange(64, dtype=np.int32)[None]
            parts = batches(strategy, reviews, order, shape=BatchShape(batch_size, 8))
            found = set(train_step.kernels(train_step.trace(iter(parts))).values())
            kernel = " and ".join(sorted(found))
            on_gpu = expected_kernel(job)
            why = reason(job, kernel, device)
            described = {"kernel": kernel, "on_gpu": on_gpu, "why": why, "device": device}
        except Exception as error:  # the other architectures are still described
            described = {"error": f"{type(error).__name__}: {error}"}
        answer["kernels"][name] = described
    return answer


def expected_kernel(job: Job) -> str:
    """The kernel to expect on a GPU: by Keras's rules for cuDNN, and this project's for XLA."""
    if choose(job, "gpu", 1).xla:
        return "xla"
    return "loop" if without_cudnn(job) else "cudnn"


def reason(job: Job, kernel: str, device: str) -> str:
    """Why a job's recurrent layers use the kernel that their graph holds."""
    because = without_cudnn(job)
    if kernel == "xla":
        setting = f"train.xla = {job.train.xla} compiles it"
        return f"{setting}, {because or 'so cuDNN is left out'}" if device == "gpu" else setting
    if kernel == "cudnn":
        return "cuDNN takes the layer"
    if device != "gpu":
        return "no GPU is used here" + (f"; {because}" if because else "")
    return because or "cuDNN should take it and does not"


def _speed(
    job: str,
    devices: str | None,
    data: str | None,
    *,
    seconds: float,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the step that a run of the job takes."""
    from harness.compute.strategy import (
        Numerics,
        describe_devices,
        import_tensorflow,
        num_own_gpus,
        parse_devices,
    )
    from harness.data.resolve import open_data

    loaded = load_job(Path(job), overrides)
    dataset = open_data(loaded, Path(data) if data else None)
    plan, allocation = plan_of(loaded, devices), SlurmEnvironment.from_environment()
    import_tensorflow(allocation, plan.threads, Numerics.of(loaded))
    from harness.compute.device_check import checked_strategy

    requested = parse_devices(devices) if devices else None
    strategy = checked_strategy(requested, None, loaded, Console())

    from harness.compute.evaluator import evaluation_batch
    from harness.compute.loss import class_weights
    from harness.compute.train_step import TrainingFacts, TrainStep
    from harness.training.train import test_reviews, training_reviews

    training, validation, ratios = training_reviews(loaded, dataset)
    test = test_reviews(loaded, dataset, ratios)
    weights = class_weights(loaded.train, dataset.classes, training.labels)
    train_step = TrainStep(
        loaded,
        strategy,
        plan,
        num_outputs=dataset.num_outputs,
        facts=TrainingFacts(class_weights=weights),
    )
    with ResourceMonitor(num_own_gpus(), 1) as monitor:
        first_step_s, step_s, training_s = time_steps(train_step, training, seconds * TRAIN_SHARE)
        gpu_share = monitor.sample().get("gpu0_share")  # over NVML's last period, a second at most
    began = time.perf_counter()
    evaluation_batch_s = time_evaluation(train_step, test, seconds * (1 - TRAIN_SHARE))
    counts = [len(training.labels), len(validation.labels), len(test.labels)]
    if dataset.is_sample:
        num = min(FULL_REVIEWS, loaded.data.limit or FULL_REVIEWS)
        cut = validation_cut(num, loaded.data.validation_split)
        counts = [cut, num - cut, num]
    gpu_gb = measure_gpu_gb()
    used = describe_devices(strategy)
    if gpu_gb is not None and len(used) == 1:
        keep_gpu_gb(loaded, gpu_gb)
    kind = used[0].get("name") or used[0]["device"].partition(":")[0]
    return {
        "devices": f"{len(used)} x {kind}",
        "data": dataset.title,
        "batch_size": loaded.train.batch_size,
        "first_step_s": first_step_s,
        "step_s": step_s,
        "evaluation_batch_s": evaluation_batch_s,
        "measured_s": training_s + time.perf_counter() - began,
        "is_sample": dataset.is_sample,
        "gpu_share": gpu_share,
        "gpu_memory_gb": gpu_gb,
        **work_of(loaded, evaluation_batch(strategy), *counts),
    }


def _openings(
    job: Job, strategy: Any, training: "Reviews"
) -> Iterator[tuple[Iterator["Batch"], int]]:
    """The batches of training as a run opens them, endlessly, with the steps of each opening."""
    from harness.inputs.epoch_order import BatchShape, num_steps, permutations_ahead
    from harness.inputs.input_pipeline import Start, batches

    seed, epoch = job.train.seed, 0
    shape = BatchShape(job.train.batch_size, job.data.maxlen, job.data.bucket)
    lengths = training.lengths(shape.maxlen)
    steps_an_epoch = num_steps(len(lengths), shape.batch_size)
    while True:
        permutations = permutations_ahead(seed, range(epoch, sys.maxsize), lengths, shape=shape)
        opened = batches(
            strategy,
            training,
            permutations,
            shape=shape,
            start=Start(0, epoch * steps_an_epoch),
            timed=True,
        )
        yield iter(opened), len(permutations) * steps_an_epoch
        epoch += len(permutations)


def time_steps(
    train_step: "TrainStep", training: "Reviews", seconds: float
) -> tuple[float, float, float]:
    """Train for some seconds after a warm-up.

    Returns:
        Seconds from the start of the process to the first step's end, seconds a step, and the
        seconds that this was measured over.
    """
    progress = _train(train_step, training)
    next(progress)
    first_step_s = age_s() or 0.0
    warm = next(steps for steps in progress if steps >= WARM_UP_STEPS)
    began = time.perf_counter()
    for steps in progress:
        spent_s = time.perf_counter() - began
        if spent_s >= seconds:
            return first_step_s, spent_s / (steps - warm), spent_s
    raise AssertionError  # it trains endlessly


def _train(train_step: "TrainStep", training: "Reviews") -> Iterator[int]:
    """Train endlessly; yields the number of steps whenever they are done on the device.

    It waits for them after the first step, and then as often as a run does.
    """
    job, before = train_step.job, 0
    for iterator, num_steps in _openings(job, train_step.strategy, training):
        done = 0
        while done < num_steps:
            wait = job.train.log_every_steps if before + done else 1
            until = min(done + wait, num_steps)
            pending = []
            while done < until:
                num = min(job.train.steps_per_execution, num_steps - done)
                pending.append(train_step.train_steps(iterator, num))
                done += num
            for sums in pending:
                sums.numpy()
            yield before + done
        before += num_steps


def time_evaluation(train_step: "TrainStep", test: "Reviews", seconds: float) -> float:
    """Evaluate for some seconds, and return the seconds that a global batch takes."""
    from harness.compute.evaluator import evaluation_batch

    size = evaluation_batch(train_step.strategy)
    train_step.export_weights()
    some = test.between(0, min(len(test.labels), TIMED_BATCHES * size))
    # Traced and compiled; without XLA one review is enough, since a batch is always full.
    train_step.evaluator.probabilities(
        some if train_step.evaluator.is_compiled else test.between(0, 1)
    )
    batches_each = math.ceil(len(some.labels) / size)
    began, done, now = time.perf_counter(), 0, 0.0
    while not done or now - began < seconds:
        train_step.evaluator.probabilities(some)
        now, done = time.perf_counter(), done + batches_each
    return (now - began) / done


def work_of(
    job: Job, size: int, num_training: int, num_validation: int, num_test: int
) -> dict[str, int]:
    """The training steps of a whole job, and how many batches of `size` it evaluates in total."""
    from harness.inputs.epoch_order import num_steps

    validations = job.train.epochs * num_steps(num_validation, size)
    return {
        "num_steps": job.train.epochs * num_steps(num_training, job.train.batch_size),
        "num_evaluation_batches": validations + num_steps(num_test, size),
    }


if __name__ == "__main__":
    main()
