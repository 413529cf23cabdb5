"""`python -m harness` is `harness`; a Ctrl-C during the imports of the command line ends it too."""

import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line; returns the exit code, see `harness.cli.main`."""
    usual = signal.getsignal(signal.SIGINT)
    pressed = False

    def interrupt_once(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        # One more, while the first still unwinds the imports, would replace the exit code.
        if not pressed:
            pressed = True
            raise KeyboardInterrupt

    try:
        if usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt_once)
        from harness.cli.main import main as run

        signal.signal(signal.SIGINT, usual)
        return run()
    except KeyboardInterrupt:  # during the imports; `run` handles it otherwise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("harness: interrupted before anything began", file=sys.stderr)  # noqa: T201
        return 75


if __name__ == "__main__":
    sys.exit(main())
