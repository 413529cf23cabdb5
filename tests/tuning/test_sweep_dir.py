"""With which search a sweep goes on, and what its trials show of their runs."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from harness.errors import InputError, RunError
from harness.search_space import SEARCH_FILE, load_search
from harness.sweep_protocol.journal import Ledger, Proposal, accept_record, propose_record
from harness.sweep_protocol.mailbox import Report
from harness.tuning.sweep_dir import SweepDirectory, gather, leaderboard_csv
from harness.tuning.tune import describe, result_of, settled
from tests.conftest import JOBS, Harness, before_next_rename
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial


def with_trials(path: Path, number: int) -> Path:
    """A grid search of at most so many trials, 0 for all."""
    text = RANDOM.replace('tuner = "random"\ntrials = 24', f'tuner = "grid"\ntrials = {number}')
    path.write_text(text.replace("{ min = 0.0001, max = 0.01, log = true }", "[0.001, 0.01]"))
    return path


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        *((2, 2, True), (2, 3, True), (2, 0, True), (0, 0, True)),
        *((2, 1, False), (3, 2, False), (0, 1, False), (0, 8, False)),
    ],
)
def test_a_sweep_goes_on_with_as_many_trials_or_more(
    tmp_path: Path, before: int, now: int, goes_on: bool
) -> None:
    """0 stands for all of them, so from it no number goes on."""
    sweep = make_sweep(tmp_path / "sweep", with_trials(tmp_path / "a.toml", before).read_text())
    search = load_search(with_trials(tmp_path / "b.toml", now))
    if goes_on:
        sweep.check_search(search)
    else:
        with pytest.raises(InputError, match=f"search.trials = {now}: was {before or 'all'} "):
            sweep.check_search(search)


def test_a_parallel_that_was_decided_stays_unless_another_is_asked_for(tmp_path: Path) -> None:
    """The sweep was begun with eight; a command that leaves it open goes on, one with six can't."""
    guided = RANDOM.replace('"random"', '"bayesian"')
    text = guided.replace("trials = 24", "trials = 24\nparallel = 8")
    sweep = make_sweep(tmp_path / "sweep", text)
    (tmp_path / "open.toml").write_text(guided)
    (tmp_path / "six.toml").write_text(guided.replace("trials = 24", "trials = 24\nparallel = 6"))
    request = load_search(tmp_path / "open.toml")
    sweep.check_search(request)
    assert settled(request, sweep, 1).table.parallel == 8
    with pytest.raises(InputError, match=r"\(search.parallel was 8 and is 6\)"):
        sweep.check_search(load_search(tmp_path / "six.toml"))
    assert settled(request, SweepDirectory(tmp_path / "new"), 3).table.parallel == 6
    (tmp_path / "random.toml").write_text(RANDOM)
    search = load_search(tmp_path / "random.toml")
    assert settled(search, SweepDirectory(tmp_path / "new"), 3).table.parallel == 0


def test_a_trial_shows_the_figures_of_its_report(tmp_path: Path) -> None:
    """Of a running one nothing but its worker, of a waiting one nothing, of a failed one why."""
    (tmp_path / "a.toml").write_text(RANDOM)
    search, ledger = load_search(tmp_path / "a.toml"), Ledger()
    figures = {"training_s": 22.0, "kept_epoch": 2.5, "epochs": 6, "parameters": 99}
    reports = {
        0: Report(scores={"val_accuracy": 0.5, "val_f1": 0.45}, figures=figures),
        1: Report(error="too\nlarge"),
    }
    for n in range(4):
        ledger.apply(propose_record(Proposal(n, {"model.units": 16, "model.dropout": 0.1 + 0.2})))
    for n, report in reports.items():
        ledger.apply(accept_record(n, f"{n}/1.7", report))
    finished, failed, running, waiting = gather(search, ledger, {2: "w1"})
    assert (finished.status, finished.score, finished.attempt) == ("finished", 0.5, "0/1.7")
    assert (finished.training_s, finished.kept_epoch) == (22.0, 2.5)
    assert (finished.epochs, finished.parameters) == (6, 99)
    assert finished.values == {"model.units": 16, "model.dropout": 0.3}
    assert (failed.status, failed.error, failed.score) == ("failed", "too large", None)
    assert (running.status, running.worker, waiting.status) == ("running", "w1", "waiting")
    assert {running.training_s, running.kept_epoch, running.epochs, running.parameters} == {None}
    lines = leaderboard_csv([waiting, failed, running, finished], search).decode().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["1", "0", "finished"], ["", "2", "running"], ["", "3", "waiting"], ["", "1", "failed"]
    ]  # fmt: skip
    formula = replace(failed, error="=cmd|A1")
    assert b",'=cmd|A1," in leaderboard_csv([formula], search)


def test_a_kill_while_trials_are_added_never_leaves_the_old_result(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would seem to be that of all of them, and the sweep would never go on."""
    folder = harness.runs / "tune_lstm" / "ended"
    sweep = make_sweep(folder, RANDOM, trial(0, 0.8), finished=True)
    sweep.take_lease()
    sweep.write_format()
    job = harness.folder / "tune_lstm.toml"
    job.write_text(RANDOM.replace("trials = 24", "trials = 48"))

    def write(self: SweepDirectory, name: str, content: object, *, mode: int = 0) -> None:
        if name == SEARCH_FILE:
            raise RunError("killed")

    monkeypatch.setattr(SweepDirectory, "write", write)
    done = harness.run_here("tune", job, "--sweep-id", "ended", "--devices", "cpu")
    assert (done.returncode, "killed" in done.stderr) == (1, True)
    assert not (folder / "result.json").exists()


def test_two_that_begin_at_once_disturb_no_file_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each removes what was half-written; the journal, not the disk, says which of them goes on."""
    one, two = SweepDirectory(tmp_path), SweepDirectory(tmp_path)
    for write in (one.take_lease, partial(one.write, "note.txt", "of one")):
        before_next_rename(monkeypatch, two.take_lease)
        write()
    assert one.path("note.txt").read_text() == "of one"
    assert not list(one.leftovers())


def test_a_result_names_the_best_trial_and_counts_those_that_failed(tmp_path: Path) -> None:
    """Without a finished one there is none, and the first error says why."""
    failed = trial(2, None, error="it broke")
    trials = [trial(1, 0.8, values={"model.units": 16}), trial(0, 0.7), failed]
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    result = result_of(sweep, sweep.search(), trials)
    assert (result["num_trials"], result["num_failed"], result["trials"]) == (3, 1, 24)
    assert (result["best_trial"], result["best_score"]) == ("0001", 0.8)
    assert result["best_values"] == {"model.units": "16"}
    for none, why in (([failed], "it broke"), ([], "there were none")):
        with pytest.raises(RunError, match=f"no trial finished: {why}"):
            result_of(sweep, sweep.search(), none)


def test_a_finished_search_is_told_and_not_searched_again(harness: Harness) -> None:
    """Its result is shown once more."""
    folder = harness.runs / "tune_lstm" / "done"
    make_sweep(folder, RANDOM, trial(0, 0.8))
    counts = {"trials": 24, "num_trials": 24, "num_failed": 1, "best_trial": "0000"}
    best = {"objective": "val_accuracy", "best_score": 0.8, "best_values": {"model.units": "16"}}
    (folder / "result.json").write_text(json.dumps(counts | best))
    done = harness.run_here("resume", folder)
    assert done.returncode == 0, done.stderr
    assert "finished already, nothing to do" in done.stdout
    assert "best of 24 trials, 1 failed: trial 0000, val_accuracy 0.8000" in done.stdout


def test_a_trial_that_has_ended_is_told_with_its_values() -> None:
    """By its score, or by its error."""
    search = load_search(JOBS / "tune_lstm.toml")
    finished = trial(3, 0.81234, values={"model.units": 8, "train.learning_rate": 0.001})
    assert describe(finished, search) == (
        "trial 0003: val_accuracy 0.8123; model.units = 8, train.learning_rate = 0.001"
    )
    failed = trial(4, None, values={"model.units": 8}, error="no room")
    assert describe(failed, search) == "trial 0004: failed: no room; model.units = 8"


def test_a_search_on_a_local_disk_looks_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its first process sees the disk, whatever a later one sees; on a network looks cost."""
    for is_on_network, round_s, idle_s, look_s in ((False, 0.5, 0.25, 2.0), (True, 2.0, 2.0, 10.0)):
        sweep = make_sweep(tmp_path / str(is_on_network), RANDOM)
        for seen in (is_on_network, not is_on_network):
            monkeypatch.setattr("harness.tuning.sweep_dir.is_network", lambda _, seen=seen: seen)
            sweep.write_format()
            terms = sweep.shared().terms
            assert (terms.round_s, terms.idle_s, terms.look_s) == (round_s, idle_s, look_s)
