"""Data that another user planted or changed are refused."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import content_checksum
from harness.data.dataset_folder import open_folder, save_folder
from harness.data.locations import NPZ
from harness.data.own_texts import open_source
from harness.data.sources import open_dataset
from harness.errors import InputError
from tests.data.made_up_texts import make_rows, write_csv
from tests.data.small_imdb import small, write_npz

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")


pytestmark = pytest.mark.usefixtures("genuine")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder from which several users read; its small dataset counts as the official one."""
    monkeypatch.setattr("harness.data.dataset.OFFICIAL", small().checksum)
    save_folder(small(), tmp_path / "shared")
    assert open_folder(tmp_path / "shared").official
    return tmp_path / "shared"


def flip_labels(folder: Path) -> None:
    """Exchange the classes of the training reviews; the size of the file does not change."""
    path = folder / "train_labels.npy"
    np.save(path, 1 - np.load(path))


def test_changed_data_with_a_new_checksum_are_not_official(shared: Path) -> None:
    """The harness computes the checksum and does not trust the recorded one."""
    flip_labels(shared)
    genuine = small()
    flipped = replace(genuine.train, labels=1 - genuine.train.labels)
    checksum = content_checksum(flipped, genuine.test, genuine.vocab)
    record = json.loads((shared / "dataset.json").read_text())
    (shared / "dataset.json").write_text(json.dumps(record | {"checksum": checksum}))
    assert not open_folder(shared).official
    assert open_dataset(shared).title == "a dataset other than the official IMDB"


@as_root
@pytest.mark.parametrize("name", ["", "train_labels.npy"])
def test_data_of_another_user_are_refused_until_the_site_names_them(
    shared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder and every file must belong to the user, to root, or to HARNESS_DATA_OWNERS."""
    os.chown(shared / name, NOBODY, -1)
    with pytest.raises(InputError, match=r"belongs to nobody; .*HARNESS_DATA_OWNERS"):
        open_folder(shared)
    for owners in ("daemon,nobody", str(NOBODY)):
        monkeypatch.setenv("HARNESS_DATA_OWNERS", owners)
        assert open_folder(shared).official


@pytest.mark.parametrize("name", ["", "train_labels.npy"])
def test_data_that_everybody_can_change_are_refused(shared: Path, name: str) -> None:
    """The message contains the command that corrects the modes of all paths."""
    for path in (shared / name, shared / "words.txt"):
        path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(InputError, match="others can write to it; chmod -R go-w") as refused:
        open_folder(shared)
    subprocess.run(shlex.split(str(refused.value).rpartition("; ")[2]), check=True)
    assert open_folder(shared)


@as_root
def test_imdb_npz_of_another_user_is_refused(tmp_path: Path) -> None:
    """The file is not unpickled."""
    folder = write_npz(tmp_path / "keras/datasets")
    os.chown(folder / NPZ, NOBODY, -1)
    with pytest.raises(InputError, match="belongs to nobody"):
        open_dataset()


@as_root
def test_a_planted_conversion_in_a_shared_cache_is_not_used(tmp_path: Path) -> None:
    """The harness converts imdb.npz again if the cached arrays belong to another user."""
    folder = write_npz(tmp_path / "data")
    labels = open_dataset(folder).train.labels.tolist()
    (cached,) = (tmp_path / "cache/harness").glob("imdb-*")
    flip_labels(cached)
    os.chown(cached, NOBODY, -1)
    assert open_dataset(folder).train.labels.tolist() == labels


def modes(folder: Path) -> tuple[int, set[int]]:
    """Return the mode of a folder and the modes of its files."""
    return folder.stat().st_mode & 0o777, {p.stat().st_mode & 0o777 for p in folder.iterdir()}


def test_a_dataset_is_private_until_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of the group can't open a file before its mode is restricted."""
    seen = []
    monkeypatch.setattr(np, "save", lambda path, _: seen.append(modes(path.parent)[0]))
    save_folder(small(), tmp_path / "data")
    assert {*seen} == {0o700}


def test_the_harness_reads_its_folders_under_any_umask(tmp_path: Path) -> None:
    """Other users can't write to the folders, and can't read this user's texts."""
    source = write_csv(tmp_path / "a.csv", make_rows(100))
    before = os.umask(0)
    try:
        save_folder(small(), tmp_path / "data")
        assert open_folder(tmp_path / "data").checksum == small().checksum
        assert open_source(source).is_own
    finally:
        os.umask(before)
    assert modes(tmp_path / "data") == (0o755, {0o644})
    (kept,) = (tmp_path / "cache" / "harness").glob("texts-*")
    assert modes(kept) == (0o700, {0o600})
