"""The ratios of n-grams that a finished run keeps."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InputError
from harness.inference.predict import RATIOS_FILE, read_ratios
from harness.system.files import MAX_RECORD_BYTES


def test_ratios_may_be_larger_than_any_record(tmp_path: Path) -> None:
    """Of many own texts they are; what is refused here is their content."""
    (tmp_path / RATIOS_FILE).touch()
    os.truncate(tmp_path / RATIOS_FILE, MAX_RECORD_BYTES + 1)
    run: Any = SimpleNamespace(
        folder=tmp_path,
        path=tmp_path.joinpath,
        job=lambda: SimpleNamespace(model=SimpleNamespace(ngram_ratios=3)),
        result=dict,
    )
    with pytest.raises(InputError, match="has changed since the training"):
        read_ratios(run)
