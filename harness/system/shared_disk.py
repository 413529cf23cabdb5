"""Files on a disk that several nodes share, where a node may see an older state for a while.

Reading is open and read: what a file system says of a file that is not opened (that it exists, its
size, its time) may be older than its content, or wrong.
"""

import os
from pathlib import Path

import psutil

from harness.system.files import replace_file


class SharedDisk:
    """The operations that processes of several nodes need to meet in a folder.

    Each raises an OSError where the file system fails, which never means that nothing was done.
    """

    def read(self, path: Path) -> bytes | None:
        """The content of a file, None where the file system says that there is none."""
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def opens(self, folder: Path) -> bool:
        """Whether a folder can be opened."""
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: Path) -> list[str]:
        """The names in a folder; new ones may be missing."""
        try:
            return os.listdir(folder)  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

    def write(self, path: Path, content: bytes, *, synced: bool = False) -> None:
        """Write a file whole: under a temporary name, then renamed.

        Args:
            path: of the file, whose folder is there.
            synced: whether it is on the disk before it is seen.
        """
        replace_file(path, lambda temporary: temporary.write_bytes(content), synced=synced)

    def sync(self, path: Path) -> None:
        """Bring a file's content, or a folder's names, onto the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_system(path: Path) -> str:
    """The kind of file system that a path is on, such as nfs4, or `unknown`."""
    # The last mount at a path hides the others.
    kinds = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    real = path.resolve()
    return next((kinds[str(at)] for at in (real, *real.parents) if str(at) in kinds), "unknown")
