"""Clocks that are minutes apart."""

from pathlib import Path

import pytest

from harness.system.shared_disk import clock_ahead_s
from harness.tracking import status
from harness.tracking.records import RunStatus


@pytest.mark.parametrize(("age_s", "state"), [(302.0, "running"), (1200.0, "stale")])
def test_the_clock_of_the_login_node_may_be_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, state: str
) -> None:
    """Minutes ahead of the node's and the disk's, whose clocks agree."""
    monkeypatch.setattr(status, "clock_ahead_s", lambda _: 300.0)
    run = RunStatus(run="a", folder=tmp_path, phase="training", heartbeat_age_s=age_s)
    status.infer_state(run, None, asked_s_ago=0.0)
    assert run.state == state


def test_the_clock_of_a_disk(tmp_path: Path) -> None:
    """Of one that can't be written nothing is known, and nothing is left on the other."""
    assert abs(clock_ahead_s(tmp_path)) < 60
    assert clock_ahead_s(tmp_path / "missing") == 0.0
    assert not list(tmp_path.iterdir())


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
