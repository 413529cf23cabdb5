"""Names that are made once: the only way in which processes of a search agree on anything.

A folder is prepared with its content under a temporary name and renamed onto its own. rename(2)
never replaces a folder that holds something: of several processes exactly one makes the name, and
all others are told that it is there. After an error nobody knows who made it; the content says so.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from harness.errors import DiskError
from harness.files.atomic_file import sync_entry, write_refusal

TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def make_once(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    folders: tuple[str, ...] = (),
    prepared_in: Path | None = None,
) -> bool:
    """Make a folder with its content, whose parent is there; False if another process made it.

    Args:
        files: at least one, by name.
        folders: empty ones beside the files.
        prepared_in: a folder of the same disk for the temporary name; by default the parent.

    Raises:
        OSError: if the disk fails. The folder may be made then.
    """
    temporary = (prepared_in or folder.parent) / f".{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir()
        for name in folders:
            (temporary / name).mkdir()
        for name, content in files.items():
            with (temporary / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            sync_entry(temporary / name)
        temporary.rename(folder)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_entry(folder)
    return True


def check_renames(folder: Path) -> None:
    """Refuse a disk on which a name could be made twice.

    Raises:
        DiskError: if it has no rename, or replaces folders that hold something.
    """
    trial = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        trial.mkdir()
        made = [make_once(trial / "name", {"content": b""}) for _ in range(2)]
    except OSError as error:
        raise DiskError(write_refusal(folder, error)) from None
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if made != [True, False]:
        raise DiskError(
            f"{folder}: this disk renames a folder onto one that holds something, so the workers "
            "of a search would overwrite each other; choose another --runs"
        )
