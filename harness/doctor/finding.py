"""The findings of a check; an error that ends the check is a finding too."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from harness.errors import InputError, RunError

Level = Literal["green", "yellow", "red", "not run"]


@dataclass(frozen=True)
class Finding:
    """A checked fact. Green: it works; yellow: it works with a drawback; red: it does not work.

    `not run` is for checks of `tests.gpu` that this machine can't run.
    """

    level: Level
    name: str
    found: str
    remedy: str = ""  # what to do; empty for green

    @property
    def is_well(self) -> bool:
        """Whether the finding is not red."""
        return self.level != "red"


def examine(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check and yield its findings; if the check raises an error, yield a red finding."""
    try:
        yield from check()
    except (InputError, RunError) as error:
        # The messages of these errors end with the remedy.
        found, _, remedy = str(error).rpartition("; ")
        yield Finding("red", name, found or remedy, remedy if found else "")
    except Exception as error:  # the other checks must still run
        found = f"the check failed: {type(error).__name__}: {error}"
        yield Finding("red", name, found, "see the error")
