"""Tests of data see no data and no cache of this machine."""

import hashlib
from pathlib import Path

import pytest

from harness.data.locations import NPZ
from tests.data.small_imdb import write_npz


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The harness's folder in the user's cache."""
    for name in ("HARNESS_DATA", "HARNESS_DATA_OWNERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HARNESS_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "cache/harness"


@pytest.fixture
def genuine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file of `write_npz` counts as Keras's genuine file."""
    genuine = hashlib.sha256((write_npz(tmp_path / "genuine") / NPZ).read_bytes()).hexdigest()
    monkeypatch.setattr("harness.data.sources.NPZ_SHA256", genuine)
