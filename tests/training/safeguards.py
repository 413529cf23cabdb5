"""The safeguards of a run, and how to remove one from the code."""

import contextlib
import inspect
import textwrap
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

from harness.job import job_file
from harness.slurm import batch
from harness.system import files
from harness.system.leased_dir import LeasedDirectory
from harness.tracking.run_dir import RunDirectory
from harness.training import checkpoint
from harness.training.trainer import Trainer


class Safeguard(NamedTuple):
    """A part of the code that protects a run, and its replacement by unsafe code."""

    faults: tuple[str, ...]  # faults against which the code protects
    of: Any  # the module or class of the function
    function: str
    replaced: dict[str, str]  # parts of the function's source, and their replacements


SAFEGUARDS = {
    "a process without the lease stops": Safeguard(
        ("second", "cut off", "pause"),
        LeasedDirectory,
        "check_lease",
        {'holder.get("token") != self._token': "False"},
    ),
    "a refused write of the lease is repeated": Safeguard(
        ("second",),
        LeasedDirectory,
        "take_lease",
        {"if is_last": "if True"},
    ),
    "an unreadable file is not a missing one": Safeguard(
        ("error", "kill"),
        LeasedDirectory,
        "_certain_bytes",
        {"raise_unless_missing(error, path)": "pass"},
    ),
    "content is synced": Safeguard(
        ("node",),
        files,
        "replace_file",
        {"sync(temporary)": "pass"},
    ),
    "names are synced": Safeguard(("node",), files, "sync_entry", {"sync(path.parent)": "pass"}),
    "files are renamed": Safeguard(
        ("kill",),
        files,
        "replace_file",
        {
            "_temporary(target)": "target\n    target.unlink(missing_ok=True)",
            "temporary.unlink(missing_ok=True)": "pass",
        },
    ),
    "a checkpoint has a checksum": Safeguard(
        ("rot", "kill"),
        zipfile.ZipExtFile,
        "_update_crc",
        {"if self._expected_crc is None": "if True"},
    ),
    "the older checkpoint stays": Safeguard(
        ("rot", "kill"),
        checkpoint,
        "save",
        {"[:-MAX_CHECKPOINTS]": "[:-1]"},
    ),
    "broken checkpoints are removed": Safeguard(
        ("rot", "warn", "kill", "kill"),
        checkpoint,
        "save",
        {"for path in broken:": "for path in ():"},
    ),
    "a disk error is no broken checkpoint": Safeguard(
        ("error", "kill"),
        checkpoint,
        "_newest",
        {"raise_unless_missing(refusal, path)": "pass"},
    ),
    "an unreadable folder is not an empty one": Safeguard(
        ("error@list", "kill"),
        RunDirectory,
        "checkpoints",
        {"raise_unless_missing(error, folder)": "pass"},
    ),
    "a disk error is no wrong job": Safeguard(
        ("error@job.toml", "kill", "kill"),
        job_file,
        "read_toml_file",
        {"raise_unless_missing(error, path)": "pass"},
    ),
    "an interrupted run saves": Safeguard(
        ("warn",),
        Trainer,
        "saved_when_interrupted",
        {"self._save()": "pass"},
    ),
    "starts without a new step are counted": Safeguard(
        ("warn",),
        batch,
        "_count",
        {"before.idle + (not again)": "0"},
    ),
    "a new step resets this count": Safeguard(
        ("warn",),
        batch,
        "_count",
        {"idle=0 if is_further else": "idle="},
    ),
}


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Remove a safeguard from the code."""
    _, where, function, replaced = SAFEGUARDS[name]
    found = getattr(where, function)
    source = textwrap.dedent(inspect.getsource(found))
    for old, new in replaced.items():
        assert source.count(old) == 1, f"{name}: {function} has changed; update `replaced`"
        source = source.replace(old, new)
    names = inspect.unwrap(found).__globals__
    made: dict[str, Any] = {}
    exec(compile(f"from __future__ import annotations\n{source}", function, "exec"), names, made)  # noqa: S102
    with patch.object(where, function, made[function]):
        yield
