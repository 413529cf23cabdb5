"""The ways in which a command can fail or stop, and the exit code of each."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence

# What scancel and kill send, and Ctrl-C; how a search is cancelled.
CANCELLED = "harness cancel"
CANCELLING = ("SIGTERM", "SIGINT", CANCELLED)


class InputError(ValueError):
    """The user's input was refused before anything was written: exit code 2.

    The message is one line that holds the name, the value, the rule and the remedy.
    """

    exit_code = 2


class RunError(RuntimeError):
    """The run failed on something outside the user's input, such as a full disk: exit code 1."""

    exit_code = 1


class DiskError(RunError):
    """The file system refuses, such as a full disk; nothing follows about the run itself."""


class NodeFault(RunError):  # noqa: N818 - of the node
    """This node can't do what the job was promised: exit code 75 where the job goes elsewhere.

    Under our job scripts it goes back into the queue without the node, twice at most.
    """

    def __init__(self, message: str, *, will_requeue: bool) -> None:
        super().__init__(message)
        self.exit_code = Interrupted.exit_code if will_requeue else RunError.exit_code


class TakenOver(RunError):  # noqa: N818 - no fault of its own
    """A newer process has taken over this one's folder, so this one stops."""


class Interrupted(Exception):  # noqa: N818 - an order that was carried out, not an error
    """A signal asked the run to stop; its checkpoint is saved: exit code 75, resumed to go on.

    Also raised when another worker of the run is lost.
    """

    exit_code = 75


@contextlib.contextmanager
def explain_interruption(remedy: str) -> Iterator[None]:
    """Make an interruption inside the block say what is saved and how to continue.

    Raises:
        Interrupted: in place of the one raised inside, with `remedy` after its reason.
    """
    try:
        yield
    except Interrupted as reason:
        raise Interrupted(f"interrupted by {reason}, {remedy}") from None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, the end of a message; empty if no known name is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or the known names if none is similar."""
    return did_you_mean(name, known) or (f"; known: {', '.join(known)}" if known else "")
