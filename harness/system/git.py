"""Asks git for the project's files and version, and restores a version into a folder.

These functions never write into the user's repository: its index and its objects stay unchanged.
"""

import os
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from harness.system.files import scratch_directory
from harness.system.lenient_json import read_json

SNAPSHOT_RECORD = "snapshot.json"  # describes a snapshot, which is a copy of the code without .git
MAX_NEW_FILE_BYTES = 1_000_000
MAX_NEW_BYTES = 10_000_000  # the largest total size of the untracked files in a record
TIMEOUT_S = 60

COMMIT = re.compile(r"[0-9a-f]{40,64}")

# Override the user's settings that would change a patch or write into the repository.
SETTINGS = (
    *("-c", "core.fsmonitor=false", "-c", "diff.autoRefreshIndex=false"),
    *("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"),
)
DIFF = ("diff", "--binary", "--unified=3", "--no-color", "--no-ext-diff", "--no-textconv",
        "--ignore-submodules=all")  # fmt: skip

# With these attributes, git changes no byte of a file, not even a line end.
UNCHANGED = "* -text -filter -ident -working-tree-encoding\n"

# Patterns of names that look like secrets. Snapshots and records leave out a file with such a name,
# unless the file is committed. Records also leave out uncommitted changes to such a committed file.
SECRETS = (
    *("*secret*", "*credential*", "*passw*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*apikey*", "*api_key*", "*api-key*"),
    *(".env*", ".netrc", ".pgpass", ".htpasswd", ".pypirc", ".npmrc", ".aws", ".ssh", ".kube"),
)
# A name with `token` marks a secret, unless the file is Python code such as tokenizer.py.
NO_CODE = ("*token*",)
CODE = (".py", ".pyi")


class GitError(Exception):
    """Git is missing or has failed; the message contains git's error."""


class Files(NamedTuple):
    """The files of a checkout, as paths relative to the project."""

    tracked: list[str]  # the files that git tracks, including deleted ones
    new: list[str]  # the files that git neither tracks nor ignores
    # The new and staged files that look like secrets, each with the reason: its name or a mode.
    # The mode is a reason if only the owner can access the file or one of its folders, although
    # other users can access the project's folder. Committed files are no secrets, because their
    # authors published them.
    secrets: dict[str, str]


def is_checkout(project: Path) -> bool:
    """Whether the project is the top folder of a git checkout."""
    return (project / ".git").exists()  # in a worktree .git is a file


def code_version(project: Path, runs: Path | None = None) -> dict[str, Any]:
    """Return the commit of the code and all uncommitted changes.

    Args:
        project: the folder of a checkout or of a snapshot.
        runs: the folder of runs; its files are not code.

    Returns:
        A dictionary with these keys: `commit`; `uncommitted_diff`, a binary patch against the
        commit, including new files; `left_out_files`, the names of nested repositories, and of
        files that are too large for the patch, can't be read or look like secrets; `snapshot`, the
        path of `project` if the project is a snapshot. Bytes that are not UTF-8 become surrogate
        escapes. Unknown values are None; if git failed, `git_problem` is git's error.
    """
    nothing: dict[str, Any] = dict.fromkeys(
        ("commit", "uncommitted_diff", "left_out_files", "snapshot")
    )
    if not is_checkout(project):
        if not (record := read_json(project / SNAPSHOT_RECORD)):
            return nothing
        return nothing | {k: record.get(k) for k in nothing} | {"snapshot": str(project)}
    try:
        nothing["commit"] = git(project, "rev-parse", "--verify", "HEAD").decode().strip()
        return nothing | _changes(project, list_files(project, runs))
    except (GitError, OSError) as error:
        return nothing | {"git_problem": str(error)}


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a snapshot of the code."""
    # Read the record first: in an unreadable folder the record is empty, but `is_checkout` fails.
    return bool(read_json(folder / SNAPSHOT_RECORD)) and not is_checkout(folder)


def _changes(project: Path, files: Files) -> dict[str, Any]:
    recorded, left_out, total = [], [], 0
    for name in files.new:
        path = project / name
        if name in files.secrets:
            continue
        try:
            # Leave out a nested repository, whose name ends in a slash: set a size above the limit.
            size = MAX_NEW_BYTES if name.endswith("/") else path.lstat().st_size
        except FileNotFoundError:  # removed meanwhile, such as an editor's temporary file
            continue
        is_readable = path.is_symlink() or os.access(path, os.R_OK)
        if size > MAX_NEW_FILE_BYTES or total + size > MAX_NEW_BYTES or not is_readable:
            left_out.append(name)
        else:
            recorded.append(name)
            total += size
    # Leave out uncommitted changes to files whose names look like secrets. Use --numstat, because
    # --name-only would also list files of which only the modification time has changed.
    counted = _names(git(project, "diff", "--numstat", "--no-renames", "-z", "HEAD", "--"))
    changed = [line.split("\t", 2)[2] for line in counted]
    secret = [name for name in changed if name in files.secrets or looks_secret(name)]
    paths = [".", *(f":(exclude,literal){name}" for name in secret)]
    diff = git(project, *DIFF, "HEAD", "--", *paths) + _diff_of_new(project, recorded)
    return {
        "uncommitted_diff": diff.decode(errors="surrogateescape"),
        "left_out_files": sorted({*left_out, *files.secrets, *secret}),
    }


def list_files(project: Path, runs: Path | None) -> Files:
    """List the files of the project that git does not ignore.

    Args:
        project: the folder of the checkout.
        runs: the folder of runs; its files do not belong to the project.

    Raises:
        GitError: if git fails.
    """
    tracked = _names(git(project, "ls-files", "-z", "--cached"))
    new = _names(git(project, "ls-files", "-z", "--others", "--exclude-standard"))
    top, inside = project.resolve(), (runs or project).resolve()
    if inside != top and inside.is_relative_to(top):
        below = f"{inside.relative_to(top)}/"
        new = [name for name in new if not name.startswith(below)]
    try:
        committed = set(_names(git(project, "ls-tree", "-r", "-z", "--name-only", "HEAD")))
    except GitError:  # there is no commit yet
        committed = set()
    judges_mode = not _is_private(project)
    secrets = {}
    for name in (name for name in [*tracked, *new] if name not in committed):
        if looks_secret(name):
            secrets[name] = "its name"
        elif judges_mode:
            parts = [name, *map(str, PurePosixPath(name).parents)][:-1]  # the last part is "."
            if private := [part for part in parts if _is_private(project / part)]:
                of = "its mode" if private[-1] == name else f"{private[-1]}/ has mode"
                secrets[name] = f"{of} {(project / private[-1]).lstat().st_mode & 0o777:04o}"
    return Files(tracked, new, secrets)


def looks_secret(name: str) -> bool:
    """Whether a part of a path looks like the name of a secret. Case does not matter."""
    path = PurePosixPath(name.lower())
    patterns = SECRETS if path.suffix in CODE else (*SECRETS, *NO_CODE)
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in patterns)


def _is_private(path: Path) -> bool:
    try:
        return path.lstat().st_mode & 0o077 == 0
    except OSError:  # for example, a deleted file that git still tracks
        return False


def _diff_of_new(project: Path, names: list[str]) -> bytes:
    """Return a patch that adds the new files. Git makes the patch in a temporary repository."""
    if not names:
        return b""
    with scratch_directory() as folder:
        git(folder, "init", "--quiet", "--template=")
        (folder / ".git/info").mkdir(exist_ok=True)
        (folder / ".git/info/attributes").write_text(UNCHANGED)
        at = (f"--git-dir={folder}/.git", f"--work-tree={project.absolute()}")
        listed = b"\0".join(map(os.fsencode, names))
        # --remove ignores files that were deleted since git listed them.
        git(project, *at, "update-index", "--add", "--remove", "-z", "--stdin", stdin=listed)
        return git(project, *at, *DIFF, "--cached")


def _names(listing: bytes) -> list[str]:
    return sorted({os.fsdecode(name) for name in listing.split(b"\0") if name})


def write_version(project: Path, commit: str, patch: str, *, folder: Path) -> None:
    """Write the files of a commit into an empty folder, and apply a patch to them.

    Raises:
        GitError: if the commit is missing, the patch can't be applied, or the folder can't be
            written.
    """
    # With --shared, git reads the project's objects, and so finds even a commit on no branch.
    source, target = str(project.absolute()), str(folder.absolute())
    options = ("--quiet", "--shared", "--no-checkout", "--template=")
    git(project, "clone", *options, "--config=core.autocrlf=false", source, target)
    git(folder, "checkout", "--quiet", "--detach", commit)
    if patch:
        content = patch.encode(errors="surrogateescape")
        git(folder, "apply", "--whitespace=nowarn", stdin=content)
    shutil.rmtree(folder / ".git")


def git(project: Path, *args: str, stdin: bytes = b"") -> bytes:
    """Run a git command in the project's folder, and return its output.

    Raises:
        GitError: if git is missing, fails, or takes more than a minute.
    """
    command = next(arg for arg in args if not arg.startswith("-"))
    # Keep variables such as GIT_CONFIG_COUNT. Remove all other GIT_ variables, because they may
    # select another repository or change git's output.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or "CONFIG" in k}
    try:
        done = subprocess.run(  # noqa: S603 - a list of arguments, no shell
            ["git", *SETTINGS, *args],  # noqa: S607
            cwd=project,
            env={**kept, "LC_ALL": "C"},
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {command}: no answer within {TIMEOUT_S} s") from None
    except OSError as error:
        raise GitError(f"git can't be started: {error.strerror or error}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
        # Git's last line may contain the remedy, for example if another user owns the checkout.
        shown = dict.fromkeys(
            line for line in lines if line.startswith("fatal: ") or line == lines[-1]
        )
        raise GitError(f"git {command}: {'; '.join(shown) or f'code {done.returncode}'}")
    return done.stdout
