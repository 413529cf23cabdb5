"""The journal of a sweep: what its supervisors have decided, one log for each of their generations.

`journal/<g>/log` holds JSON lines, each with its checksum, and has one writer: the supervisor that
made the folder. Each log begins with the sizes of the older logs that count, which seals them: what
an older supervisor appends later is void.
"""

import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import RunError
from harness.search_parameters import Value
from harness.sweep_protocol.mailbox import Report, SharedFolder
from harness.system.console import log

MAX_SAME_FAILURES = 3  # trials that fail in the same way are no accident
Record = dict[str, Any]


def encode(records: Iterable[Record]) -> bytes:
    """Records as lines of a log."""
    lines = [json.dumps(record, separators=(",", ":"), allow_nan=False) for record in records]
    return b"".join(b"%08x %s\n" % (zlib.crc32(line.encode()), line.encode()) for line in lines)


def decode(content: bytes) -> tuple[list[Record], int]:
    """The records of a log's whole lines, and the bytes of these lines; a torn end is left out."""
    records, size = [], 0
    for line in content.splitlines(keepends=True):
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
            break
        records.append(json.loads(text))
        size += len(line)
    return records, size


class Journal:
    """The generations of a sweep's supervisors, and the log of the own one."""

    def __init__(self, shared: SharedFolder) -> None:
        self.shared, self.disk = shared, shared.disk
        self.generation = self.first = 0  # the own one, and the first that was; 0 without
        self._is_unsure = False  # a folder may have been made, and the answer was lost
        self._is_open = False  # the own log has begun, and no append to it has failed

    def log(self, generation: int) -> Path:
        """The path of a generation's log."""
        return self.shared.path("journal", str(generation), "log")

    def take(self) -> None:
        """Take the next generation; one that this process held before is given up.

        Raises:
            OSError: if the file system fails. A generation may be taken then and is passed over.
        """
        folder = self.shared.path("journal")
        names = self.disk.names(folder)  # a hint: the folders themselves decide
        newest = max((int(name) for name in names if name.isdigit()), default=0)
        number = max(self.generation, newest) + 1
        self._is_unsure = True
        while not self.disk.make_folder(folder / str(number)):
            number += 1
        self.generation, self._is_open, self._is_unsure = number, False, False
        self.first = self.first or number
        self.disk.sync(folder)

    def is_superseded(self) -> bool:
        """Whether a newer supervisor has taken over; False once more after a `take` that failed."""
        newer = self.shared.path("journal", str(self.generation + 1))
        return not self._is_unsure and self.disk.opens(newer)

    def begin(self) -> list[Record]:
        """Read the older generations' records, and seal them by the first record of the own log.

        Raises:
            OSError: if the file system fails.
            RunError: if a log is broken.
        """
        terms, clock = self.shared.terms, self.shared.clock
        if self.generation > 1 and not self._has_ended(self.generation - 1):
            clock.sleep(terms.settle_s)  # the older one sees this one and ends
        sizes = self._sizes()
        records = [record for g, size in enumerate(sizes, 1) for record in self._read(g, size)]
        if not self.is_superseded():
            self._append([{"kind": "base", "sizes": sizes}])
        return records

    def _has_ended(self, generation: int) -> bool:
        """Whether a supervisor has written its last record: so all of its log is seen here."""
        records, _ = decode(self.disk.read(self.log(generation)) or b"")
        return bool(records) and records[-1]["kind"] == "end"

    def _sizes(self) -> list[int]:
        """The bytes of each older log that count, as the newest that was begun says."""
        for generation in range(self.generation - 1, 0, -1):
            content = self.disk.read(self.log(generation)) or b""
            records, size = decode(content)
            if records:
                self._warn_of_lost(content[size:], len(records) + 1)
                unbegun = self.generation - 1 - generation
                return [*records[0]["sizes"], size, *[0] * unbegun]
        return [0] * (self.generation - 1)

    def _warn_of_lost(self, end: bytes, number: int) -> None:
        """Warn of whole lines behind a torn one: a machine that crashed may have left them."""
        if num_whole := sum(bool(decode(line)[0]) for line in end.splitlines(keepends=True)):
            message = (
                f"sweep {self.shared.folder}: line {number} of its newest log is broken, so the "
                f"{num_whole} whole lines behind it do not count; their trials are trained again"
            )
            log(logging.WARNING, message)

    def _read(self, generation: int, size: int) -> list[Record]:
        if not size:
            return []
        log, waited_s = self.log(generation), 0.0
        self.disk.sync(log)  # a process of this node may have left it unsynced
        while len(content := self.disk.read(log) or b"") < size:  # an older state is seen here
            if waited_s > self.shared.terms.patience_s:
                raise RunError(f"{log}: has {len(content)} bytes, should have {size}: is broken")
            self.shared.clock.sleep(self.shared.terms.round_s)
            waited_s += self.shared.terms.round_s
        records, whole = decode(content[:size])
        if whole < size:
            raise RunError(f"{log}: line {len(records) + 1} is broken; begin a new sweep")
        return records[1:]

    def append(self, records: list[Record]) -> None:
        """Add records; they are on the disk when this returns.

        Raises:
            OSError: if the file system fails. The records may be there or not, so nothing may be
                appended after them: take another generation.
        """
        if records and self._is_open:
            self._append(records)

    def _append(self, records: list[Record]) -> None:
        self._is_open = False
        self.disk.append(self.log(self.generation), encode(records))
        self._is_open = True


# What follows from the records


@dataclass(frozen=True)
class Proposal:
    """A trial as the oracle proposes it."""

    n: int
    values: dict[str, Value]  # by the job's keys
    epochs: int | None = None  # to train, where the oracle decides
    parent: int | None = None  # the trial from whose end it goes on


@dataclass(frozen=True)
class Assignment:
    """An attempt at a trial: `<trial>/<generation>.<number>`, also its folder below `trials/`."""

    attempt: str
    worker: str  # its uuid
    saved: int = 0  # of the trial when it was assigned: see `WorkerState.saved`


@dataclass
class Ledger:
    """The state of a sweep, as its journal's records make it."""

    proposals: list[Proposal] = field(default_factory=list)
    assignments: dict[int, list[Assignment]] = field(default_factory=dict)  # the newest last
    attempts: dict[str, tuple[int, str]] = field(default_factory=dict)  # trial and worker
    accepted: dict[int, tuple[str, Report]] = field(default_factory=dict)  # attempt and report
    open: dict[int, None] = field(default_factory=dict)  # proposed and not accepted
    gone: set[str] = field(default_factory=set)  # workers whose end an older supervisor has seen
    num_failed: int = 0
    same_failure: str = ""  # the error that `MAX_SAME_FAILURES` trials have in common
    _failures: Counter[str] = field(default_factory=Counter)

    def apply(self, record: Record) -> None:
        """Take up a record."""
        kind, n = record["kind"], record.get("n", -1)
        if kind == "propose":
            self.proposals.append(Proposal(n, record["values"], record["epochs"], record["parent"]))
            self.open[n] = None
        elif kind == "assign":
            assignment = Assignment(record["attempt"], record["worker"], record["saved"])
            self.assignments.setdefault(n, []).append(assignment)
            self.attempts[assignment.attempt] = n, assignment.worker
        elif kind == "accept":
            report = Report.model_validate(record["report"])
            self.accepted[n] = record["attempt"], report
            self.open.pop(n)
            self._count_failure(report.error)
        elif kind == "end":
            self.gone |= set(record["gone"])

    def _count_failure(self, error: str) -> None:
        if error:
            self.num_failed += 1
            similar = re.sub(r"[0-9.]+", "#", error)
            self._failures[similar] += 1
            if self._failures[similar] >= MAX_SAME_FAILURES:
                self.same_failure = error

    def forget_failures(self) -> None:
        """Count alike failures from here on: whoever goes on with the sweep knows of those."""
        self.same_failure = ""
        self._failures.clear()


def propose_record(proposal: Proposal) -> Record:
    """A trial is proposed."""
    return {"kind": "propose", **vars(proposal)}


def assign_record(n: int, assignment: Assignment) -> Record:
    """A trial is assigned; an older attempt at it has expired with this."""
    return {"kind": "assign", "n": n, **vars(assignment)}


def accept_record(n: int, attempt: str, report: Report) -> Record:
    """A trial's result, the first that was reported."""
    return {
        "kind": "accept",
        "n": n,
        "attempt": attempt,
        "report": report.model_dump(exclude_defaults=True),
    }


def end_record(how: str, gone: Iterable[str] = ()) -> Record:
    """The supervisor ends, and of these workers it has seen the end; it appends nothing later."""
    return {"kind": "end", "how": how, "gone": sorted(gone)}
