"""A lease is lost only when it is gone: a disk that does not answer is asked again."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import RunError, TakenOver
from harness.system import leased_dir
from harness.system.files import SharedDisk
from harness.system.leased_dir import LeasedDirectory


class Disk(SharedDisk):
    """Reads of the lease that fail for a while, and a clock that only waiting moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.error = 0
        self.until_s = 0.0
        monkeypatch.setattr(leased_dir, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(leased_dir, "sleep", self._sleep)
        monkeypatch.setattr(LeasedDirectory, "disk", self)

    def fail(self, error: int, for_s: float) -> None:
        self.error, self.until_s = error, self.now_s + for_s

    def _sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def read(self, path: Path) -> bytes | None:
        if self.error and self.now_s < self.until_s:
            raise OSError(self.error, os.strerror(self.error), str(path))
        return super().read(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> LeasedDirectory:
    folder = LeasedDirectory(tmp_path)
    folder.take_lease()
    return folder


ERRORS = [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.EIO]


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_lease_that_can_not_be_read_for_a_while_is_kept(
    disk: Disk, folder: LeasedDirectory, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits with a warning, and writes when the disk is back."""
    warnings: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(leased_dir, "LOGGER", logger)
    disk.fail(error, for_s=50)
    folder.write("note.txt", "later")
    assert folder.path("note.txt").read_text() == "later"
    assert disk.now_s >= 50
    assert len(warnings) == 1
    assert os.strerror(error) in warnings[0]


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_lease_that_stays_unreadable_is_told_as_what_it_is(
    disk: Disk, folder: LeasedDirectory, error: int
) -> None:
    """After a minute the run ends with the system's error, and nobody is said to have taken it."""
    disk.fail(error, for_s=1000)
    with pytest.raises(RunError, match=os.strerror(error)) as raised:
        folder.check_lease()
    assert not isinstance(raised.value, TakenOver)
    assert 60 <= disk.now_s < 70


def test_a_lease_that_is_gone_or_another_is_lost_at_once(
    disk: Disk, folder: LeasedDirectory
) -> None:
    """No time is lost on what the disk says plainly, a lease that nobody can parse included."""
    other = LeasedDirectory(folder.folder)
    other.take_lease()
    with pytest.raises(TakenOver, match="took it over"):
        folder.check_lease()
    folder.path("lease.json").write_text("{")
    with pytest.raises(TakenOver, match="somebody changed it"):
        folder.check_lease()
    folder.path("lease.json").unlink()
    with pytest.raises(TakenOver, match="somebody removed it"):
        folder.check_lease()
    assert disk.now_s == 0
