"""The project's code as git sees it: its files, its version, and a version written out again.

Nothing is written into the user's repository, neither its index nor its objects.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from harness.system.files import scratch_directory
from harness.system.lenient_json import read_json

SNAPSHOT_RECORD = "snapshot.json"  # in a snapshot of the code, which has no .git
MAX_NEW_FILE_BYTES = 1_000_000
MAX_NEW_BYTES = 10_000_000  # of all new files that a record holds
MAX_NAMES = 1000  # new files that a record names
TIMEOUT_S = 60

COMMIT = re.compile(r"[0-9a-f]{40,64}")

# They point git to another repository or change its output.
HIDDEN = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX"),
    *("GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
    *("GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS", "GIT_CEILING_DIRECTORIES", "GIT_LITERAL_PATHSPECS"),
}

# The user's settings must neither change a patch nor write into the repository.
SETTINGS = (
    *("-c", "core.fsmonitor=false", "-c", "diff.autoRefreshIndex=false"),
    *("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"),
)
DIFF = ("diff", "--binary", "--unified=3", "--no-color", "--no-ext-diff", "--no-textconv",
        "--ignore-submodules=all")  # fmt: skip


# Names of files that look like secrets, which no snapshot and no record may hold.
SECRETS = (
    *("*secret*", "*credential*", "*passw*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*apikey*", "*api_key*", "*api-key*"),
    *(".env*", ".netrc", ".pgpass", ".htpasswd", ".pypirc", ".npmrc", ".aws", ".ssh", ".kube"),
)
NO_CODE = ("*token*",)  # but tokenizer.py is code
CODE = (".py", ".pyi")


class GitError(Exception):
    """Git is missing or failed; the message is its last line."""


def is_checkout(project: Path) -> bool:
    """Whether the project is a git checkout itself, not merely inside one."""
    return (project / ".git").exists()  # a file in a worktree


def code_version(project: Path, runs: Path | None = None) -> dict[str, Any]:
    """The commit and all differences from it.

    Args:
        project: the folder of a checkout or of a snapshot.
        runs: where runs are kept; files there are no code.

    Returns:
        `commit`; `uncommitted_diff`, a binary patch against it that includes new files;
        `untracked_files`, the names of new files that git does not ignore; `left_out_files`, those
        that are too large for the patch or look like secrets; `snapshot`, the folder if it is one.
        Bytes that are not UTF-8 become surrogate escapes. Each is None if unknown, and
        `git_problem` may say why.
    """
    nothing: dict[str, Any] = dict.fromkeys(
        ("commit", "uncommitted_diff", "untracked_files", "left_out_files", "snapshot")
    )
    if not is_checkout(project):
        if not (record := snapshot_record(project)):
            return nothing
        return nothing | {k: record.get(k) for k in nothing} | {"snapshot": str(project)}
    try:
        nothing["commit"] = git(project, "rev-parse", "--verify", "HEAD").decode().strip()
        return nothing | _changes(project, new_files(project, runs))
    except (GitError, OSError) as error:
        return nothing | {"git_problem": str(error)}


def commit_of(project: Path) -> str | None:
    """The commit of a checkout, None if there is none or git can't tell."""
    if not is_checkout(project):  # git would answer for a checkout around it
        return None
    try:
        return git(project, "rev-parse", "--verify", "HEAD").decode().strip()
    except (GitError, OSError):
        return None


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a snapshot of the code."""
    # The record first: reading it never raises, also in a folder that may not be entered.
    return bool(snapshot_record(folder)) and not is_checkout(folder)


def snapshot_record(folder: Path) -> dict[str, Any]:
    """The version that a snapshot records, empty for a folder that is no snapshot."""
    return read_json(folder / SNAPSHOT_RECORD)


def _changes(project: Path, new: list[str]) -> dict[str, Any]:
    recorded, left_out, total = [], [], 0
    private = secrets_among(project, new)
    for name in new:
        path = project / name
        if name in private:
            continue
        try:
            # A folder's name ends in a slash: a repository within this one.
            size = MAX_NEW_BYTES if name.endswith("/") else path.lstat().st_size
        except FileNotFoundError:  # an editor's, which is gone again
            continue
        if size > MAX_NEW_FILE_BYTES or total + size > MAX_NEW_BYTES:
            left_out.append(name)
        else:
            recorded.append(name)
            total += size
    # The changes of a committed file that is named like a secret are secret too.
    changed = _names(git(project, "diff", "--name-only", "--no-renames", "-z", "HEAD", "--"))
    secret = [name for name in changed if name in private or looks_secret(name)]
    paths = [".", *(f":(exclude,literal){name}" for name in secret)]
    diff_of_new, unread = _diff_of_new(project, recorded)
    left_out = sorted({*left_out, *unread, *private, *secret})
    diff = git(project, *DIFF, "HEAD", "--", *paths) + diff_of_new
    return {
        "uncommitted_diff": diff.decode(errors="surrogateescape"),
        "untracked_files": _shortened(new),
        "left_out_files": _shortened(left_out),
    }


def secrets_among(project: Path, new: list[str]) -> dict[str, str]:
    """The files that are not in the commit and look like secrets, each with the reason.

    What is committed was published deliberately.

    Args:
        new: the files that git does not track. Those that are only staged are looked at too.

    Raises:
        GitError: if git can't tell.
    """
    tracked = tracked_files(project)
    try:
        committed = set(_names(git(project, "ls-tree", "-r", "-z", "--name-only", "HEAD")))
    except GitError:  # nothing is committed yet
        committed = set()
    return private_files(project, [n for n in [*tracked, *new] if n not in committed])


def private_files(project: Path, names: Sequence[str]) -> dict[str, str]:
    """The files that look like secrets, each with what says so: its name, or its mode.

    A mode that keeps a file from all other users says nothing in a folder that has such a mode
    itself.

    Args:
        project: the folder of the checkout.
        names: paths of files in it.
    """
    judges_mode = not _is_private(project)
    found = {}
    for name in names:
        if looks_secret(name):
            found[name] = "its name"
        elif judges_mode and _is_private(project / name):
            found[name] = f"its mode {(project / name).lstat().st_mode & 0o777:04o}"
    return found


def looks_secret(name: str) -> bool:
    """Whether a path, or a folder in it, is named like a secret, in capitals or not."""
    path = PurePosixPath(name.lower())
    patterns = SECRETS if path.suffix in CODE else (*SECRETS, *NO_CODE)
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in patterns)


def _is_private(path: Path) -> bool:
    try:
        return path.lstat().st_mode & 0o077 == 0
    except OSError:  # a tracked file that was deleted
        return False


def _diff_of_new(project: Path, names: list[str]) -> tuple[bytes, list[str]]:
    """The patch that adds new files, made in a repository of its own, and those not readable."""
    if not names:
        return b"", []
    unread = []
    with scratch_directory() as folder:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(project / name, target, follow_symlinks=False)
            except FileNotFoundError:  # it is gone
                continue
            except PermissionError:
                unread.append(name)
        git(folder, "init", "--quiet", "--template=")
        (folder / ".git/info").mkdir(exist_ok=True)
        (folder / ".git/info/attributes").write_text("* -text\n")  # line ends stay as they are
        git(folder, "add", "--all", "--force")
        return git(folder, *DIFF, "--cached"), unread


def _shortened(names: list[str]) -> list[str]:
    if len(names) <= MAX_NAMES:
        return names
    return [*names[:MAX_NAMES], f"and {len(names) - MAX_NAMES:,} more"]


def tracked_files(project: Path) -> list[str]:
    """The files that git tracks, deleted ones included, by their paths in the project.

    Raises:
        GitError: if git can't tell.
    """
    return _names(git(project, "ls-files", "-z", "--cached"))


def new_files(project: Path, runs: Path | None = None) -> list[str]:
    """The files that git neither tracks nor ignores, except those below `runs`.

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
    """Whether the project is a checkout of a repository that holds the commit.

    Raises:
        GitError: if git can't tell.
    """
    if not is_checkout(project) or not COMMIT.fullmatch(commit):
        return False
    try:
        git(project, "cat-file", "-e", f"{commit}^{{commit}}")
    except GitError:
        git(project, "rev-parse", "--git-dir")  # such as in a checkout of another owner
        return False
    return True


def write_version(project: Path, commit: str, patch: str, *, folder: Path) -> None:
    """Write the files of a commit, changed by a patch, into an empty folder.

    Raises:
        GitError: if the patch does not fit, or the folder can't be written.
    """
    # Shared: it reads the project's objects, also those of a commit that no branch holds.
    source, target = str(project.absolute()), str(folder.absolute())
    options = ("--quiet", "--shared", "--no-checkout", "--template=")
    git(project, "clone", *options, "--config=core.autocrlf=false", source, target)
    git(folder, "checkout", "--quiet", "--detach", commit)
    if patch:
        content = patch.encode(errors="surrogateescape")
        git(folder, "apply", "--whitespace=nowarn", stdin=content)
    shutil.rmtree(folder / ".git")


def git(project: Path, *args: str, stdin: bytes = b"") -> bytes:
    """What a git command prints in the project's folder.

    Raises:
        GitError: if there is no git, it fails, or it takes over a minute.
    """
    environment = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    environment["LC_ALL"] = "C"
    try:
        done = subprocess.run(  # noqa: S603 - a list of arguments, no shell
            ["git", *SETTINGS, *args],  # noqa: S607
            cwd=project,
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {args[0]}: no answer within {TIMEOUT_S} s") from None
    except OSError as error:
        raise GitError(f"git can't be started: {error.strerror or error}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
        # The reason, and the last line, which may name the remedy, as for dubious ownership.
        told = dict.fromkeys(
            line for line in lines if line.startswith("fatal: ") or line == lines[-1]
        )
        raise GitError(f"git {args[0]}: {'; '.join(told) or f'code {done.returncode}'}")
    return done.stdout
