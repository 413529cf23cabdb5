"""The result of a check, and how a check is run so that it can't end the others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from harness.errors import InputError, RunError


class NotRun(Exception):  # noqa: N818 - no error: a check needs what is not here
    """A check could not run; the message says what it needs."""


Level = Literal["green", "yellow", "red", "not run"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: green works, yellow works with a drawback, red does not work.

    What could not be checked here is `not run`.
    """

    level: Level
    name: str
    found: str
    remedy: str = ""  # what to do where it is not green


def examine(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check; one that breaks is a red finding with its error, one that can't is not run."""
    try:
        yield from check()
    except NotRun as reason:
        yield Finding("not run", name, f"not run: needs {reason}")
    except (InputError, RunError) as error:
        # Messages of this project end with their remedy.
        found, _, remedy = str(error).rpartition("; ")
        yield Finding("red", name, found or remedy, remedy if found else "")
    except Exception as error:  # whatever it is, the other checks must run
        found = f"the check broke: {type(error).__name__}: {error}"
        yield Finding("red", name, found, "see the error")
