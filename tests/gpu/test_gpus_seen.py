"""On the null GPU: GPUs are listed and checked, or refused for the right reason."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.training.record import CONTEXT_GB
from tests.gpu.conftest import Rig, last_line

pytestmark = pytest.mark.full

CHECKED = {"HARNESS_CHECK_DEVICES": "1"}


def libraries(rig: Rig) -> Path:
    (folder,) = rig.environment.glob("lib/python3*/site-packages/nvidia")
    return folder


def of_site(rig: Rig) -> dict[str, str]:
    """Return the variable that a site's module sets so that programs load the site's cuDNN."""
    folder = rig.folder / "modules"
    folder.mkdir()
    shutil.copy(libraries(rig) / "cudnn/lib/libcudnn.so.9", folder)
    return {"LD_LIBRARY_PATH": f"{folder}:{rig.environment / 'driver'}"}


def test_a_run_trains_on_a_gpu_with_the_libraries_of_the_lock(rig: Rig) -> None:
    """The run uses cuDNN; its log and its record say that the GPU was not checked.

    The record has the versions of the libraries, and the path of the site's cuDNN, which replaces
    the cuDNN of the lock.
    """
    variables = {"NCCL_SOCKET_IFNAME": "ib0"}
    done = rig.train("lstm", "--devices", "gpu:1", env=variables | of_site(rig))
    assert done.returncode == 0, done.stderr
    assert "1 × NVIDIA H100 80GB HBM3; data: " in done.stdout
    assert "HARNESS_CHECK_DEVICES=0: the results of the GPUs are not checked" in done.stderr
    assert "(9.0): TensorFlow has no machine code for it, so the driver compiles" in done.stdout
    record = json.loads((rig.folder / "runs/lstm/rig/provenance.json").read_text())
    assert record["kernels"] == {"lstm": "cudnn"}
    (start,) = record["starts"]
    assert start["gpus_checked"] is False
    assert start["gpu_gb"] > CONTEXT_GB
    cuda, found = start["cuda"], start["libraries"]
    assert (found["cudnn"], found["cublas"], found["nccl"]) == ("9.28.0", "12.9.3", "2.32.3")
    assert cuda["site_libraries"] == {"libcudnn.so.9": f"{rig.folder}/modules/libcudnn.so.9"}
    assert cuda["compute_capabilities"] == ["9.0"]
    assert variables.items() <= cuda["variables"].items()
    assert rig.counts()["cudnnRNNForward"] > 0


MIG = {"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2", "STUB_MIG": "1"}


@pytest.mark.parametrize(
    ("devices", "env", "gpus", "reason"),
    [
        ("gpu:9", {}, 2, "this machine has 2; request 2: --devices gpu:2"),
        ("gpu:2", {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1"}, 1, "Slurm gave 1; request"),
        ("gpu", {"CUDA_VISIBLE_DEVICES": "MIG-8f2a"}, 1, "names MIG-8f2a, which the driver does"),
        ("gpu:2", {"CUDA_VISIBLE_DEVICES": "0,7"}, 2, "names 7, which the driver does not know"),
        ("gpu:2", MIG, 1, "several MIG instances, but a process sees only one; use --devices"),
        ("gpu", {"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "1"}, 2, "Slurm gave 1 of the 2 GPUs that"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unusable_gpu_is_refused_in_one_line(
    rig: Rig, devices: str, env: dict[str, str], gpus: int, reason: str
) -> None:
    """The node is not at fault; the run writes nothing."""
    done = rig.train("lstm", "--devices", devices, gpus=gpus, env=env)
    assert (done.returncode, reason in last_line(done)) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (rig.folder / "runs").exists()


def test_missing_libraries_are_found(rig: Rig) -> None:
    """The environment lacks CUDA libraries, and the driver lacks NVML, as in some containers."""
    copy = Rig(rig.folder / "copy", rig.folder)
    subprocess.run(["cp", "--archive", "--link", rig.environment, copy.environment], check=True)
    for package in ("cudnn", "cublas", "cufft"):
        shutil.rmtree(libraries(copy) / package)
    (copy.environment / "driver/libnvidia-ml.so.1").unlink()
    load = "from harness.system import gpu; print(*gpu.load_libraries())"
    of_cublas = ["libcublasLt.so.12", "libcublas.so.12"]
    missing = ["libnvidia-ml.so.1", *of_cublas, "libcufft.so.11", "libcudnn.so.9"]
    assert copy.run(["-c", load]).stdout.split() == missing
    assert rig.run(["-c", load]).stdout.split() == []


@pytest.mark.parametrize(
    ("capability", "level", "said"),
    [("10.0", "yellow", "XLA may abort on it"), ("7.0", "red", "cuDNN 9.28.0 has no code for it")],
)
def test_doctor_describes_cards_and_libraries(
    rig: Rig, capability: str, level: str, said: str
) -> None:
    """`doctor` warns of cards on which XLA may abort, and of libraries of the site."""
    variables = of_site(rig) | {"STUB_CAPABILITY": capability}
    done = rig.run(["-m", "harness", "doctor", "--json"], 2, variables)
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert found["devices"]["found"].startswith("2 x NVIDIA H100 80GB HBM3")
    assert found["card"]["level"] == level
    assert said in found["card"]["found"]
    assert found["libraries"]["level"] == "yellow"
    assert f"libcudnn.so.9 from {rig.folder}/modules/" in found["libraries"]["found"]


def test_a_gpu_that_computes_wrongly_is_refused(rig: Rig) -> None:
    """One line reports a fault of the node, before the run writes anything."""
    faults = rig.folder / "faults"
    listener = {"HARNESS_NODE_FAULTS": str(faults), "SLURMD_NODENAME": "n7"}
    done = rig.train("lstm", "--devices", "gpu:1", env=CHECKED | listener)
    assert done.returncode == 75
    wrong = "GPU 0 (NVIDIA H100 80GB HBM3) computes wrong results: an elementwise operation differs"
    assert wrong in last_line(done)
    assert faults.read_text().startswith(f"n7 {wrong}")
    assert not (rig.folder / "runs").exists()


EVERY_COMPUTATION = """
from harness.compute.strategy import import_tensorflow
tf = import_tensorflow(None)
from harness.compute import device_check
(gpu,) = tf.config.list_physical_devices("GPU")
print("memory growth", tf.config.experimental.get_memory_growth(gpu), sep=": ")
for name, on_gpu, on_cpu in device_check._computations(device_check.LAYERS):
    with tf.device("GPU:0"):
        found = on_gpu()
    with tf.device("CPU:0"):
        expected = on_cpu()
    differs = max(map(device_check._difference, found, expected)) > device_check.TOLERANCE
    print(name, differs, sep=": ")
"""


def test_each_computation_of_the_check_runs_on_the_gpu(rig: Rig) -> None:
    """A GPU that computes nothing fails every computation; cuDNN and XLA are called.

    TensorFlow allocates GPU memory only when needed, so that several processes can share a GPU.
    """
    done = rig.run(["-c", EVERY_COMPUTATION])
    lines = done.stdout.splitlines()
    assert len(lines) >= 6, done.stderr
    assert [line for line in lines if not line.endswith(": True")] == []
    counts = rig.counts()
    assert counts["cudnnRNNForward"] >= 2
    assert counts["cudnnRNNBackwardData_v8"] >= 2
    assert counts["cuLaunchKernel"] > 0
