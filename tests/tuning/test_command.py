"""The records and the end of a search's command, tested without processes."""

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cli.tune import run_sweep
from harness.errors import CANCELLED, DiskError, InputError, RunError
from harness.system.console import Console
from harness.system.processes import StopRequest
from harness.tracking.run_dir import CANCEL, ask_to_cancel
from harness.tuning.sweep_dir import SweepDirectory, stop_search_in
from harness.tuning.tune import Command
from harness.tuning.worker import WorkerPool, WorkerProcess, WorkerRequest
from tests.tuning.made_up_sweep import RANDOM, accept, add_trial, make_sweep, trial


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command of a search of 24 trials: one finished, one failed, one running, one waiting."""
    trials = [trial(0, 0.8), trial(1, None, error="no"), trial(2, None, worker="a"), trial(3, None)]
    sweep, console = make_sweep(tmp_path / "sweep", RANDOM, *trials), Console()
    pool = WorkerPool(sweep.folder, WorkerRequest(), [], name="a", allocation=None, console=console)
    monkeypatch.setattr(pool, "start_one", lambda _: None)
    monkeypatch.setattr(StopRequest, "listen", lambda _: None)
    return Command(sweep, sweep.search(), pool, None)


def end(sweep: SweepDirectory, num_trials: int = 4) -> None:
    """End the search after the four trials of `command`, or after more."""
    sweep.path("ends/24").mkdir()
    sweep.path("ends/24/end.json").write_text(json.dumps({"num_trials": num_trials}))


def test_the_heartbeat_has_the_progress_of_the_search(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ETA follows from the trials that ended since this command began.

    A second command is no restart. The command prints a line for each trial that ends.
    """
    assert command._turn() is None
    expected: dict[str, Any] = dict.fromkeys(("finished", "failed", "running", "waiting"), 1)
    expected |= {"trials": 24, "workers": 1, "phase": "searching"}
    expected |= {"best": {"trial": "0", "score": 0.8}, "eta_s": None}
    state = command.sweep.read_json("state.json")
    assert {key: state[key] for key in expected} == expected
    other = Command(command.sweep, command.search, command.pool, None)
    assert other.heartbeat.state["restarts"] == 0
    accept(command.sweep, trial(2, 0.81234))
    accept(command.sweep, trial(3, None, error="no room"))
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 60)
    assert command._turn() is None
    # Two trials took a minute, 20 are left.
    assert command.heartbeat.state["eta_s"] == pytest.approx(600, abs=30)
    said = capsys.readouterr().out
    assert "trial 2: val_accuracy 0.8123; model.units = 16\n" in said
    assert "trial 3: failed: no room; model.units = 16\n" in said
    assert "trial 0" not in said.replace("best 0.8000 (trial 0)", "")


def test_a_moved_sweep_stays_whole(command: Command) -> None:
    """The command stops, and does not create the folder again."""
    folder = command.sweep.folder
    folder.rename(folder.with_name("moved"))
    with pytest.raises(RunError, match="was moved or removed; this process stops"):
        command.run(resumes=False)
    assert not folder.exists()


def test_only_a_person_resumes_a_cancelled_search(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that finds the search cancelled starts no worker.

    After its end, any command prints the next commands.
    """
    sweep = command.sweep
    stop_search_in(sweep.folder)
    ask_to_cancel(sweep.folder)  # as if its job had waited in the queue
    with monkeypatch.context() as patched:
        patched.setattr(WorkerPool, "start_one", lambda *_: pytest.fail("begun"))
        run_sweep(sweep, command.search, WorkerRequest(num_workers=1))
    line = f"cancelled, trials saved; continue with: harness resume {sweep.folder}\n"
    assert capsys.readouterr().out.endswith(line)
    assert sweep.read_json("state.json")["signal"] == CANCELLED
    assert not sweep.finished()
    for n in (2, 3):
        accept(sweep, trial(n, 0.7))
    end(sweep)
    assert sweep.path(CANCEL).exists()
    result = command.run(resumes=True)
    assert not sweep.path(CANCEL).exists()
    assert (result["num_trials"], result["num_failed"], result["trials"]) == (4, 1, 24)
    best = (result["best_trial"], result["best_score"], result["best_values"])
    assert best == (0, 0.8, {"model.units": "16"})
    assert sweep.finished()
    run_sweep(sweep, command.search, WorkerRequest())
    assert "> jobs/tune_lstm_best.toml\n" in capsys.readouterr().out


@pytest.mark.parametrize(("log", "lifts"), [("job8-w0", True), ("job7-w0", False)])
def test_a_requeued_job_resumes_a_search_once(
    command: Command, monkeypatch: pytest.MonkeyPatch, log: str, *, lifts: bool
) -> None:
    """The job may be requeued before its first start has undone the cancellation."""
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "1", "JOB_NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    command.sweep.path(f"workers/{log}.log").touch()
    asked = list[bool]()
    monkeypatch.setattr(Command, "run", lambda _, *, resumes: asked.append(resumes))
    request = WorkerRequest(num_workers=1, devices="cpu")
    run_sweep(command.sweep, command.search, request, resumes=True)
    assert asked == [lifts]


def test_three_trials_with_the_same_error_end_a_search(command: Command) -> None:
    """The command fails with this error and without a result; so does a repeated command.

    Two trials are too few; errors that differ only in numbers are the same. After a person has
    resumed the search, earlier failures do not count.
    """
    accept(command.sweep, trial(2, None, error="no room for 3.5 GB"))
    accept(command.sweep, trial(3, None, error="no room for 4 GB"))
    assert command._turn() is None
    assert not command.sweep.path("stop.json").exists()
    add_trial(command.sweep, trial(4, None, error="no room for 5 GB"))
    assert command._turn() is None
    assert command.sweep.path("stop.json").exists()
    same = r"the same error: no room for 3\.5 GB; continue with: harness resume"
    for _ in range(2):
        with pytest.raises(RunError, match=same):
            command.run(resumes=False)
    assert command.sweep.read_json("state.json")["phase"] == "failed"
    assert not command.sweep.finished()
    end(command.sweep, num_trials=5)
    assert command.run(resumes=True)["best_trial"] == 0
    assert command.view.stop
    assert command.view.stop.forgiven == (1, 2, 3, 4)


def test_a_command_waits_ten_minutes_for_a_failing_disk(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing folder or refused input ends the command at once."""
    now_s, failures = [1000.0], list[Exception]()
    monkeypatch.setattr(time, "sleep", lambda time_s: now_s.append(now_s[-1] + time_s))
    monkeypatch.setattr(time, "monotonic", lambda: now_s[-1])

    def turn() -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {"best_trial": 7}

    monkeypatch.setattr(command, "_turn", turn)
    failures += [DiskError("no quota"), *[OSError(errno.ESTALE, "stale")] * 3]
    assert command._run(resumes=False) == {"best_trial": 7}
    failures += [OSError(errno.ESTALE, "stale")] * 10_000
    with pytest.raises(DiskError, match="stale"):
        command._run(resumes=False)
    assert now_s[-1] == pytest.approx(1000 + 600, abs=5)
    failures[:] = [InputError("units = 0: too few")]
    with pytest.raises(InputError, match="too few"):
        command._run(resumes=False)
    failures[:] = [FileNotFoundError(errno.ENOENT, "No such file")]
    with pytest.raises(DiskError, match="No such file"):
        command._run(resumes=False)
    assert now_s[-1] == pytest.approx(1000 + 600, abs=5)


def gone(command: Command) -> list[str]:
    """Let the command poll once, and return the attempts that are marked as gone."""
    command._turn()
    command._tend()
    return sorted(path.name for path in command.sweep.path("gone").iterdir())


def test_a_command_marks_attempts_of_its_ended_workers(command: Command) -> None:
    """Other nodes can't see that these workers have ended."""
    assert (gone(command), command._progress()["running"]) == ([], 1)
    command.pool._ended.add("0" * 32)
    assert (gone(command), command._progress()["running"]) == (["2-1.json"], 0)


def test_a_worker_without_beats_for_three_minutes_is_lost(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time in which the command itself was suspended does not count.

    The command kills the lost worker if this process belongs to its pool.
    """
    worker = WorkerProcess("a-w0", None, command.sweep.path("log"), uuid="0" * 32)
    command.pool.workers.append(worker)
    killed: list[Any] = []
    monkeypatch.setattr(command.pool, "kill", killed.extend)
    monkeypatch.setattr(command.pool, "tend", lambda *_: None)
    monkeypatch.setattr(WorkerProcess, "alive", True)
    now_s = [1000.0]
    monkeypatch.setattr("harness.tuning.tune.time.monotonic", lambda: now_s[0])
    beat = command.sweep.path("trials/2/1/beat.json")
    for count in range(30):
        beat.write_text(json.dumps({"count": count}))
        assert gone(command) == []
        now_s[0] += 10
    now_s[0] += 5000
    for _ in range(17):
        assert (gone(command), killed) == ([], [])
        now_s[0] += 10
    assert (gone(command), killed) == (["2-1.json"], [worker])
