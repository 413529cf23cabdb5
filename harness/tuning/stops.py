"""Stops a search, wherever its workers are."""

import os
import socket
import time
from datetime import datetime
from pathlib import Path

from harness.errors import DiskError
from harness.files.atomic_file import write_refusal
from harness.ownership import owner_name
from harness.tuning.course import LOCAL, View, next_stop
from harness.tuning.disk import Disk
from harness.tuning.records import STOPS, Stop


def stop_now(reason: str = "", failed: tuple[int, ...] = ()) -> Stop:
    """That this user stops a search now, or goes on with it.

    Args:
        reason: why it failed; none if it is cancelled.
        failed: its failed trials.
    """
    by, at = f"{owner_name(os.getuid())} on {socket.gethostname()}", datetime.now().astimezone()
    return Stop(by=by, at=at.isoformat(timespec="seconds"), reason=reason, failed=failed)


def stop_search_in(folder: Path) -> None:
    """Stop the search of a sweep's folder; it stays so until a person goes on with it.

    Raises:
        DiskError: if the disk refuses.
    """
    try:
        Disk(folder).run(next_stop(View(time.monotonic, LOCAL), stop_now()))
    except OSError as error:
        raise DiskError(write_refusal(folder / STOPS, error, "try again")) from None
