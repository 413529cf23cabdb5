"""Snapshots of the code, so that a waiting job runs the code as it was at submission.

A snapshot is a folder `<runs>/.submissions/code-<hash>/`, which appears only when it is complete.
All jobs of a user with the same code at the same commit share one snapshot.
"""

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness import PROJECT
from harness.errors import InputError, RunError
from harness.slurm.environment import SITE
from harness.slurm.script import submissions
from harness.system.files import OTHERS_WRITE, atomic_write, distrust, foreign_link
from harness.system.git import (
    SNAPSHOT_RECORD,
    GitError,
    code_version,
    is_checkout,
    is_snapshot,
    list_files,
)

MAX_NEW_FILES = 2000
MAX_NEW_BYTES = 200_000_000


def project_folder() -> Path:
    """Return the project to submit: HARNESS_HOME if it is set, else the project of this package."""
    named = os.environ.get("HARNESS_HOME")
    return Path(named).absolute() if named else PROJECT


def take_snapshot(project: Path, runs: Path) -> Path:
    """Copy the current code with uncommitted changes and new files.

    Returns:
        The snapshot's folder; if the project is itself a snapshot, the project's folder.

    Raises:
        InputError: if git can't list the files, if the files that git doesn't track exceed
            MAX_NEW_FILES or MAX_NEW_BYTES, or if `check_owner` refuses `runs`.
        RunError: if the snapshot can't be written.
    """
    if is_snapshot(project):
        return project
    names, _ = code_files(project, runs)
    version = code_version(project, runs)
    copy = submissions(runs) / f".code-{uuid.uuid4().hex}.tmp"  # renamed when its hash is known
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Other users may have no access to the project, and must not add modules to its copy.
        copy.mkdir(mode=0o700)
        if (status := copy.parent.stat()).st_uid == os.getuid():
            # With the sticky bit, other users may add submissions, but may not replace the code of
            # a waiting job.
            copy.parent.chmod(status.st_mode | stat.S_ISVTX)
        check_owner(runs)
        for name in names:
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # Copy the content of slurm/site.sh even if it is a symbolic link, because a relative
            # link is valid only in the project.
            shutil.copy2(project / name, target, follow_symlinks=name == SITE)
        record = {**version, "project": str(project)}
        del record["snapshot"]
        # Other users must not read snapshot.json, because its uncommitted changes may contain
        # secrets.
        atomic_write(copy / SNAPSHOT_RECORD, json.dumps(record, indent=2) + "\n", mode=0o600)
        # Hash the copy, because a file of the project may have changed meanwhile.
        digest = _digest(copy, names, version["commit"])
        folder = submissions(runs) / f"code-{digest}"
        if not _is_intact(folder) or _digest(folder, names, version["commit"]) != digest:
            _replace(folder, copy)
    except OSError as error:
        raise RunError(
            f"can't create a snapshot of {project}: {error.filename or copy}: "
            f"{error.strerror or error}"
        ) from None
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return folder


def check_owner(runs: Path) -> None:
    """Refuse a folder of runs if another user owns it, or owns its folder `.submissions`.

    The owner of a folder may rename everything in the folder, in spite of the sticky bit.

    Raises:
        InputError: if one of the folders, or a symbolic link to it, belongs to another user.
    """
    for folder in filter(os.path.exists, (runs, submissions(runs))):
        link = foreign_link(folder)
        reason = f"is a symbolic link that belongs to {link}" if link else distrust(folder)
        if reason and reason != OTHERS_WRITE:  # the sticky bit prevents a replacement by others
            raise InputError(
                f"{folder}: {reason}, who could replace the code of a waiting job; name a "
                "folder of your own with --runs or HARNESS_RUNS, and move your runs into it"
            )


def left_out(project: Path, runs: Path) -> Iterator[str]:
    """Yield one line that lists the files that look like secrets, or nothing if there are none.

    Raises:
        InputError: as for `code_files`.
    """
    if is_snapshot(project):
        return
    _, private = code_files(project, runs)
    if private:
        listed = [f"{name} ({reason})" for name, reason in private.items()]
        yield (
            "the job's copy of the code and the run's record will not contain these files, which "
            f"look like secrets: {', '.join(listed)}; commit or rename the files that the job needs"
        )


def code_files(project: Path, runs: Path) -> tuple[list[str], dict[str, str]]:
    """List the tracked and the new files of the project, with slurm/site.sh but without secrets.

    Returns:
        A list of the code's files, and a dictionary of the secret files with the reasons; all paths
        are relative to the project.

    Raises:
        InputError: if git can't list the files, or if the files that git doesn't track exceed
            MAX_NEW_FILES or MAX_NEW_BYTES.
    """
    try:
        if not is_checkout(project):  # git may find a checkout in a parent folder
            raise GitError("is not a git checkout")
        tracked, new, private = list_files(project, runs)
    except GitError as error:
        raise InputError(
            f"{project}: {error}; harness submit copies the files that git lists, so it needs a "
            "git checkout; clone the project with git, or submit a script of slurm/ with sbatch"
        ) from None
    new = [name for name in new if not name.startswith(".submissions/") and name not in private]
    total = sum(_size(project / name) for name in new if not name.endswith("/"))
    if len(new) > MAX_NEW_FILES or total > MAX_NEW_BYTES:
        folders = sorted({name.partition("/")[0] for name in new})
        raise InputError(
            f"{project}: {len(new):,} untracked files with {total / 1e6:,.0f} MB in total are "
            f"probably not all code ({', '.join(folders[:5])}{', …' if len(folders) > 5 else ''}); "
            f"the limit is {MAX_NEW_FILES:,} files and {MAX_NEW_BYTES / 1e6:.0f} MB; move data "
            "files out of the project, or add them to .gitignore"
        )
    private.pop(SITE, None)  # the job needs site.sh
    names = {*tracked, *new, SITE} - private.keys()
    # The conditions skip deleted files, folders of other repositories, and sockets.
    found = sorted(
        n for n in names if (project / n).is_file() or (n != SITE and (project / n).is_symlink())
    )
    return found, private


def _size(path: Path) -> int:
    """Return a file's size; 0 if it is gone, as an editor's temporary file soon is."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _digest(root: Path, names: Iterable[str], commit: str | None) -> str:
    """Return a checksum of the names, kinds (such as executable or link) and contents of files.

    A missing file is no error, because a scratch disk may delete old files of a snapshot.
    """
    # The hash depends on the user's id, because users trust only their own snapshots.
    digest = hashlib.sha256(f"{os.getuid()} {commit}".encode())
    for name in names:
        path, kind, content = root / name, b"missing", b""
        if path.is_symlink():
            kind, content = b"link", os.fsencode(path.readlink())
        elif path.is_file():
            kind = b"run" if path.stat().st_mode & 0o100 else b"file"
            content = path.read_bytes()
        parts = os.fsencode(name), kind, hashlib.sha256(content).digest()
        digest.update(b"\0".join(parts))
    return digest.hexdigest()[:16]


def _is_intact(folder: Path) -> bool:
    """Whether a snapshot exists, and no other user can open its folder."""
    try:
        status = folder.lstat()
        is_private = status.st_uid == os.getuid() and not status.st_mode & 0o077
        return is_private and os.path.lexists(folder / SNAPSHOT_RECORD)
    except OSError:
        return False


def _replace(folder: Path, copy: Path) -> None:
    aside = copy.with_suffix(".old")
    if folder.exists():
        folder.rename(aside)
    try:
        copy.rename(folder)
    except OSError:
        # If the folder exists now, another process has created the same snapshot.
        if not folder.is_dir():
            raise
    finally:  # removal is slow, so remove the old snapshot only after the rename
        shutil.rmtree(aside, ignore_errors=True)
