"""The folders in which the harness looks for IMDB, and the user's cache."""

from pathlib import Path

import pytest

from harness.data.locations import missing_in
from harness.data.sources import open_dataset, reopen_data
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.system.files import cache_folder
from tests.conftest import JOBS
from tests.report.small_data import small_data


def test_missing_in_names_the_folders_that_a_run_would_search(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders are the cache and Keras's folder, or only HARNESS_DATA, or none if data exist."""
    assert cache_folder() == cache
    searched = [cache / "imdb", tmp_path / "keras/datasets"]
    assert missing_in() == searched
    for folder, name in zip(searched, ("dataset.json", "imdb.npz"), strict=True):
        folder.mkdir(parents=True)
        (folder / name).touch()
        assert missing_in() == []
        (folder / name).unlink()
    (searched[1] / "imdb.npz").touch()
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "named"))
    assert missing_in() == [tmp_path / "named"]


def test_an_unreadable_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a folder that the user names must be readable. Keras's folder is in the home folder."""
    dataset = small_data(tmp_path / ".keras/datasets")
    closed = tmp_path / ("x" * 300)
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    assert missing_in() == []
    assert open_dataset(full=True).checksum == dataset.checksum
    with pytest.raises(InputError, match="x: is no folder that you can read"):
        open_dataset(closed)


@pytest.mark.parametrize("was", ["gone", "emptied", "x" * 300])
def test_a_resumed_run_searches_data_that_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str
) -> None:
    """The resumed run searches the same folders as a new run; other data are refused."""
    before = tmp_path / was
    if was == "emptied":
        before.mkdir()
    dataset = small_data(tmp_path / "moved")
    job, record = load_job(JOBS / "lstm.toml"), {"folder": str(before)}
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "moved"))
    known = record | {"checksum": dataset.checksum}
    assert reopen_data(known, job, None, whose="run r").folder == tmp_path / "moved"
    with pytest.raises(InputError, match="run r: began with other data"):
        reopen_data({**record, "checksum": "other"}, job, None, whose="run r")
