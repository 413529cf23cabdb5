"""Whole sweeps in processes of their own: the real KerasTuner, its chief and workers, killed."""

import contextlib
import csv
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Harness, wait_for

pytestmark = pytest.mark.full

SEARCH = """
[model]
architecture = "lstm"
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
model.dropout = [0.0, 0.5]
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

    def start(self, sweep_id: str, *words: object) -> "subprocess.Popen[str]":
        return self.harness.start("tune", self.job, "--sweep-id", sweep_id, *words)

    def tune(self, sweep_id: str, *words: object) -> "subprocess.CompletedProcess[str]":
        return self.harness.run("tune", self.job, "--sweep-id", sweep_id, *words)

    def rows(self, sweep_id: str) -> list[dict[str, str]]:
        with (self.folder(sweep_id) / "leaderboard.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def oracle(self, sweep_id: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (self.folder(sweep_id) / "oracle/oracle.json").read_text()
        )
        return content

    def progress(self, sweep_id: str) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            content: dict[str, Any] = json.loads(
                (self.folder(sweep_id) / "oracle/progress.json").read_text()
            )
            return content
        return {}

    def processes(self, module: str, sweep_id: str) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if {module.encode(), str(self.folder(sweep_id)).encode()} <= set(words):
                    found.append(int(path.parent.name))
        return found

    def left(self, sweep_id: str) -> list[int]:
        return [
            p
            for m in ("harness.tuning.oracle_server", "harness.tuning.worker")
            for p in self.processes(m, sweep_id)
        ]


KEYS = ("model.units", "model.dropout", "train.learning_rate")


def by_settings(rows: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """The objective of each setting, to the last digit."""
    return {tuple(row[key] for key in KEYS): row["val_loss"] for row in rows}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """A grid of eight trials by one worker that nobody disturbed."""
    sweeps = Sweeps(Harness(tmp_path_factory.mktemp("calm")))
    done = sweeps.tune("calm", "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    return sweeps


def test_a_search_ends_with_its_winner(calm: Sweeps) -> None:
    """Every setting is tried once, the folder holds what it should, and no process is left."""
    rows = calm.rows("calm")
    assert [row["status"] for row in rows] == ["finished"] * 8
    assert len(by_settings(rows)) == 8
    scores = [float(row["val_loss"]) for row in rows]
    assert scores == sorted(scores)
    folder = calm.folder("calm")
    result = json.loads((folder / "result.json").read_text())
    assert (result["best_trial"], result["best_score"]) == (rows[0]["trial"], scores[0])
    assert (result["num_trials"], result["num_failed"]) == (8, 0)
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600
    (log,) = (folder / "workers").glob("w*.log")
    first = log.read_text().splitlines()[0].partition(" INFO ")[2]  # says what trains
    assert re.match(r"CPU, \d+ threads?; data: SAMPLE of IMDB, .*; worker w0 on ", first), first
    assert calm.left("calm") == []


def test_a_trial_is_a_run_that_never_read_the_test_set(calm: Sweeps) -> None:
    """It has record, metrics and TensorBoard log, and no score on the test set."""
    best = calm.rows("calm")[0]
    run = calm.folder("calm") / f"trials/{best['trial']}-seed1"
    result = json.loads((run / "result.json").read_text())
    assert result["val_loss"] == float(best["val_loss"])
    assert not {"accuracy", "roc_auc", "num_test"} & set(result)
    assert not (run / "predictions.npz").exists()
    assert list((run / "tensorboard/validation").glob("events.*"))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    refused = calm.harness.run("evaluate", run)
    assert refused.returncode == 2
    assert "leaves the test set unread" in refused.stderr


def test_a_sweep_goes_on_over_kills_of_everybody(calm: Sweeps) -> None:
    """Workers and the chief are killed: each trial ends once, with the same scores to the digit."""
    process = calm.start("wild", "--workers", 2)
    moments, kills, chiefs = random.Random(5), 0, 0  # noqa: S311 - not a secret
    next_kill_s = time.monotonic() + 5
    while process.poll() is None:
        time.sleep(0.05)
        finished = int(calm.progress("wild").get("finished") or 0)
        if time.monotonic() > next_kill_s and kills < 5:
            next_kill_s = time.monotonic() + 3
            if workers := calm.processes("harness.tuning.worker", "wild"):
                os.kill(moments.choice(workers), signal.SIGKILL)
                kills += 1
        if finished >= 2 and not chiefs:
            os.kill(calm.processes("harness.tuning.oracle_server", "wild")[0], signal.SIGKILL)
            chiefs = 1
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors
    assert (kills >= 2, chiefs) == (True, 1)
    assert "was ended (exit code -9) and is started again" in errors
    oracle = calm.oracle("wild")
    assert len(oracle["end_order"]) == len(set(oracle["end_order"])) == 8
    assert by_settings(calm.rows("wild")) == by_settings(calm.rows("calm"))
    assert calm.left("wild") == []


def test_a_killed_supervisor_takes_its_processes_along(calm: Sweeps) -> None:
    """Everything killed and started again, then told to stop, then with more trials: all there."""
    process = calm.start("again", "--workers", 2, "--set", "search.trials=4")
    wait_for(lambda: calm.progress("again").get("finished"), timeout_s=90)
    process.kill()
    process.communicate()
    wait_for(lambda: not calm.left("again"), timeout_s=30)
    assert not (calm.folder("again") / "result.json").exists()

    process = calm.start("again", "--workers", 2, "--set", "search.trials=4")
    wait_for(lambda: len(calm.processes("harness.tuning.worker", "again")) == 2, timeout_s=90)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75, said + errors
    assert "interrupted by SIGTERM, trials saved; go on by: harness resume" in errors
    assert calm.left("again") == []
    assert json.loads((calm.folder("again") / "state.json").read_text())["phase"] == "interrupted"

    state = calm.folder("again") / "oracle/oracle.json"  # a disk that failed
    state.write_bytes(state.read_bytes()[:100])

    done = calm.harness.run("resume", calm.folder("again"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(calm.rows("again")) == 4
    done = calm.tune("again", "--workers", 2, "--set", "search.trials=8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert by_settings(calm.rows("again")) == by_settings(calm.rows("calm"))
    oracle = calm.oracle("again")
    assert len(oracle["end_order"]) == len(set(oracle["end_order"])) == 8

    before = {p: p.stat().st_mtime_ns for p in calm.folder("again").rglob("*")}
    done = calm.harness.run("resume", calm.folder("again"))
    assert (done.returncode, "finished already" in done.stdout) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in calm.folder("again").rglob("*")} == before


def test_a_worker_that_hangs_is_ended_and_one_may_join(calm: Sweeps) -> None:
    """A stopped worker's trial goes on; a worker of another command takes trials meanwhile."""
    process = calm.start("hung", "--workers", 1, "--stall", 6)
    wait_for(lambda: calm.progress("hung").get("at"), timeout_s=90)
    hung = calm.processes("harness.tuning.worker", "hung")[0]
    os.kill(hung, signal.SIGSTOP)
    joined = calm.harness.start("sweep", "join", calm.folder("hung"), "--workers", 1)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0, said + errors
    assert re.search(r"w0 made no progress for 6 s with trial \d+ and is ended", errors)
    said, errors = joined.communicate(timeout=60)
    assert joined.returncode == 0, said + errors
    log = next((calm.folder("hung") / "workers").glob("*-w0.log")).read_text()
    assert re.search(r"trial \d+, seed 1", log), "the one that joined had no trial"
    assert by_settings(calm.rows("hung")) == by_settings(calm.rows("calm"))
    assert calm.left("hung") == []


def test_hyperband_goes_on_with_the_best_as_if_it_had_trained_them_at_once(calm: Sweeps) -> None:
    """A trial that goes on takes up the other's checkpoint: the bytes of one long training."""
    setting = ("--set", "search.tuner=hyperband", "--set", "search.factor=2")
    done = calm.tune("band", "--workers", 2, *setting, "--set", "train.epochs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = calm.oracle("band")["trials"]
    values = {key: trial["hyperparameters"]["values"] for key, trial in trials.items()}
    longer = {key: v["tuner/trial_id"] for key, v in values.items() if "tuner/trial_id" in v}
    assert (len(trials), len(longer)) == (5, 1)
    ((trial, parent),) = longer.items()
    run = calm.folder("band") / f"trials/{trial}-seed1"
    logs = "".join(path.read_text() for path in (calm.folder("band") / "workers").glob("w*.log"))
    assert f"trial {trial}, seed 1" in logs
    assert "epoch 1/2" not in logs.partition(f"trial {trial}, seed 1")[2].partition("trial ")[0]
    direct = calm.harness.run("train", run / "job.toml", "--run-id", "direct")
    assert direct.returncode == 0, direct.stderr
    same = calm.harness.runs / "small/direct"
    assert (run / "model.keras").read_bytes() == (same / "model.keras").read_bytes()
    # The parent trained its epochs to the same, and the other one did not train them again.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before = (calm.folder("band") / f"trials/{parent}-seed1/metrics.jsonl").read_text()
    assert lines[0] == json.loads(before.splitlines()[0])


def test_a_trial_that_fails_is_counted_and_three_alike_end_the_sweep(calm: Sweeps) -> None:
    """One failure is noted and the search goes on; three of a kind end it with their error."""
    trials = calm.folder("broken") / "trials"
    trials.mkdir(parents=True)
    (trials / "1-seed1").touch()  # where the run's folder should be
    done = calm.tune("broken", "--workers", 1, "--set", "search.trials=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["status"] for row in calm.rows("broken")] == ["finished", "finished", "failed"]
    assert "File exists" in calm.rows("broken")[-1]["error"]
    assert "best of 3 trials, 1 failed" in done.stdout

    for name in ("0000-seed1", "0001-seed1", "0002-seed1"):
        path = calm.folder("worse") / "trials" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = calm.tune("worse", "--workers", 1)
    assert done.returncode == 1
    assert "three trials failed alike" in done.stderr
    assert "File exists" in done.stderr
    assert not (calm.folder("worse") / "result.json").exists()
    assert calm.left("worse") == []


def test_what_is_refused_changes_nothing(calm: Sweeps) -> None:
    """Another space, fewer trials, a run's folder, a port in use: one line, nothing overwritten."""
    before = {p: p.stat().st_mtime_ns for p in calm.harness.runs.rglob("*")}

    def refused(*words: object, sweep: str = "never") -> str:
        done = calm.tune(sweep, *words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "(train.epochs was 4 and is 5)" in refused("--set", "train.epochs=5", sweep="calm")
    assert "search.trials = 3: was all before" in refused("--set", "search.trials=3", sweep="calm")
    assert "--workers 1001: should be 1000 at most" in refused("--workers", 1001)
    assert "a trial uses one device" in refused("--devices", "cpu:2")
    assert "there is no GPU here" in refused("--workers-per-gpu", 2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        said = refused("--port", port)
        assert f"--port {port}: is in use" in said
    calm.harness.environment["SLURM_JOB_ID"] = "7"
    calm.harness.environment["SLURM_CPUS_PER_TASK"] = "1"
    try:
        assert "1 node with 1 CPUs hold 1" in refused("--workers", 2)
    finally:
        del calm.harness.environment["SLURM_JOB_ID"]
        del calm.harness.environment["SLURM_CPUS_PER_TASK"]
    done = calm.harness.run("sweep", "join", calm.harness.runs)
    assert (done.returncode, "is not a sweep's folder" in done.stderr) == (2, True)
    assert {p: p.stat().st_mtime_ns for p in calm.harness.runs.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["random", "grid"])
def test_24_trials_on_4_workers_over_kills(harness: Harness, tuner: str) -> None:
    """A worker is killed every four seconds and the chief twice: the same best trial and scores.

    Run by hand with `-m slow -s`, which shows how often.
    """
    text = SEARCH.replace("model.units = [4, 8]", "model.units = [4, 8, 12]")
    text = text.replace('"grid"', f'"{tuner}"').replace("[0.0, 0.5]", "[0.0, 0.2, 0.4, 0.6]")
    sweeps = Sweeps(harness, text)
    more = ("--set", "search.trials=24")
    done = sweeps.tune("calm", "--workers", 1, *more)
    assert done.returncode == 0, done.stderr
    process = sweeps.start("wild", "--workers", 4, *more)
    moments, kills, chiefs = random.Random(3), 0, 0  # noqa: S311 - not a secret
    next_kill_s = time.monotonic() + 8
    while process.poll() is None:
        time.sleep(0.1)
        if time.monotonic() > next_kill_s:
            next_kill_s = time.monotonic() + 4
            if workers := sweeps.processes("harness.tuning.worker", "wild"):
                os.kill(moments.choice(workers), signal.SIGKILL)
                kills += 1
        finished = int(sweeps.progress("wild").get("finished") or 0)
        if chiefs < 2 and finished >= 6 * (chiefs + 1):
            os.kill(sweeps.processes("harness.tuning.oracle_server", "wild")[0], signal.SIGKILL)
            chiefs += 1
    assert process.wait() == 0
    print(tuner, kills, "kills of workers,", chiefs, "of the chief")  # noqa: T201
    oracle = sweeps.oracle("wild")
    assert len(oracle["end_order"]) == len(set(oracle["end_order"])) == 24
    assert by_settings(sweeps.rows("wild")) == by_settings(sweeps.rows("calm"))
    assert chiefs == 2
