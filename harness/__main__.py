"""`python -m harness` is `harness`; a Ctrl-C during the imports of the command line ends it too."""

import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code, see `harness.cli.main`."""
    try:
        from harness.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # during the imports; `run` handles it otherwise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would replace the exit code
        print("harness: interrupted before anything began", file=sys.stderr)  # noqa: T201
        return 75


if __name__ == "__main__":
    sys.exit(main())
