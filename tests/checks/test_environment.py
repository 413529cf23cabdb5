"""What doctor says of the environment."""

from harness.checks.doctor import describe_import


def test_a_slow_import_names_the_remedy() -> None:
    """A shared disk is slow for the thousands of files that Python opens."""
    assert describe_import(2.0).level == "green"
    slow = describe_import(24.06)
    assert (slow.level, "imports in 24.1 s from" in slow.found) == ("yellow", True)
    assert "HARNESS_CONTAINER" in slow.remedy
