"""An error that ends a check becomes a finding."""

from collections.abc import Callable, Iterator

import pytest

from harness.doctor.finding import Finding, examine
from harness.errors import InputError, RunError

FIRST = Finding("green", "disk", "is there")


def failing(error: Exception) -> Callable[[], Iterator[Finding]]:
    def check() -> Iterator[Finding]:
        yield FIRST
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (InputError("--data x: is no folder; name one"), "--data x: is no folder", "name one"),
        (RunError("a; b; do c"), "a; b", "do c"),
        (RunError("it is full"), "it is full", ""),
        (OSError(5, "broken"), "the check failed: OSError: [Errno 5] broken", "see the error"),
    ],
)
def test_a_check_that_breaks_is_red(error: Exception, found: str, remedy: str) -> None:
    """Earlier findings stay; the end of the error's message becomes the remedy."""
    assert [*examine("disk", failing(error))] == [FIRST, Finding("red", "disk", found, remedy)]
