"""GPUs that were promised: no run trains on a CPU because a GPU could not be used."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.compute.strategy import Devices, device_messages
from harness.errors import InputError, NodeFault
from harness.slurm.environment import SlurmEnvironment, given_gpus, report_node_fault
from harness.system import cuda


@dataclass(frozen=True)
class Promise:
    """The GPUs that a process should see."""

    num: int
    by: str  # what promised them


def promised_gpus(
    requested: Devices | None,
    allocation: SlurmEnvironment | None,
    environment: Mapping[str, str] = os.environ,
) -> Promise | None:
    """How many GPUs this process should see: by `--devices`, CUDA_VISIBLE_DEVICES or Slurm.

    Args:
        requested: as `--devices` names them; with `cpu`, which means the CPU, the answer is None.
        environment: its CUDA_VISIBLE_DEVICES names GPUs; one that hides them all promises nothing,
            and breaks Slurm's promise.
    """
    if requested and requested.kind == "cpu":
        return None
    if requested:
        return Promise(requested.count, f"--devices {requested}")
    named = environment.get("CUDA_VISIBLE_DEVICES", "")
    if names := cuda.visible_names(named):
        return Promise(len(names), f"CUDA_VISIBLE_DEVICES={named}")
    given = (given_gpus(allocation) if allocation else None) or 0
    return Promise(given, f"Slurm gave {given} GPU{'s' if given > 1 else ''}")


def check_gpus(
    promise: Promise | None,
    warn: Callable[[str], object],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Refuse to train on less than was promised, with TensorFlow's own reason and the remedy.

    Without a promise the CPU may train; where a driver is here all the same, a warning says why no
    GPU is used, unless CUDA_VISIBLE_DEVICES hides them all. Call it once TensorFlow is imported.

    Args:
        promise: what this process should see, None where the CPU is meant.

    Raises:
        InputError: if the installation or the command is at fault.
        NodeFault: if the node is; the job goes back into the queue without it.
    """
    if promise is None:
        return
    import tensorflow as tf

    num_seen = len(tf.config.list_physical_devices("GPU"))
    if num_seen >= max(1, promise.num):
        return
    # Who hides all GPUs means the CPU.
    if not promise.num and (cuda.hidden_by(environment) or not cuda.has_driver()):
        return
    problem = cuda.find_problem(
        "\n".join(device_messages),
        environment,
        is_cuda_build=bool(tf.sysconfig.get_build_info().get("is_cuda_build")),
        num_seen=num_seen,
        promised=promise.num,
    )
    seen = f"TensorFlow sees {num_seen or 'no GPU'}"
    if not promise.num:
        warn(
            f"the CPU trains: a driver is here, but {seen}: {problem.reason}; {problem.remedy}; "
            "--devices cpu says that the CPU is meant"
        )
        return
    text = (
        f"{promise.by}, but {seen}: {problem.reason}; {problem.remedy}; "
        "--devices cpu trains on the CPU"
    )
    if problem.fault == "installation":
        raise InputError(text)
    raise NodeFault(text, will_requeue=report_node_fault(text))
