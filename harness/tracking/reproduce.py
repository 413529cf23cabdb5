"""Restores the code and the job of a run into a new folder."""

import contextlib
import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.dataset_folder import save_folder
from harness.data.sources import open_dataset, open_sample
from harness.errors import InputError, RunError
from harness.system.files import atomic_directory, distrust
from harness.system.git import (
    COMMIT,
    SNAPSHOT_RECORD,
    GitError,
    has_commit,
    is_snapshot,
    write_version,
)
from harness.system.lenient_json import table, text
from harness.system.processes import installed_version
from harness.tracking.provenance import PACKAGES
from harness.tracking.run_dir import RECORD, RunDirectory, weights_of

JOB_FILE, SAMPLE_FOLDER = "reproduced.toml", "imdb-sample"


@dataclass(frozen=True)
class Reproduced:
    """Restored code and job."""

    folder: Path
    source: str  # of the code
    command: str  # for a shell
    warnings: list[str] = field(default_factory=list)


def reproduce(
    run: RunDirectory, project: Path, folder: Path, *, trust_code: bool = False
) -> Reproduced:
    """Restore the code of a run into a new folder, and the run's job as JOB_FILE.

    The code comes from the snapshot that the run started from, if that still exists, or else from
    the commit and the recorded changes.

    Args:
        run: an existing run.
        project: a checkout with the commit.
        folder: a new folder; complete afterwards, or absent.
        trust_code: whether to restore code that somebody else wrote or could have changed.

    Raises:
        InputError: if the folder exists, the code is missing, or the job is not TOML.
        RunError: if the recorded changes do not apply, or the disk refuses.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"--to {folder}: exists already; name a new folder")
    record = run.read_json("provenance.json")
    if not record:
        raise InputError(f"run {run.folder}: has no readable provenance.json, its code is unknown")
    own = [run.folder, run.path(RECORD), run.path("job.toml")]
    warnings = [*_distrusted(own, trust_code), *_differences(record)]
    _check_job(run.path("job.toml"))
    if (named := record.get("snapshot")) and is_snapshot(Path(str(named))):
        warnings += _distrusted([Path(str(named))], trust_code)
    try:
        with atomic_directory(folder) as temporary:
            source = _put_code(run, record, project, folder=temporary, warnings=warnings)
            (temporary / JOB_FILE).write_bytes(run.path("job.toml").read_bytes())
            data = _put_data(record, temporary, warnings)
    except OSError as error:
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    return Reproduced(folder, source, _command(record, folder, data), warnings)


def _distrusted(paths: Sequence[Path], trust_code: bool) -> list[str]:
    """Warnings about code that somebody else wrote or could have changed.

    Raises:
        InputError: if there is any, without `trust_code`.
    """
    reasons = [f"{path}: {reason}" for path in paths if (reason := distrust(path))]
    if reasons and not trust_code:
        raise InputError(
            f"{reasons[0]}, and this command puts its code where it will run as you; look at it, "
            "then give --trust-code"
        )
    return [f"{reason}; read the code before you start it" for reason in reasons]


def _check_job(path: Path) -> None:
    """Refuse a file that is not TOML; the restored code checks its keys."""
    try:
        tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no job file ({error}); restore it") from None


def _put_code(
    run: RunDirectory, record: dict[str, Any], project: Path, *, folder: Path, warnings: list[str]
) -> str:
    snapshot = Path(str(record.get("snapshot") or ""))
    if record.get("snapshot") and is_snapshot(snapshot):
        ignore = shutil.ignore_patterns("__pycache__", SNAPSHOT_RECORD)
        shutil.copytree(snapshot, folder, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        return f"snapshot {snapshot}"
    commit, patch = str(record.get("commit") or ""), record.get("uncommitted_diff")
    if not COMMIT.fullmatch(commit):
        why = record.get("git_problem") or "it was started from a folder that was no git checkout"
        raise InputError(
            f"run {run.folder}: names neither a commit nor a snapshot that is still there; {why}"
        )
    try:
        is_known = has_commit(project, commit)
        if is_known:
            write_version(project, commit, str(patch or ""), folder=folder)
    except GitError as error:
        raise RunError(f"run {run.folder}: its code can't be put back: {error}") from None
    if not is_known:
        raise InputError(
            f"run {run.folder}: its commit {commit[:12]} is not in {project}; git fetch there, or "
            "run harness reproduce from the checkout that it was started from"
        )
    if patch is None:
        warnings.append("changes since the commit, if there were any, were not recorded")
    if names := record.get("left_out_files"):
        left_out = ", ".join(map(str, names)) if isinstance(names, list) else names
        warnings.append(f"left out of the record, so not put back: {left_out}")
    return f"commit {commit[:12]}" + (" and the uncommitted changes" if patch else "")


def _put_data(record: dict[str, Any], folder: Path, warnings: list[str]) -> list[str]:
    """Write the sample as a folder, because the command would prefer the full data.

    Returns:
        Options of the command that name the run's data.
    """
    data = table(record, "dataset")
    if data.get("is_sample"):
        sample = open_sample()
        save_folder(sample, folder / SAMPLE_FOLDER)
        if sample.checksum != data.get("checksum"):
            warnings.append("the run had another sample than this version of harness")
        return ["--data", SAMPLE_FOLDER]
    if data.get("is_own"):
        if not os.path.exists(str(data.get("folder"))):  # noqa: PTH110 - never raises
            warnings.append(
                f"the run's texts were in {data.get('folder')}, which is not here; put them there, "
                "or write where they are into the job"
            )
        return []
    checksum, where = data.get("checksum"), text(data.get("folder"))
    with contextlib.suppress(InputError, RunError, OSError):  # removed, with a node's disk
        if where and open_dataset(Path(where)).checksum == checksum:
            return ["--data", where]
    warnings.append(
        f"the run's data (checksum {str(checksum)[:12]}) were in {where}, which is not here or "
        "holds others; harness data verify shows what others are"
    )
    return []


def _differences(record: dict[str, Any]) -> Iterator[str]:
    packages = table(record, "packages")
    for name in PACKAGES:
        recorded, installed = packages.get(name), installed_version(name)
        if recorded != installed:
            yield f"{name} was {recorded} in the run and is {installed} here"
    if (origin := weights_of(record)) and not os.path.isdir(origin):  # noqa: PTH112 - never raises
        yield f"the run began with the weights of {origin}, which is not here"


def _command(record: dict[str, Any], folder: Path, data: Sequence[str]) -> str:
    args = [sys.executable, "-m", "harness", "train", JOB_FILE]
    if record.get("devices_asked"):
        args += ["--devices", str(record["devices_asked"])]
    if origin := weights_of(record):
        args += ["--from", origin]
    return f"cd {shlex.quote(str(folder))} && {shlex.join([*args, *data])}"
