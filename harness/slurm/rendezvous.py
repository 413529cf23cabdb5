"""The processes that train one model on several nodes: they meet, and each notices a lost one.

TensorFlow waits an hour for a worker that never comes, and forever for one that hangs later. So
before the strategy is made, every worker connects to the first, the chief, which sends all of them
the addresses of all. The connections stay open: over them the chief shares its checkpoint, a worker
that fails reports it before it ends, and a lost worker is noticed within a minute.
"""

import contextlib
import json
import logging
import os
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from harness.errors import InputError, Interrupted, RunError
from harness.slurm.client import node_names
from harness.slurm.environment import SlurmEnvironment
from harness.system.auth_channel import AuthServer, Message, receive_exactly, say_hello, user_secret
from harness.system.console import log
from harness.system.network import free_port, interface_address, with_port

# Below the ports that systems assign to clients (from 32768 on Linux), so few of them are in use.
FIRST_PORT, LAST_PORT = 20_000, 31_999
PORTS_A_JOB = 32
MEETING_PORTS = 8  # of them, at one of which the chief listens

INTERFACE = "HARNESS_INTERFACE"

JOIN_S = 50.0  # for all workers to connect
BEAT_S = 5.0
LOST_S = 30.0  # without a beat
END_S = 20.0  # for TensorFlow to notice that another worker ended

BEAT, SHARED, ENDED, LEAVING = b"B", b"S", b"E", b"L"  # the kinds of messages


class WorkerGroup:
    """This worker's connections to the others; a context manager that reports how it ended.

    Workers are numbered as Slurm numbers the tasks of a step; number 0 is the chief.
    """

    def __init__(self, nodes: list[str], rank: int, *, secret: bytes, first_port: int) -> None:
        self.nodes, self.rank = nodes, rank
        self.host = ""  # the address to be reached at, where the site chooses an interface
        self.addresses: list[str] = []  # of TensorFlow's servers, host:port, in the workers' order
        self.ended: tuple[str, int] | None = None  # why the run can't go on, and the exit code
        self._secret, self._first_port = secret, first_port
        self._links: dict[int, _Link] = {}
        self._hellos: dict[int, Message] = {}  # of the workers, to the chief
        self._complete = threading.Event()  # each worker knows all addresses, or why it can't
        self._shared: queue.Queue[bytes] = queue.Queue()
        self._left: set[int] = set()
        self._changed = threading.Condition()
        self._leaving = False

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
        cls, allocation: SlurmEnvironment, purpose: str, join_s: float = JOIN_S
    ) -> "WorkerGroup":
        """Meet the other workers of this job step.

        Args:
            allocation: whose step has several tasks, one on each node.
            purpose: identifies job and data; it must be the same for all.
            join_s: how long to wait for the others, in seconds.

        Raises:
            RunError: if not all came in time, or for different purposes; it names the nodes.
            InputError: if two of them share a node, or HARNESS_INTERFACE is not here.
        """
        nodes = node_names(allocation)
        if len(nodes) != allocation.num_tasks:
            raise InputError(
                f"{allocation.num_tasks} tasks on {len(nodes)} nodes: should be one a node, which "
                "drives all its GPUs; give srun --ntasks-per-node=1"
            )
        secret = allocation.secret or user_secret(f"job {allocation.job_id}").hex()
        worker_group = cls(
            nodes,
            allocation.rank,
            secret=secret.encode(),
            first_port=first_port(allocation.job_id),
        )
        if interface := os.environ.get(INTERFACE):
            worker_group.host = interface_address(interface, INTERFACE)
        first = worker_group._first_port + MEETING_PORTS + worker_group.rank
        own = free_port("", range(first, LAST_PORT + 1 + PORTS_A_JOB, PORTS_A_JOB))
        deadline = time.monotonic() + join_s
        if worker_group.is_chief:
            worker_group._gather(own, purpose, deadline)
        else:
            worker_group._report(own, purpose, deadline)
        threading.Thread(target=worker_group._beat, daemon=True).start()
        return worker_group

    def _gather(self, own_port: int, purpose: str, deadline: float) -> None:
        """Wait for all workers, and send each the addresses of all."""
        server = self._start_server()
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    len(self._hellos) == len(self.nodes) - 1
                    or any(hello["purpose"] != purpose for hello in self._hellos.values())
                ),
                timeout=max(0, deadline - time.monotonic()),
            )
        server.stop()
        with self._changed:
            own = {"host": self.host, "port": own_port, "purpose": purpose}
            hellos = {0: own, **self._hellos}
            links = list(self._links.values())
        problem = self._problem(hellos, purpose)
        self.addresses = [
            with_port(hellos[rank]["host"] or self.nodes[rank], hellos[rank]["port"])
            for rank in sorted(hellos)
        ]
        for link in links:
            with contextlib.suppress(OSError):  # its listener will find it gone
                link.send_json({"addresses": self.addresses, "problem": problem})
        if problem:
            raise RunError(problem)
        self._complete.set()

    def _start_server(self) -> AuthServer:
        for port in range(self._first_port, self._first_port + MEETING_PORTS):
            with contextlib.suppress(OSError):
                server = AuthServer((self.host, port), self._secret, self._welcome)
                server.start()
                return server
        last = self._first_port + MEETING_PORTS - 1
        raise RunError(f"no port from {self._first_port} to {last} is free here")

    def _welcome(self, connection: socket.socket, hello: Message) -> None:
        """Keep a worker's connection for as long as it lives, in a thread of its own."""
        rank = hello["rank"]
        if rank not in range(1, len(self.nodes)):
            return
        link = _Link(connection, rank)
        with self._changed:
            self._hellos[rank], self._links[rank] = hello, link
            self._changed.notify_all()
        self._complete.wait()
        if self._links[rank] is link:  # it may have come twice
            self._listen(link)
            connection.settimeout(None)
            with contextlib.suppress(OSError):  # it stays open: the worker waits for the chief
                while connection.recv(1 << 16):
                    pass

    def _problem(self, hellos: dict[int, Message], purpose: str) -> str:
        """Why the workers that came can't train together; empty if they can."""
        for rank, hello in hellos.items():
            if hello["purpose"] != purpose:
                return (
                    f"{self.nodes[rank]} has another job, other data or another version than "
                    f"{self.node}; give all nodes the same files"
                )
        if missing := [node for rank, node in enumerate(self.nodes) if rank not in hellos]:
            return (
                f"no worker came from {', '.join(missing)} to {self.node}; see whether its task "
                f"started, and the network between at ports from {self._first_port}"
            )
        return ""

    def _report(self, own_port: int, purpose: str, deadline: float) -> None:
        """Connect to the chief, and receive the addresses of all."""
        hello = {"rank": self.rank, "host": self.host, "port": own_port, "purpose": purpose}
        ports = range(self._first_port, self._first_port + MEETING_PORTS)
        link = None
        while link is None:
            with ThreadPoolExecutor(MEETING_PORTS) as pool:  # a stranger's port can't delay others
                links = pool.map(lambda port: self._meet(port, hello), ports)
            link = next(filter(None, links), None)
            if link is None and time.monotonic() > deadline:
                raise RunError(
                    f"{self.node}: the chief on {self.nodes[0]} can't be reached at port "
                    f"{self._first_port}; see whether its task started, and the network between"
                    + (f" ({INTERFACE}: the node's name must lead there)" if self.host else "")
                )
            time.sleep(0.2)
        try:
            answer = link.receive_json(timeout_s=JOIN_S + 10)
        except (OSError, ValueError):
            raise RunError(f"{self.node}: the chief on {self.nodes[0]} ended") from None
        if answer["problem"]:
            raise RunError(str(answer["problem"]))
        self.addresses = answer["addresses"]
        self._links[0] = link
        threading.Thread(target=self._listen, args=(link,), daemon=True).start()

    def _meet(self, port: int, hello: Message) -> "_Link | None":
        """A connection to the chief; None if it does not listen at this port."""
        try:
            connection = socket.create_connection((self.nodes[0], port), timeout=3)
        except OSError:
            return None
        try:
            say_hello(connection, self._secret, hello)
        except (OSError, ValueError):  # another process's port
            connection.close()
            return None
        return _Link(connection)

    # Sharing

    def share(self, content: bytes = b"") -> bytes:
        """Return the chief's content on every worker.

        Raises:
            Interrupted, RunError: if the chief is gone.
        """
        if self.is_chief:
            self._send_all(SHARED, content)
            return content
        while True:
            try:
                return self._shared.get(timeout=1)
            except queue.Empty:
                self.check()

    # The end

    def check(self) -> None:
        """Raise if another worker is lost or has failed.

        Raises:
            Interrupted: one was lost; the job can be resumed from its last checkpoint.
            RunError: one failed, with its reason.
        """
        if self.ended:
            text, code = self.ended
            raise Interrupted(text) if code == Interrupted.exit_code else RunError(text)

    def explain(self) -> None:
        """Raise if an error of TensorFlow's is a consequence of another worker's end, else return.

        Raises:
            Interrupted, RunError: as `check` says.
        """
        with self._changed:
            # TensorFlow may notice it before the connection reports it.
            self._changed.wait_for(lambda: self.ended is not None, timeout=LOST_S)
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving = True
        code = getattr(error, "exit_code", 1) if error else 0
        report = json.dumps({"code": code, "text": " ".join(str(error or "").split())[:500]})
        self._send_all(LEAVING, report.encode())
        if not self.is_chief and code in (0, Interrupted.exit_code):
            # The chief is still writing, and srun ends a step soon after its first task ends. If
            # this worker alone was interrupted, the chief hears of it by its end.
            with self._changed:
                self._changed.wait_for(
                    lambda: 0 in self._left or self.ended is not None,
                    timeout=END_S if code else None,
                )

    def give_up(self, text: str, code: int = Interrupted.exit_code) -> None:
        """End this process at once: it hangs in an operation that will never complete.

        A run's files are written atomically, so none is damaged.
        """
        interrupted = "interrupted by " if code == Interrupted.exit_code else ""
        log(logging.ERROR, f"{self.node}: {interrupted}{text}")
        os._exit(code)

    def _send_all(self, kind: bytes, content: bytes = b"") -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):  # its listener will find it gone
                link.send(kind + content)

    # Threads

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self._send_all(BEAT)

    def _listen(self, link: "_Link") -> None:
        node = self.nodes[link.rank]
        while True:
            try:
                message = link.receive(timeout_s=LOST_S)
            except (OSError, ValueError):
                self._end(link.rank, f"the loss of the worker on {node}", Interrupted.exit_code)
                return
            kind, content = message[:1], message[1:]
            if kind == SHARED:
                self._shared.put(content)
            elif kind == ENDED:
                report = json.loads(content)
                self._end(None, report["text"], report["code"])
            elif kind == LEAVING:
                report = json.loads(content)
                text, code = f"the worker on {node} failed: {report['text']}", report["code"]
                # Workers are interrupted by a common vote, or by a loss that is reported to all.
                self._end(link.rank, text, 0 if code in (0, Interrupted.exit_code) else 1)
                return

    def _end(self, rank: int | None, text: str, code: int) -> None:
        with self._changed:
            if rank is not None:
                self._left.add(rank)
            news = bool(code) and not self.ended
            if news:
                self.ended = text, code
            self._changed.notify_all()
        if news and self.is_chief:  # the others are connected to the chief alone
            self._send_all(ENDED, json.dumps({"text": text, "code": code}).encode())
        if not code or self._leaving:
            return
        time.sleep(END_S)
        if not self._leaving:
            self.give_up(text, code)


class _Link:
    """A connection that carries messages: eight bytes of length, then the content."""

    def __init__(self, connection: socket.socket, rank: int = 0) -> None:
        self.connection, self.rank = connection, rank
        self._sending = threading.Lock()

    def send(self, content: bytes) -> None:
        with self._sending:
            self.connection.sendall(len(content).to_bytes(8, "big") + content)

    def send_json(self, content: dict[str, Any]) -> None:
        self.send(json.dumps(content).encode())

    def receive(self, timeout_s: float, limit: int = 1 << 40) -> bytes:
        """The next message; raises TimeoutError, or ConnectionError when the connection ends."""
        self.connection.settimeout(timeout_s)
        length = int.from_bytes(receive_exactly(self.connection, 8), "big")
        if length > limit:
            raise ValueError("not a message of ours")
        return receive_exactly(self.connection, length)

    def receive_json(self, timeout_s: float) -> dict[str, Any]:
        content = json.loads(self.receive(timeout_s, limit=1 << 20))
        if not isinstance(content, dict):
            raise ValueError("not a message of ours")
        return content


def first_port(job_id: str) -> int:
    """The first of a job's ports: jobs on the same node seldom get the same ones."""
    num_jobs = (LAST_PORT + 1 - FIRST_PORT) // PORTS_A_JOB
    return FIRST_PORT + int(job_id) % num_jobs * PORTS_A_JOB
