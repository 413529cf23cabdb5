"""A whole search in processes of its own while workers, commands, nodes, disk and clocks fail.

Run by hand, `-m slow -s`. The views of a folder that are late need `apt-get install bindfs`.
"""

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.system.lenient_json import read_json
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import PROJECT, Harness, wait_for
from tests.tuning.test_sweep import Sweeps, moved_on

FAULTS = Path(__file__).with_name("faults")

# Trials of a second, so that the search is about what is disturbed.
BRIEF = """
[model]
architecture = "lstm"
[data]
limit = 120
maxlen = 8
validation_split = 0.2
[train]
epochs = 4
xla = "off"
batch_size = 32
ema_momentum = 0.9
monitor = "val_accuracy"
log_every_steps = 2
checkpoint_every_s = 0.2
[search]
tuner = "grid"
objective = "val_loss"
[search.space]
model.units = [4, 8, 12]
model.dropout = [0.0, 0.2, 0.4, 0.6]
train.learning_rate = [0.001, 0.01]
"""
KEYS = ("model.units", "model.dropout", "train.learning_rate")
LIMIT_S = 3600.0  # for a whole search on a machine with much else to do


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a stand-in for another machine")
@pytest.mark.parametrize("tuner", ["random", "grid", "asha", "hyperband", "bayesian"])
def test_24_trials_over_kills_and_a_lost_node(harness: Harness, tuner: str) -> None:
    """The leaderboard is that of an undisturbed search by one worker, and each trial counts once.

    A worker or a proposer is killed every four seconds, if the search has moved on since, the first
    command four times, 30 processes at least; and a node, which is a command with its workers, is
    lost for good while it trains. Run by hand with `-m slow -s`, which shows how often.
    """
    text = BRIEF.replace('"grid"', f'"{tuner}"')
    text = text.replace("[search]", "[search]\ntrials = 24")
    if tuner == "asha":
        text = text.replace("trials = 24", "trials = 16\nparallel = 4\nfactor = 2")
    if tuner == "hyperband":
        text = text.replace("trials = 24", "parallel = 4\nfactor = 2")
    if tuner == "bayesian":
        text = text.replace("trials = 24", "trials = 24\nparallel = 4")
    sweeps = Sweeps(harness, text)
    done = harness.run("tune", sweeps.job, "--sweep-id", "calm", "--workers", 1, timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    num_trials = len(sweeps.trials("calm"))
    trouble = Trouble(sweeps, num_trials)
    trouble.run()
    print(tuner, num_trials, "trials,", vars(trouble.counts))  # noqa: T201
    assert trouble.counts.commands == 4
    assert trouble.counts.nodes == 1
    assert trouble.counts.workers >= 4
    assert sweeps.accepted("wild") == list(range(num_trials))
    leaderboards = [
        [{k: v for k, v in row.items() if k not in ("training_s", "attempt")} for row in rows]
        for rows in (sweeps.rows("wild"), sweeps.rows("calm"))
    ]
    assert leaderboards[0] == leaderboards[1]
    assert sweeps.left("wild") == []


class Trouble:
    """A search `wild` in which any process may be killed, and one of two nodes is lost."""

    def __init__(self, sweeps: Sweeps, num_trials: int) -> None:
        self.sweeps, self.num_trials = sweeps, num_trials
        self.counts = SimpleNamespace(
            workers=0, proposers=0, commands=0, nodes=0, again_after_s=0.0
        )
        self._lost = 0.0, -1  # when the node was lost, and the trial that it trained
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
            assert time.monotonic() < end_s, f"no end: {vars(self.counts)}"
            time.sleep(0.1)
            if time.monotonic() > next_kill_s:
                next_kill_s = time.monotonic() + 4
                self._kill_a_worker()
            num_done = len(self.sweeps.accepted("wild"))
            self._time_what_was_lost()
            if not self.counts.nodes and num_done >= self.num_trials // 3:
                self._lose_the_node()
            if self.counts.commands < 4 and num_done >= self.num_trials // 5 * (
                self.counts.commands + 1
            ):
                self._kill_the_command()
        said, errors = self.process.communicate()
        assert self.process.returncode == 0, said + errors

    def _kill_a_worker(self) -> None:
        own = [pid for pid in self.sweeps.workers("wild") if pid not in self._node_workers()]
        if own and moved_on(self.sweeps, "wild", self.counts.workers):
            os.kill(self.chance.choice(own), signal.SIGKILL)
            self.counts.workers += 1
            for proposer in self.sweeps.proposers("wild")[: self.chance.randrange(2)]:
                os.kill(proposer, signal.SIGKILL)
                self.counts.proposers += 1

    def _kill_the_command(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.counts.commands += 1
        self.process = self.sweeps.start("wild", "--workers", 2)

    def _node_workers(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(self.node.pid).children(recursive=True)]
        return []

    def _lose_the_node(self) -> None:
        """All its processes end at once, in the middle of a trial, and none is started again."""
        victims = self._node_workers()
        trained = [
            n for n, _, owner in attempts(self.sweeps, "wild") if owner["process"] in victims
        ]
        if trained:
            for pid in (self.node.pid, *victims):  # the command first: it would start others
                with contextlib.suppress(ProcessLookupError):  # a process ends with its parent
                    os.kill(pid, signal.SIGKILL)
            self.node.wait()
            self.counts.nodes += 1
            self._lost = time.monotonic(), trained[0]

    def _time_what_was_lost(self) -> None:
        """Note when the lost node's trial is trained again, or has ended."""
        lost_s, n = self._lost
        if n < 0 or self.counts.again_after_s:
            return
        newest = max(k for each, k, _ in attempts(self.sweeps, "wild", opened=False) if each == n)
        if newest > 1 or n in self.sweeps.accepted("wild"):
            self.counts.again_after_s = round(time.monotonic() - lost_s, 1)


def attempts(
    sweeps: Sweeps, sweep_id: str, *, opened: bool = True
) -> list[tuple[int, int, dict[str, Any]]]:
    """The attempts at trials, of open ones alone: trial, number and owner."""
    found = []
    for path in sweeps.folder(sweep_id).glob("trials/*/[0-9]*/owner.json"):
        if not (opened and (path.parents[1] / "accepted").exists()):
            found.append((int(path.parts[-3]), int(path.parts[-2]), read_json(path)))
    return found


def as_another_machine(words: Sequence[str], boot_id: Path) -> list[str]:
    """A command whose processes the others can't see, as they can those of their own machine."""
    boot_id.write_text("another\n")
    over = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", over, str(boot_id), *words]


# One thing at a time, over eight trials

EIGHT = BRIEF.replace("[0.0, 0.2, 0.4, 0.6]", "[0.0, 0.5]").replace("[4, 8, 12]", "[4, 8]")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """An undisturbed grid of eight trials by one worker."""
    return undisturbed(tmp_path_factory.mktemp("eight"), EIGHT)


def undisturbed(folder: Path, text: str) -> Sweeps:
    """A search, and its sweep `calm` by one worker."""
    sweeps = Sweeps(Harness(folder), text)
    done = sweeps.harness.run(
        "tune", sweeps.job, "--sweep-id", "calm", "--workers", 1, timeout_s=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return sweeps


def check_same(sweeps: Sweeps, sweep_id: str, folder: Path | None = None) -> None:
    """Each trial counts once, with the score of an undisturbed one."""
    rows = read_rows(folder or sweeps.folder(sweep_id))
    assert by_settings(rows) == by_settings(sweeps.rows("calm"))
    trials = SweepDirectory(folder or sweeps.folder(sweep_id)).trials()
    assert [trial.status for trial in trials] == ["finished"] * 8


def by_settings(rows: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """The objective of each setting, to the last digit."""
    return {tuple(row[key] for key in KEYS): row["val_loss"] for row in rows}


def read_rows(folder: Path) -> list[dict[str, str]]:
    """A leaderboard's rows."""
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_node_is_stopped_for_ten_minutes_and_woken(tmp_path: Path) -> None:
    """Its trial goes on elsewhere, and what its worker says when it is woken changes nothing."""
    sweeps = undisturbed(tmp_path, EIGHT.replace("epochs = 4", "epochs = 300"))
    process, node = (sweeps.start("woken", "--workers", 1) for _ in range(2))
    stopped: list[int] = []

    def stop() -> bool:
        stopped.extend(stop_a_node(sweeps, "woken", node.pid))
        return bool(stopped)

    wait_for(stop, timeout_s=LIMIT_S)
    woken_s = time.monotonic() + 600
    try:
        wait_for(lambda: given_again(sweeps, "woken"), timeout_s=LIMIT_S)
        wait_for(lambda: time.monotonic() > woken_s, timeout_s=LIMIT_S)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    for each in (process, node):
        said, errors = each.communicate(timeout=LIMIT_S)
        assert each.returncode == 0, said + errors
    check_same(sweeps, "woken")


def stop_a_node(sweeps: Sweeps, sweep_id: str, command: int) -> list[int]:
    """Stop a command and its worker, if that is in the first half of a trial; both, if so."""
    workers = [each.pid for each in psutil.Process(command).children(recursive=True)]
    for n, k, owner in attempts(sweeps, sweep_id):
        beat = read_json(sweeps.folder(sweep_id) / f"trials/{n}/{k}/beat.json")
        if owner["process"] in workers and 0 < beat.get("saved", 0) < 450:  # of 900 steps
            both = [command, owner["process"]]
            for pid in both:
                os.kill(pid, signal.SIGSTOP)
            if not (sweeps.folder(sweep_id) / f"trials/{n}/accepted").exists():
                return both
            for pid in both:
                os.kill(pid, signal.SIGCONT)
    return []


def given_again(sweeps: Sweeps, sweep_id: str) -> bool:
    """Whether a trial has had a second attempt."""
    return any(k > 1 for _, k, _ in attempts(sweeps, sweep_id, opened=False))


@pytest.mark.slow
def test_errors_of_the_file_system_and_clocks_apart_change_nothing(eight: Sweeps) -> None:
    """EIO and ESTALE come from one in 100 operations of every process, which also do them."""
    log = eight.harness.folder / "faults.log"
    faulty = {
        "PYTHONPATH": f"{FAULTS}:{PROJECT}",
        "FAULTS_BELOW": str(eight.folder("faulty")),
        "FAULTS_LOG": str(log),
    }
    usual = dict(eight.harness.environment)
    eight.harness.environment |= faulty
    try:
        for _ in range(20):  # what it writes before it works may fail, and is said
            process = eight.start("faulty", "--workers", 2)
            said, errors = process.communicate(timeout=LIMIT_S)
            if process.returncode == 0:
                break
            assert "Traceback" not in errors, errors
    finally:
        eight.harness.environment = usual
    assert process.returncode == 0, said + errors
    struck = log.read_text().splitlines()
    kinds = Counter(line.split()[1] for line in struck)
    print(f"{len(struck)} errors: {dict(kinds)}")  # noqa: T201
    assert min(kinds["EIO"], kinds["ESTALE"]) > 3, struck
    check_same(eight, "faulty")


@pytest.fixture
def views(tmp_path: Path) -> Iterator[list[Path]]:
    """Two views of one folder, each with caches of 30 s: attributes, entries, missing entries."""
    mounts = [tmp_path / "one", tmp_path / "two"]
    (tmp_path / "disk").mkdir()
    caches = ",".join(f"{kind}_timeout=30" for kind in ("attr", "entry", "negative"))
    for mount in mounts:
        mount.mkdir()
        words = ["bindfs", "-o", f"{caches},kernel_cache", str(tmp_path / "disk"), str(mount)]
        done = subprocess.run(words, capture_output=True, check=False, timeout=60)
        if done.returncode:
            pytest.skip(f"no FUSE here: {done.stderr.decode()}")
    yield mounts
    for mount in mounts:
        subprocess.run(["fusermount3", "-uz", str(mount)], check=False, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bindfs") is None, reason="apt-get install bindfs")
def test_over_two_views_of_one_folder_that_are_30_s_late(eight: Sweeps, views: list[Path]) -> None:
    """A command on each, with a worker; the first one is killed on the way and begins anew."""
    one, two = (view / "small/late" for view in views)
    assert not two.exists()  # which that view goes on seeing for a while
    words = ("tune", eight.job, "--sweep-id", "late", "--workers", 1, "--runs")
    process = eight.harness.start(*words, views[0], is_forked=False)
    wait_for(lambda: read_json(one / "state.json").get("running"), timeout_s=LIMIT_S)
    wait_for(two.exists, timeout_s=60)
    joined = eight.harness.start("sweep", "join", two, "--workers", 1, is_forked=False)
    wait_for(
        lambda: sum(bool(t.attempt) for t in SweepDirectory(one).trials()) >= 3, timeout_s=LIMIT_S
    )
    process.kill()
    process.communicate()
    process = eight.harness.start(*words, views[1], is_forked=False)
    said, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said + errors
    said, errors = joined.communicate(timeout=LIMIT_S)
    assert joined.returncode == 0, said + errors
    time.sleep(31)
    for folder in (one, two):
        check_same(eight, "late", folder)
