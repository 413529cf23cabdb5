"""Which trials the oracles propose: those of KerasTuner, in the order of its calls."""

import json
import queue
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras_tuner as kt
import pytest
from keras_tuner.oracles import GridSearchOracle, RandomSearchOracle

from harness import PROJECT
from harness.errors import RunError
from harness.search_space import GUIDED, load_search
from harness.sweep_protocol.journal import Ledger, Proposal, accept_record, propose_record
from harness.sweep_protocol.mailbox import Report
from harness.tuning.oracle import hyperparameters
from harness.tuning.oracle_process import OracleProcess, make_schedule, propose
from tests.conftest import wait_for

SEARCH = """
[model]
architecture = "lstm"
[search]
tuner = "{tuner}"
trials = {trials}
{parallel}
[search.space]
model.architecture = ["lstm", "stacked_lstm"]
model.second_units = {{ values = [4, 8, 16], when = {{ model.architecture = ["stacked_lstm"] }} }}
model.dropout = [0.1, 0.2, 0.3]
"""


def written(folder: Path, tuner: str, trials: int) -> Path:
    path = folder / "search.toml"
    parallel = "parallel = 3" if tuner in GUIDED else ""
    path.write_text(SEARCH.format(tuner=tuner, trials=trials, parallel=parallel))
    return path


@pytest.mark.parametrize(
    ("tuner", "kind"), [("grid", GridSearchOracle), ("random", RandomSearchOracle)]
)
def test_random_and_grid_propose_what_keras_tuner_does(
    tmp_path: Path, tuner: str, kind: type[kt.Oracle]
) -> None:
    """All trials before any has ended, where KerasTuner's own has each end before the next."""
    search = load_search(written(tmp_path, tuner, 9))
    alone = kind(
        objective=kt.Objective("val_accuracy", "max"),
        hyperparameters=hyperparameters(search),
        max_trials=9,
        seed=search.table.seed,
    )
    alone._set_project_dir(str(tmp_path), "alone")
    alone.verbose = 0
    expected = []
    while (trial := alone.create_trial("w0")).status == "RUNNING":
        expected.append(dict(trial.hyperparameters.values))
        alone.update_trial(trial.trial_id, {"val_accuracy": 0.5})
        trial.status = "COMPLETED"
        alone.end_trial(trial)
    proposed = [each.values for each in make_schedule(search, []).advance()]
    assert proposed == expected
    assert len(proposed) > 6


def test_a_grid_ends_by_itself(tmp_path: Path) -> None:
    """Without a number of trials it proposes every combination once."""
    schedule = make_schedule(load_search(written(tmp_path, "grid", 0)), [])
    values = [json.dumps(each.values, sort_keys=True) for each in schedule.advance()]
    assert len(values) == len(set(values)) == 3 + 3 * 3
    assert schedule.is_over


def report(proposal: Proposal) -> Report:
    content = json.dumps(proposal.values, sort_keys=True).encode()
    return Report(scores={"val_accuracy": zlib.crc32(content) % 97 / 97})


@pytest.mark.parametrize(
    ("tuner", "trials"),
    [("random", 9), ("grid", 9), ("bayesian", 9), ("hyperband", 9), ("asha", 9), ("asha", 12)],
)
def test_a_restart_of_any_oracle_goes_on_alike(tmp_path: Path, tuner: str, trials: int) -> None:
    """Replayed from what is known after each trial, it proposes the rest as it would have done.

    There are twelve settings, so asha fails to draw the last ones at random from time to time.
    """
    path = written(tmp_path, tuner, trials)
    whole = proposals(path)
    assert tuner not in ("hyperband", "asha") or any(each.parent is not None for each in whole)
    for num_known in range(0, len(whole), 3):
        assert proposals(path, whole[:num_known]) == whole


def proposals(path: Path, known: Sequence[Proposal] = ()) -> list[Proposal]:
    """All trials of a search to its end, of which some were proposed before."""
    schedule, found = make_schedule(load_search(path), list(known)), []
    while not schedule.is_over:
        new = list(schedule.advance())
        for each in new:
            schedule.offer(each.n, report(each))
        found += new
    return found


@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian", "asha"])
def test_a_search_that_has_ended_goes_on_with_more_trials(tmp_path: Path, tuner: str) -> None:
    """What it proposed stays, and a restart in the middle goes on alike."""
    before = proposals(written(tmp_path, tuner, 4))
    assert tuner != "asha" or before[-1].parent is not None
    path = written(tmp_path, tuner, 9)
    after = proposals(path, before)
    assert after[: len(before)] == before
    assert sum(each.parent is None for each in after) == 9
    for num_known in range(len(before), len(after)):
        assert proposals(path, after[:num_known]) == after


@pytest.mark.parametrize(
    ("epochs", "lengths"), [(9, {1: 9, 3: 6, 9: 2}), (27, {1: 12, 3: 4, 9: 2, 27: 1})]
)
def test_hyperband_goes_on_in_a_space_smaller_than_its_rounds(
    tmp_path: Path, epochs: int, lengths: dict[int, int]
) -> None:
    """There are twelve settings. Its rounds want 9 and 5 of them, with 27 epochs 27 at once."""
    path = written(tmp_path, "hyperband", 0)
    path.write_text(f"{path.read_text()}[train]\nepochs = {epochs}\n")
    whole = proposals(path)
    assert Counter(each.epochs for each in whole) == lengths
    for num_known in range(0, len(whole), 3):
        assert proposals(path, whole[:num_known]) == whole


def test_the_messages_of_the_process(tmp_path: Path) -> None:
    """What is known is not proposed again; a changed proposal is the end, and says so."""
    search = load_search(written(tmp_path, "grid", 4))
    begin = json.dumps({"begin": True})
    messages = list(propose(search, iter([begin])))
    assert [message.get("n") for message in messages] == [0, 1, 2, 3, None]
    assert messages[-1] == {"end": "over"}
    known = [json.dumps({"known": message}) for message in messages[:2]]
    assert list(propose(search, iter([*known, begin]))) == messages[2:]


def answers(oracle: OracleProcess, new: list[Proposal]) -> bool:
    """Whether the oracle proposes a trial, which is added, or has none any more."""
    new += oracle.take(1)
    return bool(new) or oracle.is_over


@pytest.mark.full
def test_an_oracle_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """It is called as before, from the ledger; the proposals are those of one process."""
    path, ledger = written(tmp_path, "hyperband", 7), Ledger()
    schedule, expected = make_schedule(load_search(path), []), []
    while not schedule.is_over:
        for each in schedule.advance():
            schedule.offer(each.n, report(each))
            expected.append(each)
    oracle = OracleProcess(path, tmp_path / "oracle.log", ledger)
    try:
        while not oracle.is_over:
            new: list[Proposal] = []
            wait_for(partial(answers, oracle, new))
            for each in new:
                ledger.apply(propose_record(each))
                ledger.apply(accept_record(each.n, f"{each.n}/1.1", report(each)))
                oracle.offer(each.n, report(each))
                if each.n in (1, 4):
                    oracle._process.kill()
    finally:
        oracle.close()
    assert [asdict(each) for each in ledger.proposals] == [asdict(each) for each in expected]


@pytest.mark.parametrize(
    "module", ["sweep_protocol.supervisor", "sweep_protocol.worker", "tuning.tune", "tuning.pool"]
)
def test_a_supervisor_needs_no_tensorflow(module: str) -> None:
    """Its memory is that of Python and a few small libraries."""
    code = (
        f"import sys, harness.{module}; "
        "assert not {'tensorflow', 'keras', 'keras_tuner', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Dead(OracleProcess):
    """An oracle that ends before it says a word."""

    def _start(self) -> None:
        self._num_starts += 1
        self._proposals, self._input, self._end = queue.Queue(), queue.Queue(), ""
        self._process = SimpleNamespace(poll=lambda: 1, returncode=1)  # type: ignore[assignment]


def test_an_oracle_that_never_speaks_ends_the_search(tmp_path: Path) -> None:
    """After three starts, with the last line of its log, or its exit code."""
    log = tmp_path / "oracle.log"
    oracle = Dead(tmp_path / "search.toml", log, Ledger())
    assert [oracle.take(1), oracle.take(1)] == [[], []]
    assert oracle._num_starts == 3
    with pytest.raises(RunError, match="the oracle failed 3 times: exit code 1 "):
        oracle.take(1)
    log.write_text("Traceback\nOSError: [Errno 116] Stale file handle\n")
    for _ in range(3):
        oracle.take(1)  # the disk with the environment may be there again in ten seconds
    assert oracle._num_starts == 4
    oracle._not_before_s = 0
    log.write_text("Traceback\nharness: no such module\n")
    with pytest.raises(RunError, match="the oracle failed 4 times: no such module "):
        oracle.take(1)


def test_an_oracle_imports_nothing_from_the_folder_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be other code, of a checkout that was changed since or of somebody else."""
    program = tmp_path / "python"
    answer = '{"end": "%s %s"}'
    program.write_text(f'#!/bin/sh\nprintf \'{answer}\\n\' "$PYTHONSAFEPATH" "$PYTHONPATH"\n')
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    oracle = OracleProcess(tmp_path / "search.toml", tmp_path / "oracle.log", Ledger())
    wait_for(lambda: bool(oracle._end))
    oracle.close()
    assert oracle._end == f"1 {PROJECT}"
