"""A lease is lost if another process took it or if it is missing, but not if the disk fails."""

import errno
import os
from pathlib import Path

import pytest

from harness.errors import DiskError, TakenOver
from harness.system import leased_dir
from harness.system.files import read_if_there
from harness.system.leased_dir import LeasedDirectory


class Disk:
    """A disk whose reads fail for a while, and a clock that only waiting advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = self.until_s = 0.0
        self.error = 0
        monkeypatch.setattr(leased_dir, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(leased_dir, "sleep", self._sleep)
        monkeypatch.setattr(leased_dir, "read_if_there", self._read)

    def fail(self, error: int, for_s: float) -> None:
        self.error, self.until_s = error, self.now_s + for_s

    def _sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def _read(self, path: Path) -> bytes | None:
        if self.now_s < self.until_s:
            raise OSError(self.error, os.strerror(self.error), str(path))
        return read_if_there(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> LeasedDirectory:
    folder = LeasedDirectory(tmp_path)
    folder.take_lease()
    return folder


@pytest.mark.parametrize("error", [errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_a_writer_waits_for_a_failing_disk(
    disk: Disk, folder: LeasedDirectory, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The writer warns once, and writes when the disk works again, or fails after a minute."""
    with caplog.at_level("WARNING"):
        disk.fail(error, for_s=50)
        folder.write("note.txt", "later")
    assert folder.path("note.txt").read_text() == "later"
    assert disk.now_s >= 50
    assert [os.strerror(error) in message for message in caplog.messages] == [True]
    disk.fail(error, for_s=1000)
    with pytest.raises(DiskError, match=os.strerror(error)):
        folder.check_lease()
    assert 110 <= disk.now_s < 125


def test_the_last_to_take_the_lease_writes(disk: Disk, folder: LeasedDirectory) -> None:
    """An older writer is refused at once. A missing or broken lease is lost, too."""
    folder.write("note.txt", "older")
    folder.path(".left.over.tmp").write_text("half")
    newer = LeasedDirectory(folder.folder)
    newer.take_lease()
    assert not folder.path(".left.over.tmp").exists()
    with pytest.raises(TakenOver, match=f"process {os.getpid()} on .* took over this"):
        folder.write("note.txt", "late")
    assert folder.path("note.txt").read_text() == "older"
    folder.release_lease()  # no effect: the newer writer has the lease
    newer.check_lease()
    newer.path("lease.json").write_text("{")
    with pytest.raises(TakenOver, match="finished or removed this folder"):
        newer.check_lease()
    newer.take_lease()
    newer.release_lease()
    with pytest.raises(TakenOver, match="finished or removed this folder"):
        newer.write("note.txt", "late")
    assert disk.now_s == 0
