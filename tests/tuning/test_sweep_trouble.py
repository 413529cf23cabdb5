"""Real searches while processes, nodes, disk and clocks fail; run by hand with `-m slow -s`."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from harness.system.lenient_json import read_json
from tests.conftest import PROJECT, Harness, wait_for
from tests.tuning.test_sweep import LIMIT_S, SEARCH, Sweeps, moved_on

# A search of 24 trials, which take about a second each.
BRIEF = SEARCH.replace("limit = 300\nmaxlen = 20", "limit = 120\nmaxlen = 8")
BRIEF = BRIEF.replace("epochs = 4", 'epochs = 4\nxla = "off"')
BRIEF = BRIEF.replace("[4, 8]", "[4, 8, 12]\nmodel.dropout = [0.0, 0.2, 0.4, 0.6]")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can simulate another machine")
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
    assert not sweeps.processes("wild")


class Trouble:
    """The search `wild`: its processes are killed, and one of its two nodes is lost."""

    def __init__(self, sweeps: Sweeps, num_trials: int) -> None:
        self.sweeps, self.num_trials = sweeps, num_trials
        self.counts = Counter[str]()
        self.chance = random.Random(3)  # noqa: S311 - not a secret
        self.process = sweeps.start("wild", "--workers", 2)
        wait_for(lambda: sweeps.state("wild").get("running"), timeout_s=LIMIT_S)
        words = sweeps.harness.command("sweep", "join", sweeps.folder("wild"), "--workers", 1)
        self.node = subprocess.Popen(
            as_another_machine(words, sweeps.harness.folder / "boot_id"),
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
            with contextlib.suppress(ProcessLookupError):  # it has just been replaced
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
        attempts = self.sweeps.folder("wild").glob("trials/*/[0-9]*/owner.json")
        running = [each for each in attempts if not (each.parents[1] / "accepted").exists()]
        if any(read_json(owner)["process"] in victims for owner in running):
            for pid in (self.node.pid, *victims):  # first the command, which would restart workers
                with contextlib.suppress(ProcessLookupError):  # a process ends with its parent
                    os.kill(pid, signal.SIGKILL)
            self.node.wait()
            self.counts["nodes"] += 1


def as_another_machine(words: Sequence[str], boot_id: Path) -> list[str]:
    """Return a command line that runs `words` as if on another machine, by another boot id."""
    boot_id.write_text("another\n")
    over = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", over, str(boot_id), *words]


def undisturbed(folder: Path, text: str) -> Sweeps:
    """Run the sweep `calm` with one worker and without faults."""
    sweeps = Sweeps(Harness(folder), text)
    sweeps.run_calm()
    return sweeps


def check_same(sweeps: Sweeps, sweep_id: str) -> None:
    """Check that every trial has finished, with the values and scores of the sweep `calm`."""
    trials, calm = (
        [(each.proposal, each.scores) for each in sweeps.trials(name)]
        for name in (sweep_id, "calm")
    )
    assert all(scores for _, scores in calm)
    assert trials == calm


@pytest.mark.slow
def test_errors_of_the_file_system_and_wrong_clocks_change_nothing(tmp_path: Path) -> None:
    """One in 100 operations fails with EIO or ESTALE; half of these take effect nevertheless."""
    text = BRIEF.replace("[0.0, 0.2, 0.4, 0.6]", "[0.0, 0.5]").replace("[4, 8, 12]", "[4, 8]")
    eight, log = undisturbed(tmp_path, text), tmp_path / "faults.log"
    eight.harness.environment |= {
        "PYTHONPATH": f"{Path(__file__).with_name('faults')}:{PROJECT}",
        "FAULTS_BELOW": str(eight.folder("faulty")),
        "FAULTS_LOG": str(log),
    }
    for _ in range(20):  # a command ends if the disk fails at its start
        process = eight.start("faulty", "--workers", 2)
        said, errors = process.communicate(timeout=LIMIT_S)
        if process.returncode == 0:
            break
        assert "Traceback" not in errors, errors
    assert process.returncode == 0, said + errors
    struck = log.read_text().splitlines()
    kinds = Counter(line.split()[1] for line in struck)
    print(f"{len(struck)} errors: {dict(kinds)}")  # noqa: T201
    assert min(kinds["EIO"], kinds["ESTALE"]) > 3, struck
    check_same(eight, "faulty")
