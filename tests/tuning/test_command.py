"""A command of a search, without processes: what it tells, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CANCELLED, DiskError, Interrupted, RunError
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tuning.disk import stop_search_in
from harness.tuning.pool import WorkerPool, WorkerRequest
from harness.tuning.sweep_dir import SweepDirectory
from harness.tuning.tune import Command
from tests.tuning.made_up_sweep import RANDOM, accept, make_sweep, trial


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Of a search of 24 trials, of which one is finished, one failed, one running, one waiting."""
    trials = [trial(0, 0.8), trial(1, None, error="no"), trial(2, None, worker="a"), trial(3, None)]
    sweep, console = make_sweep(tmp_path / "sweep", RANDOM, *trials), Console()
    pool = WorkerPool(sweep.folder, WorkerRequest(), [], name="a", allocation=None, console=console)
    monkeypatch.setattr(pool, "start_all", lambda: None)
    monkeypatch.setattr(pool, "_start", lambda _: None)
    monkeypatch.setattr(StopRequest, "listen", lambda _: None)
    given = {"allocation": None, "console": console, "name": "a"}
    return Command(sweep, sweep.search(), pool, **given)  # type: ignore[arg-type]


def end(sweep: SweepDirectory) -> None:
    """End the search with the trials that it has."""
    for n in (2, 3):
        accept(sweep, trial(n, 0.7))
    sweep.path("ends/24").mkdir()
    sweep.path("ends/24/end.json").write_text('{"num_trials": 4}')


def test_it_tells_the_progress_of_the_whole_search(command: Command) -> None:
    """Half of the trials at work are taken to be done; its own copy is the same."""
    assert command._first_look() is None
    expected: dict[str, Any] = {
        "trials": 24,
        "finished": 1,
        "failed": 1,
        "running": 1,
        "waiting": 1,
        "workers": 1,
    }
    expected |= {"best": {"trial": "0", "score": 0.8}, "eta_s": 655.8}  # 21.5 trials of 30.5 s
    for name in ("state.json", "commands/a/state.json"):
        state = command.sweep.read_json(name)
        assert (state["phase"], {key: state[key] for key in expected}) == ("starting", expected)


def test_it_ends_with_the_result(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the disk refuses it once."""
    end(command.sweep)
    write, failed = command.sweep.write, list[str]()

    def fail(name: str, *content: Any, **options: Any) -> None:
        if name == "result.json" and not failed:
            failed.append(name)
            raise DiskError("no quota")
        write(name, *content, **options)

    monkeypatch.setattr(command.sweep, "write", fail)
    result = command.run(resumes=False)
    assert (result["num_trials"], result["num_failed"], result["best_trial"]) == (4, 1, 0)
    assert (failed, command.sweep.finished()) == (["result.json"], True)
    assert command.sweep.read_json("state.json")["phase"] == "finished"


@pytest.mark.parametrize("reason", ["", "three trials failed alike: no"])
def test_a_stopped_search_goes_on_only_if_a_person_resumes_it(
    command: Command, reason: str
) -> None:
    """A cancelled one says so, one that failed says why; then the failures count no more."""
    stop_search_in(command.sweep.folder)
    file = command.sweep.path("stops/1/stop.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "reason": reason, "failed": [1]}))
    if reason:
        with pytest.raises(RunError, match="alike: no; go on by: harness resume"):
            command.run(resumes=False)
    else:
        assert command.run(resumes=False) == {}
        assert command.sweep.read_json("state.json")["signal"] == CANCELLED
    end(command.sweep)
    assert command.run(resumes=True)["best_trial"] == 0
    assert command._failed() == []


def test_an_interruption_is_recorded_once_its_workers_have_saved(command: Command) -> None:
    """It says so in its record."""
    command.signals.check = lambda: (_ for _ in ()).throw(Interrupted("SIGUSR2"))  # type: ignore
    with pytest.raises(Interrupted):
        command.run(resumes=False)
    assert command.sweep.read_json("state.json")["phase"] == "interrupted"


def test_whose_worker_has_ended_is_told_to_all(command: Command) -> None:
    """Though this machine sees by itself that it died; other nodes do not."""
    command.view.has_died = lambda _: True
    command._first_look()
    command.pool._ended.add("0" * 32)
    command._turn()
    assert [path.name for path in command.sweep.path("trials").rglob("gone*")] == ["gone-1.json"]
    command._turn()
    assert command._progress()["running"] == 0
