"""Connects the workers, which are the processes that train one model on several nodes.

The workers communicate through a private folder beside the run's folder; each start of a job step
creates a new folder. Each worker first writes its address into the private folder, and waits at
most JOIN_S seconds until the folder contains all addresses; TensorFlow would wait an hour for a
missing worker. Then each worker tries whether it can connect to the others, and TensorFlow connects
the workers. The first worker, the chief, also writes its execution plan (how steps are computed)
and its newest checkpoint into the private folder; the other workers read these files. Each worker
writes a report when it ends. TensorFlow's heartbeats detect a worker that died. The watchdog of
each training process detects a worker that hangs.
"""

import contextlib
import json
import math
import os
import random
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from harness.errors import InputError, Interrupted, RunError
from harness.slurm.client import node_names
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import log_last_error
from harness.system.files import atomic_write, names_in, owner_name, read_if_there
from harness.system.lenient_json import parse_json
from harness.system.stderr_filter import show_rest_soon

# Few of these ports are in use, because Linux gives clients port numbers of 32768 and above.
PORTS = range(20_000, 32_000)
NUM_TRIES = 100  # number of ports that a worker tries

INTERFACE = "HARNESS_INTERFACE"

REACH_S = 10.0  # seconds to wait for a connection to another worker
JOIN_S = 120.0  # seconds to wait for all workers; NFS may show a new file a minute late
REPORT_S = 10.0  # seconds to wait for the report of a worker that TensorFlow no longer reaches
LEAVE_S = 600.0  # seconds to wait until the chief has written the run's last files
SAVE_S = 20.0  # seconds to wait until the chief has saved, if a signal ends this worker
POLL_S = 0.2
ABANDONED_S = 30 * 86_400.0  # age at which the folder of a killed job is removed

TASK = re.compile(r"task:(\d+)")  # how TensorFlow's messages name a worker


class WorkerGroup:
    """One worker's view of the group of workers.

    At the end of the `with` block, the other workers receive a report that this worker has ended.
    The chief is the worker with rank 0 in the job step.
    """

    def __init__(self, folder: Path, nodes: list[str], rank: int) -> None:
        self.folder, self.nodes, self.rank = folder, nodes, rank
        self.addresses: list[str] = []  # host:port of each rank's TensorFlow server
        self._num_shared = 0
        self._has_lost = False  # whether TensorFlow no longer reaches another worker

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes into the run's folder."""
        return self.rank == 0

    @property
    def node(self) -> str:
        """The name of this worker's node."""
        return self.nodes[self.rank]

    # Start

    @classmethod
    def join(
        cls, allocation: SlurmEnvironment, parent: Path, purpose: str, join_s: float = JOIN_S
    ) -> "WorkerGroup":
        """Wait for the other workers of this job step, and return the group of workers.

        Args:
            allocation: a job step with one task on each of several nodes.
            parent: the folder in which to create the group's folder; all nodes must see it.
            purpose: a text that identifies the job and the data; all workers must pass equal texts.
            join_s: the seconds to wait for the other workers.

        Raises:
            RunError: if a worker does not arrive within `join_s`, can't be reached, or has another
                `purpose`.
            InputError: if two workers share a node, HARNESS_INTERFACE does not exist, or the folder
                belongs to another user.
        """
        nodes = node_names(allocation)
        if len(nodes) != allocation.num_tasks:
            raise InputError(
                f"{allocation.num_tasks} tasks on {len(nodes)} nodes: each node should "
                "have one task, which uses all GPUs of the node; use srun --ntasks-per-node=1"
            )
        group = cls(_own_folder(parent, allocation), nodes, allocation.rank)
        group._forget()
        try:
            interface = os.environ.get(INTERFACE)
            host = interface_address(interface) if interface else group.node
            with listener(PORTS, len(nodes)) as server:
                own = {"address": f"{host}:{server.getsockname()[1]}", "purpose": purpose}
                group._write(f"{group.rank}.json", json.dumps(own).encode())
                group._meet(purpose, time.monotonic() + join_s)
                group._reach_all(join_s)
        except (InputError, RunError) as error:
            group._leave({"code": error.exit_code, "text": str(error)})
            raise
        return group

    def _forget(self) -> None:
        """Remove this worker's files of an earlier start of the same job step."""
        for path in self.folder.iterdir():
            if path.stem.endswith(f"-{self.rank}") or (self.is_chief and "shared-" in path.name):
                path.unlink(missing_ok=True)

    def _reach_all(self, join_s: float) -> None:
        """Connect to each other worker once: if TensorFlow can't connect, it waits without an end.

        While TensorFlow waits, it blocks all of Python, so no time limit and no signal ends it.
        """
        for rank, address in enumerate(self.addresses):
            host, _, port = address.rpartition(":")
            try:
                if rank != self.rank:
                    socket.create_connection((host, int(port)), timeout=REACH_S).close()
            except OSError as error:
                raise RunError(
                    f"{self.node}: can't connect to {address} on {self.nodes[rank]}: {error}; "
                    f"allow TCP between the nodes on ports {PORTS[0]} to {PORTS[-1]}, or set "
                    f"{INTERFACE} to the network interface between the nodes"
                ) from None
        self._write(f"reached-{self.rank}", b"")
        for rank in range(len(self.nodes)):  # until then, another worker may still connect here
            self._wait_for(f"reached-{rank}", rank, join_s)

    def _meet(self, purpose: str, deadline: float) -> None:
        found: dict[int, dict[str, Any]] = {}
        while True:
            for rank in {*range(len(self.nodes))} - found.keys():
                if content := self._read(f"{rank}.json"):
                    found[rank] = parse_json(content)
            for rank, each in found.items():
                if each.get("purpose") != purpose:
                    raise RunError(
                        f"{self.nodes[rank]} uses another job, other data or another version of "
                        f"the code than {self.node}; give all nodes the same files"
                    )
            missing = [node for rank, node in enumerate(self.nodes) if rank not in found]
            if not missing:
                self.addresses = [str(found[rank]["address"]) for rank in sorted(found)]
                return
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.node}: no worker arrived from {', '.join(missing)}; check that srun "
                    f"started a task on each node, and that all nodes see {self.folder.parent}"
                )
            time.sleep(POLL_S)

    # Sharing

    def share(self, content: bytes = b"", wait_s: float = math.inf) -> bytes:
        """Send the chief's `content` to all workers; return this content on every worker.

        Workers other than the chief pass no `content`, and wait for the chief's content.

        Args:
            wait_s: the seconds to wait. A call before TensorFlow has connected the workers needs a
                limit, because until then nothing else detects the death of the chief.

        Raises:
            Interrupted: if the chief has ended without an error.
            RunError: if a worker has failed (the error contains the worker's reason), or nothing
                has arrived within `wait_s`.
        """
        name = f"shared-{self._num_shared}"
        self._num_shared += 1
        if self.is_chief:
            self._write(name, content)
            return content
        return self._wait_for(name, 0, wait_s)

    def gather(self, value: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the values of all workers, in the order of their ranks.

        Raises:
            Interrupted, RunError: see `share`.
        """
        name = f"gathered-{self._num_shared}"
        self._num_shared += 1
        self._write(f"{name}-{self.rank}", json.dumps(value).encode())
        ranks = range(len(self.nodes))
        return [parse_json(self._wait_for(f"{name}-{rank}", rank, math.inf)) for rank in ranks]

    def _wait_for(self, name: str, rank: int, wait_s: float) -> bytes:
        """Return the content of a file that the worker with this rank writes."""
        deadline = time.monotonic() + wait_s
        while True:
            # Read the reports first: a worker that already has all files may fail at once.
            left = self._left()
            if (found := self._read(name)) is not None:
                return found
            self._check(left)
            if rank in left:
                raise Interrupted(f"the exit of the worker on {self.nodes[rank]}")
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.node}: nothing arrived from {self.nodes[rank]} for {wait_s:.0f} s; "
                    "check that srun's task on this node still runs, and that all nodes see "
                    f"{self.folder.parent}"
                )
            time.sleep(POLL_S)

    # The end

    def check(self) -> None:
        """Check that no other worker has failed.

        Raises:
            RunError: if a worker has failed; the error contains the worker's reason.
        """
        self._check(self._left())

    def _check(self, left: Mapping[int, Mapping[str, Any]]) -> None:
        for rank, report in left.items():
            if report.get("code") not in (0, Interrupted.exit_code):
                raise RunError(f"the worker on {self.nodes[rank]} failed: {report.get('text')}")

    def explain(self) -> None:
        """Wait REPORT_S seconds for a worker's report, which may explain TensorFlow's error.

        Raises:
            RunError: if a worker has failed; the error contains the worker's reason.
        """
        deadline = time.monotonic() + REPORT_S
        while time.monotonic() < deadline:
            self.check()
            time.sleep(POLL_S)

    def lost(self, message: str) -> str:
        """Record that another worker died; return the nodes on which that worker may have run.

        Args:
            message: TensorFlow's error; if it names no other worker, all other nodes are returned.
        """
        self._has_lost = True
        named = {int(rank) for rank in TASK.findall(message)} - {self.rank}
        others = {*range(len(self.nodes))} - {self.rank}
        return " or ".join(self.nodes[rank] for rank in sorted((named & others) or others))

    @contextlib.contextmanager
    def limited(self, limit_s: float) -> Iterator[None]:
        """End this process if a worker fails, or if the `with` block lasts over `limit_s` s."""
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
        """End this process at once, even while TensorFlow waits.

        No file remains incomplete, because this process writes all files atomically.
        """
        show_rest_soon()
        log_last_error(f"{self.node}: {text}")
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
            # This worker waits while the chief still writes, because srun kills the job step soon
            # after the first of its tasks has ended.
            deadline = time.monotonic() + (SAVE_S if code else LEAVE_S)
            while 0 not in self._left() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            # The chief may have removed the folder already.
            shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self, report: dict[str, Any]) -> None:
        """Report this worker's end; remove the folder if no other worker needs it."""
        with contextlib.suppress(OSError, RunError):  # the folder is gone, or the disk is full
            self._write(f"left-{self.rank}.json", json.dumps(report).encode())
        is_done = self.is_chief and report["code"] in (0, Interrupted.exit_code)
        if is_done or len(self._left()) == len(self.nodes) - 1:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> dict[int, dict[str, Any]]:
        """Return the reports of other workers that have ended, with their ranks as keys.

        If the chief's file `0.json` is missing, the chief has finished and removed the folder.
        """
        others = {*range(len(self.nodes))} - {self.rank}
        found = {rank: self._read(f"left-{rank}.json") for rank in others}
        reports = {rank: parse_json(content) for rank, content in found.items() if content}
        with contextlib.suppress(OSError):
            if not self.is_chief and read_if_there(self.folder / "0.json") is None:
                reports.setdefault(0, {"code": 0})
        return reports

    def _read(self, name: str) -> bytes | None:
        """Return the content of a file; None if the file is missing or unreadable."""
        with contextlib.suppress(OSError):
            names_in(self.folder)  # refreshes a stale NFS listing
            return read_if_there(self.folder / name)
        return None

    def _write(self, name: str, content: bytes) -> None:
        atomic_write(self.folder / name, content, 0o600)


def _own_folder(parent: Path, allocation: SlurmEnvironment) -> Path:
    """Create the folder of a job step; the chief removes the folders of earlier starts."""
    prefix = f".workers-{allocation.job_id}-"
    of_this_start = f"{prefix}{allocation.restarts}-"
    folder = parent / f"{of_this_start}{allocation.step}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if allocation.rank == 0:
            # If an earlier start of the job lost a node, the folder of that start still exists.
            # Another step of this start may still train, and so may another job.
            for old in parent.glob(".workers-*"):
                is_earlier = old.name.startswith(prefix) and not old.name.startswith(of_this_start)
                with contextlib.suppress(FileNotFoundError):  # another job has just ended
                    if is_earlier or time.time() - old.lstat().st_mtime > ABANDONED_S:
                        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{folder}: can't be created: {error.strerror}; check the disk") from None
    if status.st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to {owner_name(status.st_uid)}; remove this folder")
    return folder


def listener(ports: Sequence[int], backlog: int) -> socket.socket:
    """Listen on a random port that no other IPv4 listener uses.

    Raises:
        RunError: if none of NUM_TRIES random ports is free.
    """
    for port in random.SystemRandom().sample(ports, NUM_TRIES):
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), backlog=backlog)
    raise RunError(f"{socket.gethostname()}: no port is free for TensorFlow's server; try again")


def interface_address(name: str) -> str:
    """Return the IPv4 address of a network interface, such as ib0.

    Raises:
        InputError: if the interface does not exist or has no IPv4 address.
    """
    interfaces = psutil.net_if_addrs()
    for each in interfaces.get(name, ()):
        if each.family == socket.AF_INET:
            return each.address
    known = ", ".join(sorted(interfaces))
    raise InputError(
        f"{INTERFACE} {name}: this node has no such interface with an IPv4 address; use one of: "
        f"{known}"
    )
