"""What doctor says of the environment."""

import pytest

from harness.checks import doctor
from harness.checks.doctor import describe_import


def test_a_slow_import_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared disk is slow for the thousands of files that Python opens; a busy machine too."""
    monkeypatch.setattr(doctor, "is_busy", lambda: True)
    assert describe_import(24.06).level == "green"
    monkeypatch.setattr(doctor, "is_busy", lambda: False)
    assert describe_import(2.0).level == "green"
    slow = describe_import(24.06)
    assert (slow.level, "imports in 24.1 s from" in slow.found) == ("yellow", True)
    assert "HARNESS_CONTAINER" in slow.remedy
