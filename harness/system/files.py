"""Handles files and folders: ownership, atomic writes, plain files, locks, caches, shared disks.

Each file is first written as `.<random>.tmp` in its folder, and then renamed. The temporary name
does not contain the process id, because two nodes may have processes with equal ids, and both
processes may write the same file.

`open_plain_file` opens only plain (regular) files: reading a FIFO may block for ever, and reading a
device may never end.
"""

import contextlib
import errno
import fcntl
import grp
import hashlib
import itertools
import os
import pwd
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harness.errors import DiskError, InputError, OwnCodeError

REMEDY = "free up space on this disk, or choose another folder with --runs"
MAX_RECORD_BYTES = 256_000_000  # larger than every record of a run and every vocabulary
# Errors with these numbers mean: the file is missing, is not a plain file or is too large, or its
# path is invalid. All other errors count as disk errors.
NO_RECORD = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EINVAL, errno.EFBIG, errno.ENAMETOOLONG, errno.ENXIO),
)
MODE = 0o644  # no other user can change a file of harness, whatever the umask is
Content = str | bytes | Callable[[BinaryIO], object]
# The beginning of the name of a temporary folder. It contains the node, because on some disks that
# nodes share, a lock is valid on one node only.
SCRATCH = f"harness-scratch-{os.uname().nodename}-"
ABANDONED_S = 3600.0  # the smallest age at which a temporary folder may be abandoned

# Owners


def owner_name(user_id: int) -> str:
    """Return the name of a user, or the id as text if the system does not know the user."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def foreign_link(path: str | Path) -> str:
    """Return the owner of a symbolic link.

    The result is empty if the owner is this user or root, or if the path is not a symbolic link.
    """
    try:
        status = os.lstat(path)
    except OSError:  # missing or unreadable
        return ""
    is_foreign = stat.S_ISLNK(status.st_mode) and status.st_uid not in (os.getuid(), 0)
    return owner_name(status.st_uid) if is_foreign else ""


OTHERS_WRITE = "others can write to it"  # one of the reasons that `distrust` returns


def distrust(path: Path, owners: Collection[str] = ()) -> str:
    """Return why a file or folder is not trusted, such as "belongs to ann"; empty if trusted.

    A path is trusted if it belongs to this user, to root or to one of `owners` (names or user ids),
    and if no other user can write to it.

    Raises:
        OSError: if the path is missing.
    """
    status = path.stat()
    name = owner_name(status.st_uid)
    if status.st_uid not in (os.getuid(), 0) and not {name, str(status.st_uid)} & {*owners}:
        return f"belongs to {name}"
    return OTHERS_WRITE if others_can_write(status) else ""


def others_can_write(status: os.stat_result) -> bool:
    """Whether the mode of a file or folder lets other users change its content."""
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return False  # with the sticky bit, as in /tmp, users can remove only their own files
    by_group = bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status)
    return by_group or bool(status.st_mode & stat.S_IWOTH)


def _is_own_group(status: os.stat_result) -> bool:
    """Whether a file's owner is alone in the file's group; many systems make a group per user."""
    try:
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == owner_name(status.st_uid) and not set(group.gr_mem) - {group.gr_name}


# Writing


def atomic_write(target: Path, content: Content, mode: int = MODE, *, remedy: str = REMEDY) -> None:
    """Write and sync a file, and make its folder if the folder is missing.

    Args:
        target, content, mode: see `replace_file`.
        remedy: what the user can do if the write fails; this text ends the error's message.

    Raises:
        DiskError: if the write fails.
    """
    try:
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            sync_entry(target.parent)
        replace_file(target, content, mode)
    except OSError as error:
        raise DiskError(write_refusal(target, error, remedy)) from None


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new folder, which is renamed to `target` at the end of the block.

    If the block raises an error, the new folder is removed.

    Raises:
        OSError: if a write fails, or `target` exists and is not an empty folder.
    """
    temporary = _temporary(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)
        sync_entry(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove folders of `atomic_directory` that killed processes left in `parent` a day ago."""
    for folder in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - folder.lstat().st_mtime > 24 * ABANDONED_S:
                shutil.rmtree(folder)


@contextlib.contextmanager
def replaced_directory(target: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new folder, which replaces `target` at the end of the block.

    After an error `target` stays as it was.

    Args:
        target: the folder, or a symbolic link to the folder; the link stays as it is.
        check: a function that is called with `target` at the end of the block. If the function
            raises an error, the old folder stays.

    Raises:
        InputError: if `target` is a broken link, or another user's link.
        OSError: if the write fails.
    """
    _check_link(target)
    target = target.resolve()
    old = _temporary(target)
    try:
        with atomic_directory(target) as temporary:
            yield temporary
            # Check the target now, because it may have changed while the block was running.
            check(target)
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
    finally:
        if not target.exists() and old.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _check_link(target: Path) -> None:
    if target.is_symlink():
        if target.lstat().st_uid != os.getuid():
            raise InputError(f"{target}: is another user's link; choose another folder")
        if not target.exists():
            raise InputError(
                f"{target}: is a broken link; remove the link, or choose another folder"
            )


def check_replaceable(folder: Path, known: Collection[str], mark: str, kind: str) -> None:
    """Check that a command with `--out` would replace only the output of an earlier command.

    Args:
        folder: the folder, which may be missing or empty.
        known: the names of all files that the command's output may contain.
        mark: the name of a file that the command always writes into its output.
        kind: a noun for the output in messages, such as `comparison`.

    Raises:
        InputError: if the folder is a file, a broken link or another user's link, can't be read,
            contains a file whose name is not in `known`, or contains files but not `mark`.
    """
    _check_link(folder)
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except NotADirectoryError:
        raise InputError(f"--out {folder}: is a file; specify a folder") from None
    except OSError as error:
        raise InputError(f"--out {folder}: can't be read: {error.strerror}") from None
    if names and (mark not in names or names - {*known}):
        raise InputError(
            f"--out {folder}: contains {min(names - {*known} or names)}, which is not part of an "
            f"earlier {kind}; choose a new folder, or the folder of an earlier {kind}"
        )


def write_refusal(path: Path, error: OSError, remedy: str = REMEDY) -> str:
    """Return the message for a file that can't be written."""
    return f"{path}: can't be written: {why_refused(error)}; {remedy}"


def why_refused(error: OSError) -> str:
    """Return why a write failed, such as `/a/runs is not a folder, or is a broken link`."""
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename} is not a folder, or is a broken link"
    return error.strerror or str(error)


def replace_file(target: Path, content: Content, mode: int = MODE, *, synced: bool = True) -> None:
    """Create or replace a file: write a temporary file in its folder, and rename that file.

    Args:
        target: the file, in an existing folder.
        content: text, bytes, or a function that writes into a binary file.
        mode: the permissions, to which the user's umask applies.
        synced: whether to sync the file before the rename, and its folder after the rename.

    Raises:
        OSError: if the write fails.
    """
    temporary = _temporary(target)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        if synced:
            sync(temporary)
        temporary.replace(target)
        if synced:
            sync_entry(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and sync the folders that contain them.

    Raises:
        OSError: if the write fails.
    """
    missing = itertools.takewhile(lambda each: not each.is_dir(), folder.parents)
    made = [folder, *missing]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync_entry(each)


def sync_entry(path: Path) -> None:
    """Sync the folder that contains `path`, because the folder stores the name of `path`.

    If only the file is synced, but not its folder, a power failure can remove the file.
    """
    try:
        sync(path.parent)
    except OSError as error:
        # Some disks can't sync a folder, and only a folder that the user may list can be opened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{uuid.uuid4().hex}.tmp")


# Reading


def is_file(path: Path) -> bool:
    """Whether a path is a file that this user can see.

    Raises:
        OSError: if the disk fails.
    """
    try:
        return path.is_file()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENAMETOOLONG):
            return False
        raise


def read_plain_file(path: Path, limit: int = MAX_RECORD_BYTES) -> bytes:
    """Return the bytes of a plain file.

    Args:
        path: the file, or a link to it.
        limit: the largest allowed size of the file in bytes.

    Raises:
        OSError: if the file is unreadable, not a plain file, or larger than `limit`.
    """
    with open_plain_file(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it has over {limit:,} bytes", str(path))
        return file.read()


class Record(NamedTuple):
    """The content of a file, the time of its last change, and its owner."""

    content: bytes
    modified_s: float  # seconds since 1970
    owner: int  # user id


def read_record(path: str) -> Record | None:
    """Return a file's `Record`; None if it is missing, unreadable, too large or no regular file."""
    try:
        with open_plain_file(path, os.O_NOFOLLOW) as file:
            status = os.fstat(file.fileno())
            too_large = status.st_size > MAX_RECORD_BYTES
            return None if too_large else Record(file.read(), status.st_mtime, status.st_uid)
    except OSError:
        return None


def open_plain_file(path: Path | str, flags: int = 0) -> BinaryIO:
    """Open a plain file for reading, with additional flags of open(2).

    Raises:
        OSError: if the file is unreadable or not a plain file.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer. The flag does not affect plain files.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except ValueError:  # a path in a record may contain a NUL byte or a lone surrogate
        raise OSError(errno.EINVAL, "it is not a valid path", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a plain file.

    Raises:
        OSError: if the file can't be read.
    """
    with open_plain_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # stub too strict


# Disks that several nodes share

# A process that opens a file on a shared disk reads the file's latest content. But for a while, a
# node may see outdated metadata of a file that is not open: whether the file exists, its size and
# its modification time.


def read_if_there(path: Path) -> bytes | None:
    """Return the content of a file; None if it is missing.

    Raises:
        OSError: if the disk fails.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, perhaps without a name that another node has just added.

    If the folder is missing, the list is empty.

    Raises:
        OSError: if the disk fails.
    """
    try:
        return os.listdir(folder)  # noqa: PTH208 - names, not paths
    except FileNotFoundError:
        return []


# Disk errors


def raise_unless_missing(error: OSError, path: Path) -> None:
    """Do nothing if `error` means that a file is missing or not a plain file; else raise DiskError.

    Raises:
        DiskError: for any other error; the message contains a remedy.
    """
    if error.errno in NO_RECORD:
        return
    remedy = "check its permissions and owner" if error.errno == errno.EACCES else "try again later"
    raise DiskError(f"{path}: can't be read: {error.strerror}; {remedy}") from None


def is_said_of_disk(line: str) -> bool:
    """Whether the last line of a traceback reports a disk error that may be temporary."""
    by_disk = any(os.strerror(number) in line for number in (errno.EIO, errno.ESTALE))
    return by_disk and re.match(r"\w+Error: ", line) is not None


def disk_error_in(error: BaseException | None) -> OSError | None:
    """Return the first disk error among `error` and the errors that led to it, or else None.

    For example, a disk error can lead to a `BadZipFile`. An `OSError` of the user's own code is no
    disk error, because code that can't reach a server raises it too.
    """
    while error and not isinstance(error, OwnCodeError):
        if isinstance(error, OSError) and error.errno not in (None, *NO_RECORD):
            return error
        error = error.__context__
    return None


def is_of_disk(error: Exception) -> bool:
    """Whether a failing disk caused an error."""
    return isinstance(error, DiskError) or disk_error_in(error) is not None


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a new private folder in TMPDIR; remove it after the block.

    Before that, remove the folders of earlier processes that were killed.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        # Hold the lock until the end of the block, so that no other process removes the folder.
        _lock_folder(Path(name), stack)
        yield Path(name)


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's scratch folders that are over an hour old and not locked."""
    for folder in parent.glob(f"{SCRATCH}{'[a-z0-9_]' * 8}"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            status = folder.lstat()
            is_old = status.st_uid == os.getuid() and time.time() - status.st_mtime > ABANDONED_S
            if is_old and _lock_folder(folder, stack):
                shutil.rmtree(folder, ignore_errors=True)


def _lock_folder(folder: Path, stack: contextlib.ExitStack) -> bool:
    return _lock(folder, os.O_RDONLY | os.O_DIRECTORY, fcntl.LOCK_EX | fcntl.LOCK_NB, stack)


def _lock(path: Path, flags: int, operation: int, stack: contextlib.ExitStack) -> bool:
    """Lock a file or folder until `stack` closes; return whether it could be locked."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)  # releases the lock
        fcntl.flock(descriptor, operation)
        return True
    return False


@contextlib.contextmanager
def turn_at(path: Path) -> Iterator[None]:
    """Acquire the lock of a path and hold the lock during the `with` block.

    If the disk does not support locks, the block runs without a lock.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.with_name(f".{path.name}.lock")
            _lock(file, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, stack)
        yield


def cache_folder() -> Path:
    """Return harness's cache folder, such as `~/.cache/harness`; the user may always delete it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"
