"""A result counts for as many trials as its search has now."""

from pathlib import Path

import pytest

from harness.files.shared_disk import SharedDisk
from harness.search_space import SEARCH_FILE
from harness.sweep_protocol.mailbox import RESULT, Result, SharedFolder, Terms
from harness.sweep_protocol.supervisor import FINISHED
from harness.sweep_protocol.worker import Worker
from harness.tracking.records import observe
from harness.tuning.sweep_dir import SweepDirectory
from tests.sweep_protocol.test_attempts import FewTrials, begin
from tests.sweep_protocol.test_cost import MovedClock
from tests.sweep_protocol.test_safeguards import NoRunner
from tests.tuning.made_up_sweep import RANDOM, make_sweep


@pytest.mark.parametrize(("trials", "counts"), [(24, True), (12, False)])
def test_a_result_of_fewer_trials_ends_no_search(tmp_path: Path, trials: int, counts: bool) -> None:
    """One supervisor wrote it just after another had raised their number; it is no end for that."""
    sweep = make_sweep(tmp_path / "runs" / "tune_lstm" / "a", RANDOM)
    for name in ("workers", "journal"):
        sweep.path(name).mkdir()
    shared = SharedFolder(sweep.folder, SharedDisk(), MovedClock(), Terms())
    worker = Worker(shared, "a" * 32, NoRunner())  # type: ignore[arg-type]
    generation = begin(shared, FewTrials())
    assert (worker._idle(), generation._how_it_ends()) == (None, "")
    shared.write(Result(generation=1, trials=trials), RESULT)
    expected = (0, FINISHED, True) if counts else (None, "", False)
    assert (worker._idle(), generation._how_it_ends(), sweep.finished()) == expected
    status = observe(sweep.folder, "a", None, now=0.0)
    assert (status.phase == "result") == counts
    sweep.path(SEARCH_FILE).write_text("no TOML")
    assert not SweepDirectory(sweep.folder).finished()
    assert not shared.is_over()
