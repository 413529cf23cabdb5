"""`harness reproduce`: restores the code and the job of a run in a new folder."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.dataset_folder import save_folder
from harness.data.sources import open_sample
from harness.errors import InputError, RunError
from harness.system.console import quoted
from harness.system.files import atomic_directory, distrust, replace_file
from harness.system.git import COMMIT, GitError, write_version
from harness.system.lenient_json import table, text
from harness.tracking.provenance import package_changes
from harness.tracking.run_dir import RECORD, RunDirectory, weights_of

JOB_FILE, SAMPLE_FOLDER = "reproduced.toml", "imdb-sample"


@dataclass(frozen=True)
class Reproduced:
    """The restored code and job of a run."""

    source: str  # such as "commit 0123456789ab and the uncommitted changes"
    command: str  # the shell command that repeats the run
    warnings: list[str] = field(default_factory=list)


def reproduce(
    run: RunDirectory, project: Path, folder: Path, *, trust_code: bool = False
) -> Reproduced:
    """Restore the code of a run in a new folder, and the run's job as JOB_FILE in this folder.

    The code is the recorded commit with the recorded changes.

    Args:
        run: an existing run.
        project: a git checkout that contains the run's commit.
        folder: the folder to create, which only this user can open. After an error the folder does
            not exist.
        trust_code: whether to restore code that another user wrote or could have changed.

    Raises:
        InputError: if the folder exists, or if the code is missing, not trusted or can't be
            restored.
        RunError: if the folder can't be written.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"--to {folder}: exists already; name a new folder")
    record = run.read_json(RECORD)
    if not record:
        raise InputError(f"run {run.folder}: code unknown: there is no readable provenance.json")
    read = (run.folder, run.path(RECORD), run.path("job.toml"))
    warnings = [*_distrusted(read, trust_code), *package_changes(record)]
    try:
        with atomic_directory(folder) as temporary:
            # Changes may contain secrets, and the harness refuses code that others can change.
            temporary.chmod(0o700)
            source = _put_commit(run, record, project, folder=temporary, warnings=warnings)
            replace_file(temporary / JOB_FILE, run.path("job.toml").read_bytes(), 0o644)
            data = _put_data(record, temporary)
    except OSError as error:
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    return Reproduced(source, _command(record, folder, data), warnings)


def _distrusted(paths: Sequence[Path], trust_code: bool) -> list[str]:
    """Return a warning for each path that another user owns or can change.

    Raises:
        InputError: if there is such a path and `trust_code` is false.
    """
    reasons = [f"{each}: {reason}" for each in paths if (reason := distrust(each))]
    if reasons and not trust_code:
        raise InputError(
            f"{reasons[0]}, and code that this command restores will run as you; read the code, "
            "then add --trust-code"
        )
    return [f"{reason}; read the code before you start it" for reason in reasons]


def _put_commit(
    run: RunDirectory, record: dict[str, Any], project: Path, *, folder: Path, warnings: list[str]
) -> str:
    """Write the run's code into a folder: the recorded commit with its uncommitted changes.

    Returns:
        A description of the restored code, such as
        "commit 0123456789ab and the uncommitted changes".
    """
    commit, patch = str(record.get("commit") or ""), record.get("uncommitted_diff")
    if not COMMIT.fullmatch(commit):
        why = record.get("git_problem") or "the run started outside of a git checkout"
        raise InputError(f"run {run.folder}: its record has no commit; {why}")
    try:
        write_version(project, commit, str(patch or ""), folder=folder)
    except GitError as error:
        raise InputError(
            f"run {run.folder}: its code can't be restored: {error}; fetch commit "
            f"{commit[:12]} into {project}, or call harness reproduce in the checkout where the "
            "run started"
        ) from None
    if patch is None:
        warnings.append("the record does not say whether the code had uncommitted changes")
    if names := record.get("left_out_files"):
        warnings.append(f"these files are missing, because the record left them out: {names}")
    return f"commit {commit[:12]}" + (" and the uncommitted changes" if patch else "")


def _put_data(record: dict[str, Any], folder: Path) -> list[str]:
    """Return the options that make `harness train` use the data of the run.

    If the run used the packaged sample, write the sample into the folder; otherwise `harness train`
    might use the full data.
    """
    data = table(record, "dataset")
    if data.get("is_sample"):
        save_folder(open_sample(), folder / SAMPLE_FOLDER)
        return ["--data", SAMPLE_FOLDER]
    where = text(data.get("folder"))
    # For a user's own texts, the job file contains the path.
    return ["--data", where] if where and not data.get("is_own") else []


def _command(record: dict[str, Any], folder: Path, data: Sequence[str]) -> str:
    args = [sys.executable, "-m", "harness", "train", JOB_FILE]
    if record.get("devices_asked"):
        args += ["--devices", str(record["devices_asked"])]
    if origin := weights_of(record):
        args += ["--from", origin]
    return f"cd {quoted(folder)} && {shlex.join([*args, *data])}"
