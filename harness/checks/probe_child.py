"""The child processes of `harness doctor`: `python -m harness.checks.probe_child REQUEST`.

They name the devices that TensorFlow sees and the kernels of each job: on a GPU those in its traced
training step, on a CPU those of its plan, which decides alone there.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.checks.child import answer_request
from harness.checks.probe import ARCHITECTURES, JOBS
from harness.compute.execution_plan import ExecutionPlan, choose, without_cudnn
from harness.errors import InputError
from harness.job import Job
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from harness.system import cuda
from harness.system.host import installed_version
from harness.training.launch import plan_of

if TYPE_CHECKING:
    import tensorflow as tf


def main() -> None:
    """Answer the request in the first argument."""
    answer_request({"devices": _devices, "kernels": _kernels})


def _devices() -> dict[str, Any]:
    from harness.compute.strategy import import_tensorflow

    began = time.perf_counter()
    tf = import_tensorflow(SlurmEnvironment.from_environment())
    gpus = tf.config.list_physical_devices("GPU")
    import_s = time.perf_counter() - began
    cards, passed = _cards(gpus) if gpus else ([], [])
    build = tf.sysconfig.get_build_info()
    cudnn = installed_version("nvidia-cudnn-cu12")
    return {
        "import_s": import_s,
        "gpus": [card.name for card in cards],
        "capabilities": [list(card.capability) for card in cards],
        "passed": passed,
        "libraries": describe_libraries() if cuda.has_driver() else None,
        "targets": list(build.get("cuda_compute_capabilities", ())),
        "cuda": str(build.get("cuda_version", "")),
        "cudnn": cudnn,
        "cuda_packages": cudnn is not None,
    }


def _cards(gpus: Sequence[Any]) -> tuple[list[cuda.Card], list[str]]:
    """The cards of TensorFlow's devices, and the names of those that have passed their check."""
    from harness.compute.device_check import card_of, has_passed  # imports Keras

    cards = [card_of(gpu) for gpu in gpus]
    return cards, [card.name for card in cards if has_passed(card)]


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

    from harness.compute.strategy import describe_devices

    device = describe_devices(strategy)[0]["device"].partition(":")[0]
    answer["kernels"] = {}
    for name in ARCHITECTURES:
        try:
            # Length and vocabulary do not affect the choice of a kernel on a GPU.
            small = ["data.vocab_size=100", "data.maxlen=8"] if device == "gpu" else []
            job = load_job(JOBS / f"{name}.toml", small)
            plan = plan_of(job, devices)
            kernel = kernel_on_cpu(plan) if device == "cpu" else _traced(job, strategy, plan)
            on_gpu = expected_kernel(job)
            why = reason(job, kernel, device)
            described = {"kernel": kernel, "on_gpu": on_gpu, "why": why, "device": device}
        except Exception as error:  # the other architectures are still described
            described = {"error": f"{type(error).__name__}: {error}"}
        answer["kernels"][name] = described
    return answer


def kernel_on_cpu(plan: ExecutionPlan) -> str:
    """The kernel of the recurrent layers: a CPU leaves nothing to Keras or cuDNN."""
    return "xla" if plan.xla else "block" if plan.block else "loop"


def _traced(job: Job, strategy: "tf.distribute.Strategy", plan: ExecutionPlan) -> str:
    """The kernels in the graph of a job's training step."""
    import numpy as np

    from harness.compute.train_step import TrainStep
    from harness.inputs.epoch_order import BatchShape
    from harness.inputs.input_pipeline import Reviews, batches

    reviews = Reviews(np.ones(64, np.int32), np.arange(65), np.zeros(64, np.int32))
    train_step = TrainStep(job, strategy, plan)
    order = np.arange(64, dtype=np.int32)[None]
    shape = BatchShape(job.train.batch_size, job.data.maxlen)
    parts = batches(strategy, reviews, order, shape=shape)
    return " and ".join(sorted({*train_step.kernels(train_step.trace(iter(parts))).values()}))


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


if __name__ == "__main__":
    main()
