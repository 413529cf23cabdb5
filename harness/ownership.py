"""Who could change a file or a folder, by its owner, its mode and its ACL."""

import grp
import os
import pwd
import stat
import struct
from collections.abc import Collection
from pathlib import Path

ACL_USER, ACL_GROUP = 0x02, 0x08  # the tags of a named user and a named group


def owner_name(user_id: int) -> str:
    """The name of a user, or the number where the system knows no name."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


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
    return "others can write to it" if others_can_write(path, status) else ""


def others_can_write(path: Path, status: os.stat_result) -> bool:
    """Whether its mode and POSIX ACL let other users change a file, or what is in a folder."""
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return False  # as in /tmp, each user changes only what is their own
    # With an ACL these bits are its mask, the most that any of its entries allows.
    if status.st_mode & stat.S_IWGRP and (
        not _is_own_group(status) or _acl_lets_write(path, status)
    ):
        return True
    return bool(status.st_mode & stat.S_IWOTH)


def _acl_lets_write(path: Path, status: os.stat_result) -> bool:
    """Whether an ACL lets another user, or a group, write, as far as its mask does."""
    trusted = (os.getuid(), status.st_uid, 0)
    try:
        acl = os.getxattr(path, "system.posix_acl_access")
    except (OSError, AttributeError):  # there is none; this is no Linux
        return False
    # See linux/posix_acl_xattr.h: a version of 4 bytes, then a tag, permissions and an id for each.
    entries = struct.iter_unpack("<HHI", acl[4:])
    return any(
        tag in (ACL_USER, ACL_GROUP)
        and permissions & 2
        and not (tag == ACL_USER and who in trusted)
        for tag, permissions, who in entries
    )


def _is_own_group(status: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as many systems make one for each user."""
    try:
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == owner_name(status.st_uid) and not set(group.gr_mem) - {group.gr_name}
