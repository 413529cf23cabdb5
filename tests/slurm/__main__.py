"""`python -m tests.slurm [elsewhere]` runs a test cluster until Ctrl-C."""

import shlex
import signal
import sys

from tests import guard
from tests.slurm.cluster import SlurmCluster, SlurmError
from tests.slurm.configuration import ELSEWHERE, HOME


def main() -> int:
    """Start the cluster, print how to use it, and stop it at Ctrl-C, TERM or even KILL."""
    args = sys.argv[1:]
    if args not in ([], ["elsewhere"]):
        print("usage: python -m tests.slurm [elsewhere]", file=sys.stderr)  # noqa: T201
        return 2
    site = ELSEWHERE if args else HOME
    guard.enter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with SlurmCluster(site) as cluster:
            nodes = ", ".join(f"{name} {gres}".strip() for name, gres in cluster.site.nodes.items())
            say(f"the nodes {nodes} are up; their GPUs are simulated. In another terminal, run:")
            for name, value in cluster.environment.items():
                say(f"  export {name}={shlex.quote(value)}")
            say("  sbatch slurm/lstm.sh --set data.limit=500 --set train.epochs=3")
            say("Ctrl-C stops it and removes everything, jobs included.")
            signal.pause()
    except KeyboardInterrupt:
        say("stopped")
    except SlurmError as error:
        print(f"tests.slurm: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def say(line: str) -> None:
    """Print a line at once, even if standard output is a pipe."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
