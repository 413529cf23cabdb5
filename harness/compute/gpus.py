"""Checks that a run gets the GPUs it expects, so that no run silently trains on the CPU."""

import os
from collections.abc import Callable, Mapping

from harness.compute.strategy import Devices, device_messages
from harness.errors import InputError, NodeFault
from harness.slurm.environment import SlurmEnvironment, given_gpus, listed_gpus, report_node_fault
from harness.system import gpu


def check_gpus(
    requested: Devices | None,
    allocation: SlurmEnvironment | None,
    warn: Callable[[str], object],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Raise an error with a remedy if TensorFlow sees fewer GPUs than promised.

    GPUs are promised by `--devices`, CUDA_VISIBLE_DEVICES or Slurm. If no GPU is promised, the CPU
    trains. If the CPU trains although the node has NVIDIA's driver, a warning says why,
    unless CUDA_VISIBLE_DEVICES hides all GPUs. Call this function after the import of TensorFlow.

    Args:
        requested: the devices that `--devices` requests, if it is set.
        allocation: the Slurm job, if there is one.
        warn: called with the text of a warning.
        environment: the environment variables. If CUDA_VISIBLE_DEVICES hides all GPUs,
            the GPUs that Slurm promised count as missing.

    Raises:
        InputError: if the installation or the command is at fault.
        NodeFault: if the node is at fault; the job is requeued without the node.
    """
    if requested and requested.kind == "cpu":
        return
    import tensorflow as tf

    given = given_gpus(allocation) if allocation else None
    listed = listed_gpus(allocation) if allocation else ()
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    promised = given or 0
    promised_by = f"Slurm gave {promised} GPU{'s' if promised > 1 else ''}"
    if requested:
        promised, promised_by = requested.count, f"--devices {requested}"
    elif names := gpu.visible_names(visible):
        promised, promised_by = len(names), f"CUDA_VISIBLE_DEVICES={visible}"
    num_seen = len(tf.config.list_physical_devices("GPU"))
    if given and num_seen > given and "CUDA_VISIBLE_DEVICES" not in environment:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES is unset: Slurm gave {given} of the {num_seen} GPUs that this "
            "process sees, and other jobs may use the rest; don't unset the variable that Slurm set"
        )
    if num_seen >= max(1, promised):
        return
    if not promised and (gpu.hidden_by(environment) or not gpu.has_driver()):
        return  # no GPU is expected, so the CPU trains
    problem = gpu.find_problem(
        "\n".join(device_messages),
        environment,
        is_cuda_build=bool(tf.sysconfig.get_build_info().get("is_cuda_build")),
        num_seen=num_seen,
        promised=promised,
        given=given,
        listed=listed,
    )
    reason = f"TensorFlow sees {num_seen or 'no GPU'}: {problem.reason}; {problem.remedy}"
    if not promised:
        warn(f"training on the CPU, although a GPU driver exists: {reason}, or use --devices cpu")
        return
    text = f"{promised_by}, but {reason}; --devices cpu trains on the CPU"
    if problem.fault == "installation":
        raise InputError(text)
    raise NodeFault(text, will_requeue=report_node_fault(text))
