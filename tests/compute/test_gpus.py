"""A promised GPU that can't be used is refused, with the reason and the remedy."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import tensorflow as tf

from harness.compute.gpus import check_gpus
from harness.compute.strategy import parse_devices
from harness.errors import InputError, NodeFault
from harness.slurm.environment import SlurmEnvironment
from harness.system import gpu
from tests.conftest import Harness
from tests.system.driver import broken_driver, whole_driver

__all__ = ["broken_driver", "whole_driver"]  # pytest takes the fixtures from here

no_driver = pytest.mark.skipif(gpu.has_driver(), reason="a driver is here")

SLURM = {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1"}


def refused(
    harness: Harness, variables: Mapping[str, str], *words: str
) -> tuple[int, str, list[Path]]:
    """Train with the variables; returns exit code, the last line of the refusal, what was made."""
    harness.environment.pop("CUDA_VISIBLE_DEVICES", None)
    harness.environment |= variables
    done = harness.train("lstm", "refused", *words)
    return done.returncode, done.stderr.splitlines()[-1], list(harness.folder.glob("runs/*"))


@pytest.mark.full
@no_driver
def test_without_a_driver(harness: Harness) -> None:
    """The line names Slurm's promise; nothing is written."""
    code, line, made = refused(harness, SLURM)
    assert (code, made) == (2, [])
    assert line.startswith("harness: Slurm gave 1 GPU, but TensorFlow sees no GPU: there is no NV")
    assert line.endswith("--devices cpu trains on the CPU")


@no_driver
@pytest.mark.parametrize(
    ("variables", "devices", "said"),
    [
        (
            {"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0,1"},
            None,
            "Slurm gave 2 GPUs, but TensorFlow sees no GPU: there is no NVIDIA driver here",
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "0"},
            None,
            "CUDA_VISIBLE_DEVICES=0, but TensorFlow sees no GPU: there is no NVIDIA driver here",
        ),
        (
            {},
            "gpu",
            "--devices gpu:1, but TensorFlow sees no GPU: there is no NVIDIA driver here",
        ),
        (
            SLURM | {"CUDA_VISIBLE_DEVICES": ""},
            None,
            "CUDA_VISIBLE_DEVICES is '', which hides all GPUs; unset it",
        ),
    ],
    ids=["slurm-list", "visible", "devices", "hidden"],
)
def test_who_promised_is_named(variables: dict[str, str], devices: str | None, said: str) -> None:
    """The command, the environment or Slurm; and a variable that hides what Slurm gave."""
    requested = parse_devices(devices) if devices else None
    allocation = SlurmEnvironment.from_environment(variables)
    with pytest.raises(InputError, match=re.escape(said)):
        check_gpus(requested, allocation, pytest.fail, variables)


@pytest.mark.full
def test_a_broken_driver_is_the_node_s_fault(
    harness: Harness, broken_driver: dict[str, str]
) -> None:
    """TensorFlow's own reason is in the line; outside a job script the run just fails."""
    code, line, made = refused(harness, SLURM | broken_driver)
    assert (code, made) == (1, [])
    assert "cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY" in line


@pytest.mark.full
def test_a_broken_driver_is_told_to_the_job_script(
    harness: Harness, broken_driver: dict[str, str]
) -> None:
    """The node and the reason stand in the file that the script names, and it is run again."""
    faults = harness.folder / "faults"
    listener = {"HARNESS_NODE_FAULTS": str(faults), "SLURMD_NODENAME": "n7"}
    code, _, _ = refused(harness, SLURM | broken_driver | listener)
    assert code == 75
    (fault,) = faults.read_text().splitlines()
    assert fault.startswith("n7 Slurm gave 1 GPU")


@pytest.mark.full
def test_missing_libraries_are_named(harness: Harness, whole_driver: dict[str, str]) -> None:
    """A MIG instance is visible and the driver is whole, but CUDA is not installed."""
    visible = {"CUDA_VISIBLE_DEVICES": "MIG-8f2a"}
    code, line, _ = refused(harness, SLURM | whole_driver | visible)
    assert code == 2
    assert "CUDA_VISIBLE_DEVICES=MIG-8f2a, but" in line
    assert "libcudnn.so.9" in line
    assert "HARNESS_EXTRA=gpu bash slurm/common.sh --setup" in line


@pytest.mark.full
def test_a_packed_run_takes_its_gpu_from_its_node_s_list(harness: Harness) -> None:
    """A process of ours gets an index, and looks it up before anything asks for GPUs."""
    harness.environment |= {"CUDA_VISIBLE_DEVICES": "MIG-8f2a, MIG-91b3", "HARNESS_GPU": "1"}
    words = harness.command("--exit-with-parent", *harness.train_words("lstm", "second"))
    log = harness.folder / "log"
    with (
        log.open("w") as file,
        # It ends when its standard input does.
        subprocess.Popen(
            words, cwd=harness.folder, env=harness.environment, stdin=subprocess.PIPE, stderr=file
        ) as process,
    ):
        assert process.wait(timeout=120) == 2
    assert "CUDA_VISIBLE_DEVICES=MIG-91b3, but TensorFlow sees no GPU" in log.read_text()


def test_fewer_gpus_than_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The node is at fault: the job goes back into the queue without it."""
    faults = tmp_path / "faults"
    monkeypatch.setenv("HARNESS_NODE_FAULTS", str(faults))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    monkeypatch.setattr(gpu, "has_nvml", lambda: True)
    monkeypatch.setattr(gpu, "missing_libraries", list)
    two = SlurmEnvironment.from_environment(SLURM | {"SLURM_GPUS_ON_NODE": "2"})
    with pytest.raises(NodeFault, match="Slurm gave 2 GPUs, but TensorFlow sees 1: the driver"):
        check_gpus(None, two, pytest.fail, {})
    assert faults.read_text().startswith("n7 Slurm gave 2 GPUs, but TensorFlow sees 1")
    check_gpus(None, SlurmEnvironment.from_environment(SLURM), pytest.fail, {})


@pytest.mark.full
def test_the_cpu_trains_where_it_is_meant(harness: Harness, broken_driver: dict[str, str]) -> None:
    """`--devices cpu` refuses nothing and warns of nothing; the first line says what trains."""
    harness.environment |= SLURM | broken_driver | {"HARNESS_CPUS": "1"}
    done = harness.train("rnn", "meant", "--devices", "cpu", "--set", "train.epochs=1")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "CPU, 1 thread; data: SAMPLE of IMDB, not the full data"
    assert "warning" not in done.stderr


@pytest.mark.full
def test_a_driver_without_a_promise_is_warned_of(
    harness: Harness, broken_driver: dict[str, str]
) -> None:
    """The CPU trains, a warning says why, and TensorFlow's own line is not hidden."""
    harness.environment.pop("CUDA_VISIBLE_DEVICES", None)
    harness.environment |= broken_driver
    done = harness.train("rnn", "warned", "--set", "train.epochs=1")
    assert done.returncode == 0
    assert "failed call to cuInit" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "the CPU trains: a driver is here, but TensorFlow sees no GPU: cuInit failed" in line


def test_a_driver_whose_gpus_are_hidden_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty CUDA_VISIBLE_DEVICES without a promise says by itself that the CPU is meant."""
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    check_gpus(None, None, pytest.fail, hidden)
    warnings: list[str] = []
    check_gpus(None, None, warnings.append, {})
    assert "the CPU trains: a driver is here, but TensorFlow sees no GPU" in warnings[0]
