"""Workers exchange addresses, contents and reports in a folder, here without TensorFlow."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import InputError, Interrupted, RunError
from harness.slurm import nodes
from harness.slurm.client import node_names
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.nodes import PORTS, WorkerGroup, listener

# A worker that waits for another worker, as TensorFlow does.
WAITS = """
import os, sys, time
from pathlib import Path
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.nodes import WorkerGroup
from harness.system import stderr_filter
stderr_filter.capture(os.memfd_create("messages"))
os.write(2, b"TensorFlow's last message\\n")
runs, limit_s = Path(sys.argv[1]), float(sys.argv[2])
group = WorkerGroup.join(SlurmEnvironment.from_environment(), runs, "the same")
print("met", flush=True)
with group.limited(limit_s):
    time.sleep(60)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder for a job's runs; no run has begun yet."""
    return tmp_path / "runs/lstm"


@pytest.fixture(autouse=True)
def _reports_arrive_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "REPORT_S", 0.5)


def variables(rank: int, nodes: str = "localhost localhost", **more: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": str(len(nodes.split())),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(len(nodes.split())),
        "SLURM_PROCID": str(rank),
        "HARNESS_NODES": nodes,
        **more,
    }


def allocation(rank: int, **more: str) -> SlurmEnvironment:
    found = SlurmEnvironment.from_environment(variables(rank, **more))
    assert found
    return found


def join_all(*calls: Callable[[], WorkerGroup]) -> list[Future[WorkerGroup]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(call) for call in calls]


def join(
    rank: int, runs: Path, purpose: str = "the same", **more: str
) -> Callable[[], WorkerGroup]:
    return lambda: WorkerGroup.join(allocation(rank, **more), runs, purpose, join_s=30)


def met(runs: Path, num: int = 2, **more: str) -> list[WorkerGroup]:
    """Return `num` workers, one per node, that know each other's addresses."""
    nodes = " ".join(["localhost"] * num)
    calls = (join(rank, runs, nodes=nodes, **more) for rank in range(num))
    return [future.result() for future in join_all(*calls)]


def test_workers_know_all_addresses(runs: Path) -> None:
    """The addresses are in the order of ranks, and their ports differ; nodes keep Slurm's order."""
    names = "localhost 127.0.0.1 localhost"
    futures = join_all(*(join(rank, runs, nodes=names) for rank in (2, 0, 1)))
    found = [future.result().addresses for future in futures]
    assert found[0] == found[1] == found[2]
    assert [address.partition(":")[0] for address in found[0]] == names.split()
    ports = {int(address.partition(":")[2]) for address in found[0]}
    assert len(ports) == 3
    assert ports < {*PORTS}
    assert node_names(allocation(0, nodes="n08 n9 n10")) == ["n08", "n9", "n10"]


def test_the_folder_is_private_and_hidden(runs: Path) -> None:
    """The workers' folder lies beside the runs, because the new run may still be refused."""
    folder = met(runs)[0].folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert [*runs.iterdir()] == [folder]
    assert folder.name.startswith(".")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_refused(runs: Path) -> None:
    """The other user could choose the addresses to which TensorFlow connects."""
    folder = runs / ".workers-7-0-0"
    folder.mkdir(parents=True)
    os.chown(folder, 65534, -1)
    with pytest.raises(InputError, match="belongs to nobody"):
        join(0, runs)()


def test_interface_between_the_nodes(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HARNESS_INTERFACE chooses the address; if there is no such interface, the error lists all."""
    monkeypatch.setenv("HARNESS_INTERFACE", "lo")
    chief, worker = met(runs)
    assert chief.addresses == worker.addresses
    assert all(address.startswith("127.0.0.1:") for address in chief.addresses)
    monkeypatch.setenv("HARNESS_INTERFACE", "ib7")
    with pytest.raises(InputError, match=r"ib7: this node has no such interface .* lo"):
        join(0, runs)()


def test_workers_that_can_not_meet_are_named(runs: Path) -> None:
    """A worker is missing, or has another job or other data, or two workers share a node."""
    two = allocation(0, nodes="localhost elsewhere")
    with pytest.raises(RunError, match=r"no worker arrived from elsewhere; .*runs/lstm"):
        WorkerGroup.join(two, runs, "any", join_s=0.3)
    shutil.rmtree(runs)
    for future in join_all(join(0, runs), join(1, runs, purpose="another")):
        with pytest.raises(RunError, match="another job, other data"):
            future.result()
    two = allocation(0, nodes="localhost", SLURM_STEP_NUM_TASKS="2")
    with pytest.raises(InputError, match="--ntasks-per-node=1"):
        WorkerGroup.join(two, runs, "any")


def test_a_worker_that_can_not_be_reached_is_named(runs: Path) -> None:
    """TensorFlow would wait in silence, and no signal would end it. The others get the reason."""
    folder = runs / ".workers-7-0-0"
    folder.mkdir(parents=True)
    with listener(PORTS, 1) as server:
        address = f"localhost:{server.getsockname()[1]}"
    (folder / "1.json").write_text(json.dumps({"address": address, "purpose": "the same"}))
    said = rf"can't connect to {address} on localhost: .*refused; allow TCP between the nodes"
    with pytest.raises(RunError, match=said):
        join(0, runs)()
    assert re.search(said, json.loads((folder / "left-0.json").read_text())["text"])


def test_files_of_a_killed_start_of_the_same_step_are_forgotten(runs: Path) -> None:
    """A shell loop inside a job step may start the workers again."""
    folder = runs / ".workers-7-0-0"
    folder.mkdir(parents=True)
    for name in ("shared-0", "gathered-1-0", "gathered-1-1", "left-1.json", "reached-1"):
        (folder / name).write_text('{"code": 1}')
    chief, worker = met(runs)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.share)
        time.sleep(0.5)
        assert chief.share(b"new") == waiting.result() == b"new"


def test_a_new_start_has_a_new_folder(runs: Path) -> None:
    """The folder of an earlier start is removed, and so are old folders of other jobs."""
    before = met(runs)
    for name in ("old", "new"):
        (runs / f".workers-{name}").mkdir()
    os.utime(runs / ".workers-old", (1, 1))
    after = met(runs, SLURM_RESTART_COUNT="1")
    assert after[0].folder != before[0].folder
    assert not before[0].folder.exists()
    assert {path.name for path in runs.iterdir()} == {after[0].folder.name, ".workers-new"}


def test_two_steps_of_a_job_do_not_disturb_each_other(runs: Path) -> None:
    """A step that begins later keeps the folder of a step that still trains."""
    chief, worker = met(runs)
    met(runs, SLURM_STEP_ID="1")
    names = {"0.json", "1.json", "reached-0", "reached-1"}
    assert {path.name for path in chief.folder.iterdir()} == names
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.share)
        time.sleep(0.5)
        chief.share(b"content")
        assert waiting.result() == b"content"


def test_the_chief_shares_with_all(runs: Path) -> None:
    """Contents arrive complete and in order, even if they are empty or long."""
    chief, worker = met(runs)
    for content in (b"", os.urandom(3_000_000)):
        assert chief.share(content) == content
        assert worker.share() == content


def test_nobody_waits_for_a_chief_that_ended(runs: Path) -> None:
    """A signal may stop the chief before it shares anything."""
    chief, worker = met(runs)
    with pytest.raises(Interrupted), chief:
        raise Interrupted("SIGTERM")
    with pytest.raises(Interrupted, match="the exit of the worker on localhost"):
        worker.share()


def test_the_wait_for_a_chief_that_was_killed_is_limited(runs: Path) -> None:
    """A chief that is killed before TensorFlow's connection leaves no report."""
    _, worker = met(runs)
    with pytest.raises(RunError, match=r"nothing arrived from localhost for 0 s; .*lstm"):
        worker.share(wait_s=0.3)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_failed_worker_ends_the_others(runs: Path, rank: int) -> None:
    """The other workers raise an error with the reason of the failed worker."""
    everyone = met(runs, 3)
    with pytest.raises(InputError), everyone[rank]:
        raise InputError("no such thing")
    for other in range(3):
        if other != rank:
            with pytest.raises(RunError, match="on localhost failed: no such thing"):
                everyone[other].explain()


def test_a_lost_worker_is_named_by_its_node(runs: Path) -> None:
    """If TensorFlow's message names no other worker, the error names the nodes of all others."""
    nodes = "localhost 127.0.0.1 127.0.0.2"
    calls = [join(rank, runs, nodes=nodes) for rank in range(3)]
    group = join_all(*calls)[0].result()
    group.explain()  # does nothing, because no worker has reported a failure
    assert group.lost("aborted by /job:worker/replica:0/task:2") == "127.0.0.2"
    assert group.lost("/job:worker/replica:0/task:0 saw a reset") == "127.0.0.1 or 127.0.0.2"


@pytest.mark.parametrize("error", [None, Interrupted("SIGUSR2")])
def test_a_worker_waits_for_the_chief_to_finish(runs: Path, error: Interrupted | None) -> None:
    """A worker ends after the chief has written everything and the folder is removed."""
    chief, worker = met(runs)
    kind = Interrupted if error else None
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(worker.__exit__, kind, error, None)
        time.sleep(1)
        assert not leaving.done()
        chief.__exit__(kind, error, None)
        leaving.result(timeout=5)
    assert not chief.folder.exists()


def test_a_report_during_the_removal_of_the_folder(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a worker ends while the chief removes the folder, nobody waits, and no folder is left."""
    chief, worker = met(runs)
    remove = shutil.rmtree

    def then_report(folder: Path, ignore_errors: bool) -> None:
        remove(folder, ignore_errors=ignore_errors)
        folder.mkdir()
        (folder / "left-1.json").write_text("{}")

    with monkeypatch.context() as patched:
        patched.setattr("harness.slurm.nodes.shutil.rmtree", then_report)
        chief.__exit__(None, None, None)
    worker.__exit__(None, None, None)
    assert not chief.folder.exists()


def test_a_wait_for_tensorflow_is_limited(runs: Path) -> None:
    """After a time limit the exit code is 75; if a worker failed, the wait ends with its reason.

    TensorFlow's last messages come first.
    """

    def start(limit_s: float, restarts: str) -> "subprocess.Popen[str]":
        env = {**os.environ, **variables(0), "SLURM_RESTART_COUNT": restarts}
        words = [sys.executable, "-c", WAITS, str(runs), str(limit_s)]
        return subprocess.Popen(words, env=env, stdout=-1, stderr=-1, text=True)

    for limit_s, restarts, code, said in (
        (1.0, "0", Interrupted.exit_code, "interrupted by TensorFlow has waited 1 s for the other"),
        (50.0, "1", 1, "the worker on localhost failed: no such thing"),
    ):
        with start(limit_s, restarts) as chief:
            worker = join(1, runs, SLURM_RESTART_COUNT=restarts)()
            assert chief.stdout
            assert chief.stdout.readline() == "met\n"
            if limit_s > 1:
                with pytest.raises(InputError), worker:
                    raise InputError("no such thing")
            assert chief.wait(timeout=20) == code
            assert chief.stderr
            last, line = chief.stderr.read().splitlines()
            assert last == "TensorFlow's last message"
            assert said in line


def test_nobody_waits_for_a_chief_that_may_be_lost(runs: Path) -> None:
    """A worker that has noticed the loss of the chief ends at once."""
    _, worker = met(runs)
    worker.lost("/job:worker/replica:0/task:0")
    began = time.monotonic()
    worker.__exit__(Interrupted, Interrupted("a loss"), None)
    assert time.monotonic() - began < nodes.SAVE_S / 2
