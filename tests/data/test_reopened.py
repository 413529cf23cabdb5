"""The data of a run that goes on: those that it began with, wherever they are now."""

from pathlib import Path

import pytest

from harness.data.sources import reopen_data
from harness.errors import InputError
from harness.job.job_file import load_job
from tests.conftest import JOBS
from tests.report.small_data import small_data


@pytest.mark.parametrize("was", ["gone", "emptied", "closed/inside", "x" * 300])
def test_data_that_have_moved_are_found_where_new_runs_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str
) -> None:
    """A folder without any, or that can't be looked at, is passed; other data are refused."""
    before = tmp_path / was
    if was == "emptied":
        before.mkdir()
    if was == "closed/inside":  # to all but root
        before.parent.mkdir(mode=0)
    dataset = small_data(tmp_path / "moved")
    job, record = load_job(JOBS / "lstm.toml"), {"folder": str(before)}
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "moved"))
    known = {**record, "checksum": dataset.checksum}
    assert reopen_data(known, job, None, whose="run r").folder == tmp_path / "moved"
    with pytest.raises(InputError, match="run r: was begun with other data"):
        reopen_data({**record, "checksum": "other"}, job, None, whose="run r")
