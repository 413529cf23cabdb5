"""Parallel runs: slots, signals, failures, and several jobs and seeds in one command."""

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import InputError, Interrupted, RunError
from harness.slurm import client, pool
from harness.slurm.pool import (
    ManagedProcess,
    ProcessPool,
    Slot,
    Task,
    allocate_slots,
    needs_steps,
    run_tasks,
    srun_args,
    take_own_gpu,
)
from harness.system import gpu
from harness.system.console import Console
from harness.system.processes import STOPPING
from harness.tracking.run_dir import RunDirectory
from tests.conftest import JOBS, Harness, wait_for, write_program
from tests.slurm.test_environment import allocation

TWO = [Slot(None, None, 1, 2)] * 2


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """Restore the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def tasks_of(folder: Path, script: str, names: str = "abc") -> list[Task]:
    """Return tasks that run the script; the argument of each task is its name."""
    return [
        Task(name, [sys.executable, "-c", script, name], folder / f"{name}.log") for name in names
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.usefixtures("handlers_kept")
def test_a_signal_is_forwarded(tmp_path: Path, number: signal.Signals) -> None:
    """Running tasks get the same signal and have time to save; no further task begins."""
    tasks = tasks_of(
        tmp_path,
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(0.3); print('saved by', number, flush=True); sys.exit(75)\n"
        f"signal.signal({int(number)}, save)\n"
        "print('ready', flush=True)\n"
        "for _ in range(600): time.sleep(0.1)",  # short, as a signal may come before a sleep
    )
    logs = [task.log for task in tasks]

    def send_when_ready() -> None:
        wait_for(lambda: all(log.exists() and "ready" in log.read_text() for log in logs[:2]))
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_ready)
    sender.start()
    with pytest.raises(Interrupted, match=number.name):
        run_tasks(tasks, TWO, allocation=None, console=Console())
    sender.join()
    assert [log.read_text() for log in logs[:2]] == [f"ready\nsaved by {int(number)}\n"] * 2
    assert not logs[2].exists()


@pytest.mark.usefixtures("handlers_kept")
@pytest.mark.parametrize(
    ("child", "kind", "words"),
    [
        ("print('harness: --x: unknown'); sys.exit(2)", InputError, "a: --x: unknown"),
        (
            "print('harness: the GPU is lost; continue with: b'); sys.exit(75)",
            Interrupted,
            r"a \(the GPU is lost\)",
        ),
    ],
)
def test_a_refusal_and_an_interruption_end_all(
    tmp_path: Path, child: str, kind: type[Exception], words: str
) -> None:
    """The other running task is ended, and no further task begins."""
    script = f"import os, sys, time\nif sys.argv[1] != 'a': time.sleep(60)\n{child}"
    begun = time.monotonic()
    with pytest.raises(kind, match=words):
        run_tasks(tasks_of(tmp_path, script), TWO, allocation=None, console=Console())
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "c.log").exists()


@pytest.mark.usefixtures("handlers_kept")
def test_a_failed_task_stops_no_other(tmp_path: Path) -> None:
    """The other tasks end normally; then the error names the failed tasks with their reasons."""
    script = (
        "import os, sys\n"
        "if sys.argv[1] == 'a': os.kill(os.getpid(), 9)\n"
        "if sys.argv[1] == 'b': sys.exit('harness: the disk is full')\n"
        "if sys.argv[1] == 'd': print('epoch 3/8'), sys.exit(137)\n"  # as srun for a killed task
        "print('well', os.environ['HARNESS_CPUS'])"
    )
    with pytest.raises(RunError) as error:
        run_tasks(tasks_of(tmp_path, script, "abcd"), TWO, allocation=None, console=Console())
    said = str(error.value)
    assert said.startswith("3 of 4 failed: ")
    assert "a: was ended by signal 9, most likely out of memory; give the job more --mem" in said
    assert "d: was ended by signal 9" in said
    assert "b: the disk is full" in said
    assert (tmp_path / "c.log").read_text() == "well 1\n"


def test_more_workers_than_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message contains the number of workers, the limit and the remedy."""
    monkeypatch.setattr(pool, "given_cpus", lambda _: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    here = allocation(SLURM_GPUS_ON_NODE="2")
    slots = allocate_slots(here, 4, workers_per_gpu=2, at_most=9)
    assert [slot.gpu for slot in slots] == [0, 1, 0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match="with 2 GPUs; ask for fewer workers, or raise"):
        allocate_slots(None, 3)
    for num, options, message in (
        (3, {}, "--workers 3: there is room for 2 on 1 node with 2 GPUs; .* larger alloc"),
        (5, {"devices": "cpu"}, "--workers 5: there is room for 4 on 1 node with 4 CPUs"),
        (5, {"workers_per_gpu": 2, "option": "--x"}, "--workers 5: .* or raise --x"),
        (
            2,
            {"workers_per_gpu": 2, "devices": "cpu"},
            "--workers-per-gpu 2: there is no GPU to share",
        ),
    ):
        with pytest.raises(InputError, match=message):
            allocate_slots(here, num, at_most=9, **options)


def test_slots_fit_into_cpus_memory_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default there is a slot per CPU, as far as memory allows; slots share the CPUs evenly."""
    monkeypatch.setattr(pool, "given_cpus", lambda _: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    memory_gb = 100.0
    monkeypatch.setattr(pool, "usable_memory_gb", lambda _: memory_gb)

    def shape(num_workers: int | None = None, at_most: int = 100) -> list[int]:
        slots = allocate_slots(None, num_workers, at_most=at_most, process_gb=1.5)
        return [slot.threads for slot in slots]

    assert shape() == [1] * 8
    assert shape(at_most=2) == [4, 4]
    assert shape(num_workers=3) == [2, 2, 2]
    memory_gb = 5.0
    assert shape() == [2, 2, 2]
    memory_gb = 0.5
    assert shape() == [8]


@pytest.mark.parametrize("num_workers", [3, 4])
def test_slots_spread_over_nodes_and_gpus(
    monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """A slot contains the index of its GPU on its node, and its share of the node's CPUs."""
    monkeypatch.setattr(pool, "given_cpus", lambda _: 8)
    two = allocation(SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="2", HARNESS_NODES="n08 n10")
    slots = allocate_slots(two, num_workers, at_most=9)
    found = [(slot.node, slot.variables()["HARNESS_GPU"]) for slot in slots]
    assert found == [("n08", "0"), ("n10", "0"), ("n08", "1"), ("n10", "1")][:num_workers]
    assert {slot.threads for slot in slots} == {4}


@pytest.mark.parametrize(("visible", "own"), [("3,5", "5"), (None, "1")])
def test_a_process_sees_the_gpu_of_its_slot(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, own: str
) -> None:
    """Child processes see the same GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("HARNESS_GPU", "1")
    monkeypatch.setattr(gpu, "names_of_job", None)
    take_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    assert "HARNESS_GPU" not in os.environ


def test_slots_use_only_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without job steps, a user's CUDA_VISIBLE_DEVICES narrows Slurm's GPUs."""
    two = allocation(SLURM_GPUS_ON_NODE="2", HARNESS_NODES="n08")
    for has_srun, visible, indices in (
        (False, "1", [0]),
        (False, "1,0", [0, 1]),
        (True, "1", [0, 1]),
    ):
        monkeypatch.setattr(client, "has_client", lambda name, found=has_srun: found)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [slot.gpu for slot in allocate_slots(two, None)] == indices
    monkeypatch.setattr(gpu, "names_of_job", None)
    monkeypatch.setenv("HARNESS_GPU", "1")
    with pytest.raises(InputError, match="HARNESS_GPU=1: should be below 1, the number "):
        take_own_gpu()


# The command

SMALL = ("--set", "data.limit=200", "--set", "data.maxlen=20", "--set", "train.epochs=2")


@pytest.mark.full
def test_parallel_runs_have_the_bytes_of_single_runs(harness: Harness) -> None:
    """The command prints a table of the runs, and each run has its own log."""
    jobs = [JOBS / "lstm.toml", JOBS / "gru.toml"]
    words = ("train", *jobs, "--seeds", "2", "--run-id", "x", "--workers", "2", *SMALL)
    words += ("--runs", harness.runs)
    done = harness.run(*words)
    assert done.returncode == 0, done.stderr
    runs = [RunDirectory(harness.runs / job / "x-seed2") for job in ("lstm", "gru")]
    assert [run.result()["seed"] for run in runs] == [2, 2]
    first = {word for line in done.stdout.splitlines() for word in line.split()[:1]}
    assert first >= {"lstm", "gru"}
    log = harness.runs / "logs" / "lstm-x-seed2.out"
    assert runs[0].read_json("state.json")["log"] == str(log)
    assert "epoch 2/2" in log.read_text()

    alone = harness.run(
        *("train", jobs[0], "--seed", "2", "--run-id", "alone", *SMALL, "--runs", harness.runs)
    )
    assert alone.returncode == 0, alone.stderr
    model = RunDirectory(harness.runs / "lstm" / "alone").path("model.keras").read_bytes()
    assert model == runs[0].path("model.keras").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1", "--seeds", "2"), "--seed 1 --seeds 2: can't be combined"),
        (("--workers", "2"), "add --seeds"),
        (("--seeds", "3-1"), "--seeds 3-1"),
        (("--seeds", "1-2", "--devices", "cpu:2"), "a run uses one device"),
        (
            ("--seeds", "1-2", "--runs-per-gpu", "2", "--devices", "cpu"),
            "--runs-per-gpu 2: there is no GPU",
        ),
    ],
)
def test_wrong_options_of_several_runs_are_refused(
    harness: Harness, words: tuple[str, ...], said: str
) -> None:
    """The command ends with exit code 2 and a line with option and rule, and writes nothing."""
    done = harness.run_here("train", JOBS / "lstm.toml", "--runs", harness.runs, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not harness.runs.exists()


@pytest.mark.usefixtures("handlers_kept")
def test_one_task_is_cancelled_alone(tmp_path: Path) -> None:
    """A cancelled task saves, or does not begin if it was waiting; the other tasks end normally."""
    script = (
        "import sys, time, pathlib, signal\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / f'{sys.argv[1]}.begun').touch()\n"
        "while sys.argv[1] == 'b' or not (folder / 'b.over').exists():\n"
        "    (folder / 'b.cancel').touch()\n"
        "    time.sleep(0.05)\n"
    )
    (tmp_path / "c.cancel").touch()
    (tmp_path / "b.over").touch()
    tasks = [
        dataclasses.replace(task, cancel_file=tmp_path / f"{task.name}.cancel")
        for task in tasks_of(tmp_path, script)
    ]
    assert [task.name for task in tasks] == ["a", "b", "c"]
    run_tasks(tasks, TWO, allocation=None, console=Console())
    assert [(tmp_path / f"{name}.begun").exists() for name in "abc"] == [True, True, False]


class Signalled(ManagedProcess):
    """A process that ends at its first signal."""

    def __init__(self, slot: Slot | None) -> None:
        super().__init__("one", slot, Path("one.log"))
        self.signals: list[int] = []

    @property
    def alive(self) -> bool:
        return not self.signals

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def test_signals_of_a_job_step() -> None:
    """`ask_to_save` sends TERM to a child process, and USR2 to srun, which forwards USR2.

    `kill` sends KILL to a child process, and TERM to srun, which then kills the step.
    """
    here, node = Signalled(None), Signalled(Slot("n1", 0, 1, 1))
    pool = ProcessPool(None)
    pool._in_steps = True
    pool.ask_to_save([here, node], signal.SIGTERM)
    assert (here.signals, node.signals) == ([signal.SIGTERM], [signal.SIGUSR2])
    pool.kill([here, node])
    assert (here.signals[1], node.signals[1]) == (signal.SIGKILL, signal.SIGTERM)


def test_a_job_step_runs_on_its_slots_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step uses all CPUs of the job on the node, and is not bound to the first CPUs."""
    monkeypatch.delenv("HARNESS_SBATCH_NEVER", raising=False)
    args = srun_args(Slot("n10", 0, 2, 8), "lstm-seed1")
    assert args[0] == "srun"
    assert {"--overlap", "--ntasks=1", "--nodelist=n10", "--cpus-per-task=8"} <= set(args)
    assert {"--cpu-bind=none", "--mem=0", "--job-name=lstm-seed1", "--export=ALL"} <= set(args)
    assert not any(arg.startswith("--nodelist") for arg in srun_args(Slot("", None, 1, 1), "x"))
    monkeypatch.setenv("HARNESS_SBATCH_NEVER", "gres mem")
    assert "--mem=0" not in srun_args(Slot("n10", 0, 2, 8), "lstm-seed1")


def test_steps_need_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without srun, as in a container, workers are child processes; several nodes are refused."""
    write_program(tmp_path / "srun", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (needs_steps(allocation()), needs_steps(None)) == (True, False)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert not needs_steps(allocation())
    with pytest.raises(InputError, match="--nodes=1"):
        needs_steps(allocation(SLURM_JOB_NUM_NODES="2"))
