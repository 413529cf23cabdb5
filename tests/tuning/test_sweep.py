"""Real searches with commands, proposers and workers, which are killed, stopped and cancelled."""

import csv
import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.system.lenient_json import read_json
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness, shared_run, wait_for
from tests.preloaded import Process

pytestmark = pytest.mark.full

LIMIT_S = 3600.0  # longest time of a search on a busy machine
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
    """Starts `harness tune` on a small search and reads its folder."""

    def __init__(self, harness: Harness, text: str = SEARCH) -> None:
        self.harness = harness
        self.job = harness.folder / "small.toml"
        self.job.write_text(text)

    def folder(self, sweep_id: str) -> Path:
        return self.harness.runs / "small" / sweep_id

    def start(self, sweep_id: str, *words: object) -> Process:
        return self.harness.start("tune", self.job, "--sweep-id", sweep_id, *words)

    def run_calm(self) -> None:
        """Run the sweep `calm` with one worker and without faults."""
        words = ("--sweep-id", "calm", "--workers", 1)
        done = self.harness.run("tune", self.job, *words, timeout_s=LIMIT_S)
        assert done.returncode == 0, done.stdout + done.stderr

    def rows(self, sweep_id: str) -> list[dict[str, str]]:
        with (self.folder(sweep_id) / "leaderboard.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def trials(self, sweep_id: str) -> list[Trial]:
        folder = self.folder(sweep_id)
        return SweepDirectory(folder).trials() if (folder / "trials").exists() else []

    def accepted(self, sweep_id: str) -> list[int]:
        """Return the numbers of the accepted trials."""
        return [trial.n for trial in self.trials(sweep_id) if trial.attempt]

    def run_of(self, sweep_id: str, n: int) -> Path:
        """Return the run of a trial's accepted attempt."""
        trial = self.trials(sweep_id)[n]
        return SweepDirectory(self.folder(sweep_id)).trial_run(n, trial.attempt, 1).folder

    def state(self, sweep_id: str) -> dict[str, Any]:
        return read_json(self.folder(sweep_id) / "state.json")

    def wait_for_trial(self, sweep_id: str, attempt: int = 1) -> None:
        """Wait until a worker trains; `state.json` shows this too late."""
        path = f"trials/*/{attempt}/seed1"
        wait_for(lambda: any(self.folder(sweep_id).glob(path)), timeout_s=90)

    def processes(self, sweep_id: str) -> dict[int, bool]:
        """Return the workers and proposers of a search, and whether each one is a proposer.

        All are read at once, because a proposer ends when it has no more trial to propose.
        """
        named, found = {"harness.tuning.worker", str(self.folder(sweep_id))}, {}
        for process in psutil.process_iter(["cmdline", "ppid"]):
            words = process.info["cmdline"] or []
            if named <= {*words}:
                is_proposer = any(word.startswith("--ahead=") for word in words)
                found[process.pid] = process.info["ppid"], is_proposer
        # A fork has its parent's command line until it executes another program, such as git.
        return {pid: proposes for pid, (parent, proposes) in found.items() if parent not in found}

    def workers(self, sweep_id: str) -> list[int]:
        return [pid for pid, proposes in self.processes(sweep_id).items() if not proposes]

    def proposers(self, sweep_id: str) -> list[int]:
        return [pid for pid, proposes in self.processes(sweep_id).items() if proposes]


KEYS = ("model.units", "train.learning_rate")


def by_settings(rows: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """Return the objective of each setting, with all digits."""
    return {tuple(row[key] for key in KEYS): row["val_loss"] for row in rows}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """An undisturbed grid of four trials by one worker."""
    sweeps = Sweeps(Harness(tmp_path_factory.mktemp("calm")))
    shared_run(sweeps.harness, "small", "calm", sweeps.run_calm)
    return sweeps


def test_a_search_ends_with_its_result(calm: Sweeps) -> None:
    """The search tries every setting once, and no process remains."""
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
    first = log.read_text().splitlines()[0].partition(" INFO ")[2]
    assert re.match(r"CPU, \d+ threads?; data: SAMPLE of IMDB, .*; worker \S+-w0 on ", first), first
    assert not calm.processes("calm")


def test_a_trial_is_a_run_that_never_reads_the_test_set(calm: Sweeps) -> None:
    """The run has metrics and a TensorBoard log, but no test score; `evaluate` refuses the run."""
    best = calm.rows("calm")[0]
    run = calm.folder("calm") / "trials" / best["attempt"] / "seed1"
    assert run == calm.run_of("calm", int(best["trial"]))
    result = json.loads((run / "result.json").read_text())
    assert result["val_loss"] == float(best["val_loss"])
    assert not {"accuracy", "roc_auc", "num_test"} & set(result)
    assert not list(run.glob("*predictions.npz"))
    assert list((run / "tensorboard/validation").glob("events.*"))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert "was not tested (data.test = false)" in calm.harness.refuse("evaluate", run)


def test_a_trial_has_the_bytes_of_a_separate_run(calm: Sweeps) -> None:
    """The worker trained a trial with the same shapes before; this changes no byte."""
    values = [trial.values for trial in calm.trials("calm")]
    assert values[3]["model.units"] == values[2]["model.units"]
    trial = calm.run_of("calm", 3)
    done = calm.harness.run("train", trial / "job.toml", "--run-id", "alone")
    assert done.returncode == 0, done.stderr
    alone = calm.harness.runs / "small/alone"
    for name in ("model.keras", "metrics.jsonl", "vocabulary.txt"):
        assert (trial / name).read_bytes() == (alone / name).read_bytes(), name


def test_a_search_survives_kills_of_all_its_processes(
    calm: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposer, command and worker are killed; each trial counts once, with its score."""
    process = calm.start("wild", "--workers", 1)
    kill_one(partial(calm.proposers, "wild"))
    wait_for(partial(moved_on, calm, "wild", 0), timeout_s=90)
    process.kill()
    _, errors = process.communicate()
    assert errors.count("ended unexpectedly: exit code -9") == 1
    wait_for(lambda: not calm.processes("wild"))  # workers end with their command

    monkeypatch.setitem(calm.harness.environment, "HARNESS_CPUS", "1")  # so that one worker starts
    process = calm.harness.start("resume", calm.folder("wild"))
    calm.wait_for_trial("wild", attempt=2)
    kill_one(partial(calm.workers, "wild"))
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, said + errors
    assert errors.count("ended unexpectedly: exit code -9") == 1
    assert calm.accepted("wild") == list(range(4))
    assert by_settings(calm.rows("wild")) == by_settings(calm.rows("calm"))
    assert not calm.processes("wild")


def kill_one(processes: Callable[[], list[int]]) -> None:
    """Kill the only process that `processes` returns, and wait until its command replaces it."""
    wait_for(processes, timeout_s=90)
    (killed,) = processes()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: processes() not in ([], [killed]), timeout_s=90)


def moved_on(sweeps: Sweeps, sweep_id: str, kills: int) -> bool:
    """Whether a worker exists, and more than `kills` attempts have saved or ended."""
    saved = sweeps.folder(sweep_id).glob("trials/*/*/seed1/checkpoints/step-*.npz")
    attempts = {path.parent for path in saved}
    done = len(sweeps.accepted(sweep_id))
    return bool(sweeps.workers(sweep_id)) and len(attempts) + done > kills


def test_an_interrupted_search_continues_with_more_trials_and_workers(calm: Sweeps) -> None:
    """A second command's worker trains while the first worker is suspended.

    The interruption is recorded at once, because Slurm may kill the command before its last
    worker has saved. A finished search remains unchanged.
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
    assert "interrupted by SIGTERM; trials saved; continue with: harness resume" in errors
    assert not calm.processes("again")
    assert calm.state("again")["phase"] == "interrupted"
    assert not (calm.folder("again") / "result.json").exists()

    process = calm.start("again", "--workers", 1)
    calm.wait_for_trial("again", attempt=2)
    (worker,) = calm.workers("again")
    os.kill(worker, signal.SIGSTOP)
    joined = calm.start("again", "--workers", 1)
    wait_for(lambda: len(calm.accepted("again")) > 1, timeout_s=120)
    os.kill(worker, signal.SIGCONT)
    for each in (process, joined):
        said, errors = each.communicate(timeout=120)
        assert each.returncode == 0, said + errors
        assert "best of 4 trials" in said
    assert by_settings(calm.rows("again")) == by_settings(calm.rows("calm"))
    assert calm.accepted("again") == list(range(4))
    assert not calm.processes("again")

    before = {p: p.stat().st_mtime_ns for p in calm.folder("again").rglob("*")}
    fewer = ("tune", calm.job, "--sweep-id", "again", "--set", "search.trials=2")
    for words in (("resume", calm.folder("again")), fewer):
        done = calm.harness.run_here(*words)
        assert (done.returncode, "finished already" in done.stdout) == (0, True), done.stderr
    assert {p: p.stat().st_mtime_ns for p in calm.folder("again").rglob("*")} == before


def test_a_refused_command_changes_nothing(calm: Sweeps) -> None:
    """Another job, too many workers, or wrong devices are refused in one line."""
    before = {p: p.stat().st_mtime_ns for p in calm.harness.runs.rglob("*")}
    for sweep_id, option, value, said in (
        ("calm", "--set", "train.epochs=5", "(train.epochs was 4 and is 5)"),
        ("never", "--workers", 1001, "'--workers'"),
        ("never", "--devices", "cpu:2", "a trial uses one device"),
        ("never", "--workers-per-gpu", 2, "there is no GPU to share"),
    ):
        line = calm.harness.refuse("tune", calm.job, "--sweep-id", sweep_id, option, value)
        assert said in line
    assert {p: p.stat().st_mtime_ns for p in calm.harness.runs.rglob("*")} == before
