"""The ways in which a command can fail or stop, and the exit code of each."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence

# Signals of scancel, kill and Ctrl-C, and the cancel of a search.
CANCELLED = "harness cancel"
CANCELLING = ("SIGTERM", "SIGINT", CANCELLED)


class InputError(ValueError):
    """The user's input was refused, before anything was written: exit code 2.

    The message is one line with the name, the value, the rule and the remedy.
    """

    exit_code = 2


class RunError(RuntimeError):
    """The run failed for another reason than its input, such as a full disk: exit code 1."""

    exit_code = 1


class DiskError(RunError):
    """The file system refuses, such as a full disk; the run itself is sound."""


class NodeFault(RunError):  # noqa: N818 - of the node
    """This node lacks what the job was promised: exit code 75 if the job moves to another node.

    Our job scripts requeue the job without the node, twice at most.
    """

    def __init__(self, message: str, *, will_requeue: bool) -> None:
        super().__init__(message)
        self.exit_code = Interrupted.exit_code if will_requeue else RunError.exit_code


class TakenOver(RunError):  # noqa: N818 - no fault of its own
    """A newer process took this one's folder over, so this one stops."""


class Interrupted(Exception):  # noqa: N818 - an order that was carried out, not an error
    """A signal stopped the run, which saved a checkpoint and can be resumed: exit code 75.

    Also raised for a lost worker of the run.
    """

    exit_code = 75


@contextlib.contextmanager
def explain_interruption(remedy: str) -> Iterator[None]:
    """Add to an interruption in the block what is saved and how to continue.

    Raises:
        Interrupted: the reason of the original one, and `remedy`.
    """
    try:
        yield
    except Interrupted as reason:
        raise Interrupted(f"interrupted by {reason}, {remedy}") from None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, the end of a message; empty if no name is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or all names if none is similar."""
    return did_you_mean(name, known) or (f"; known: {', '.join(known)}" if known else "")
