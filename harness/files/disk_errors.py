"""What an error of a file system says: that there is no such file, or that the disk fails."""

import errno
import os
import re
from pathlib import Path

from harness.errors import DiskError

# That a file is missing, or is none. A disk that fails has many other answers.
NO_RECORD = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EINVAL, errno.EFBIG, errno.ENAMETOOLONG, errno.ENXIO),
)


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
