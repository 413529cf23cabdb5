"""What surrounds a supervisor: files for people, none after a newer one has taken over."""

from pathlib import Path
from typing import Any

import pytest

from harness.errors import TakenOver
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
)
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tuning.pool import WorkerPool, WorkerRequest
from harness.tuning.sweep_dir import SweepDirectory
from harness.tuning.tune import SweepHost
from tests.tuning.made_up_sweep import RANDOM, make_sweep


class Ended:
    """An oracle without more trials."""

    is_over = True

    def take(self, limit: int) -> list[Proposal]:
        return []

    def offer(self, n: int, report: Report) -> None:
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
    """A cancelled one is recorded as interrupted; one that was taken over writes nothing."""
    host: Any = generation_of(sweep, monkeypatch).host
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)
    monkeypatch.setattr("harness.tuning.tune.supervise", lambda *_: how)
    if how == SUPERSEDED:
        with pytest.raises(TakenOver, match="another harness tune or resume took it over"):
            host.run()
    else:
        assert host.run() == {}
    phase = sweep.read_json("state.json").get("phase")
    assert phase == ("interrupted" if how == CANCELLED else None)


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
