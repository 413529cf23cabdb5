"""GPUs that were promised: no run trains on a CPU because a GPU could not be used."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.compute.strategy import Devices, device_messages
from harness.errors import InputError, NodeFault
from harness.slurm.environment import SlurmEnvironment, given_gpus, listed_gpus, report_node_fault
from harness.system import gpu


@dataclass(frozen=True)
class Promise:
    """The GPUs that a process should see."""

    num: int
    by: str  # what promised them
    given: int | None = None  # by Slurm; None outside of it
    listed: tuple[str, ...] = ()  # the indices of those


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
    given = given_gpus(allocation) if allocation else None
    listed = listed_gpus(allocation) if allocation else ()
    named = environment.get("CUDA_VISIBLE_DEVICES", "")
    if requested:
        return Promise(requested.count, f"--devices {requested}", given, listed)
    if names := gpu.visible_names(named):
        return Promise(len(names), f"CUDA_VISIBLE_DEVICES={named}", given, listed)
    num = given or 0
    return Promise(num, f"Slurm gave {num} GPU{'s' if num > 1 else ''}", given, listed)


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
    if promise.given and num_seen > promise.given and "CUDA_VISIBLE_DEVICES" not in environment:
        own = f", here {','.join(promise.listed)}" if promise.listed else ""
        raise InputError(
            f"CUDA_VISIBLE_DEVICES is unset: Slurm gave {promise.given} of the {num_seen} GPUs "
            "that this process sees, and the others may be somebody else's; leave it as Slurm "
            f"set it{own}"
        )
    if num_seen >= max(1, promise.num):
        return
    # Who hides all GPUs means the CPU.
    if not promise.num and (gpu.hidden_by(environment) or not gpu.has_driver()):
        return
    problem = gpu.find_problem(
        "\n".join(device_messages),
        environment,
        is_cuda_build=bool(tf.sysconfig.get_build_info().get("is_cuda_build")),
        num_seen=num_seen,
        promised=promise.num,
        given=promise.given,
        listed=promise.listed,
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
