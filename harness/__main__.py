"""Starts `harness` or `python -m harness`, and handles Ctrl-C even during the first imports."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 75  # exit code of harness.errors.Interrupted, which is not imported yet


def main() -> int:
    """Run the command line and return the exit code of `harness.cli.main`."""
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        # End at once: a second KeyboardInterrupt would replace the exit code of the first.
        if pressed:
            os.write(2, b"harness: interrupted by Ctrl-C and ended at once; saved files are kept\n")
            os._exit(INTERRUPTED)
        pressed = True
        raise KeyboardInterrupt

    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup
            signal.signal(signal.SIGINT, interrupt)
        from harness.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # during the imports; later `run` handles Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("harness: interrupted before anything began", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    finally:
        # `dataclass` calls exec(). If a KeyboardInterrupt is raised in an exec(), CPython later
        # kills its own process by SIGINT, even after sys.exit(). Another exec() prevents that.
        exec("")  # noqa: S102


if __name__ == "__main__":
    sys.exit(main())
