"""What doctor says of the environment: how long it takes to import, and its size."""

import sys
from pathlib import Path

import pytest

from harness.checks.doctor import describe_import
from harness.checks.storage_checks import check_environment
from harness.node_disk.image import PACK, pack
from tests.node_disk.conftest import make_environment


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return make_environment(tmp_path / "environment")


def test_its_size_is_one_line(environment: Path) -> None:
    """Of the files byte code counts too."""
    (environment / "a.pyc").touch()
    num_files = sum(path.is_file() or path.is_symlink() for path in environment.rglob("*"))
    (found,) = check_environment(environment)
    told = f"{environment}: {num_files:,} files, 0.0 GB"
    assert (found.level, found.found) == ("green", told)


def test_an_image_is_told_and_an_old_one_too(environment: Path) -> None:
    """After a package came in, jobs do not use it."""
    pack(environment)
    (found,) = check_environment(environment)
    assert (found.level, "packed into 0 MB" in found.found) == ("green", True)
    next(environment.glob("lib/python*/site-packages")).joinpath("more-1.dist-info").mkdir()
    (found,) = check_environment(environment)
    assert (found.level, "of an earlier state" in found.found) == ("yellow", True)
    assert found.remedy == "run bash slurm/common.sh --setup --pack again"


def test_a_python_of_the_system_is_not_counted(tmp_path: Path) -> None:
    """Its files are not the user's."""
    assert list(check_environment(tmp_path)) == []


def test_a_slow_import_names_the_remedy(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the environment is packed."""
    monkeypatch.setattr(sys, "prefix", str(environment))
    assert describe_import(2.0).level == "green"
    slow = describe_import(24.06)
    assert (slow.level, "imports in 24.1 s from" in slow.found) == ("yellow", True)
    assert slow.remedy.startswith(PACK)
    pack(environment)
    assert describe_import(24.06).level == "green"
