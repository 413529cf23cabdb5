"""Where a dataset is looked for."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.data.locations import missing_in
from harness.data.sources import open_dataset
from harness.errors import InputError
from harness.system.files import cache_folder, private_cache
from tests.report.small_data import small_data

VARIABLES = ("HARNESS_DATA", "XDG_CACHE_HOME", "KERAS_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a dataset, and no variable that names another."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_folders_are_searched_in_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache first, then Keras's, each where its variable says."""
    keras = home / ".keras/datasets"
    assert cache_folder() == home / ".cache/harness"
    assert missing_in() == [home / ".cache/harness/imdb", keras]
    for name in VARIABLES[1:]:
        monkeypatch.setenv(name, str(home / name.lower()))
    assert cache_folder() == home / "xdg_cache_home/harness"
    assert missing_in() == [
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
    dataset = small_data(home / ".keras/datasets")
    closed = home / ("x" * 300)
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    assert missing_in() == []
    assert open_dataset(full=True).checksum == dataset.checksum
    with pytest.raises(InputError, match="x: is no folder that you can enter; harness data fetch"):
        open_dataset(closed)


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
