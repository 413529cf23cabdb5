"""Reads files that may be anything, from disks that fail or answer late.

A FIFO would never answer, a device never end. An error says that there is no such file, or that the
disk fails. Over a network each question takes a while, so many are asked side by side.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from harness.errors import DiskError

MAX_RECORD_BYTES = 256_000_000  # no record of a run is larger, a vocabulary neither
# That a file is missing, or is none. A disk that fails has many other answers.
NO_RECORD = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EINVAL, errno.EFBIG, errno.ENAMETOOLONG, errno.ENXIO),
)
MAX_THREADS = 32
FEWEST = 8  # for each thread; to start one takes longer than a question to a local disk

Item = TypeVar("Item")
Answer = TypeVar("Answer")


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


# What an error says


def raise_unless_missing(error: OSError, path: Path) -> None:
    """Raise what a failing disk says; return if there is no such file.

    Raises:
        DiskError: in one line, with what to do.
    """
    if error.errno in NO_RECORD:
        return
    is_closed = error.errno == errno.EACCES
    remedy = "check its mode and owner" if is_closed else "try again later"
    raise DiskError(f"{path}: can't be read: {error.strerror}; {remedy}") from None


def is_said_of_disk(line: str) -> bool:
    """Whether a traceback's last line says that a disk fails, which may be over in minutes."""
    by_disk = any(os.strerror(number) in line for number in (errno.EIO, errno.ESTALE))
    return by_disk and re.match(r"\w+Error: ", line) is not None


def disk_error_in(error: BaseException | None) -> OSError | None:
    """What a failing disk said, if an error was made of it: zipfile calls any file broken then."""
    while error:
        if isinstance(error, OSError) and error.errno not in (None, *NO_RECORD):
            return error
        error = error.__context__
    return None


def is_of_disk(error: Exception) -> bool:
    """Whether an error says that a disk fails, perhaps in a message that was made of it."""
    return isinstance(error, DiskError) or disk_error_in(error) is not None


# Many questions


def in_threads(ask: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """The answer to each item, in order; an error that one raises is raised here."""
    num = min(MAX_THREADS, len(items) // FEWEST)
    if num < 2:
        return [ask(item) for item in items]
    answers: dict[int, Answer] = {}

    def work(first: int) -> None:
        # A share of them: a future for each would take longer than most of the answers.
        for index in range(first, len(items), num):
            answers[index] = ask(items[index])

    with ThreadPoolExecutor(num) as pool:
        for _ in pool.map(work, range(num)):
            pass
    return [answers[index] for index in range(len(items))]
