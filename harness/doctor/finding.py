"""The findings of a check, one of which is the error that ends it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from harness.errors import InputError, RunError

Level = Literal["green", "yellow", "red", "not run"]


@dataclass(frozen=True)
class Finding:
    """One checked fact: green works, yellow works with a drawback, red does not work.

    `not run` is for checks of `tests.gpu` that this machine can't run.
    """

    level: Level
    name: str
    found: str
    remedy: str = ""  # empty for green

    @property
    def is_well(self) -> bool:
        """Whether it is not red."""
        return self.level != "red"


def examine(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check; an error in it is one more finding, in red."""
    try:
        yield from check()
    except (InputError, RunError) as error:
        # Messages of this project end with the remedy.
        found, _, remedy = str(error).rpartition("; ")
        yield Finding("red", name, found or remedy, remedy if found else "")
    except Exception as error:  # the other checks must run
        found = f"the check failed: {type(error).__name__}: {error}"
        yield Finding("red", name, found, "see the error")
