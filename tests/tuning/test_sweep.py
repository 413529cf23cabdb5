"""Whole sweeps in processes of their own: commands, proposers and workers, killed."""

import contextlib
import csv
import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.system.lenient_json import read_json
from harness.tuning.disk import stop_search_in
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness, shared_run, wait_for
from tests.preloaded import Process

pytestmark = pytest.mark.full

SEARCH = """
[model]
architecture = "lstm"
dropout = 0.5
[data]
limit = 300
maxlen = 20
validation_split = 0.2
[train]
epochs = 4
batch_size = 32
ema_momentum = 0.9
monitor = "val_accuracy"
log_every_steps = 2
checkpoint_every_s = 0.2
[search]
tuner = "grid"
objective = "val_loss"
[search.space]
model.units = [4, 8]
train.learning_rate = [0.001, 0.01]
"""


class Sweeps:
    """Starts `harness tune` over a small search, and looks into its folder."""

    def __init__(self, harness: Harness, text: str = SEARCH) -> None:
        self.harness = harness
        self.job = harness.folder / "small.toml"
        self.job.write_text(text)

    def folder(self, sweep_id: str) -> Path:
        return self.harness.runs / "small" / sweep_id

    def start(self, sweep_id: str, *words: object) -> Process:
        words = ("tune", self.job, "--sweep-id", sweep_id, *words)
        return self.harness.start(*words, is_forked=False)

    def tune(self, sweep_id: str, *words: object) -> "subprocess.CompletedProcess[str]":
        return self.harness.run("tune", self.job, "--sweep-id", sweep_id, *words)

    def rows(self, sweep_id: str) -> list[dict[str, str]]:
        with (self.folder(sweep_id) / "leaderboard.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def trials(self, sweep_id: str) -> list[Trial]:
        folder = self.folder(sweep_id)
        return SweepDirectory(folder).trials() if (folder / "trials").exists() else []

    def accepted(self, sweep_id: str) -> list[int]:
        """The trials that count."""
        return [trial.n for trial in self.trials(sweep_id) if trial.attempt]

    def run_of(self, sweep_id: str, n: int) -> Path:
        """The run of a trial's accepted attempt."""
        trial = self.trials(sweep_id)[n]
        return SweepDirectory(self.folder(sweep_id)).trial_run(n, trial.attempt, 1).folder

    def state(self, sweep_id: str) -> dict[str, Any]:
        return read_json(self.folder(sweep_id) / "state.json")

    def wait_for_trial(self, sweep_id: str) -> None:
        """Wait until a worker trains; the state is written too seldom to show every trial."""
        wait_for(lambda: any(self.folder(sweep_id).glob("trials/*/*/seed1")), timeout_s=90)

    def processes(self, option: bytes, sweep_id: str) -> list[int]:
        """The workers and proposers of a search that have an option."""
        folder, module = str(self.folder(sweep_id)).encode(), b"harness.tuning.worker"
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                has_option = any(word.startswith(option) for word in words)
                if module in words and folder in words and has_option:
                    stat = path.with_name("stat").read_text().rpartition(")")[2].split()
                    found[int(path.parent.name)] = int(stat[1])
        # A child that has yet to become another program, such as git, has its parent's words.
        return [process for process, parent in found.items() if parent not in found]

    def workers(self, sweep_id: str) -> list[int]:
        return [each for each in self.left(sweep_id) if each not in self.proposers(sweep_id)]

    def proposers(self, sweep_id: str) -> list[int]:
        return self.processes(b"--ahead=", sweep_id)

    def left(self, sweep_id: str) -> list[int]:
        return self.processes(b"", sweep_id)


KEYS = ("model.units", "train.learning_rate")


def by_settings(rows: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """The objective of each setting, to the last digit."""
    return {tuple(row[key] for key in KEYS): row["val_loss"] for row in rows}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """A grid of four trials by one worker that nobody disturbed."""
    sweeps = Sweeps(Harness(tmp_path_factory.mktemp("calm")))

    def search() -> None:
        done = sweeps.tune("calm", "--workers", 1)
        assert done.returncode == 0, done.stdout + done.stderr

    shared_run(sweeps.harness, "small", "calm", search)
    return sweeps


def test_a_search_ends_with_its_winner(calm: Sweeps) -> None:
    """Every setting is tried once, the folder holds what it should, and no process is left."""
    rows = calm.rows("calm")
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert len(by_settings(rows)) == 4
    scores = [float(row["val_loss"]) for row in rows]
    assert scores == sorted(scores)
    folder = calm.folder("calm")
    result = json.loads((folder / "result.json").read_text())
    assert (result["best_trial"], result["best_score"]) == (int(rows[0]["trial"]), scores[0])
    assert (result["num_trials"], result["num_failed"], result["trials"]) == (4, 0, 0)
    assert calm.state("calm")["phase"] == "finished"
    assert calm.accepted("calm") == list(range(4))
    (log,) = (folder / "workers").glob("*-w0.log")
    first = log.read_text().splitlines()[0].partition(" INFO ")[2]  # says what trains
    assert re.match(r"CPU, \d+ threads?; data: SAMPLE of IMDB, .*; worker \S+-w0 on ", first), first
    assert calm.left("calm") == []


def test_a_trial_is_a_run_that_never_read_the_test_set(calm: Sweeps) -> None:
    """It has record, metrics and TensorBoard log, and no score on the test set."""
    best = calm.rows("calm")[0]
    run = calm.folder("calm") / "trials" / best["attempt"] / "seed1"
    assert run == calm.run_of("calm", int(best["trial"]))
    result = json.loads((run / "result.json").read_text())
    assert result["val_loss"] == float(best["val_loss"])
    assert not {"accuracy", "roc_auc", "num_test"} & set(result)
    assert not list(run.glob("*predictions.npz"))
    assert list((run / "tensorboard/validation").glob("events.*"))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    refused = calm.harness.run_here("evaluate", run)
    assert refused.returncode == 2
    assert "leaves the test set unread" in refused.stderr


def test_a_trial_ends_with_the_bytes_of_a_process_of_its_own(calm: Sweeps) -> None:
    """Though its worker had trained others of the same shapes before."""
    values = [trial.values for trial in calm.trials("calm")]
    assert values[3]["model.units"] == values[2]["model.units"]
    trial = calm.run_of("calm", 3)
    done = calm.harness.run("train", trial / "job.toml", "--run-id", "alone")
    assert done.returncode == 0, done.stderr
    alone = calm.harness.runs / "small/alone"
    for name in ("model.keras", "metrics.jsonl", "vocabulary.txt"):
        assert (trial / name).read_bytes() == (alone / name).read_bytes(), name


def test_a_sweep_goes_on_over_kills_of_everybody(calm: Sweeps) -> None:
    """Workers, proposers and the command are killed: each trial counts once, with its score."""
    moments = random.Random(5)  # noqa: S311 - not a secret
    process = calm.start("wild", "--workers", 2)
    for kills in range(2):
        wait_for(partial(moved_on, calm, "wild", kills), timeout_s=90)
        os.kill(moments.choice(calm.workers("wild")), signal.SIGKILL)
        for proposer in calm.proposers("wild"):
            os.kill(proposer, signal.SIGKILL)
    assert process.stderr
    again = "ended and is started again: exit code -9"
    with killed_after(90, process):
        assert any(again in line for line in process.stderr)  # waits for the command to see it
    process.kill()
    process.communicate()
    wait_for(lambda: not calm.left("wild"), timeout_s=30)  # they end with it
    done = calm.harness.run("resume", calm.folder("wild"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert calm.accepted("wild") == list(range(4))
    assert by_settings(calm.rows("wild")) == by_settings(calm.rows("calm"))
    assert calm.left("wild") == []


@contextlib.contextmanager
def killed_after(patience_s: float, process: "Process | subprocess.Popen[bytes]") -> Iterator[None]:
    """Kill a process whose output is read in the block, if that takes too long."""
    too_late = threading.Timer(patience_s, process.kill)
    too_late.start()
    try:
        yield
    finally:
        too_late.cancel()


def moved_on(sweeps: Sweeps, sweep_id: str, kills: int) -> bool:
    """Whether a worker is there, and more is saved or done than so many died with."""
    saved = sweeps.folder(sweep_id).glob("trials/*/*/seed1/checkpoints/step-*.npz")
    attempts = {path.parent for path in saved}
    done = len(sweeps.accepted(sweep_id))
    return bool(sweeps.workers(sweep_id)) and len(attempts) + done > kills


def on_a_terminal(sweeps: Sweeps, sweep_id: str, *words: object) -> str:
    """What a search that succeeds shows on a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        sweeps.harness.command("tune", sweeps.job, "--sweep-id", sweep_id, *words),
        cwd=sweeps.harness.folder,
        env=sweeps.harness.environment | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with killed_after(300, process), contextlib.suppress(OSError):  # EIO once all have closed it
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def test_a_sweep_that_is_told_to_stop_goes_on_with_more_trials(calm: Sweeps) -> None:
    """Saved on TERM, gone on with at once, then with more trials; a finished one stays as it is.

    The interruption is on record before the last worker has saved, as Slurm may not wait for it.
    """
    process = calm.start("again", "--workers", 1, "--set", "search.trials=2")
    calm.wait_for_trial("again")
    (worker,) = calm.workers("again")
    os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: calm.state("again")["phase"] == "interrupted", timeout_s=30)
    assert process.poll() is None
    os.kill(worker, signal.SIGCONT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75, said + errors
    assert "interrupted by SIGTERM, trials saved; continue with: harness resume" in errors
    assert calm.left("again") == []
    assert calm.state("again")["phase"] == "interrupted"
    assert not (calm.folder("again") / "result.json").exists()

    shown = on_a_terminal(calm, "again", "--workers", 1, "--set", "search.trials=4")
    assert re.search(r"trials .*[1-4]/4 1 running, \d+/h, best 0\.\d{4} \(trial \d\)", shown), shown
    assert by_settings(calm.rows("again")) == by_settings(calm.rows("calm"))
    assert calm.accepted("again") == list(range(4))

    before = {p: p.stat().st_mtime_ns for p in calm.folder("again").rglob("*")}
    done = calm.harness.run_here("resume", calm.folder("again"))
    assert (done.returncode, "finished already" in done.stdout) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in calm.folder("again").rglob("*")} == before


def test_a_second_command_helps(calm: Sweeps) -> None:
    """Its workers take trials too, and both commands end with the result."""
    process = calm.start("helped", "--workers", 1)
    calm.wait_for_trial("helped")
    os.kill(calm.workers("helped")[0], signal.SIGSTOP)
    joined = calm.start("helped", "--workers", 1)
    wait_for(lambda: len(calm.accepted("helped")) > 1, timeout_s=120)
    os.kill(calm.workers("helped")[0], signal.SIGCONT)
    for each in (process, joined):
        said, errors = each.communicate(timeout=120)
        assert each.returncode == 0, said + errors
        assert "best of 4 trials" in said
    assert "1 more worker, data" in said.partition("parallel")[0]
    assert by_settings(calm.rows("helped")) == by_settings(calm.rows("calm"))
    assert calm.left("helped") == []


def test_a_sweep_is_cancelled_from_another_machine(calm: Sweeps) -> None:
    """By a name in its folder; it stays cancelled until a person resumes it."""
    process = calm.start("stopped", "--workers", 1, "--set", "train.epochs=400")
    wait_for(lambda: calm.state("stopped").get("running"), timeout_s=90)
    stop_search_in(calm.folder("stopped"))
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, said + errors
    assert calm.left("stopped") == []
    again = calm.tune("stopped", "--workers", 1, "--set", "train.epochs=400")
    assert again.returncode == 0, again.stdout + again.stderr
    for text in (said, again.stdout):
        assert "cancelled, trials saved; continue with: harness resume" in text
    assert not (calm.folder("stopped") / "result.json").exists()
    assert calm.state("stopped")["phase"] == "interrupted"
    words = ("resume", calm.folder("stopped"), "--devices", "cpu")
    process = calm.harness.start(*words, is_forked=False)
    log = f"{socket.gethostname()}-{process.pid}-w0.log"
    wait_for((calm.folder("stopped") / "workers" / log).exists, timeout_s=60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.mark.slow
def test_hyperband_goes_on_with_the_best_as_if_it_had_trained_them_at_once(calm: Sweeps) -> None:
    """A trial that goes on takes up the other's checkpoint: the bytes of one long training."""
    setting = ("--set", "search.tuner=hyperband", "--set", "search.factor=2")
    done = calm.tune("band", "--workers", 2, *setting, "--set", "train.epochs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    proposals = calm.trials("band")
    longer = [each for each in proposals if each.parent is not None]
    assert (len(proposals), len(longer)) == (5, 1)
    (trial,) = longer
    assert trial.parent is not None
    run = calm.run_of("band", trial.n)
    logs = "".join(path.read_text() for path in (calm.folder("band") / "workers").glob("*-w?.log"))
    assert f"trial {trial.n}, seed 1" in logs
    assert "epoch 1/2" not in logs.partition(f"trial {trial.n}, seed 1")[2].partition("trial ")[0]
    direct = calm.harness.run("train", run / "job.toml", "--run-id", "direct")
    assert direct.returncode == 0, direct.stderr
    same = calm.harness.runs / "small/direct"
    assert (run / "model.keras").read_bytes() == (same / "model.keras").read_bytes()
    # The parent trained its epochs to the same, and the other one did not train them again.
    first, before = (
        (folder / "timings.jsonl").read_text().splitlines()[0]
        for folder in (run, calm.run_of("band", trial.parent))
    )
    assert first == before


def test_three_trials_that_fail_alike_end_the_sweep(calm: Sweeps) -> None:
    """With their error; nothing is left, and there is no result."""
    one_class = ("--set", "search.objective=val_roc_auc", "--set", "data.validation_split=0.003")
    many = ("--set", "search.tuner=random", "--set", "search.trials=50")
    job = calm.harness.folder / "wide" / "small.toml"  # a space of more than 50 settings
    job.parent.mkdir()
    job.write_text(SEARCH.replace("[0.001, 0.01]", "{ min = 0.001, max = 0.01 }"))
    words = ("--sweep-id", "worse", "--workers", 1, *one_class, *many)
    done = calm.harness.run("tune", job, *words, "--set", "train.epochs=1")
    assert done.returncode == 1
    assert "three trials failed alike" in done.stderr
    assert "all of one class" in done.stderr
    assert not (calm.folder("worse") / "result.json").exists()
    failed = [trial for trial in calm.trials("worse") if trial.error]
    assert 3 <= len(failed) < 20  # some fail while the command looks
    again = calm.harness.run("tune", job, *words, "--set", "train.epochs=1")
    assert (again.returncode, "three trials failed alike" in again.stderr) == (1, True)
    assert sum(row["status"] == "failed" for row in calm.rows("worse")) >= 3
    assert calm.state("worse")["phase"] == "failed"
    assert calm.left("worse") == []


def test_what_is_refused_changes_nothing(calm: Sweeps) -> None:
    """Another space, fewer trials, too many workers: one line, nothing overwritten."""
    before = {p: p.stat().st_mtime_ns for p in calm.harness.runs.rglob("*")}

    def refused(*words: object, sweep: str = "never") -> str:
        done = calm.harness.run_here("tune", calm.job, "--sweep-id", sweep, *words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "(train.epochs was 4 and is 5)" in refused("--set", "train.epochs=5", sweep="calm")
    assert "search.trials = 3: was all before" in refused("--set", "search.trials=3", sweep="calm")
    assert "--workers 1001: should be 1000 at most" in refused("--workers", 1001)
    assert "a trial uses one device" in refused("--devices", "cpu:2")
    assert "there is no GPU here" in refused("--workers-per-gpu", 2)
    calm.harness.environment["SLURM_JOB_ID"] = "7"
    calm.harness.environment["SLURM_CPUS_PER_TASK"] = "1"
    try:
        assert "1 node with 1 CPUs hold 1" in refused("--workers", 2)
    finally:
        del calm.harness.environment["SLURM_JOB_ID"]
        del calm.harness.environment["SLURM_CPUS_PER_TASK"]
    done = calm.harness.run_here("sweep", "join", calm.harness.runs)
    assert (done.returncode, "is not a sweep's folder" in done.stderr) == (2, True)
    assert {p: p.stat().st_mtime_ns for p in calm.harness.runs.rglob("*")} == before
