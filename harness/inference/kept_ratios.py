"""The n-gram ratios that a run keeps for its network, see `harness.inputs.ngram_ratios`."""

import hashlib

from harness.errors import InputError
from harness.files.plain_file import raise_unless_missing, read_plain_file
from harness.inputs.ngram_ratios import NgramRatios
from harness.inputs.ngrams import MAX_BYTES
from harness.tracking.run_dir import RunDirectory

RATIOS_FILE = "ngram_ratios.npz"
RATIOS_CHECKSUM = "ngram_ratios_checksum"  # in result.json


def read_ratios(run: RunDirectory) -> NgramRatios | None:
    """The ratios that a finished run keeps; None if its network reads none.

    Raises:
        InputError: if they are missing, or not those of the run.
        DiskError: if the disk fails.
    """
    num_words = run.job().model.ngram_ratios
    if not num_words:
        return None
    try:
        content = read_plain_file(path := run.path(RATIOS_FILE), MAX_BYTES)
    except OSError as error:
        raise_unless_missing(error, path)
        raise InputError(
            f"run {run.folder}: {RATIOS_FILE} can't be read ({error.strerror}); train a new run"
        ) from None
    if run.result().get(RATIOS_CHECKSUM) != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"run {run.folder}: {RATIOS_FILE} is not the one that the model was trained with; put "
            "it back from a copy, or train a new run"
        )
    try:
        ratios = NgramRatios.from_bytes(content)
        if len(ratios.ngrams) != num_words:
            raise ValueError(f"it has n-grams of up to {len(ratios.ngrams)} words")
    except ValueError as error:
        raise InputError(
            f"run {run.folder}: {RATIOS_FILE} is broken ({error}); train a new run"
        ) from None
    return ratios
