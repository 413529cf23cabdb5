"""A user's quota on the file system of a folder, as `lfs quota` or `quota` tells it."""

import getpass
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.files.shared_disk import file_system, mount_of

TIMEOUT_S = 20
LITTLE = 0.9  # used of what is allowed


@dataclass(frozen=True)
class Quota:
    """What a user has and may have; a limit of 0 is none."""

    used_gb: float
    limit_gb: float
    num_files: int
    max_files: int

    def __str__(self) -> str:
        of_gb = f" of {self.limit_gb:,.1f}" if self.limit_gb else ""
        of_files = f" of {self.max_files:,}" if self.max_files else ""
        return f"you use {self.used_gb:,.1f}{of_gb} GB and {self.num_files:,}{of_files} files there"

    @property
    def is_nearly_full(self) -> bool:
        """Whether little is left of space or of files."""
        pairs = (self.used_gb, self.limit_gb), (self.num_files, self.max_files)
        return any(limit and used > LITTLE * limit for used, limit in pairs)


def read_quota(folder: Path) -> Quota | None:
    """The user's quota where a folder is; None if there is none, or nobody tells it."""
    if file_system(folder) == "lustre":
        return parse(_ask("lfs", "quota", "-q", "-u", getpass.getuser(), str(folder)))
    device, at = mount_of(folder)
    # Without -p the column of an expiry is left out where nothing expires; -w keeps lines whole.
    lines = _ask("quota", "-w", "-p").splitlines()
    return parse("\n".join(line for line in lines if line.split()[:1] in ([device], [at])))


def parse(text: str) -> Quota | None:
    """The numbers of a file system: KB, soft and hard limit, expiry, and the same of files.

    `*` marks what is over its limit, and brackets what Lustre is not sure of.
    """
    numbers = [word.strip("*[]") for word in text.split()[1:9]]
    counts = numbers[:3] + numbers[4:7]  # without the expiries
    if len(numbers) < 8 or not all(map(str.isdigit, counts)):
        return None
    used, soft, hard, files, soft_files, hard_files = map(int, counts)
    limits = hard or soft, hard_files or soft_files
    if not any(limits):
        return None
    return Quota(used * 1024 / 1e9, limits[0] * 1024 / 1e9, files, limits[1])


def _ask(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    try:
        # Its exit code also tells of a user who is over the quota.
        done = subprocess.run(  # noqa: S603 - a list of arguments, no shell
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
