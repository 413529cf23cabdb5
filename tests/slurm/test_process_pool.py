"""Runs side by side: signals, failures, slots; several jobs and seeds in one command."""

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
from harness.slurm import pool
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.pool import (
    ManagedProcess,
    ProcessPool,
    Slot,
    Task,
    allocate_slots,
    num_in_memory,
    run_tasks,
    take_own_gpu,
)
from harness.system.console import Console
from harness.system.processes import STOPPING
from harness.tracking.run_dir import RunDirectory
from tests.conftest import JOBS, Harness, wait_for, write_program

TWO = [Slot(None, None, 1, 2)] * 2


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """Listening for signals is undone after the test."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def tasks_of(folder: Path, script: str, names: str = "abc") -> list[Task]:
    """Tasks that run the script, each with its name as its argument."""
    return [
        Task(name, [sys.executable, "-c", script, name], folder / f"{name}.log") for name in names
    ]


def send_when_ready(logs: list[Path], number: signal.Signals) -> threading.Thread:
    """Send this process a signal, from another thread, once each log says `ready`."""

    def send() -> None:
        wait_for(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    return sender


@pytest.mark.usefixtures("handlers_kept")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    """Each run at work gets the very signal, and has the time to save; no other is begun."""
    tasks = tasks_of(
        tmp_path,
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(0.3); print('saved by', number, flush=True); sys.exit(75)\n"
        f"signal.signal({int(number)}, save)\n"
        "print('ready', flush=True)\n"
        "for _ in range(600): time.sleep(0.1)",  # a signal just before a sleep does not end it
    )
    logs = [task.log for task in tasks]
    sender = send_when_ready(logs[:2], number)
    with pytest.raises(Interrupted, match=number.name):
        run_tasks(tasks, TWO, allocation=None, console=Console())
    sender.join()
    assert [log.read_text() for log in logs[:2]] == [f"ready\nsaved by {int(number)}\n"] * 2
    assert not logs[2].exists()


@pytest.mark.usefixtures("handlers_kept")
def test_runs_that_all_give_up_at_a_signal_end_their_job(tmp_path: Path) -> None:
    """As those that were requeued too often without a step; or the job would go on for ever."""
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit('harness: not requeued, 20 times'))\n"
        "print('ready', flush=True)\n"
        "for _ in range(600): time.sleep(0.1)"
    )
    tasks = tasks_of(tmp_path, script)
    sender = send_when_ready([task.log for task in tasks[:2]], signal.SIGUSR2)
    with pytest.raises(RunError, match="a: not requeued, 20 times"):
        run_tasks(tasks, TWO, allocation=None, console=Console())
    sender.join()


@pytest.mark.usefixtures("handlers_kept")
@pytest.mark.parametrize(
    ("child", "kind", "words"),
    [
        ("print('harness: --x: unknown'); sys.exit(2)", InputError, "a: --x: unknown"),
        ("sys.exit(75)", Interrupted, "a signal to a"),
    ],
)
def test_a_refusal_and_an_interruption_end_all(
    tmp_path: Path, child: str, kind: type[Exception], words: str
) -> None:
    """What one is refused all would be; the run beside it is ended and none is begun."""
    script = f"import os, sys, time\nif sys.argv[1] != 'a': time.sleep(60)\n{child}"
    begun = time.monotonic()
    with pytest.raises(kind, match=words):
        run_tasks(tasks_of(tmp_path, script), TWO, allocation=None, console=Console())
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "c.log").exists()


@pytest.mark.usefixtures("handlers_kept")
def test_a_failure_stops_no_other(tmp_path: Path) -> None:
    """The others are trained to their end; then the error names which failed, and why."""
    script = (
        "import os, sys\n"
        "if sys.argv[1] == 'a': os.kill(os.getpid(), 9)\n"
        "if sys.argv[1] == 'b': sys.exit('harness: the disk is full')\n"
        "print('well', os.environ['HARNESS_CPUS'])"
    )
    with pytest.raises(RunError) as error:
        run_tasks(tasks_of(tmp_path, script), TWO, allocation=None, console=Console())
    said = str(error.value)
    assert said.startswith("2 of 3: ")
    assert "a: was ended by signal 9" in said
    assert "b: the disk is full" in said
    assert (tmp_path / "c.log").read_text() == "well 1\n"


def test_slots_stay_within_cpus_memory_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default one a CPU as far as the memory goes; no more than there is work for."""
    monkeypatch.setattr(pool, "given_cpus", lambda _: 8)
    monkeypatch.setattr(pool, "visible_gpus", lambda: 0)
    memory_gb = 100.0
    monkeypatch.setattr(pool, "usable_memory_gb", lambda _: memory_gb)

    def shape(num_workers: int | None = None, at_most: int = 100) -> list[int]:
        at_most = min(at_most, num_workers or num_in_memory(None, 1.5))
        return [slot.threads for slot in allocate_slots(None, num_workers, at_most=at_most)]

    assert shape() == [1] * 8
    assert shape(at_most=2) == [4, 4]
    assert shape(num_workers=3) == [2, 2, 2]
    memory_gb = 5.0
    assert shape() == [2, 2, 2]
    memory_gb = 0.5
    assert shape() == [8]


def test_slots_spread_over_nodes_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU of every node has its process, told by its index in the list of its own node."""
    environment = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_GPUS_ON_NODE": "2",
        "HARNESS_NODES": "n08 n10",
    }
    monkeypatch.setattr(pool, "given_cpus", lambda _: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    slots = allocate_slots(SlurmEnvironment.from_environment(environment), None)
    assert [(p.node, p.variables()["HARNESS_GPU"]) for p in slots] == [
        *(("n08", "0"), ("n10", "0"), ("n08", "1"), ("n10", "1"))
    ]


@pytest.mark.parametrize(
    ("visible", "own"),
    [("3,5", "5"), ("MIG-a, MIG-b", "MIG-b"), ("GPU-8f,GPU-2c", "GPU-2c"), (None, "1")],
)
def test_a_process_takes_its_gpu_from_its_own_node_s_list(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, own: str
) -> None:
    """Indices, UUIDs and MIG instances; the next process that it starts takes nothing more."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("HARNESS_GPU", "1")
    take_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    assert "HARNESS_GPU" not in os.environ
    take_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


# The command

SMALL = ("--set", "data.limit=200", "--set", "data.maxlen=20", "--set", "train.epochs=2")


@pytest.mark.full
def test_several_jobs_are_the_runs_that_one_by_one_they_would_be(
    harness: Harness,
) -> None:
    """Same bytes as a run of its own; told again nothing is trained; a table is printed."""
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

    before = [run.read_json("state.json") for run in runs]
    assert harness.run(*words).returncode == 0
    assert [run.read_json("state.json") for run in runs] == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1", "--seeds", "2"), "--seed 1 and --seeds 2: give one of them"),
        (("--workers", "2"), "--seeds too"),
        (("--seeds", "3-1"), "--seeds 3-1"),
        (("--seeds", "1-2", "--devices", "cpu:2"), "a run uses one device"),
        (
            ("--seeds", "1-2", "--runs-per-gpu", "2", "--devices", "cpu"),
            "--runs-per-gpu 2: there is no GPU",
        ),
    ],
)
def test_what_several_runs_can_not_have_is_refused(
    harness: Harness, words: tuple[str, ...], said: str
) -> None:
    """One line with the option and the rule, exit code 2, nothing written."""
    done = harness.run_here("train", JOBS / "lstm.toml", "--runs", harness.runs, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not harness.runs.exists()


@pytest.mark.usefixtures("handlers_kept")
def test_one_task_is_cancelled_alone(tmp_path: Path) -> None:
    """Before its start it does not begin, at work it is asked to save; the others are done."""
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


def test_a_disk_that_refuses_to_answer_cancels_nothing(tmp_path: Path) -> None:
    """Each run waits for it by itself; an error here would end them all."""
    refused = tmp_path / ("x" * 300)
    assert not Task("a", [], tmp_path / "a.log", refused).cancelled


class Asked(ManagedProcess):
    """A process that ends at its first signal."""

    def __init__(self, slot: Slot | None) -> None:
        super().__init__("one", slot, Path("one.log"))
        self.signals: list[int] = []

    @property
    def alive(self) -> bool:
        return not self.signals

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def test_a_job_step_is_asked_to_save_by_a_signal_that_srun_passes_on() -> None:
    """At a TERM srun would kill its step; a process without a step gets what was sent."""
    here, node = Asked(None), Asked(Slot("n1", 0, 1, 1))
    pool = ProcessPool(None)
    pool._in_steps = True
    pool.ask_to_save([here, node], signal.SIGTERM)
    assert (here.signals, node.signals) == ([signal.SIGTERM], [signal.SIGUSR2])


def test_a_task_of_an_array_ends_its_own_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue lists those of all tasks to the one that has the array's own id."""
    cancelled = tmp_path / "cancelled"
    scripts = {
        "squeue": "printf '42_1.0 w0\\n42_3.0 w0\\n42_3.1 w1\\n42_13.0 w0\\n'",
        "scancel": f'echo "$@" >{cancelled}',
    }
    for name, script in scripts.items():
        write_program(tmp_path / name, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    array = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "3"}
    pool = ProcessPool(SlurmEnvironment.from_environment({"SLURM_JOB_ID": "42", **array}))
    pool._kill_steps({"w0"})
    assert cancelled.read_text() == "--signal=KILL 42_3.0\n"
