"""What is known of finished runs, so that a look at ten thousand of them asks the disk little.

A finished run changes no more, so it is read once. The index is a file in the user's cache, for
each folder of runs one; it decides nothing and may be deleted at any time. What it says of a run
holds as long as

- the folder of the run has the same inode in the listing of the folder above it,
- that folder has not changed: a run that begins or goes on there changes it,
- and the last check is not older than CHECK_EVERY_S; else `result.json` must have the same inode,
  size and time of change.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import __version__
from harness.files.atomic_file import replace_file
from harness.files.lenient_json import number, read_json, table
from harness.files.paths import private_cache
from harness.files.plain_file import in_threads
from harness.slurm.script import submissions
from harness.tracking.records import RunStatus, Submission, read_submission
from harness.tracking.run_folders import RunFolder

INDEX_FORMAT = 2
CHECK_EVERY_S = 3600.0
# A folder that changed within this time may change again without another time, or on a network
# file system show an older one.
SETTLED_S = 60.0
TEXT, WHOLE, NUMBER, NOTHING = str, int, (int, float), type(None)
KEPT: dict[str, type | tuple[type, ...]] = {  # fields of RunStatus and what they may be
    **dict.fromkeys(("job", "architecture"), TEXT),
    **dict.fromkeys(("seed", "restarts", "is_own"), WHOLE),
    "time_s": NUMBER,
    "beats": list,
    **dict.fromkeys(("epoch", "num_epochs", "step", "num_steps", "process"), (WHOLE, NOTHING)),
    **dict.fromkeys(("val_accuracy", "test_accuracy"), (*NUMBER, NOTHING)),
    **dict.fromkeys(("slurm_job", "reported_job", "host", "log", "signal"), (TEXT, NOTHING)),
}
SENT: tuple[type | tuple[type, ...], ...] = (
    TEXT,
    *3 * [(TEXT, NOTHING)],
    NUMBER,
    (TEXT, NOTHING),
    (WHOLE, NOTHING),
    bool,
)


class RunIndex:
    """The index of a folder of runs."""

    def __init__(self, runs: Path, *, now: float | None = None) -> None:
        """Read it, `now` in seconds since 1970; what is no index reads as an empty one."""
        self.now = time.time() if now is None else now
        self.top = os.path.realpath(runs)
        folder = private_cache("status")
        digest = hashlib.sha256(os.fsencode(self.top)).hexdigest()[:32]
        self.file = folder / f"{digest}.json" if folder else None
        content = read_json(self.file) if self.file else {}
        about = {"format": INDEX_FORMAT, "harness": __version__, "runs": self.top}
        if {name: content.get(name) for name in about} != about:
            content = {}
        self._about = about
        self._runs = table(content, "known")
        self._sent = table(content, "submissions")
        checked_s = number(content.get("checked_s")) or 0.0
        is_recent = 0 <= self.now - checked_s < CHECK_EVERY_S
        self._checked_s = checked_s if is_recent else self.now
        self._above = table(content, "folders") if is_recent else {}
        self._checked: set[str] = set()  # real paths of what this look has seen to be as it was
        self._changed = not is_recent

    # Runs

    def is_known(self, real: str, inode: int) -> bool:
        """Whether a folder is that of a run in the index, as `walk_runs` asks."""
        entry = self._runs.get(real)
        return isinstance(entry, dict) and bool(inode) and entry.get("inode") == inode

    def check(self, found: Sequence[RunFolder], changed_ns: Mapping[str, int] | None) -> None:
        """Forget those of some runs that are not as they were.

        Args:
            found: the runs.
            changed_ns: when each folder that holds others changed; those of a folder that has not
                changed since all its runs were checked are believed. None to believe none.
        """
        doubtful = [
            each
            for each in found
            if each.real in self._runs
            and each.real not in self._checked
            and (changed_ns is None or self._above.get(each.above) != changed_ns.get(each.above))
        ]
        versions = in_threads(lambda each: result_version(each.real), doubtful)
        for each, version in zip(doubtful, versions, strict=True):
            if version and table(self._runs, each.real).get("result") == version:
                self._checked.add(each.real)
            else:
                del self._runs[each.real]
                self._changed = True

    def recall(self, found: RunFolder, name: str) -> RunStatus | None:
        """A finished run from the index, None where it is not in it."""
        if not self.is_known(found.real, found.inode):
            return None
        entry = self._runs[found.real]
        values = {each: entry.get(each) for each in KEPT}
        if not all(isinstance(value, KEPT[each]) for each, value in values.items()):
            return None
        status = RunStatus(run=name, folder=found.folder, phase="result")
        for each, value in values.items():
            setattr(status, each, _numbers(value) if each == "beats" else value)
        status.set_age(self.now)
        return status

    def add(self, found: RunFolder, status: RunStatus, version: list[int] | None) -> None:
        """Add a run that has been read, if it is finished.

        Args:
            found: its folder.
            status: what the folder says, without the record of a submission.
            version: of its result, from before it was read.
        """
        is_known = None not in (status.job, status.architecture, status.seed)
        is_finished = status.phase == "result" and not status.error and status.trials is None
        if not version or not found.inode or not is_finished or not is_known:
            return
        values = {each: getattr(status, each) for each in KEPT}
        self._runs[found.real] = {"inode": found.inode, "result": version, **values}
        self._checked.add(found.real)
        self._changed = True

    # Submissions

    def submissions(self, runs: Path) -> list[Submission]:
        """The runs in the records of `harness submit`, oldest first; each record is read once."""
        folder = submissions(runs)
        try:
            with os.scandir(folder) as entries:
                inodes = {each.name: each.inode() for each in entries if each.name[-5:] == ".json"}
        except OSError:
            return []
        sent = {name: _submissions_of(self._sent.get(name), inodes[name]) for name in inodes}
        new = [name for name, known in sent.items() if known is None]
        for name, read in zip(
            new, in_threads(lambda n: read_submission(folder / n), new), strict=True
        ):
            sent[name] = read
            if read is not None:
                self._sent[name] = {"inode": inodes[name], "runs": [_fields(s) for s in read]}
                self._changed = True
        if gone := self._sent.keys() - inodes.keys():
            self._sent = {name: each for name, each in self._sent.items() if name not in gone}
            self._changed = True
        found = [each for known in sent.values() for each in known or ()]
        return sorted(found, key=lambda each: each.time_s)

    # The file

    def save(self, found: Iterable[RunFolder], changed_ns: dict[str, int]) -> None:
        """Keep what is known of the runs that a look at the whole folder has found.

        Args:
            found: the runs.
            changed_ns: when each folder that holds others changed, before it was listed.
        """
        real = {each.real for each in found}
        runs = {path: entry for path, entry in self._runs.items() if path in real}
        settled_ns = 1e9 * (self.now - SETTLED_S)
        above = {path: at for path, at in changed_ns.items() if at < settled_ns}
        if not self._changed and above == self._above and len(runs) == len(self._runs):
            return
        content = {
            **self._about,
            "checked_s": self._checked_s,
            "folders": above,
            "known": runs,
            "submissions": self._sent,
        }
        if self.file:
            text = json.dumps(content, separators=(",", ":"))
            with contextlib.suppress(OSError):  # a full disk: the next look reads the runs again
                replace_file(self.file, lambda path: _write_private(path, text), synced=False)


def result_version(real: str) -> list[int] | None:
    """What changes when a run's result is written again; None where there is none."""
    try:
        about = os.stat(f"{real}/result.json")  # noqa: PTH116 - a string
    except (OSError, ValueError):
        return None
    return [about.st_ino, about.st_size, about.st_mtime_ns]


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _numbers(content: list[Any]) -> tuple[float, ...]:
    return tuple(value for each in content if (value := number(each)) is not None)


def _fields(sent: Submission) -> list[Any]:
    folder = str(sent.folder)
    about = (sent.job, sent.architecture, sent.log, sent.time_s, sent.resumed_by, sent.seed)
    return [folder, *about, sent.is_own]


def _submissions_of(entry: object, inode: int) -> list[Submission] | None:
    """The runs of a record in the index; None where it must be read."""
    if not isinstance(entry, dict) or entry.get("inode") != inode:
        return None
    found = []
    for each in entry.get("runs") or ():
        if not isinstance(each, list) or len(each) != len(SENT):
            return None
        if not all(isinstance(value, kind) for value, kind in zip(each, SENT, strict=True)):
            return None
        folder, job, architecture, log, time_s, resumed_by, seed, is_own = each
        about = (Path(folder), job, architecture, seed, log, time_s, resumed_by, is_own)
        found.append(Submission(*about))
    return found
