"""Real searches while processes and nodes fail; run by hand with `-m slow -s`."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.system.lenient_json import read_json
from tests.conftest import Harness, wait_for
from tests.tuning.test_sweep import SEARCH, Sweeps, moved_on

# A search of 24 trials, which take about a second each.
BRIEF = SEARCH.replace("limit = 300\nmaxlen = 20", "limit = 120\nmaxlen = 8")
BRIEF = BRIEF.replace("epochs = 4", 'epochs = 4\nxla = "off"')
BRIEF = BRIEF.replace("[4, 8]", "[4, 8, 12]\nmodel.dropout = [0.0, 0.2, 0.4, 0.6]")
LIMIT_S = 3600.0  # longest time of a search on a busy machine


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["random", "grid", "asha", "hyperband", "bayesian"])
def test_24_trials_over_kills_and_a_lost_node(harness: Harness, tuner: str) -> None:
    """Every trial counts once, with the score of an undisturbed search.

    Every four seconds a worker, and perhaps a proposer, is killed if the search has advanced. The
    first command is killed four times. A second command and its worker simulate a node; they are
    killed while a trial runs, and never return.
    """
    options = {
        "asha": "trials = 16\nparallel = 4\nfactor = 2",
        "hyperband": "parallel = 4\nfactor = 2",
        "bayesian": "trials = 24\nparallel = 4",
    }
    text = BRIEF.replace('"grid"', f'"{tuner}"\n{options.get(tuner, "trials = 24")}')
    sweeps = undisturbed(harness.folder, text)
    num_trials = len(sweeps.trials("calm"))
    trouble = Trouble(sweeps, num_trials)
    trouble.run()
    print(tuner, num_trials, "trials,", trouble.counts)  # noqa: T201
    assert trouble.counts["commands"] == 4
    assert trouble.counts["nodes"] == 1
    assert trouble.counts["workers"] >= 4
    check_same(sweeps, "wild")
    assert sweeps.left("wild") == []


class Trouble:
    """A search `wild` whose processes are killed, and one of two nodes is lost."""

    def __init__(self, sweeps: Sweeps, num_trials: int) -> None:
        self.sweeps, self.num_trials = sweeps, num_trials
        self.counts = Counter[str]()
        self.chance = random.Random(3)  # noqa: S311 - not a secret
        self.process = sweeps.start("wild", "--workers", 2)
        wait_for(lambda: sweeps.state("wild").get("running"), timeout_s=LIMIT_S)
        words = sweeps.harness.command("sweep", "join", sweeps.folder("wild"), "--workers", 1)
        self.node = subprocess.Popen(
            words,
            cwd=sweeps.harness.folder,
            env=sweeps.harness.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run(self) -> None:
        end_s, next_kill_s = time.monotonic() + LIMIT_S, time.monotonic() + 4
        while self.process.poll() is None:
            assert time.monotonic() < end_s, f"no end: {self.counts}"
            time.sleep(0.1)
            if time.monotonic() > next_kill_s:
                next_kill_s = time.monotonic() + 4
                self._kill_a_worker()
            num_done, num_commands = len(self.sweeps.accepted("wild")), self.counts["commands"]
            if not self.counts["nodes"] and num_done >= self.num_trials // 3:
                self._lose_the_node()
            if num_commands < 4 and num_done >= self.num_trials // 5 * (num_commands + 1):
                self._kill_the_command()
        said, errors = self.process.communicate()
        assert self.process.returncode == 0, said + errors

    def _kill_a_worker(self) -> None:
        own = [pid for pid in self.sweeps.workers("wild") if pid not in self._node_workers()]
        if own and moved_on(self.sweeps, "wild", self.counts["workers"]):
            os.kill(self.chance.choice(own), signal.SIGKILL)
            self.counts["workers"] += 1
            for proposer in self.sweeps.proposers("wild")[: self.chance.randrange(2)]:
                os.kill(proposer, signal.SIGKILL)
                self.counts["proposers"] += 1

    def _kill_the_command(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.counts["commands"] += 1
        self.process = self.sweeps.start("wild", "--workers", 2)

    def _node_workers(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(self.node.pid).children(recursive=True)]
        return []

    def _lose_the_node(self) -> None:
        """Kill all processes of the node while it trains a trial."""
        victims = self._node_workers()
        name = f"{socket.gethostname()}-{self.node.pid}-"
        owners = [owner["name"] for _, owner in open_attempts(self.sweeps, "wild")]
        if any(owner.startswith(name) for owner in owners):
            for pid in (self.node.pid, *victims):  # the command first, which would restart others
                with contextlib.suppress(ProcessLookupError):  # a process ends with its parent
                    os.kill(pid, signal.SIGKILL)
            self.node.wait()
            self.counts["nodes"] += 1


def open_attempts(sweeps: Sweeps, sweep_id: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return folder and owner of every attempt at a trial without a result."""
    files = sweeps.folder(sweep_id).glob("trials/*/[0-9]*/owner.json")
    return [(f.parent, read_json(f)) for f in files if not (f.parents[1] / "accepted").exists()]


def undisturbed(folder: Path, text: str) -> Sweeps:
    """Run the sweep `calm` with one worker and without faults."""
    sweeps = Sweeps(Harness(folder), text)
    done = sweeps.harness.run(
        "tune", sweeps.job, "--sweep-id", "calm", "--workers", 1, timeout_s=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return sweeps


def check_same(sweeps: Sweeps, sweep_id: str) -> None:
    """Check that every trial has finished, with the values and scores of the sweep `calm`."""
    trials, calm = (
        [(each.proposal, each.scores) for each in sweeps.trials(name)]
        for name in (sweep_id, "calm")
    )
    assert all(scores for _, scores in calm)
    assert trials == calm
