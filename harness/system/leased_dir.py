"""A folder with one writer; each of its files is either complete or absent.

The file `lease.json` names the writer: the last process that took the lease. An earlier writer that
is still alive sees the new lease before its next write, and stops.
"""

import contextlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from harness.errors import DiskError, RunError, TakenOver
from harness.system.console import log
from harness.system.files import (
    MODE,
    Content,
    atomic_write,
    make_folder,
    raise_unless_missing,
    read_if_there,
    read_plain_file,
    write_refusal,
)
from harness.system.lenient_json import parse_json, parse_toml, read_json

# A failed read of the lease is repeated for PATIENCE_S seconds, with RETRY_S seconds in between.
PATIENCE_S, RETRY_S = 60.0, 1.0
MAX_AT_ONCE = 3  # how many times `take_lease` repeats a failed write of the lease


class LeasedDirectory:
    """A folder that all processes may read, and one process at a time may write."""

    kind = "folder"  # the word for the folder in messages

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token: str | None = None

    def path(self, *parts: str) -> Path:
        """Return a path inside the folder."""
        return self.folder.joinpath(*parts)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file; an empty dictionary if the file can't be read."""
        return read_json(self.folder / name)

    def certain_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file; an empty dictionary if the file is missing or broken.

        Raises:
            DiskError: if the disk fails.
        """
        return parse_json(self._certain_bytes(name))

    def certain_toml(self, name: str) -> dict[str, Any]:
        """Return the content of a TOML file; an empty dictionary if the file is missing or broken.

        Raises:
            DiskError: if the disk fails.
        """
        return parse_toml(self._certain_bytes(name))

    def _certain_bytes(self, name: str) -> bytes:
        path = self.path(name)
        try:
            return read_plain_file(path)
        except OSError as error:
            raise_unless_missing(error, path)
            return b""

    def leftovers(self) -> Iterator[Path]:
        """Yield the temporary files that killed processes left behind."""
        return self.folder.glob(".*.tmp*")

    # Writing

    def take_lease(self) -> None:
        """Make the folder if it is missing, and become its only writer.

        Raises:
            RunError: if the folder can't be written.
        """
        self._token = uuid.uuid4().hex
        try:
            make_folder(self.folder)
        except OSError as error:  # for example, the folder is a broken link
            raise DiskError(write_refusal(self.folder, error)) from None
        lease = self.path("lease.json")
        holder = {"token": self._token, "host": socket.gethostname(), "process": os.getpid()}
        # Try again after an error, because another process that takes the lease at this moment may
        # have removed this process's temporary file.
        for is_last in (*[False] * MAX_AT_ONCE, True):
            try:
                atomic_write(lease, json.dumps(holder))
                break
            except DiskError:
                if is_last:
                    raise
        for leftover in self.leftovers():
            if leftover.is_file():
                leftover.unlink(missing_ok=True)

    def check_lease(self) -> None:
        """Check that this process is still the folder's writer.

        Raises:
            TakenOver: if a newer process has taken the lease, or the lease is missing.
            DiskError: if all attempts to read the lease fail for a minute.
        """
        holder = parse_json(self._read_lease() or b"")
        if holder.get("token") != self._token:
            reason = f"another process finished or removed this {self.kind}"
            if holder:
                process = f"process {holder.get('process')} on {holder.get('host')}"
                reason = f"{process} took over this {self.kind}"
            raise TakenOver(f"{self.kind} {self.folder}: {reason}; this process stops")

    def release_lease(self) -> None:
        """Remove the lease after the last write. If the removal fails, the lease stays."""
        with contextlib.suppress(OSError, RunError):  # TakenOver: another process has the lease
            self.check_lease()
            self.path("lease.json").unlink()

    def _read_lease(self) -> bytes | None:
        """Read the lease; return None if there is no lease. Repeat a failing read for a minute.

        The lease may exist even if a read fails, for example because the server of a network disk
        restarts or this process has too many open files.
        """
        path, since_s = self.path("lease.json"), monotonic()
        while True:
            try:
                return read_if_there(path)
            except OSError as error:
                problem = f"{path}: can't be read: {error.strerror or error}"
            waited_s = monotonic() - since_s
            if waited_s >= PATIENCE_S:
                raise DiskError(
                    f"{problem}; all attempts within {waited_s:.0f} s failed; check that the disk "
                    "is mounted and readable"
                )
            if not waited_s:
                log(logging.WARNING, f"{problem}; trying again for {PATIENCE_S:.0f} s")
            sleep(RETRY_S)

    def write(self, name: str, content: Content, *, mode: int = MODE) -> None:
        """Write a file, completely or not at all; `replace_file` explains `content` and `mode`.

        Raises:
            RunError: if the write fails, or this process has lost the lease.
        """
        self.check_lease()
        try:
            atomic_write(self.path(name), content, mode)
        except RunError:
            self.check_lease()
            # Write again, because another process's `take_lease`, which removes all temporary
            # files, may have ended after this process took the lease.
            atomic_write(self.path(name), content, mode)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file, completely or not at all."""
        self.write(name, to_json(content))


def to_json(content: dict[str, Any]) -> str:
    """Format `content` as the text of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
