"""Checks that a run gets the GPUs it expects, so that no run silently trains on the CPU."""

import os
import re
from collections.abc import Callable, Mapping, Sequence

from harness.compute.strategy import Devices, device_messages
from harness.errors import InputError, NodeFault
from harness.slurm.environment import SlurmEnvironment, given_gpus, listed_gpus, report_node_fault
from harness.system import gpu

INSTALL = "HARNESS_EXTRA=gpu bash slurm/common.sh --setup"
ASK = "check the GPUs with nvidia-smi, and report the node to your cluster's administrators"
IN_A_CONTAINER = "in a container add --nv (Apptainer) or --gpus all (Docker)"
# The message that TensorFlow writes to standard error if the driver can't be initialized.
CU_INIT = re.compile(r"cuInit:? .*?(CUDA_ERROR_\w+|UNKNOWN ERROR \(\d+\))")
DRIVER_LIBRARY_MISSING = 303  # CUDA_ERROR_SHARED_OBJECT_INIT_FAILED; TensorFlow prints only 303


def check_gpus(
    requested: Devices | None,
    allocation: SlurmEnvironment | None,
    warn: Callable[[str], object],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Raise an error with a remedy if TensorFlow sees fewer GPUs than promised.

    GPUs are promised by `requested`, CUDA_VISIBLE_DEVICES or Slurm. If no GPU is promised and
    TensorFlow sees none, the run trains on the CPU. If the node has NVIDIA's driver, a warning
    then gives the reason. The warning is left out if CUDA_VISIBLE_DEVICES hides all GPUs. Call this
    function after the import of TensorFlow.

    Args:
        requested: the devices of `--devices`, HARNESS_DEVICES or the run's record, if any.
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
        promised, promised_by = requested.count, f"requested devices {requested}"
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
        return  # no GPU is expected, so the run trains on the CPU
    why, remedy, is_node_fault = _find_reason(environment, num_seen, promised, given, listed)
    reason = f"TensorFlow sees {num_seen or 'no GPU'}: {why}; {remedy}"
    if not promised:
        warn(f"training on the CPU, although a GPU driver exists: {reason}, or use --devices cpu")
        return
    text = f"{promised_by}, but {reason}; --devices cpu trains on the CPU"
    if is_node_fault:
        raise NodeFault(text, will_requeue=report_node_fault(text))
    raise InputError(text)


def _find_reason(
    environment: Mapping[str, str],
    num_seen: int,
    promised: int,
    given: int | None,
    listed: Sequence[str],
) -> tuple[str, str, bool]:
    """Find the reason why TensorFlow sees fewer GPUs than promised.

    Args:
        given: the number of GPUs that Slurm allocated; None outside of Slurm.
        listed: the indices of the job's GPUs, as Slurm lists them. If CUDA_VISIBLE_DEVICES contains
            other names, the function checks whether the driver knows the names.

    Returns:
        A tuple of the reason, a remedy, and whether the node is at fault. The node is at fault if
        the reason is neither the installation nor the request.
    """
    import tensorflow as tf

    if hidden := gpu.hidden_by(environment):
        return hidden, "unset it", False
    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        remedy = f"on x86_64: {INSTALL}; on aarch64: install your site's CUDA build of TensorFlow"
        return "this TensorFlow is not a CUDA build", remedy, False
    if not gpu.has_driver():
        why = "there is no NVIDIA driver here: cannot dlopen libcuda.so.1"
        return why, f"run on a node with GPUs; {IN_A_CONTAINER}", False
    names = gpu.visible_names(environment.get("CUDA_VISIBLE_DEVICES", ""))
    if names != list(listed) and (unknown := gpu.unknown_names(names)):
        why = f"CUDA_VISIBLE_DEVICES names {', '.join(unknown)}, which the driver does not know"
        return why, "choose GPUs that nvidia-smi -L lists, or unset the variable", False
    found = CU_INIT.search("\n".join(device_messages))
    if found and f"({DRIVER_LIBRARY_MISSING})" in found[1]:
        why = "cuInit failed: the driver's library libcuda.so.1 can't be loaded"
        return why, IN_A_CONTAINER, False
    if found:
        return f"cuInit failed: {found[1]}", ASK, True
    missing = gpu.load_libraries()
    if gpu.NVML in missing:
        why = f"cannot dlopen {gpu.NVML}, a library of the driver"
        remedy = "outside of containers, ask your cluster's administrators to install the library"
        return why, f"{IN_A_CONTAINER}; {remedy}", False
    if missing:
        return f"cannot dlopen {', '.join(missing)}", f"install them: {INSTALL}", False
    if num_seen and sum(name.startswith("MIG-") for name in names) > 1:
        why = "CUDA_VISIBLE_DEVICES names several MIG instances, but a process sees only one"
        return why, "use --devices gpu:1, or start a run on each instance with --seeds", False
    available = gpu.num_cards() if given is None else given
    if available is not None and num_seen >= available:
        why = f"{'this machine has' if given is None else 'Slurm gave'} {available}"
        request = f"request {available}: --devices gpu:{available}"
        return why, request if available else "request GPUs", False
    return f"the driver shows {num_seen} of {promised} GPUs", ASK, True
