"""The files that a run keeps for its network, such as n-gram ratios."""

import hashlib

from harness.data.ngrams import MAX_BYTES, NgramRatios
from harness.errors import InputError
from harness.files.plain_file import MAX_RECORD_BYTES, raise_unless_missing, read_plain_file
from harness.tracking.run_dir import RunDirectory

RATIOS_FILE = "ngram_ratios.npz"
RATIOS_CHECKSUM = "ngram_ratios_checksum"  # in result.json


def read_kept(run: RunDirectory, name: str, key: str, limit: int = MAX_RECORD_BYTES) -> bytes:
    """A file of a finished run, whose checksum stands in `result.json` under `key`.

    Args:
        limit: the most bytes that it may have.

    Raises:
        InputError: if it is missing, or not that of the run.
        DiskError: if the disk fails.
    """
    try:
        content = read_plain_file(path := run.path(name), limit)
    except OSError as error:
        raise_unless_missing(error, path)
        raise InputError(
            f"run {run.folder}: {name} can't be read ({error.strerror}); train a new run"
        ) from None
    if run.result().get(key) != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"run {run.folder}: {name} is not the one that the model was trained with; put it back "
            "from a copy, or train a new run"
        )
    return content


def read_ratios(run: RunDirectory) -> NgramRatios | None:
    """The n-gram ratios that a finished run keeps; None if its network reads none.

    Raises:
        InputError, DiskError: as `read_kept`.
    """
    if not run.job().model.ngram_ratios:
        return None
    return NgramRatios.from_bytes(read_kept(run, RATIOS_FILE, RATIOS_CHECKSUM, MAX_BYTES))
