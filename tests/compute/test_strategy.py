"""What is checked before TensorFlow is imported."""

import resource

import pytest

from harness.compute.strategy import import_tensorflow
from harness.errors import InputError


def test_too_small_an_address_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow would end by a signal, without a word."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_100_000_000, -1))
    with pytest.raises(InputError, match=r"limited to 1\.1 GB.*ulimit -v unlimited"):
        import_tensorflow(None)
