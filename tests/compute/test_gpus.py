"""If an option, a variable or Slurm promises a GPU that can't be used, the run is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from harness.compute import device_check
from harness.compute.device_check import check_gpus
from harness.compute.strategy import parse_devices
from harness.errors import InputError, NodeFault
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.pool import take_own_gpu
from harness.system import gpu
from tests.conftest import Harness
from tests.system.driver import broken_driver

__all__ = ["broken_driver"]  # a fixture that pytest finds here

no_driver = pytest.mark.skipif(gpu.has_driver(), reason="a driver is here")

NO_DRIVER = "but TensorFlow sees no GPU: there is no NVIDIA driver here"
SLURM = {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1"}


@no_driver
@pytest.mark.parametrize(
    ("variables", "devices", "said"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0,1"}, None, f"Slurm gave 2 GPUs, {NO_DRIVER}"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None, f"CUDA_VISIBLE_DEVICES=0, {NO_DRIVER}"),
        ({}, "gpu", f"requested devices gpu:1, {NO_DRIVER}"),
        (SLURM | {"CUDA_VISIBLE_DEVICES": ""}, None, "VISIBLE_DEVICES is '', which hides all GPUs"),
    ],
    ids=["slurm-list", "visible", "devices", "hidden"],
)
def test_a_refusal_names_the_promise(
    variables: dict[str, str], devices: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise comes from an option, a variable or Slurm; a variable can hide Slurm's GPUs."""
    requested = parse_devices(devices) if devices else None
    allocation = SlurmEnvironment.from_environment(variables)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if "CUDA_VISIBLE_DEVICES" in variables:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variables["CUDA_VISIBLE_DEVICES"])
    with pytest.raises(InputError, match=re.escape(said)):
        check_gpus(requested, allocation, pytest.fail)


def test_a_packed_run_takes_its_gpu_from_the_list_of_its_node(harness: Harness) -> None:
    """HARNESS_GPU is the index of the run's GPU in CUDA_VISIBLE_DEVICES.

    Keras computes with TensorFlow, although the shell names another backend for other programs.
    """
    harness.environment |= {"CUDA_VISIBLE_DEVICES": "MIG-8f2a, MIG-91b3", "HARNESS_GPU": "1"}
    harness.environment["KERAS_BACKEND"] = "jax"
    show = "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['KERAS_BACKEND'])"
    code = f"import os; from harness.cli.main import main; main(); {show}"
    words = [sys.executable, "-c", code, "--exit-with-parent", "--version"]
    pipe = subprocess.PIPE  # with --exit-with-parent the process reads its standard input
    with subprocess.Popen(
        words, env=harness.environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.read().splitlines()[-1] == "MIG-91b3 tensorflow"


def show_one_gpu(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Let TensorFlow see one GPU of a working driver, but not load the libraries in `missing`."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    monkeypatch.setattr(gpu, "load_libraries", lambda: [*missing])


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ([gpu.NVML], "cannot dlopen libnvidia-ml.so.1, a library of the driver; in a container"),
        (["libcudnn.so.9", "libcufft.so.11"], "dlopen libcudnn.so.9, libcufft.so.11; install them"),
    ],
)
def test_missing_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], said: str
) -> None:
    """The installation lacks CUDA's libraries; a container can lack the driver's libraries."""
    show_one_gpu(monkeypatch, *missing)
    with pytest.raises(InputError, match=re.escape(said)):
        check_gpus(parse_devices("gpu:2"), None, pytest.fail)


def test_fewer_gpus_than_slurm_gave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Missing GPUs are a fault of the node, so the job is requeued without this node."""
    show_one_gpu(monkeypatch)
    faults = tmp_path / "faults"
    monkeypatch.setenv("HARNESS_NODE_FAULTS", str(faults))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    two = SlurmEnvironment.from_environment(SLURM | {"SLURM_GPUS_ON_NODE": "2"})
    with pytest.raises(NodeFault, match="Slurm gave 2 GPUs, but TensorFlow sees 1: the driver"):
        check_gpus(None, two, pytest.fail)
    assert faults.read_text().startswith("n7 Slurm gave 2 GPUs, but TensorFlow sees 1")
    check_gpus(None, SlurmEnvironment.from_environment(SLURM), pytest.fail)


@pytest.mark.parametrize(
    ("visible", "index", "error"),
    [
        ("0,1", None, NodeFault),  # in a cgroup, Slurm numbers the job's GPUs from 0
        ("2,3", None, NodeFault),
        ("2,3", "1", NodeFault),
        (None, "1", NodeFault),
        ("0,7", None, InputError),
    ],
)
def test_a_lost_gpu_is_the_nodes_fault(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, index: str | None, error: type[Exception]
) -> None:
    """The driver no longer knows a GPU that Slurm gave; the run may be alone, or in a slot."""
    show_one_gpu(monkeypatch)
    monkeypatch.setattr(gpu, "num_cards", lambda: 1)
    monkeypatch.setattr(gpu, "unknown_names", lambda names: [each for each in names if each != "0"])
    monkeypatch.setattr(gpu, "names_of_job", None)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if index:
        monkeypatch.setenv("HARNESS_GPU", index)
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    take_own_gpu()
    slurm = SLURM | {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_GPUS": "2,3"}
    with pytest.raises((InputError, NodeFault)) as raised:
        check_gpus(None, SlurmEnvironment.from_environment(slurm), pytest.fail)
    assert raised.type is error


@pytest.mark.parametrize("slurm", [None, SLURM | {"SLURM_GPUS_ON_NODE": "2"}])
@pytest.mark.parametrize(
    ("visible", "said"),
    [
        ("0", "sees 1: CUDA_VISIBLE_DEVICES=0 allows only 1; request 1: --devices gpu:1, or unset"),
        ("0,0", "CUDA_VISIBLE_DEVICES names a GPU twice; name each GPU once"),
    ],
)
def test_a_healthy_node_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch, visible: str, said: str, slurm: dict[str, str] | None
) -> None:
    """The user's CUDA_VISIBLE_DEVICES shows fewer GPUs than requested."""
    show_one_gpu(monkeypatch)
    monkeypatch.setattr(gpu, "num_cards", lambda: 2)
    monkeypatch.setattr(gpu, "unknown_names", lambda names: [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(InputError, match=re.escape(said)):
        check_gpus(
            parse_devices("gpu:2"),
            SlurmEnvironment.from_environment(slurm) if slurm else None,
            pytest.fail,
        )


@pytest.mark.parametrize(
    ("name", "num_cards", "error"),
    [
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 1, InputError),
        ("CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", 1, InputError),
        ("UNKNOWN ERROR (803)", 1, InputError),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", None, NodeFault),  # the driver was updated
        ("CUDA_ERROR_SYSTEM_NOT_READY", 1, NodeFault),
    ],
)
def test_another_drivers_library_is_not_the_nodes_fault(
    monkeypatch: pytest.MonkeyPatch, name: str, num_cards: int | None, error: type[Exception]
) -> None:
    """A container or a module can bring a libcuda.so.1 that does not fit the driver."""
    show_one_gpu(monkeypatch)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(gpu, "num_cards", lambda: num_cards)
    line = f"E0000 a.cc:1] failed call to cuInit: INTERNAL: Failed call to cuInit: {name}: stub"
    monkeypatch.setattr(device_check, "device_messages", [line])
    with pytest.raises(
        (InputError, NodeFault), match=re.escape(f"cuInit failed: {name}")
    ) as raised:
        check_gpus(parse_devices("gpu"), None, pytest.fail)
    assert raised.type is error


def test_a_driver_without_a_promise_causes_a_warning(broken_driver: dict[str, str]) -> None:
    """The warning quotes TensorFlow's reason. If a GPU was promised, the node counts as faulty."""
    code = """if True:
        from harness.compute.strategy import import_tensorflow, parse_devices
        import_tensorflow(None, 1)
        from harness.compute.device_check import checked_strategy
        from harness.errors import NodeFault
        from harness.system.console import Console
        checked_strategy(None, None, Console())
        try:
            checked_strategy(parse_devices("gpu"), None, Console())
        except NodeFault as fault:
            print(fault)
    """
    hidden = {"CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | broken_driver,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    why = "TensorFlow sees no GPU: cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY"
    assert f"warning: training on the CPU, although a GPU driver exists: {why}" in done.stderr
    assert f"requested devices gpu:1, but {why}" in done.stdout


def test_a_user_may_mean_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--devices cpu` ignores all GPUs; an empty CUDA_VISIBLE_DEVICES causes no warning."""
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_gpus(None, None, pytest.fail)
    check_gpus(parse_devices("cpu"), SlurmEnvironment.from_environment(SLURM), pytest.fail)
