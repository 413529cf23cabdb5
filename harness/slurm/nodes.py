"""The processes that train one model on several nodes: they meet in a folder among its job's runs.

TensorFlow waits an hour for a worker that never comes. So before the strategy is made, each worker
writes there where it listens, and reads where the others do. Through the folder the first worker,
the chief, shares its plan and its checkpoint, and a worker that ends says why. A lost worker is
noticed by TensorFlow's own heartbeats, and one that hangs by the watchdog.

Only this user can enter the folder. Each start of a job step has one of its own.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from harness.errors import InputError, Interrupted, RunError
from harness.slurm.client import node_names
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import log
from harness.system.files import SharedDisk, atomic_write, owner_name
from harness.system.lenient_json import parse_json

# Below the ports that systems assign to clients (from 32768 on Linux), so few of them are in use.
FIRST_PORT, LAST_PORT = 20_000, 31_999
PORTS_A_JOB = 32

INTERFACE = "HARNESS_INTERFACE"

JOIN_S = 120.0  # for all workers to come; a node may see a new file of another one after a minute
REPORT_S = 10.0  # for the report of a worker whose end TensorFlow has noticed
LEAVE_S = 600.0  # for the chief to write the run's last files
SAVE_S = 20.0  # for it to save where this worker is interrupted; it may be so alone
POLL_S = 0.2

TASK = re.compile(r"task:(\d+)")  # as TensorFlow names a worker


class WorkerGroup:
    """This worker and the others; a context manager that reports how it ended.

    Workers are numbered as Slurm numbers the tasks of a step; number 0 is the chief.
    """

    def __init__(self, folder: Path, nodes: list[str], rank: int) -> None:
        self.folder, self.nodes, self.rank = folder, nodes, rank
        self.addresses: list[str] = []  # of TensorFlow's servers, host:port, in the workers' order
        self._disk = SharedDisk()
        self._num_shared = 0
        self._has_lost = False  # another worker

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run's folder."""
        return self.rank == 0

    @property
    def node(self) -> str:
        """This worker's node, as Slurm names it."""
        return self.nodes[self.rank]

    # Coming together

    @classmethod
    def join(
        cls, allocation: SlurmEnvironment, parent: Path, purpose: str, join_s: float = JOIN_S
    ) -> "WorkerGroup":
        """Meet the other workers of this job step.

        Args:
            allocation: whose step has several tasks, one on each node.
            parent: the folder for that of the group; all nodes see it.
            purpose: identifies job and data; it must be the same for all.
            join_s: how long to wait for the others, in seconds.

        Raises:
            RunError: if not all came in time, or for different purposes; it names the nodes.
            InputError: if two of them share a node, HARNESS_INTERFACE is not here, or the folder
                is another user's.
        """
        nodes = node_names(allocation)
        if len(nodes) != allocation.num_tasks:
            raise InputError(
                f"{allocation.num_tasks} tasks on {len(nodes)} nodes: should be one a node, which "
                "drives all its GPUs; give srun --ntasks-per-node=1"
            )
        group = cls(_own_folder(parent, allocation), nodes, allocation.rank)
        host = ""
        if interface := os.environ.get(INTERFACE):
            host = interface_address(interface, INTERFACE)
        first = first_port(allocation.job_id) + group.rank
        port = free_port("", range(first, LAST_PORT + 1 + PORTS_A_JOB, PORTS_A_JOB))
        own = {"address": with_port(host or group.node, port), "purpose": purpose}
        group._write(f"{group.rank}.json", json.dumps(own).encode())
        try:
            group._meet(purpose, time.monotonic() + join_s)
        except RunError:
            group._leave({"code": 1, "text": "it met no other worker"})
            raise
        return group

    def _meet(self, purpose: str, deadline: float) -> None:
        found: dict[int, dict[str, Any]] = {}
        while True:
            for rank in {*range(len(self.nodes))} - found.keys():
                if content := self._read(f"{rank}.json"):
                    found[rank] = parse_json(content)
            for rank, each in found.items():
                if each.get("purpose") != purpose:
                    raise RunError(
                        f"{self.nodes[rank]} has another job, other data or another version than "
                        f"{self.node}; give all nodes the same files"
                    )
            missing = [node for rank, node in enumerate(self.nodes) if rank not in found]
            if not missing:
                self.addresses = [str(found[rank]["address"]) for rank in sorted(found)]
                return
            if time.monotonic() > deadline:
                raise RunError(
                    f"no worker came from {', '.join(missing)} to {self.node}; see whether its "
                    f"task started, and whether it sees {self.folder.parent}"
                )
            time.sleep(POLL_S)

    # Sharing

    def share(self, content: bytes = b"") -> bytes:
        """Return the chief's content on every worker.

        Raises:
            Interrupted, RunError: if the chief is gone.
        """
        name = f"shared-{self._num_shared}"
        self._num_shared += 1
        if self.is_chief:
            self._write(name, content)
            return content
        while (found := self._read(name)) is None:
            self.check()
            if 0 in self._left():
                raise Interrupted(f"the end of the worker on {self.nodes[0]}")
            time.sleep(POLL_S)
        return found

    # The end

    def check(self) -> None:
        """Raise if another worker has failed.

        Raises:
            RunError: with its reason.
        """
        for rank, report in self._left().items():
            if report.get("code") not in (0, Interrupted.exit_code):
                raise RunError(f"the worker on {self.nodes[rank]} failed: {report.get('text')}")

    def explain(self) -> None:
        """Raise if an error of TensorFlow's follows from another worker's failure, else return.

        Raises:
            RunError: with the other worker's reason.
        """
        deadline = time.monotonic() + REPORT_S
        while time.monotonic() < deadline:
            self.check()
            time.sleep(POLL_S)

    def lost(self, message: str) -> str:
        """Note a loss; the nodes of the workers that TensorFlow's message about it may mean."""
        self._has_lost = True
        named = {int(rank) for rank in TASK.findall(message)} - {self.rank}
        others = {*range(len(self.nodes))} - {self.rank}
        return " or ".join(self.nodes[rank] for rank in sorted((named & others) or others))

    @contextlib.contextmanager
    def limited(self, limit_s: float) -> Iterator[None]:
        """End this process where the block waits in vain: for a worker that failed, or too long."""
        ended = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + limit_s
            while not ended.wait(1):
                try:
                    self.check()
                except RunError as error:
                    self._give_up(str(error), error.exit_code)
                if time.monotonic() > deadline:
                    reason = f"TensorFlow has waited {limit_s:.0f} s for the other workers"
                    self._give_up(f"interrupted by {reason}", Interrupted.exit_code)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _give_up(self, text: str, code: int) -> None:
        """End this process, which waits for ever; a run's files are never half written."""
        log(logging.ERROR, f"{self.node}: {text}")
        os._exit(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = getattr(error, "exit_code", 1) if error else 0
        self._leave({"code": code, "text": " ".join(str(error or "").split())[:500]})
        if not self.is_chief and code in (0, Interrupted.exit_code) and not self._has_lost:
            # The chief is still writing, and srun ends a step soon after its first task ends.
            deadline = time.monotonic() + (SAVE_S if code else LEAVE_S)
            while 0 not in self._left() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            shutil.rmtree(self.folder, ignore_errors=True)  # with a report after the chief's end

    def _leave(self, report: dict[str, Any]) -> None:
        """Say how this worker ended; the folder goes where nobody needs to read that any more."""
        with contextlib.suppress(OSError, RunError):  # gone with its chief; a full disk
            self._write(f"left-{self.rank}.json", json.dumps(report).encode())
        is_done = self.is_chief and report["code"] in (0, Interrupted.exit_code)
        if is_done or len(self._left()) == len(self.nodes) - 1:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> dict[int, dict[str, Any]]:
        """The reports of the other workers that have left, by rank.

        A chief that is done takes the folder with it.
        """
        others = {*range(len(self.nodes))} - {self.rank}
        found = {rank: self._read(f"left-{rank}.json") for rank in others}
        reports = {rank: parse_json(content) for rank, content in found.items() if content}
        with contextlib.suppress(OSError):
            if not self.is_chief and self._disk.read(self.folder / "0.json") is None:
                reports.setdefault(0, {"code": 0})
        return reports

    def _read(self, name: str) -> bytes | None:
        """The content of a file, None where it is not there, or can't be read now."""
        with contextlib.suppress(OSError):
            self._disk.names(self.folder)  # on NFS this makes the node look for new names
            return self._disk.read(self.folder / name)
        return None

    def _write(self, name: str, content: bytes) -> None:
        atomic_write(self.folder / name, content, 0o600)


def _own_folder(parent: Path, allocation: SlurmEnvironment) -> Path:
    """The folder of a job step, made by its first worker."""
    prefix = f".workers-{allocation.job_id}-"
    folder = parent / f"{prefix}{allocation.restarts}-{allocation.step}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if allocation.rank == 0:
            for old in parent.iterdir():  # of starts of the job that lost a node
                if old.name.startswith(prefix) and old != folder:
                    shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{folder}: can't be made: {error.strerror}; see its disk") from None
    if status.st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to {owner_name(status.st_uid)}; remove it")
    return folder


def first_port(job_id: str) -> int:
    """The first of a job's ports: jobs on the same node seldom get the same ones."""
    num_jobs = (LAST_PORT + 1 - FIRST_PORT) // PORTS_A_JOB
    return FIRST_PORT + int(job_id) % num_jobs * PORTS_A_JOB


ANY = (0,)  # a port that the system chooses


def free_port(host: str, ports: Iterable[int] = ANY) -> int:
    """The first of these ports that is free at an address; empty stands for all addresses.

    Another process may take it before the caller does.

    Raises:
        RunError: if none is free.
    """
    first = last = 0
    for port in ports:
        first, last = first or port, port
        if found := _listens(host, port):
            return found
    raise RunError(f"no port of {first} to {last} is free at {host or 'this machine'}")


def _listens(host: str, port: int) -> int:
    """Listen for a moment; returns the port, 0 where that is refused."""
    family = address_family(host)
    try:
        with socket.create_server(
            (host, port), family=family, dualstack_ipv6=not host and family == socket.AF_INET6
        ) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError):
        return 0


def address_family(host: str) -> socket.AddressFamily:
    """IPv6 for such an address, and for all addresses where IPv6 can serve IPv4 too."""
    is_ipv6 = ":" in host or (not host and socket.has_dualstack_ipv6())
    return socket.AF_INET6 if is_ipv6 else socket.AF_INET


def with_port(host: str, port: int) -> str:
    """An address as `host:port`, an IPv6 one in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def interface_address(name: str, option: str) -> str:
    """The address of a network interface, IPv4 where it has one.

    Args:
        name: as `ip addr` names it, such as ib0.
        option: the setting that names it, for messages.

    Raises:
        InputError: if there is no such interface here, or it has no address.
    """
    interfaces = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for each in interfaces.get(name, ()):
            # A link-local address is not one of the whole network.
            if each.family == family and not each.address.startswith("fe80:"):
                return each.address
    known = ", ".join(sorted(interfaces))
    raise InputError(f"{option} {name}: no such interface with an address; here are {known}")
