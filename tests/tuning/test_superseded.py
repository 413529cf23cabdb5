"""What surrounds a supervisor: files for people, none after a newer one has taken over."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DiskError, Interrupted, RunError, TakenOver
from harness.search_space import load_search
from harness.sweep_protocol.journal import (
    Assignment,
    Journal,
    Proposal,
    accept_record,
    assign_record,
    propose_record,
)
from harness.sweep_protocol.mailbox import Report, WorkerState
from harness.sweep_protocol.supervisor import (
    CANCELLED,
    FINISHED,
    SUPERSEDED,
    Generation,
    WorkerView,
    supervise,
)
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tuning.pool import WorkerPool, WorkerRequest
from harness.tuning.sweep_dir import SweepDirectory
from harness.tuning.tune import SweepHost
from tests.sweep_protocol.test_cost import MovedClock
from tests.tuning.made_up_sweep import RANDOM, make_sweep


class Ended:
    """An oracle without more trials."""

    is_over = True

    def take(self, limit: int) -> list[Proposal]:
        return []

    def offer(self, n: int, report: Report) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDirectory:
    """A sweep with one trial, which is accepted."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    for name in ("workers", "journal"):
        sweep.path(name).mkdir()
    return sweep


def generation_of(sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch) -> Generation:
    """Its supervisor."""
    search, console = load_search(sweep.path("search.toml")), Console()
    console.silent = True
    pool = WorkerPool(sweep.folder, WorkerRequest(), [], allocation=None, console=console)
    host = SweepHost(sweep, search, pool, allocation=None, console=console)
    ended: Any = Ended()
    monkeypatch.setattr(host, "planner", lambda _: ended)
    shared = sweep.shared()
    journal = Journal(shared)
    journal.take()
    generation = Generation(shared, journal, host)
    for record in (
        propose_record(Proposal(0, {"model.units": 16})),
        accept_record(0, "0/1.1", Report(scores={"val_accuracy": 0.8})),
    ):
        generation._note(record)
    return generation


@pytest.mark.parametrize("is_superseded", [False, True])
def test_it_leaves_the_leaderboard_and_the_result_alone(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch, is_superseded: bool
) -> None:
    """Both choose the best trial, and what may be removed of the others."""
    generation = generation_of(sweep, monkeypatch)
    append = generation.journal.append

    def take_over(records: list[dict[str, Any]]) -> None:
        append(records)
        if is_superseded:
            sweep.path("journal", "2").mkdir()

    monkeypatch.setattr(generation.journal, "append", take_over)
    assert generation._round() == (SUPERSEDED if is_superseded else FINISHED)
    written = [sweep.path(name).exists() for name in ("leaderboard.csv", "result.json")]
    assert written == [not is_superseded] * 2


@pytest.mark.parametrize("is_superseded", [False, True])
def test_it_ends_a_round_without_a_leaderboard(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch, is_superseded: bool
) -> None:
    """It was stopped in the middle of its round, perhaps."""
    generation = generation_of(sweep, monkeypatch)
    if is_superseded:
        sweep.path("journal", "2").mkdir()
    generation.host.after_round(generation, [0])
    for name in ("leaderboard.csv", "state.json"):
        assert sweep.path(name).exists() != is_superseded


def test_a_newer_ones_last_leaderboard_stays(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came, and finished the search, while this one wrote what it is doing."""
    generation = generation_of(sweep, monkeypatch)
    host: Any = generation.host
    monkeypatch.setattr(host.heartbeat, "beat", lambda *_, **__: sweep.path("journal/2").mkdir())
    host.after_round(generation, [0])
    assert not sweep.path("leaderboard.csv").exists()


def test_each_round_looks_after_workers_and_disk(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has ended is started again, and what no trial needs is removed."""
    generation, calls = generation_of(sweep, monkeypatch), list[object]()
    host: Any = generation.host
    monkeypatch.setattr(host.pool, "tend", lambda *given: calls.append(given))
    monkeypatch.setattr(host._kept, "trim", lambda trials: calls.append(len(trials)))
    host.after_round(generation, [0])
    assert calls == [1, (1, {})]


@pytest.mark.parametrize("how", [FINISHED, CANCELLED, SUPERSEDED])
def test_how_a_search_has_ended_is_told(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A cancelled one is recorded as interrupted; one that was taken over writes nothing more."""
    host: Any = generation_of(sweep, monkeypatch).host
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)
    monkeypatch.setattr("harness.tuning.tune.supervise", lambda *_: how)
    if how == SUPERSEDED:
        with pytest.raises(TakenOver, match="another harness tune or resume took it over"):
            host.run()
    else:
        assert host.run() == {}
    phase = sweep.read_json("state.json").get("phase")
    assert phase == ("interrupted" if how == CANCELLED else "starting")


def test_a_search_that_goes_on_is_seen_before_its_first_round(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older supervisor may be waited for first; what was counted before it stays."""
    known = {"finished": 200, "failed": 3, "best": {"trial": "7", "score": 0.9}, "generation": 2}
    known["trials"] = 240
    old = {"phase": "searching", "process": 1, "running": 4, "workers": 64}
    sweep.path("state.json").write_text(json.dumps(old | known))
    host: Any = generation_of(sweep, monkeypatch).host
    seen = list[dict[str, Any]]()

    def supervise(*_: object) -> None:
        seen.append(sweep.read_json("state.json"))
        host.stop(Interrupted("SIGUSR2"))
        raise Interrupted("SIGUSR2")

    monkeypatch.setattr(StopRequest, "listen", lambda self: None)
    monkeypatch.setattr("harness.tuning.tune.supervise", supervise)
    with pytest.raises(Interrupted):
        host.run()
    seen.append(sweep.read_json("state.json"))
    assert [each["phase"] for each in seen] == ["starting", "interrupted"]
    for each in seen:
        assert each["process"] == os.getpid()
        assert {name: each[name] for name in known} == known
        assert not {"running", "workers"} & each.keys()


@pytest.mark.parametrize(
    ("name", "times"),
    [
        *((name, 1) for name in ("leaderboard.csv", "state.json", "result.json")),
        *((name, 10**9) for name in ("leaderboard.csv", "result.json")),
    ],
)
def test_a_disk_that_fails_in_the_last_round_is_waited_for(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    """By new generations, for ten minutes; until all is written the search is not over."""
    generation, write = generation_of(sweep, monkeypatch), sweep.write
    host: Any = generation.host
    generation.journal.append(generation._records)
    failed, results = list[str](), list[object]()

    def fail(file: str, *content: Any, **options: Any) -> None:
        if file == name and len(failed) < times:
            failed.append(file)
            raise DiskError("no quota")
        write(file, *content, **options)

    monkeypatch.setattr(sweep, "write", fail)
    monkeypatch.setattr(host, "note", lambda _: results.append(host.result))
    shared = replace(generation.shared, clock=MovedClock())
    if times > 1:
        with pytest.raises(DiskError, match="no quota"):
            supervise(shared, host)
        assert shared.clock.now() == pytest.approx(600, abs=60)
        return
    assert supervise(shared, host) == FINISHED
    assert (failed, results) == ([name], [{}])
    assert host.result["best_trial"] == "0"
    assert sweep.finished()


def test_a_state_that_cant_be_written_fails_no_interrupted_search(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a copy for people; as a failure the job would not go back into the queue."""
    host: Any = generation_of(sweep, monkeypatch).host

    def fail(*_: object) -> None:
        raise DiskError("no quota")

    monkeypatch.setattr(sweep, "write_json", fail)
    host.stop(Interrupted("SIGUSR2"))
    host.heartbeat.max_requeues = 0
    with pytest.raises(RunError, match="not requeued after 0 times"):
        host.stop(Interrupted("SIGUSR2"))


def test_the_progress_of_a_search_is_reckoned(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials by what has become of them; half of those at work are taken to be done."""
    generation = generation_of(sweep, monkeypatch)
    well = Report(scores={"val_accuracy": 0.7}, figures={"training_s": 60.0})
    for n in range(1, 5):
        generation._note(propose_record(Proposal(n, {"model.units": 16})))
    generation._note(accept_record(1, "1/1.1", well))
    generation._note(accept_record(2, "2/1.1", Report(error="no")))
    generation._note(assign_record(3, Assignment("3/1.1", "a")))
    for name, attempt in (("a", "3/1.1"), ("b", "")):
        generation.workers[name] = WorkerView(WorkerState(count=1, attempt=attempt))
    host: Any = generation.host
    host._count(generation.ledger)
    assert host.progress(generation) == {
        "trials": 24,
        "finished": 2,
        "failed": 1,
        "running": 1,
        "waiting": 1,
        "workers": 2,
        "best": {"trial": "0", "score": 0.8},
        "eta_s": 205.0,  # (24 - 3 - 0.5) trials of 20 s by two workers
        "generation": generation.number,
    }
