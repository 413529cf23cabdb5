"""The project's code as git sees it: its files, its version, and a version put back.

Nothing is written into the user's repository: a changed index and new objects go into a folder
of their own.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SNAPSHOT_RECORD = "snapshot.json"  # in a snapshot of the code, where no git is
MAX_NEW_FILE_BYTES = 1_000_000
MAX_NEW_BYTES = 10_000_000  # of all new files that a record holds
MAX_NAMES = 1000  # of new files that a record names
TIMEOUT_S = 60

COMMIT = re.compile(r"[0-9a-f]{40,64}")

# They lead git to another repository, or change what it prints.
HIDDEN = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX"),
    *("GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
    *("GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS", "GIT_CEILING_DIRECTORIES", "GIT_LITERAL_PATHSPECS"),
}

# A user's settings must not change a patch, nor start what writes into the repository.
SETTINGS = (
    *("-c", "core.fsmonitor=false", "-c", "core.splitIndex=false"),
    *("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"),
)
DIFF = ("diff", "--binary", "--unified=3", "--no-color", "--no-ext-diff", "--no-textconv",
        "--ignore-submodules=all", "HEAD", "--")  # fmt: skip


class GitError(Exception):
    """Git is not here, or could not do what it was asked; the message is its last line."""


def is_checkout(project: Path) -> bool:
    """Whether the project is a git checkout itself, not merely inside one."""
    return (project / ".git").exists()  # a file in a worktree


def code_version(project: Path, runs: Path | None = None) -> dict[str, Any]:
    """The commit, and all that differs from it.

    Args:
        project: the folder of a checkout or of a snapshot.
        runs: where runs are kept; what lies there is no code.

    Returns:
        `commit`; `uncommitted_diff`, a binary patch against it that holds new files too;
        `untracked_files`, the names of new files that git does not ignore; `left_out_files`, those
        of them that are too large for the patch; `snapshot`, the folder if it is one. Bytes that
        are no UTF-8 stand as surrogate escapes. Each is None where it can't be known.
    """
    nothing: dict[str, Any] = dict.fromkeys(
        ("commit", "uncommitted_diff", "untracked_files", "left_out_files", "snapshot")
    )
    if not is_checkout(project):
        if not (record := snapshot_record(project)):
            return nothing
        return nothing | {k: record.get(k) for k in nothing} | {"snapshot": str(project)}
    nothing["commit"] = commit_of(project)
    try:
        return nothing | (_changes(project, new_files(project, runs)) if nothing["commit"] else {})
    except (GitError, OSError):
        return nothing


def commit_of(project: Path) -> str | None:
    """The commit that a checkout stands at, None for none and where git can't tell."""
    if not is_checkout(project):  # git would answer for the checkout that it lies in
        return None
    try:
        return git(project, "rev-parse", "--verify", "HEAD").decode().strip()
    except (GitError, OSError):
        return None


def snapshot_record(folder: Path) -> dict[str, Any]:
    """What a snapshot says of itself, empty for a folder that is none."""
    try:
        record = json.loads((folder / SNAPSHOT_RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _changes(project: Path, new: list[str]) -> dict[str, Any]:
    kept, left_out, total = [], [], 0
    for name in new:
        path = project / name
        # A folder's name ends in a slash: a repository within this one.
        size = MAX_NEW_BYTES if name.endswith("/") else path.lstat().st_size
        if size > MAX_NEW_FILE_BYTES or total + size > MAX_NEW_BYTES:
            left_out.append(name)
        else:
            kept.append(name)
            total += size
    with _apart(project) as apart:
        # With its time: by that git knows which of its entries it must not trust.
        shutil.copy2(_git_path(project, "index"), apart["GIT_INDEX_FILE"])
        if kept:
            names = b"".join(os.fsencode(name) + b"\0" for name in kept)
            git(project, "update-index", "--add", "-z", "--stdin", stdin=names, apart=apart)
        diff = git(project, *DIFF, apart=apart)
    return {
        "uncommitted_diff": diff.decode(errors="surrogateescape"),
        "untracked_files": _shortened(new),
        "left_out_files": _shortened(left_out),
    }


def _shortened(names: list[str]) -> list[str]:
    if len(names) <= MAX_NAMES:
        return names
    return [*names[:MAX_NAMES], f"and {len(names) - MAX_NAMES:,} more"]


def tracked_files(project: Path) -> list[str]:
    """The files that git tracks, those that are gone included, by their paths in the project.

    Raises:
        GitError: if git can't tell.
    """
    return _names(git(project, "ls-files", "-z", "--cached"))


def new_files(project: Path, runs: Path | None = None) -> list[str]:
    """The files that git neither tracks nor ignores, without those below `runs`.

    Raises:
        GitError: if git can't tell.
    """
    names = _names(git(project, "ls-files", "-z", "--others", "--exclude-standard"))
    inside = runs.resolve() if runs else project.resolve()
    if inside == project.resolve() or not inside.is_relative_to(project.resolve()):
        return names
    below = f"{inside.relative_to(project.resolve())}/"
    return [name for name in names if not name.startswith(below)]


def _names(listing: bytes) -> list[str]:
    return sorted({os.fsdecode(name) for name in listing.split(b"\0") if name})


def has_commit(project: Path, commit: str) -> bool:
    """Whether the project is a checkout of a repository that holds the commit."""
    if not is_checkout(project) or not COMMIT.fullmatch(commit):
        return False
    try:
        git(project, "cat-file", "-e", f"{commit}^{{commit}}")
    except GitError:
        return False
    return True


def write_version(project: Path, commit: str, patch: str, folder: Path) -> None:
    """Write the files of a commit, changed by a patch, into a folder.

    Raises:
        GitError: if the patch does not fit, or the folder can't be written.
    """
    with _apart(project) as apart:
        git(project, "read-tree", commit, apart=apart)
        if patch:
            content = patch.encode(errors="surrogateescape")
            git(project, "apply", "--cached", "--whitespace=nowarn", stdin=content, apart=apart)
        git(project, "checkout-index", "--all", f"--prefix={folder}/", apart=apart)


@contextlib.contextmanager
def _apart(project: Path) -> Iterator[dict[str, str]]:
    """The variables by which git works on an empty index and writes objects elsewhere."""
    objects = str(_git_path(project, "objects").absolute())
    quoted = objects.replace("\\", "\\\\").replace('"', '\\"')  # a colon would end a bare path
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "objects").mkdir()
        yield {
            "GIT_INDEX_FILE": f"{name}/index",
            "GIT_OBJECT_DIRECTORY": f"{name}/objects",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
        }


def _git_path(project: Path, name: str) -> Path:
    path = git(project, "rev-parse", "--git-path", name).removesuffix(b"\n")
    return project / os.fsdecode(path)


def git(
    project: Path, *words: str, stdin: bytes = b"", apart: Mapping[str, str] | None = None
) -> bytes:
    """What git prints, asked in the project's folder.

    Raises:
        GitError: if there is no git, it fails, or it takes over a minute.
    """
    environment = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    environment |= {"LC_ALL": "C", **(apart or {})}
    try:
        done = subprocess.run(  # noqa: S603 - a list of words, no shell
            ["git", *SETTINGS, *words],  # noqa: S607
            cwd=project,
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {words[0]}: no answer within {TIMEOUT_S} s") from None
    except OSError as error:
        raise GitError(f"git can't be started: {error.strerror or error}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitError(f"git {words[0]}: {said[-1] if said else f'code {done.returncode}'}")
    return done.stdout
