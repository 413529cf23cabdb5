"""The child processes of `harness doctor`: `python -m harness.checks.probe_child REQUEST`.

They name the devices that TensorFlow sees, and trace each job's training step for its kernels.
"""

import time
from typing import Any

from harness.checks.child import answer_request
from harness.checks.probe import ARCHITECTURES, JOBS
from harness.compute.execution_plan import choose, without_cudnn
from harness.errors import InputError
from harness.job import Job
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from harness.system import cuda
from harness.system.host import installed_version
from harness.training.launch import plan_of


def main() -> None:
    """Answer the request in the first argument."""
    answer_request({"devices": _devices, "kernels": _kernels})


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


if __name__ == "__main__":
    main()
