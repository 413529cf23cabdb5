"""The format of what harness writes, so that another version's is refused rather than misread.

One number for the records of runs, sweeps and ensembles, and for checkpoints. A change of what is
written, or of the default of a job's key, raises it; a key that is added does not. Nothing of
another format is converted: the version that wrote it goes on with it. `status`, `logs` and
TensorBoard show what they can of any format.
"""

import math
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from harness import __version__
from harness.errors import InputError
from harness.files.leased_dir import LeasedDirectory
from harness.files.lenient_json import table, text

FORMAT = 6
RECORD = "provenance.json"  # of a run and of a sweep


def stamped(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the number of the format and the version that writes it."""
    rest = {key: value for key, value in record.items() if key not in ("format", "harness")}
    return {"format": FORMAT, "harness": __version__, **rest}


def first_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run recorded of its first start; nothing of a record that is missing or broken."""
    return _start(record, 0)


def last_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run recorded of its last start; nothing of a record that is missing or broken."""
    return _start(record, -1)


def _start(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    starts = record.get("starts")
    start = starts[index] if isinstance(starts, list) and starts else None
    return start if isinstance(start, dict) else {}


def began_s(record: Mapping[str, Any]) -> float:
    """When a run's first start was, since 1970; infinite if it is not known."""
    try:
        return datetime.fromisoformat(text(first_start(record).get("at")) or "").timestamp()
    except (ValueError, OverflowError, OSError):  # broken, or a year that no clock shows
        return math.inf


def weights_of(record: Mapping[str, Any]) -> str | None:
    """The folder of the run with whose weights a run, or one that it goes on with, began."""
    parent = table(first_start(record), "parent")
    return text(parent.get("run" if parent.get("begins_with") == "weights" else "weights_of"))


def check_format(name: str, record: Mapping[str, Any], *, remedy: str = "") -> None:
    """Refuse what a version of harness with another format wrote.

    Args:
        name: of what the record describes, such as `run runs/lstm/a`.
        record: empty where none is written yet.
        remedy: how to get that version.

    Raises:
        InputError: if its format is another one.
    """
    if not record or record.get("format") == FORMAT:
        return
    version = f"harness {record.get('harness', 'of an unknown version')}"
    raise InputError(
        f"{name}: was written by {version} (format {record.get('format')}), this is harness "
        f"{__version__} (format {FORMAT}); go on with it by that version{remedy}"
    )


def check_record(folder: LeasedDirectory, *, remedy: str = "") -> None:
    """Refuse a run or a sweep that another version wrote, or whose record is broken.

    Args:
        remedy: how to get that version.

    Raises:
        InputError: if one did, or if it is.
        DiskError: if the record can't be read.
    """
    name, record = f"{folder.kind} {folder.folder}", folder.certain_json(RECORD)
    if not record and os.path.lexists(folder.path(RECORD)):
        raise InputError(
            f"{name}: {RECORD} is broken, which says what it was begun with; put it back from a "
            "copy, or remove it to begin a new record"
        )
    check_format(name, record, remedy=remedy)


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what a clock measured: keys that end in `_s`, `reviews_per_s` too.

    What is left is the same for two runs of one job on the same devices.
    """
    return {key: value for key, value in record.items() if not key.endswith("_s")}
