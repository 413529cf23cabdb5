"""Who could change a file or a folder, by its owner and its mode."""

import grp
import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path


def owner_name(user_id: int) -> str:
    """The name of a user, or the number where the system knows no name."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def foreign_link(path: str | Path) -> str:
    """The name of the other user whose symbolic link this is; empty if it is root's, or no link."""
    try:
        status = os.lstat(path)
    except OSError:  # it is not there, or can't be looked at
        return ""
    is_foreign = stat.S_ISLNK(status.st_mode) and status.st_uid not in (os.getuid(), 0)
    return owner_name(status.st_uid) if is_foreign else ""


def distrust(path: Path, owners: Collection[str] = ()) -> str:
    """Why what is in a file or folder may come from somebody else; empty if it can't.

    Its owner should be this user, root, or one of those named, and nobody else able to write to it.

    Raises:
        OSError: if it is not there.
    """
    status = path.stat()
    name = owner_name(status.st_uid)
    if status.st_uid not in (os.getuid(), 0) and not {name, str(status.st_uid)} & {*owners}:
        return f"belongs to {name}"
    return "others can write to it" if others_can_write(status) else ""


def others_can_write(status: os.stat_result) -> bool:
    """Whether its mode lets other users change a file, or what is in a folder."""
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return False  # as in /tmp, each user changes only what is their own
    by_group = bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status)
    return by_group or bool(status.st_mode & stat.S_IWOTH)


def _is_own_group(status: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as many systems make one for each user."""
    try:
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == owner_name(status.st_uid) and not set(group.gr_mem) - {group.gr_name}
