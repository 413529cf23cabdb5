"""Reads files that may be anything: a FIFO would never answer, a device never end."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_RECORD_BYTES = 256_000_000  # no record of a run is larger, a vocabulary neither


def is_file(path: Path) -> bool:
    """Whether it is a file that may be seen; what a failing disk says is no answer."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENAMETOOLONG):
            return False
        raise


def read_plain_file(path: Path, limit: int = MAX_RECORD_BYTES) -> bytes:
    """The bytes of a plain file.

    Args:
        path: of the file, or of a link to one.
        limit: the most bytes that it may have.

    Raises:
        OSError: if it can't be read, is no plain file, or is larger.
    """
    with open_plain_file(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it has over {limit:,} bytes", str(path))
        return file.read()


class Record(NamedTuple):
    """A file that is written whole and renamed, and what its file system says of it."""

    content: bytes
    modified_s: float  # since 1970
    owner: int  # of a link, who made it


def read_record(path: str) -> Record | None:
    """A small plain file, by one call each to open, ask, read and close; None if it can't be read.

    A path in text: with many files, `Path` takes longer than the disk.
    """
    flags, owner = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, None
    try:
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                return None
            owner = os.lstat(path).st_uid
            descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RECORD_BYTES:
                return None
            content = os.read(descriptor, status.st_size + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):  # a NUL, or what no file system can write
        return None
    return Record(content, status.st_mtime, status.st_uid if owner is None else owner)


def open_plain_file(path: Path) -> BinaryIO:
    """Open a plain file to read.

    Raises:
        OSError: if it can't be read, or is no plain file.
    """
    # Opening a FIFO would wait for a writer; a plain file opens the same with the flag.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL, or what no file system can write; a record may name anything
        raise OSError(errno.EINVAL, "it is no path", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return os.fdopen(descriptor, "rb")
