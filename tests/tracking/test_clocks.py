"""Spans of time as people read them."""

import pytest

from harness.tracking import status


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [
        *((59.4, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m")),
        *((86_399, "23h59m"), (86_400, "1d00h")),
    ],
)
def test_a_unit_begins_where_there_is_a_whole_one(time_s: float, shown: str) -> None:
    """And not a second later."""
    assert status.format_duration(time_s) == shown
