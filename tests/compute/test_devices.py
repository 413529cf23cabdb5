"""What `--devices` may say."""

import pytest

from harness.compute.strategy import Devices, parse_devices
from harness.errors import InputError


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [("cpu", "cpu", 1), ("cpu:1", "cpu", 1), (" GPU:64 ", "gpu", 64), ("cpu:2", "cpu", 2)],
)
def test_a_kind_and_a_count_are_read(text: str, kind: str, count: int) -> None:
    """In capitals or not, with blanks around; without a count it is one."""
    assert parse_devices(text) == Devices(kind, count)


@pytest.mark.parametrize(
    "text", ["tpu", "cpu:", "cpu:x", "cpu:0", "cpu:-1", "cpu:65", "cpu:²", "", "2"]
)
def test_all_else_is_refused_by_name(text: str) -> None:
    """In one line that names the option."""
    with pytest.raises(InputError, match="--devices"):
        parse_devices(text)
