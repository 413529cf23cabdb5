"""Workers that meet, share and miss each other: real sockets, no TensorFlow."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from harness.errors import InputError, Interrupted, RunError
from harness.slurm import rendezvous
from harness.slurm.client import node_names
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.rendezvous import FIRST_PORT, LAST_PORT, MEETING_PORTS, WorkerGroup, first_port
from harness.system.auth_channel import HELLO_S, NONCE_BYTES
from tests.slurm.cluster import wait_until

# A worker that stands for one that hangs in TensorFlow, so that only its own watch can end it.
HANGS = """
import sys, time
from harness.slurm import rendezvous
from harness.slurm.environment import SlurmEnvironment
rendezvous.END_S = 0.5
group = rendezvous.WorkerGroup.join(SlurmEnvironment.from_environment(), "the same")
print("met", flush=True)
time.sleep(60)
"""


JOB_IDS = itertools.count(os.getpid() * 100)


@pytest.fixture
def job_id() -> str:
    """A job whose ports no other test uses."""
    return str(next(JOB_IDS))


def variables(
    job_id: str, rank: int, nodes: str = "localhost localhost", **more: str
) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NUM_NODES": str(len(nodes.split())),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(len(nodes.split())),
        "SLURM_PROCID": str(rank),
        "HARNESS_NODES": nodes,
        "HARNESS_SECRET": "a secret",
        **more,
    }


def allocation(job_id: str, rank: int, **more: str) -> SlurmEnvironment:
    found = SlurmEnvironment.from_environment(variables(job_id, rank, **more))
    assert found
    return found


def join_all(*calls: Callable[[], WorkerGroup]) -> list[Future[WorkerGroup]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(call) for call in calls]


def join(
    job_id: str, rank: int, purpose: str = "the same", **more: str
) -> Callable[[], WorkerGroup]:
    return lambda: WorkerGroup.join(allocation(job_id, rank, **more), purpose, join_s=5)


def eventually(raises: type[Exception], worker_group: WorkerGroup, match: str) -> None:
    wait_until(lambda: worker_group.ended is not None, timeout_s=10, poll_s=0.02)
    with pytest.raises(raises, match=match):
        worker_group.check()


def test_workers_meet_and_are_named_in_the_order_of_their_tasks(job_id: str) -> None:
    """Each is told the address of all, in one order, each with a port of its own."""
    nodes = "localhost 127.0.0.1 localhost"
    futures = join_all(*(join(job_id, rank, nodes=nodes) for rank in (2, 0, 1)))
    found = [future.result().addresses for future in futures]
    assert found[0] == found[1] == found[2]
    assert [address.partition(":")[0] for address in found[0]] == nodes.split()
    assert len(set(found[0])) == 3
    assert all(FIRST_PORT <= int(a.partition(":")[2]) <= LAST_PORT for a in found[0])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_workers_meet_over_ipv6(job_id: str) -> None:
    """The chief is found by either protocol, as the name of its node leads there."""
    nodes = "::1 localhost 127.0.0.1"
    chief, *workers = join_all(*(join(job_id, rank, nodes=nodes) for rank in range(3)))
    assert chief.result().addresses[0].startswith("[::1]:")
    assert {worker.result().addresses[0] for worker in workers} == {chief.result().addresses[0]}


def test_workers_meet_on_the_sites_interface_alone(
    job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address is given to TensorFlow, and no other address of the chief is listened on."""
    monkeypatch.setenv("HARNESS_INTERFACE", "lo")
    outside = next(
        (each.address for name, addresses in psutil.net_if_addrs().items() if name != "lo"
         for each in addresses if each.family == socket.AF_INET), None,
    )  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        chief = pool.submit(join(job_id, 0))
        with connected(("127.0.0.1", first_port(job_id))):
            if outside:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((outside, first_port(job_id)), timeout=5)
        worker = pool.submit(join(job_id, 1))
        assert chief.result().addresses == worker.result().addresses
    assert all(address.startswith("127.0.0.1:") for address in chief.result().addresses)


def test_an_interface_that_is_not_there_is_named(
    job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the setting, its value and the interfaces that are here."""
    monkeypatch.setenv("HARNESS_INTERFACE", "ib7")
    with pytest.raises(InputError, match=r"HARNESS_INTERFACE ib7: no such interface .* lo"):
        join(job_id, 0)()


def test_names_keep_their_order_and_zeros(job_id: str) -> None:
    """Nodes are numbered as Slurm lists them, n10 after n09 and n9."""
    assert node_names(allocation(job_id, 0, nodes="n08 n9 n10")) == ["n08", "n9", "n10"]


def test_jobs_side_by_side_use_other_ports() -> None:
    """The next jobs' ports do not overlap, and all lie in the range that is named."""
    firsts = [first_port(str(job)) for job in range(4_000_000, 4_000_300)]
    assert len(set(firsts)) == 300
    assert min(*firsts, FIRST_PORT) == FIRST_PORT
    assert max(firsts) + MEETING_PORTS < LAST_PORT


def test_a_worker_that_never_comes_is_named(job_id: str) -> None:
    """The chief says which node is missing; a worker says that the chief is."""
    with pytest.raises(RunError, match="no worker came from elsewhere to localhost"):
        WorkerGroup.join(allocation(job_id, 0, nodes="localhost elsewhere"), "any", join_s=0.3)
    with pytest.raises(RunError, match="chief on localhost can't be reached"):
        WorkerGroup.join(allocation(job_id, 1), "any", join_s=0.3)


def test_workers_of_another_purpose_are_refused(job_id: str) -> None:
    """Nodes that would train different jobs, or on different data, all say so and end."""
    futures = join_all(join(job_id, 0), join(job_id, 1, purpose="another"))
    for future in futures:
        with pytest.raises(RunError, match="another job, other data"):
            future.result()


def test_two_tasks_on_a_node_are_refused(job_id: str) -> None:
    """One process drives all the GPUs of a node, and srun is to be told so."""
    two = allocation(job_id, 0, nodes="localhost", SLURM_STEP_NUM_TASKS="2")
    with pytest.raises(InputError, match="--ntasks-per-node=1"):
        WorkerGroup.join(two, "any")


def connected(address: tuple[str, int]) -> socket.socket:
    """A connection to who may not listen yet."""
    for _ in range(200):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(address)
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens at {address}")


def test_strangers_and_taken_ports_are_passed_by(job_id: str) -> None:
    """Who holds the first port, says nonsense or knows no secret keeps nobody from meeting."""
    first = first_port(job_id)
    stranger = {"HARNESS_SECRET": "another"}
    with socket.create_server(("", first)) as taken, ThreadPoolExecutor(2) as pool:
        chief = pool.submit(join(job_id, 0))
        with connected(("localhost", first + 1)) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert len(browser.recv(NONCE_BYTES)) == NONCE_BYTES  # the challenge, and no more
            with contextlib.suppress(ConnectionResetError):
                assert browser.recv(1) == b""
        taken.close()  # else a worker would wait there for an answer
        with pytest.raises(RunError, match="can't be reached"):
            WorkerGroup.join(allocation(job_id, 1, **stranger), "the same", join_s=0.1)
        worker = pool.submit(join(job_id, 1))
        assert chief.result().addresses == worker.result().addresses


def test_strangers_that_drip_delay_nobody(job_id: str) -> None:
    """Strangers that are connected and send a byte now and then hold up no worker."""
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        chief = pool.submit(join(job_id, 0))
        address = "localhost", first_port(job_id)
        strangers = [stack.enter_context(connected(address)) for _ in range(3)]
        for stranger in strangers:
            stranger.sendall(b"\0")
        begun = time.monotonic()
        worker = pool.submit(join(job_id, 1))
        assert chief.result().addresses == worker.result().addresses
        assert time.monotonic() - begun < HELLO_S / 2


def test_a_stranger_that_drips_holds_no_chief_past_its_deadline(job_id: str) -> None:
    """With a stranger alone, the chief gives up when the time is over, not later."""
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        chief = pool.submit(
            WorkerGroup.join, allocation(job_id, 0, nodes="localhost elsewhere"), "any", join_s=1
        )
        with connected(("localhost", first_port(job_id))) as stranger:
            while not chief.done() and time.monotonic() - begun < 10:
                with contextlib.suppress(OSError):
                    stranger.sendall(b"\0")
                time.sleep(0.1)
        with pytest.raises(RunError, match="no worker came from elsewhere"):
            chief.result()
        assert time.monotonic() - begun < 3


def test_without_the_scripts_the_users_own_secret_serves(
    job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under srun by hand there is no HARNESS_SECRET, and the job's id is no secret."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chief, worker = join_all(*(join(job_id, rank, HARNESS_SECRET="") for rank in (0, 1)))
    assert chief.result().addresses == worker.result().addresses
    assert (tmp_path / "harness" / "secret").stat().st_mode & 0o777 == 0o600


def test_the_chief_shares_with_all(job_id: str) -> None:
    """What the chief gives arrives whole, in order, however long or empty."""
    chief, worker = (f.result() for f in join_all(join(job_id, 0), join(job_id, 1)))
    long = os.urandom(3_000_000)
    for content in (b"", long):
        assert chief.share(content) == content
        assert worker.share() == content


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_worker_that_fails_ends_the_others_for_its_reason(job_id: str, rank: int) -> None:
    """Whoever fails, all others fail too, and say why."""
    nodes = "localhost localhost localhost"
    everyone = [f.result() for f in join_all(*(join(job_id, r, nodes=nodes) for r in range(3)))]
    with pytest.raises(InputError), everyone[rank]:
        raise InputError("no such thing")
    for other in range(3):
        if other != rank:
            eventually(RunError, everyone[other], "failed: no such thing")
            everyone[other]._leaving = True


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_worker_that_is_lost_interrupts_the_others(job_id: str, rank: int) -> None:
    """Whoever dies without a word, all others can go on from the last checkpoint later."""
    nodes = "localhost localhost localhost"
    everyone = [f.result() for f in join_all(*(join(job_id, r, nodes=nodes) for r in range(3)))]
    for link in everyone[rank]._links.values():
        link.connection.shutdown(socket.SHUT_RDWR)
    for other in range(3):
        if other != rank:
            eventually(Interrupted, everyone[other], "the loss of the worker on localhost")
    for each in everyone:
        each._leaving = True


@pytest.mark.parametrize("error", [None, Interrupted("SIGUSR2")], ids=["done", "interrupted"])
def test_a_worker_waits_for_the_chief_to_finish(
    job_id: str, monkeypatch: pytest.MonkeyPatch, error: Interrupted | None
) -> None:
    """It stays until the chief has written everything, or saved: srun ends the rest a minute later.

    An interrupted one does not stay for long, since it may be interrupted alone.
    """
    monkeypatch.setattr(rendezvous, "BEAT_S", 0.05)
    monkeypatch.setattr(rendezvous, "LOST_S", 0.5)
    chief, worker = (f.result() for f in join_all(join(job_id, 0), join(job_id, 1)))
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(worker.__exit__, type(error), error, None)
        time.sleep(1.5)
        assert not leaving.done()
        with chief:
            pass
        leaving.result(timeout=5)
    monkeypatch.setattr(rendezvous, "END_S", 0.1)
    alone, other = (f.result() for f in join_all(join(job_id, 1), join(job_id, 0)))
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(alone.__exit__, Interrupted, Interrupted("alone"), None)
        leaving.result(timeout=5)
    other._leaving = True


def test_a_worker_that_hangs_ends_when_another_is_lost(job_id: str) -> None:
    """An operation that nobody will complete does not hold a process for ever: exit code 75."""

    def start(rank: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", HANGS],
            env={**os.environ, **variables(job_id, rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with start(0) as chief, start(1) as worker:
        for each in (chief, worker):
            assert each.stdout
            assert each.stdout.readline() == "met\n"
        worker.send_signal(signal.SIGKILL)
        assert chief.wait(timeout=20) == Interrupted.exit_code
        assert chief.stderr
        assert "the loss of the worker on localhost" in chief.stderr.read()
