"""The journal: which lines count, whoever wrote them, and what follows from them."""

from pathlib import Path

import pytest

from harness.errors import RunError
from harness.files.shared_disk import SharedDisk
from harness.sweep_protocol.journal import (
    MAX_SAME_FAILURES,
    Assignment,
    Journal,
    Ledger,
    Proposal,
    accept_record,
    assign_record,
    decode,
    encode,
    end_record,
    propose_record,
)
from harness.sweep_protocol.mailbox import Clock, Report, SharedFolder, Terms
from tests.sweep_protocol.ledgers import read_ledger


class FakeClock(Clock):
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def sleep(self, time_s: float) -> None:
        self.time_s += time_s


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    (tmp_path / "journal").mkdir()
    return SharedFolder(tmp_path, SharedDisk(), FakeClock(), Terms())


def propose(n: int) -> dict[str, object]:
    return propose_record(Proposal(n, {"model.units": n, "model.dropout": 0.1 + n}))


def begun(shared: SharedFolder) -> tuple[Journal, list[dict[str, object]]]:
    journal = Journal(shared)
    journal.take()
    return journal, journal.begin()


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_torn_end_does_not_count(cut: int) -> None:
    """Whatever part of the last line is on the disk, the lines before it are read and it is not."""
    whole = encode([propose(0), propose(1)])
    last = encode([{"kind": "end", "how": "x" * 30}])
    records, size = decode(whole + last[: min(cut, len(last) - 1)])
    assert (records, size) == ([propose(0), propose(1)], len(whole))
    changed = bytearray(whole + last)
    changed[len(whole) + cut % (len(last) - 1)] ^= 1
    assert decode(bytes(changed)) == (records, size)


def test_what_an_older_supervisor_appends_later_is_void(shared: SharedFolder) -> None:
    """The base of the newer log seals the older ones, and again for the generation after it."""
    first, _ = begun(shared)
    first.append([propose(0)])
    second, records = begun(shared)
    assert records == [propose(0)]
    assert first.is_superseded()
    first.append([propose(1)])  # it was stopped between its look and this
    second.append([propose(1), propose(2)])
    first.append([propose(2)])
    _, records = begun(shared)
    assert [record["n"] for record in records] == [0, 1, 2]
    assert [proposal.n for proposal in read_ledger(shared).proposals] == [0, 1, 2]


@pytest.mark.parametrize("change", [b"X", b""])
def test_whole_lines_behind_a_broken_one_are_told(
    shared: SharedFolder, caplog: pytest.LogCaptureFixture, change: bytes
) -> None:
    """They do not count, as a crash may leave them; of a torn end alone nothing is said."""
    first, _ = begun(shared)
    first.append([propose(0), propose(1), propose(2), propose(3)])
    whole = first.log(1).read_bytes()
    first.log(1).write_bytes(whole.replace(b'"n":1', b'"n":7') if change else whole[:-1])
    _, records = begun(shared)
    assert len(records) == (1 if change else 3)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(change)
    assert not said or "line 3 of its newest log is broken, so the 2 whole lines behind" in said[0]


def test_a_generation_that_was_never_begun_is_passed_over(shared: SharedFolder) -> None:
    """A supervisor that ended between its folder and its base leaves no log, or a torn one."""
    first, _ = begun(shared)
    first.append([propose(0)])
    Journal(shared).take()
    torn = Journal(shared)
    torn.take()
    torn.log(3).write_bytes(encode([{"kind": "base", "sizes": [9, 9]}])[:-5])
    fourth, records = begun(shared)
    assert (fourth.generation, records) == (4, [propose(0)])
    assert decode(fourth.log(4).read_bytes())[0][0]["sizes"][1:] == [0, 0]


def test_two_supervisors_never_hold_the_same_generation(shared: SharedFolder) -> None:
    """Also one that took a generation without hearing of it."""
    first, second = Journal(shared), Journal(shared)
    first.take()
    second.take()
    first.take()
    assert (first.generation, second.generation) == (3, 2)
    assert second.is_superseded()
    assert not first.is_superseded()


def test_a_successor_waits_unless_its_predecessor_said_that_it_ends(shared: SharedFolder) -> None:
    """An end is the last that a supervisor appends, so nothing is on its way to this node."""
    clock, settle_s = shared.clock, shared.terms.settle_s
    assert settle_s == 75
    begun(shared)
    assert clock.now() == 0
    second, _ = begun(shared)
    assert clock.now() == settle_s
    second.append([end_record("interrupted")])
    begun(shared)
    assert clock.now() == settle_s


def test_a_log_is_read_once_as_much_of_it_is_seen_as_counts(shared: SharedFolder) -> None:
    """A node that sees an older state waits; a log that stays short, or is changed, is an error."""
    first, _ = begun(shared)
    first.append([propose(0), propose(1)])
    second, _ = begun(shared)
    second.append([propose(2)])
    whole = first.log(1).read_bytes()
    looks = []

    class Late(SharedDisk):
        def read(self, path: Path) -> bytes | None:
            looks.append(path)
            late = path == first.log(1) and looks.count(path) < 4
            return whole[:-3] if late else super().read(path)

    late = SharedFolder(shared.folder, Late(), shared.clock, shared.terms)
    journal = Journal(late)
    journal.take()
    assert [record["n"] for record in journal.begin()] == [0, 1, 2]

    for content in (whole[:-1], whole.replace(b'"n":1', b'"n":7')):
        first.log(1).write_bytes(content)
        with pytest.raises(RunError, match="broken"):
            begun(shared)


def test_records_make_the_ledger() -> None:
    """Proposed, assigned, accepted; a trial's attempts are known by their workers."""
    ledger = Ledger()
    first, second = Assignment("0/1.1", "a" * 32, 0), Assignment("0/2.1", "b" * 32, 40)
    report = Report(scores={"val_loss": 0.1 + 0.2}, figures={"epochs": 3})
    for record in (propose(0), propose(1), assign_record(0, first), assign_record(0, second)):
        ledger.apply(decode(encode([record]))[0][0])
    assert list(ledger.open) == [0, 1]
    assert ledger.attempts == {"0/1.1": (0, "a" * 32), "0/2.1": (0, "b" * 32)}
    assert ledger.assignments[0] == [first, second]
    ledger.apply(decode(encode([accept_record(0, "0/1.1", report)]))[0][0])
    assert list(ledger.open) == [1]
    assert ledger.accepted == {0: ("0/1.1", report)}
    assert ledger.proposals[1] == Proposal(1, {"model.units": 1, "model.dropout": 1.1})


def test_trials_that_fail_alike_are_counted() -> None:
    """Numbers in an error do not make it another one."""
    ledger = Ledger()
    for n in range(MAX_SAME_FAILURES):
        assert ledger.same_failure == ""
        ledger.apply(propose(n))
        ledger.apply(accept_record(n, f"{n}/1.{n}", Report(error=f"step {n}: not finite")))
    assert ledger.same_failure == "step 2: not finite"
    assert ledger.num_failed == MAX_SAME_FAILURES
