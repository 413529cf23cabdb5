"""Stores the audits of a result in the auditing user's folder of runs, never in the audited run.

One file contains all audits of a result. The file's name is the sha256 of the result, so an audit
never applies to a changed result.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.system.files import atomic_write, distrust, read_plain_file
from harness.system.leased_dir import to_json
from harness.system.lenient_json import read_json, table
from harness.tracking.run_dir import RESULT

AUDITS = ".audits"
EQUAL, ROUNDING, DIFFERS = "equal", "within rounding", "differs"  # outcomes of an audit


def keep_audit(runs: Path, result_sha256: str, audit: Mapping[str, Any]) -> None:
    """Add an audit to the file with all audits of a result.

    The depth of an audit says how much was checked: `quick`, `full`, or a number of epochs such as
    `3 epochs`. The file contains at most one audit of each depth: a new audit replaces the
    audit of the same depth.

    Args:
        runs: the folder of runs of the auditing user.
        result_sha256: the sha256 of the content of `result.json`.
        audit: the audit, with the keys `depth`, `outcome` and `job_sha256`.

    Raises:
        OSError, DiskError: if the file can't be written.
    """
    path = _path(runs, result_sha256)
    # Set the mode, because `audits_of` ignores a folder that other users can write.
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    kept = _trusted(path) | {str(audit["depth"]): dict(audit)}
    atomic_write(path, to_json(kept))


def audits_of(runs: Path, result: bytes) -> dict[str, Any]:
    """Return the audits of a result; the keys are their depths, such as `quick` or `full`.

    The dictionary is empty if another user could have written the audits.
    """
    return _trusted(_path(runs, hashlib.sha256(result).hexdigest()))


def mark_of(runs: Path, folder: Path) -> str:
    """Return the depths of a run's audits, such as `full, quick`; empty if there is no audit.

    An audit counts only if the run's `job.toml` has not changed since the audit. If an audit did
    not reproduce the run's recorded results, return only `differs`.

    Args:
        runs: the folder of runs of the auditing user.
        folder: the folder of the run.
    """
    try:
        audits = audits_of(runs, read_plain_file(folder / RESULT))
        job = hashlib.sha256(read_plain_file(folder / "job.toml")).hexdigest()
    except OSError:
        return ""
    tables = {depth: table(audits, depth) for depth in audits}
    kept = {depth: each for depth, each in tables.items() if each.get("job_sha256") == job}
    differs = any(each.get("outcome") == DIFFERS for each in kept.values())
    return DIFFERS if differs else ", ".join(sorted(kept))


def _trusted(path: Path) -> dict[str, Any]:
    try:
        return {} if distrust(path.parent) or distrust(path) else read_json(path)
    except OSError:
        return {}


def _path(runs: Path, result_sha256: str) -> Path:
    return runs / AUDITS / f"{result_sha256}.json"
