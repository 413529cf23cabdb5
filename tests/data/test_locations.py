"""Where a dataset is looked for."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.data.imdb_sources import open_dataset
from harness.data.locations import missing_in
from harness.errors import InputError, RunError
from harness.files.paths import cache_folder, private_cache
from harness.node_disk.use import is_in_use, mark_used
from tests.conftest import JOBS, Harness
from tests.report.small_data import small_data

VARIABLES = ("HARNESS_DATA", "HARNESS_STAGE", "XDG_CACHE_HOME", "KERAS_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a dataset, and no variable that names another."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_folders_are_searched_in_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The staged copy first, then the user's cache, then Keras's, each where its variable says."""
    keras = home / ".keras/datasets"
    assert cache_folder() == home / ".cache/harness"
    assert missing_in() == [home / ".cache/harness/imdb", keras]
    for name in VARIABLES[1:]:
        monkeypatch.setenv(name, str(home / name.lower()))
    assert cache_folder() == home / "xdg_cache_home/harness"
    assert missing_in() == [
        home / "harness_stage",
        home / "xdg_cache_home/harness/imdb",
        home / "keras_home/datasets",
    ]


@pytest.mark.parametrize("name", ["imdb.npz", "dataset.json"])
def test_one_that_has_the_dataset_is_enough(home: Path, name: str) -> None:
    """Either of its forms counts, by its file's name alone."""
    folder = home / ".keras/datasets"
    folder.mkdir(parents=True)
    (folder / "other.npz").touch()
    assert missing_in()
    (folder / name).touch()
    assert missing_in() == []


def test_a_named_folder_is_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HARNESS_DATA set, the dataset in a cache does not count."""
    (home / ".keras/datasets").mkdir(parents=True)
    (home / ".keras/datasets/imdb.npz").touch()
    monkeypatch.setenv("HARNESS_DATA", str(home / "named"))
    assert missing_in() == [home / "named"]


def test_a_folder_that_can_not_be_looked_at_is_passed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is taken; one that is named is refused in one line."""
    dataset = small_data(home / ".cache/harness/imdb")
    closed = home / ("x" * 300)
    monkeypatch.setenv("HARNESS_STAGE", str(closed))
    assert missing_in() == []
    assert open_dataset(full=True).checksum == dataset.checksum
    with pytest.raises(InputError, match="x: is no folder that you can enter; harness data fetch"):
        open_dataset(closed)


@pytest.mark.parametrize("way", ["--data", "HARNESS_DATA", "HARNESS_STAGE"])
def test_a_staged_copy_is_held_by_who_opens_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """However it is named; a folder that was not staged on a node is left alone."""
    small_data(home / "copy")
    if way != "--data":
        monkeypatch.setenv(way, str(home / "copy"))
    named = home / "copy" if way == "--data" else None
    open_dataset(named)
    assert not is_in_use(home / "copy")
    mark_used(home / "copy")
    open_dataset(named)
    assert is_in_use(home / "copy")


def test_a_staged_copy_is_held_between_two_runs_of_one_command(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later seeds would train on other data that are staged there meanwhile."""
    copy = harness.folder / "copy"
    small_data(copy)
    mark_used(copy)

    def seen(*_: object) -> None:
        raise RunError(f"in use: {is_in_use(copy)}")

    monkeypatch.setattr("harness.tracking.batch.train_batch", seen)
    done = harness.run_here("train", JOBS / "lstm.toml", "--seeds", "1-2", "--data", copy)
    assert "in use: True" in done.stderr


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A folder that everyone can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(("mode", "is_refused"), [(0o700, False), (0o755, False), (0o777, True)])
def test_code_is_kept_where_nobody_else_can_put_another_folder(
    open_home: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_refused: bool
) -> None:
    """Its own folder is private, and others can write to none above it that they can enter."""
    caches = open_home / "caches"
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    (caches / "harness").mkdir(parents=True)
    (caches / "harness").chmod(0o777)  # as a lax umask makes it
    caches.chmod(mode)
    assert (private_cache("xla") is None) == is_refused
    assert (caches / "harness").stat().st_mode & 0o077 == 0
    open_home.chmod(0o700)
    assert private_cache("xla") == caches / "harness/xla"


def test_what_is_missing_above_a_private_cache_is_private(
    open_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a umask of 002, others could replace it otherwise."""
    monkeypatch.setenv("HOME", str(open_home))
    before = os.umask(0o002)
    try:
        assert private_cache("xla") == open_home / ".cache/harness/xla"
    finally:
        os.umask(before)
    assert (open_home / ".cache").stat().st_mode & 0o077 == 0
