"""What a finished run's folder holds that can be made again: how much it is, and its removal.

A run keeps what describes it: job, record, metrics, scores, predictions, model, curves. What else
it holds can be made again by training its `job.toml`, to the same bytes.

Nothing is removed through a link, and no file of another user. Each file can go alone, so a process
killed between two leaves nothing to mend.
"""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.job.search_space import is_sweep
from harness.ownership import owner_name
from harness.system.files import read_plain_file
from harness.system.lenient_json import parse_json
from harness.tracking.run_dir import RunDirectory, is_whole

Parts = dict[str, tuple[str, ...]]  # the files of each part, by their paths in the folder
CHECKPOINTS: Parts = {"checkpoints": ("checkpoints/step-*.npz",)}
MODEL: Parts = {"models of trials": ("model.keras", "vocabulary.txt")}
# The heartbeat's last words, the times of epochs, the lease: a trial's result has what counts.
REST: Parts = {"states of trials": ("state.json", "timings.jsonl", "lease.json")}
HALF_WRITTEN: Parts = {"half-written files": (".*.tmp*", "*/.*.tmp*", "tensorboard/*/.*.tmp*")}

OF_A_RUN: Parts = CHECKPOINTS | HALF_WRITTEN
OF_A_TRIAL: Parts = OF_A_RUN | MODEL | REST  # that is not among the best of its sweep
OF_AN_ATTEMPT: Parts = CHECKPOINTS | MODEL | HALF_WRITTEN  # whose result was not the one accepted


@dataclass
class Amount:
    """Files and their sizes, by what they are."""

    num_files: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)

    def add(self, part: str, num_bytes: int) -> None:
        """Count a file."""
        self.num_files[part] += 1
        self.num_bytes[part] += num_bytes

    def __iadd__(self, other: "Amount") -> "Amount":
        self.num_files += other.num_files
        self.num_bytes += other.num_bytes
        return self


def prune(folder: Path, parts: Parts, *, really: bool) -> Amount:
    """Remove parts of a finished run, or with `really=False` only say how much they are.

    Returns:
        What there is, or what was removed.
    """
    amount = Amount()
    for part, patterns in parts.items():
        for pattern in patterns:
            for file, size in _own_files(folder, pattern):
                if really:
                    try:
                        file.unlink()
                    except OSError:  # it is gone, or the disk refuses
                        continue
                amount.add(part, size)
    if really and amount.num_files["checkpoints"]:
        with contextlib.suppress(OSError):  # another process may have come, and fill it
            os.rmdir(folder / "checkpoints")  # noqa: PTH106 - a folder, never a link
    return amount


def refusal(folder: Path) -> str:
    """Why nothing of a folder may be removed, empty if it may: a link, another user's, a live run.

    Raises:
        OSError: if it is gone, or can't be read.
    """
    about = folder.lstat()
    if stat.S_ISLNK(about.st_mode):
        return "is a link"
    if about.st_uid != os.getuid():
        return f"belongs to {owner_name(about.st_uid)}"
    if not RunDirectory(folder).finished():
        return "is unfinished"
    # Without its result a run goes on from its last checkpoint.
    if is_sweep(folder) or is_whole(parse_json(read_plain_file(folder / "result.json"))):
        return ""
    return "has a broken result.json"


def _own_files(folder: Path, pattern: str) -> Iterator[tuple[Path, int]]:
    """The plain files of this user that a pattern means, with the space that each takes."""
    if folder.is_symlink():
        return
    real = folder.resolve()
    for file in sorted(folder.glob(pattern)):
        if file.parent.resolve() != real / file.parent.relative_to(folder):
            continue  # behind a link
        with contextlib.suppress(FileNotFoundError):
            about = file.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
                yield file, about.st_size
