"""The errors that end a command, and their exit codes."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence

# Interruptions for these reasons cancel the run: scancel or kill, Ctrl-C, `harness cancel`.
CANCELLED = "harness cancel"
CANCELLING = ("SIGTERM", "SIGINT", CANCELLED)


class InputError(ValueError):
    """The user's input was refused, before anything was written: exit code 2.

    The message is one line: the name of the input, its value, the allowed values, and a remedy.
    """

    exit_code = 2


class OwnCodeError(InputError):
    """The user's own code raised an error."""


class RunError(RuntimeError):
    """The run failed for a reason other than its input, such as a full disk: exit code 1."""

    exit_code = 1


class DiskError(RunError):
    """A file system can't be written or read, for example because it is full; the run is intact."""


class NodeFault(RunError):  # noqa: N818 - a fault of the node
    """The node is faulty: exit code 75 if the job moves to another node, else 1.

    The job scripts in slurm/ requeue the job as often as HARNESS_MAX_REQUEUES allows, and exclude
    the faulty node.
    """

    def __init__(self, message: str, *, will_requeue: bool) -> None:
        super().__init__(message)
        self.exit_code = Interrupted.exit_code if will_requeue else RunError.exit_code


class TakenOver(RunError):  # noqa: N818 - not an error of this process
    """A newer process took over the folder that this process writes, so this process stops."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal or a lost worker stopped the run, which can be resumed: exit code 75."""

    exit_code = 75


@contextlib.contextmanager
def explain_interruption(remedy: str) -> Iterator[None]:
    """Append `remedy` to the message of an `Interrupted` that the `with` block raises.

    Args:
        remedy: how to continue, such as a command.

    Raises:
        Interrupted: if the block raised `Interrupted`; the new message ends with `remedy`.
    """
    try:
        yield
    except Interrupted as reason:
        notes = getattr(reason, "__notes__", [])  # for example, "checkpoint saved"
        raise Interrupted("; ".join([f"interrupted by {reason}", *notes, remedy])) from None


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
    """Put `subject` and a colon before the message of an `InputError` from the `with` block.

    Raises:
        InputError: if the block raised `InputError`; the new message begins with `subject`.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject}: {error}") from None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a message, `; did you mean …?`; return "" if no name is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the end of a message: `; did you mean …?`, or all names if none is similar."""
    return did_you_mean(name, known) or (f"; known: {', '.join(known)}" if known else "")
