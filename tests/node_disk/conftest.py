"""A small environment that is packed."""

import shutil
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest


def make_environment(folder: Path) -> Path:
    """A virtual environment that takes its packages from the one of the tests."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return make_environment(tmp_path / "environment")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder on a disk, since pytest's own may be where others can write."""
    folder = Path(tempfile.mkdtemp(prefix="node-disk-"))
    yield folder
    shutil.rmtree(folder)
