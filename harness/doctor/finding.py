"""The result of a check, and how a check is run so that it can't end the others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from harness.errors import InputError, RunError

Level = Literal["green", "yellow", "red", "not run"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: green works, yellow works with a drawback, red does not work.

    A check of `tests.gpu` that needs what is not here is `not run`.
    """

    level: Level
    name: str
    found: str
    remedy: str = ""  # what to do where it is not green

    @property
    def is_well(self) -> bool:
        """Whether it is not red."""
        return self.level != "red"


def examine(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check; one that breaks is a red finding with its error."""
    try:
        yield from check()
    except (InputError, RunError) as error:
        # Messages of this project end with their remedy.
        found, _, remedy = str(error).rpartition("; ")
        yield Finding("red", name, found or remedy, remedy if found else "")
    except Exception as error:  # whatever it is, the other checks must run
        found = f"the check broke: {type(error).__name__}: {error}"
        yield Finding("red", name, found, "see the error")
