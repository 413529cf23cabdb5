"""Each fault of the null GPU ends a run with one error line and the right exit code.

The run can be resumed. All runs are forks of a process that has imported TensorFlow but not listed
devices.
"""

import concurrent.futures
import json
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from tests import preloaded
from tests.conftest import JOBS, wait_for
from tests.gpu.conftest import TIMEOUT_S, Rig, last_line, server_of

pytestmark = pytest.mark.full

AT_ONCE = 3  # runs at a time; some of them only wait
NODE = socket.gethostname()
# These settings train a small LSTM for a few steps, with one validation.
SMALL = [
    *("--set", "data.limit=100"),
    *("--set", "data.maxlen=20"),
    *("--set", "model.units=8"),
    *("--set", "train.epochs=1"),
    *("--set", "train.batch_size=16"),
]
MEMORY = "the device is out of memory"
ECC = "the GPU's memory is broken: "
FAULT = "a kernel failed on the GPU: "
DRIVER = "the driver is too old for this CUDA: "
REFUSED = "a CUDA library refused: "
NCCL = "the GPUs can't communicate (NCCL): "
LOST = "the driver has lost the GPU"
# Each key is a cell of the table in tests/README.md: a function, its error code, and the number of
# calls before the first failure. The codes are those of CUDA, cuDNN (4004: failed allocation on the
# device; 5000: EXECUTION_FAILED) and NCCL (1: ncclUnhandledCudaError; 6: ncclRemoteError). Each
# value is the start of the error message, and whether the node is at fault.
SUITE = {
    "cuMemAlloc_v2:2:0": (MEMORY, False),
    "cuModuleLoadData:222:20": (f"{DRIVER}cuModuleLoadData failed with", False),
    "cuEventQuery:214:150": (f"{FAULT}Unexpected Event status: 1;", True),
    "cudnnRNNForward:5000:2": (f"{REFUSED}CUDNN_STATUS_EXECUTION_FAILED in ", False),
    "ncclAllReduce:1:3": (f"{NCCL}BaseCollectiveExecutor::StartAbort UNKNOWN", False),
}
CELLS = [
    (
        *(MEMORY, False),
        "cuModuleLoadData:2:0 cudaLaunchKernel:2:150 cudnnCreate:4004:0 cuMemAlloc_v2:2:2 "
        "cuModuleLoadFatBinary:2:0 cuLaunchKernel:2:500 cuMemcpyHtoDAsync_v2:2:100 "
        "cudnnRNNForward:4003:2 cudnnRNNForward:4004:2 cublasSgemm_v2:3:0 "
        "cuStreamCreateWithPriority:2:0",
    ),
    (
        *(ECC, True),
        "cuMemAlloc_v2:214:0 cuModuleLoadData:214:20 cuLaunchKernel:214:500 "
        "cudaLaunchKernel:214:150 cuMemcpyHtoDAsync_v2:214:100 cuMemcpyDtoHAsync_v2:214:60",
    ),
    (
        *(FAULT, True),
        "cuLaunchKernel:700:500 cuLaunchKernel:719:500 cuMemcpyDtoHAsync_v2:700:60 "
        "cuMemcpyDtoHAsync_v2:719:60 cuModuleLoadData:700:20 cudaLaunchKernel:700:150 "
        "cudaLaunchKernel:719:150 cuEventQuery:700:150 cuEventQuery:719:150 cuEventQuery:802:150 "
        "cuMemcpyHtoDAsync_v2:700:100",
    ),
    (DRIVER, False, "cuModuleLoadFatBinary:222:0 cuLaunchKernel:222:500 cudaLaunchKernel:222:150"),
    (
        *(REFUSED, False),
        "cudnnCreate:1001:0 cudnnCreate:4000:0 cudnnRNNForward:3000:2 "
        "cudnnRNNBackwardData_v8:5000:1 cublasCreate_v2:1:0 cublasSgemm_v2:13:0",
    ),
    (NCCL, False, "ncclAllReduce:2:3 ncclAllReduce:6:0"),
    (LOST, True, "cuStreamSynchronize:802:10"),
    ("the GPU accepts no more processes: ", False, "cuDevicePrimaryCtxRetain:46:0"),
]
NIGHTLY = {cell: (line, of_node) for line, of_node, cells in CELLS for cell in cells.split()}

ABORTED = "cuEventQuery:214:150"  # this fault aborts TensorFlow
HANG = {"STUB_HANG": "cudnnRNNForward:3"}
STALL = "stall"


class Forks:
    """Starts commands of the rig as a job script does, each in a folder of its own."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.server = server_of(environment)

    def start(
        self, name: str, *words: object, gpus: int = 1, env: Mapping[str, str] = {}
    ) -> preloaded.Command:
        """Start a `harness` command."""
        rig = Rig(self.environment, self.folder / name)
        (rig.folder / "home").mkdir(parents=True, exist_ok=True)
        variables = {
            "HARNESS_OFFLINE": "1",
            "HARNESS_CPUS": "1",
            "HARNESS_NODE_FAULTS": str(rig.folder / "faults"),
            "SLURMD_NODENAME": "n7",
        }
        environment = {**rig.variables(gpus), **variables, **env}
        return preloaded.Command(words, rig.folder, environment, server=self.server)

    def train(self, name: str, gpus: int = 1, env: Mapping[str, str] = {}) -> preloaded.Command:
        """Start a small run in the folder `NAME/runs/lstm/rig`."""
        words = ["train", JOBS / "lstm.toml", "--run-id", "rig", "--devices", f"gpu:{gpus}"]
        return self.start(name, *words, *SMALL, gpus=gpus, env=env)

    def fail(self, cell: str) -> "subprocess.CompletedProcess[str]":
        """Train a small run with the fault `cell`, or with a step that hangs if `cell` is STALL."""
        stub = {**HANG, "HARNESS_STALL_MIN": "0.1"} if cell == STALL else {"STUB_FAIL": cell}
        return ended(self.train(cell, 2 if "nccl" in cell else 1, stub))

    def run_of(self, name: str) -> Path:
        """Return the folder of a small run."""
        return self.folder / name / "runs/lstm/rig"

    def state(self, name: str) -> dict[str, object]:
        """Return the `state.json` of a small run; empty if the run has not begun."""
        path = self.run_of(name) / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def blamed(self, name: str) -> str:
        """Return the lines with which a run reported faulty nodes to the job script."""
        path = self.folder / name / "faults"
        return path.read_text() if path.exists() else ""


def ended(command: preloaded.Command) -> "subprocess.CompletedProcess[str]":
    out, err = command.communicate(TIMEOUT_S)
    code = command.wait()
    command.close()
    return subprocess.CompletedProcess(command.args, code, out, err)


@pytest.fixture(scope="module")
def forks(null_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Forks:
    """All runs of this file are forks of one process with TensorFlow."""
    return Forks(null_environment, tmp_path_factory.mktemp("faults"))


Ends = Mapping[str, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def ends(forks: Forks) -> Ends:
    """The ended processes of the runs with the faults of SUITE, and of the run that hangs."""
    names = [STALL, *SUITE]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(forks.fail, names), strict=True))


def check(forks: Forks, cell: str, done: "subprocess.CompletedProcess[str]") -> None:
    """Assert one line with a remedy, the right exit code, and no results of the faulty steps."""
    line, is_of_node = {**SUITE, **NIGHTLY}[cell]
    errors = [each for each in done.stderr.splitlines() if not each.startswith("warning: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"harness: {line}"), errors
    assert errors[0].count(";") >= 1  # the remedy follows
    assert done.returncode == (75 if is_of_node else 1)
    assert forks.blamed(cell).count("\n") == is_of_node
    assert not (forks.run_of(cell) / "result.json").exists()
    if state := forks.state(cell):  # otherwise the run failed before it began
        assert state["phase"] == "failed"
        assert str(state["error"]).endswith(errors[0].removeprefix("harness: "))
        metrics = forks.run_of(cell) / "metrics.jsonl"
        assert not metrics.exists() or not metrics.read_text()


@pytest.mark.parametrize("cell", SUITE)
def test_a_fault_is_one_line_with_the_right_exit_code(forks: Forks, ends: Ends, cell: str) -> None:
    """A job returns to the queue if the node is at fault, and fails after other faults."""
    check(forks, cell, ends[cell])


@pytest.mark.slow
@pytest.mark.parametrize("cell", NIGHTLY)
def test_other_faults_are_one_line(forks: Forks, cell: str) -> None:
    """These faults of the table in tests/README.md are tested only nightly."""
    check(forks, cell, forks.fail(cell))


@pytest.fixture(scope="module")
def finished_run(forks: Forks, ends: Ends) -> Path:
    """A run that was resumed after a fault, and has finished, although TensorFlow aborted."""
    assert ends[ABORTED].returncode
    done = ended(forks.start(ABORTED, "resume", forks.run_of(ABORTED)))
    assert done.returncode == 0, done.stderr
    assert forks.state(ABORTED)["phase"] == "finished"
    return forks.run_of(ABORTED)


@pytest.mark.parametrize(
    "card", [{}, pytest.param({"STUB_CAPABILITY": "10.0"}, marks=pytest.mark.slow)], ids=str
)
def test_an_old_driver_is_no_fault_of_the_node(forks: Forks, card: dict[str, str]) -> None:
    """The check of the GPU distinguishes kernels that were not loaded from wrong results."""
    name = f"checked-{len(card)}"
    stub = {"STUB_FAIL": "cuModuleLoadData:222:0", "HARNESS_CHECK_DEVICES": "1"}
    done = ended(forks.train(name, env=stub | card))
    assert (done.returncode, forks.blamed(name)) == (1, "")
    assert last_line(done).startswith(f"harness: {DRIVER}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["evaluate", "RUN"], ["predict", "RUN", "good"]], ids=lambda words: words[0]
)
def test_no_command_uses_results_of_kernels_that_were_not_run(
    forks: Forks, finished_run: Path, words: list[str]
) -> None:
    """The commands fail, because the probabilities would be old contents of the memory."""
    command = [str(finished_run) if word == "RUN" else word for word in words]
    assert ended(forks.start("read", *command)).returncode == 0
    stub = {"STUB_FAIL": "cuModuleLoadData:222:0"}
    done = ended(forks.start("read", *command, env=stub))
    assert (done.returncode, done.stdout) == (1, "")
    assert last_line(done).startswith(f"harness: {DRIVER}cuModuleLoadData failed with")


def test_commands_that_do_not_train_leave_the_gpu_alone_if_asked(
    forks: Forks, finished_run: Path, tmp_path: Path
) -> None:
    """With HARNESS_DEVICES=cpu a faulty GPU has no effect. On a GPU, warnings appear only once."""
    texts = tmp_path / "texts"
    texts.write_text("good\n\n\n")
    on_gpu = ended(forks.start("read", "predict", finished_run, "--file", texts))
    assert on_gpu.returncode == 0
    assert on_gpu.stderr.count("lines without a word") == 1
    checked = {"STUB_FAIL": "cuDevicePrimaryCtxRetain:46:0", "HARNESS_CHECK_DEVICES": "1"}
    site = {**checked, "HARNESS_DEVICES": "cpu"}
    on_cpu = ended(forks.start("read", "predict", finished_run, "good", env=site))
    assert (on_cpu.returncode, on_cpu.stderr) == (0, "")
    words = ("audit", finished_run, "--quick", "--devices", "cpu")
    audit = ended(forks.start("read", *words, env=checked))
    assert audit.returncode != 2, audit.stderr


def test_a_step_that_never_ends_ends_the_process(forks: Forks, ends: Ends) -> None:
    """The line names the device and the node, and says how to resume the run."""
    done = ends[STALL]
    assert done.returncode == 75
    # Before the end of the first step the limit is 0.6 min. A busy machine can exceed this limit.
    assert last_line(done).replace("0.6 min", "0.1 min") == (
        f"harness: 1 × NVIDIA H100 80GB HBM3 of {NODE}: no step, batch or compilation has "
        "ended for 0.1 min (HARNESS_STALL_MIN); the process ends; continue with: harness resume "
        f"{forks.run_of(STALL).relative_to(forks.folder / STALL)}"
    )
    state = forks.state(STALL)
    assert state["phase"] == "interrupted"
    assert str(state["signal"]).startswith("a hang of 1 × NVIDIA")
    assert forks.blamed(STALL) == ""  # no node is blamed: the step may hang on any node


@pytest.mark.parametrize(
    "numbers",
    [[SIGTERM], pytest.param([SIGINT, SIGINT], marks=pytest.mark.slow)],
    ids=["stop", "Ctrl-C twice"],
)
def test_a_signal_is_obeyed_while_a_device_does_not_answer(
    forks: Forks, numbers: list[int]
) -> None:
    """The run is interrupted within HARNESS_STOP_S; a second Ctrl-C ends it at once."""
    name = f"signals-{len(numbers)}"
    command = forks.train(name, env={**HANG, "HARNESS_STOP_S": "2"})
    wait_for(lambda: "first_step_s" in forks.state(name), TIMEOUT_S)
    time.sleep(1)  # now a later step hangs
    began = time.monotonic()
    for number in numbers:
        command.send_signal(number)
        time.sleep(0.3)
    done = ended(command)
    assert done.returncode == 75
    assert time.monotonic() - began < 10
    if numbers == [SIGTERM]:
        assert f"SIGTERM; 1 × NVIDIA H100 80GB HBM3 of {NODE} did not answer for 2 s" in done.stderr
        assert forks.state(name)["signal"] == "SIGTERM"
    else:
        assert last_line(done).startswith("harness: interrupted by Ctrl-C and ended at once;")
