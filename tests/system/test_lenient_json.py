"""Records of other processes, which may be broken or missing."""

from pathlib import Path

import pytest

from harness.system.lenient_json import (
    number,
    numbers,
    read_json,
    read_json_lines,
    read_toml,
    table,
    text,
    whole,
)


@pytest.mark.parametrize("content", [None, b'{"a": ', b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_record_is_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    """A broken record is missing, truncated, not an object, not UTF-8, or nested too deeply."""
    path = tmp_path / "record"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) == {}
    assert read_json_lines(path) == []
    if content != b"[1]":  # valid TOML: the header of a table
        assert read_toml(path) == {}


def test_values_of_another_type_are_none() -> None:
    """A bool is not a number; infinite and huge numbers and empty texts are None.

    A table of another type is empty.
    """
    bad = [True, "5", None, float("nan"), float("inf"), 1e300, 10**400]
    assert [number(value) for value in bad] == [None] * len(bad)
    assert [whole(value) for value in [*bad, 2.0]] == [None] * (len(bad) + 1)
    assert (number(2), whole(2), text("a")) == (2.0, 2, "a")
    assert [text(value) for value in ("", 5, None)] == [None] * 3
    assert numbers({"a": 1, "b": "x", "c": 0.5}) == {"a": 1.0, "c": 0.5}
    assert numbers([1]) == table({"a": 5}, "a") == {}
