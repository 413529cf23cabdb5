"""A supervisor that a newer one has taken over from writes no file for people any more."""

from pathlib import Path
from typing import Any

import pytest

from harness.search_space import load_search
from harness.sweep_protocol.journal import Journal, Proposal, accept_record, propose_record
from harness.sweep_protocol.mailbox import Report
from harness.sweep_protocol.supervisor import FINISHED, SUPERSEDED, Generation
from harness.system.console import Console
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
