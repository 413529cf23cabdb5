"""GPUs that were promised: no run trains on a CPU because a GPU could not be used."""

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
    """Refuse to train on less than was promised, with TensorFlow's own reason and the remedy.

    `--devices`, CUDA_VISIBLE_DEVICES or Slurm promise GPUs. Without a promise the CPU may train;
    where a driver is here all the same, a warning says why no GPU is used, unless
    CUDA_VISIBLE_DEVICES hides them all. Call it once TensorFlow is imported.

    Args:
        requested: as `--devices` names them; `cpu` means the CPU.
        environment: its CUDA_VISIBLE_DEVICES names GPUs; one that hides them all promises nothing,
            and breaks Slurm's promise.

    Raises:
        InputError: if the installation or the command is at fault.
        NodeFault: if the node is; the job goes back into the queue without it.
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
        own = f", here {','.join(listed)}" if listed else ""
        raise InputError(
            f"CUDA_VISIBLE_DEVICES is unset: Slurm gave {given} of the {num_seen} GPUs "
            "that this process sees, and the others may be somebody else's; leave it as Slurm "
            f"set it{own}"
        )
    if num_seen >= max(1, promised):
        return
    # Who hides all GPUs means the CPU.
    if not promised and (gpu.hidden_by(environment) or not gpu.has_driver()):
        return
    problem = gpu.find_problem(
        "\n".join(device_messages),
        environment,
        is_cuda_build=bool(tf.sysconfig.get_build_info().get("is_cuda_build")),
        num_seen=num_seen,
        promised=promised,
        given=given,
        listed=listed,
    )
    reason = f"TensorFlow sees {num_seen or 'no GPU'}: {problem.reason}; {problem.remedy}; "
    if not promised:
        warn(f"the CPU trains: a driver is here, but {reason}--devices cpu says that it is meant")
        return
    text = f"{promised_by}, but {reason}--devices cpu trains on the CPU"
    if problem.fault == "installation":
        raise InputError(text)
    raise NodeFault(text, will_requeue=report_node_fault(text))
