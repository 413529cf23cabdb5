"""Files and folders that are complete or absent, never half-written.

Each is written under a temporary name next to its target, `.<random>.tmp`, and renamed. The name
is random because processes of several nodes, with the same process ids, may write the same file.
Folders that killed processes left are removed a day later, when a folder is made next to them.
"""

import contextlib
import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from harness.errors import DiskError, InputError

ABANDONED_S = 86_400
REMEDY = "free space there, or choose another --runs"


def atomic_write(
    target: Path,
    content: str | bytes | Callable[[BinaryIO], object],
    mode: int = 0o666,
    *,
    remedy: str = REMEDY,
) -> None:
    """Write a file. Its folder is made where it is missing.

    Args:
        content: text, bytes, or a function that writes into a binary file.
        mode: the permissions, before the user's umask.
        remedy: what the user can do if the disk refuses.

    Raises:
        DiskError: if the disk refuses.
    """

    def save(temporary: Path) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)

    _write(target, save, remedy=remedy)


def atomic_save(target: Path, save: Callable[[Path], object]) -> None:
    """Like `atomic_write`, for a library that takes a path and looks at its suffix.

    Raises:
        DiskError: if the disk refuses.
    """
    _write(target, save, suffix=target.suffix, remedy=REMEDY)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which is renamed to `target` at the end, or removed on failure.

    Raises:
        OSError: if the disk refuses, or `target` exists and is no empty folder.
    """
    temporary = _temporary(target).with_suffix(f".{target.name[:100]}.tmp")
    remove_abandoned(target.parent, f".{'[0-9a-f]' * 32}.*.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)
        sync_entry(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the user's own folders of such names that killed processes left a day ago."""
    for copy in folder.glob(pattern):
        with contextlib.suppress(OSError):
            known = copy.lstat()
            if known.st_uid == os.getuid() and time.time() - known.st_mtime > ABANDONED_S:
                shutil.rmtree(copy)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of a folder; nobody may be making it."""
    for leftover in target.parent.glob(f".*.{glob.escape(target.name[:100])}.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def replaced_directory(target: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Like `atomic_directory`, but in place of an earlier folder, which stays until this is whole.

    Args:
        target: the folder; a link to one stays a link.
        check: raises if what is there may not be replaced; called again before it is.

    Raises:
        InputError: for a link that leads nowhere, or is another user's, who would choose the place.
        OSError: if the disk refuses.
    """
    if target.is_symlink():
        if target.lstat().st_uid != os.getuid():
            raise InputError(f"{target}: is another user's link; name a folder of your own")
        if not target.exists():
            raise InputError(f"{target}: is a link that leads nowhere; remove it, or name a folder")
    target = target.resolve()
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.old"):
        if not left.name.removeprefix(f".{target.name}.").removesuffix(".old").isdecimal():
            continue
        if target.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:  # a process was killed after it had moved the earlier folder away
            left.rename(target)
    try:
        with atomic_directory(target) as temporary:
            yield temporary
            check(target)  # something else may have been put there meanwhile
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
    finally:
        if not target.exists() and old.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def write_refusal(path: Path, error: OSError, remedy: str = REMEDY) -> str:
    """The message for a file that the system refuses to write."""
    return f"{path}: can't be written: {why_refused(error)}; {remedy}"


def why_refused(error: OSError) -> str:
    """The system's reason; for a folder that could not be made, what is in its place."""
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename} is no folder, or a link to one that is not there"
    return error.strerror or str(error)


def replace_file(
    target: Path, save: Callable[[Path], object], *, suffix: str = "", synced: bool = True
) -> None:
    """Let `save` write a file under a temporary name next to its target, then rename it.

    Args:
        target: the file, whose folder is there.
        suffix: of the temporary name.
        synced: whether the content is on the disk before it is seen.

    Raises:
        OSError: if the disk refuses.
    """
    temporary = _temporary(target, suffix)
    try:
        save(temporary)
        if synced:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
        if synced:
            sync_entry(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_entry(path: Path) -> None:
    """Put a name on the disk: that of a file is an entry of its folder, with a sync of its own.

    Without it a power cut can take back a file that is known to be complete.
    """
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some disks sync no folder
            raise
    finally:
        os.close(descriptor)


def _temporary(target: Path, suffix: str = "") -> Path:
    return target.with_name(f".{uuid.uuid4().hex}.tmp{suffix}")


def _write(target: Path, save: Callable[[Path], object], *, suffix: str = "", remedy: str) -> None:
    try:
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            sync_entry(target.parent)
        replace_file(target, save, suffix=suffix)
    except OSError as error:
        raise DiskError(write_refusal(target, error, remedy)) from None
