"""`python -m harness` is `harness`; it handles Ctrl-C from before the first import."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 75  # the exit code of harness.errors.Interrupted, which is not imported yet


def main() -> int:
    """Run the command line; returns the exit code, see `harness.cli.main`."""
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        # A second KeyboardInterrupt, while the first still unwinds, would replace the exit code.
        if pressed:
            os.write(2, b"harness: interrupted at once; what was saved before stays\n")
            os._exit(INTERRUPTED)
        pressed = True
        raise KeyboardInterrupt

    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup
            signal.signal(signal.SIGINT, interrupt)
        from harness.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # during the imports; `run` handles it otherwise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("harness: interrupted before anything began", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    finally:
        # CPython notes a KeyboardInterrupt that leaves an exec(), such as those of dataclasses, and
        # ends by the signal in spite of sys.exit(). The next exec() clears the note.
        exec("")  # noqa: S102


if __name__ == "__main__":
    sys.exit(main())
