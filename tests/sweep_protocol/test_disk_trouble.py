"""A supervisor whose disk fails: at its own generation, at a worker's files."""

from pathlib import Path

import pytest

from harness.errors import Interrupted
from harness.files.shared_disk import SharedDisk
from harness.search_space import CANCEL_FILE
from harness.sweep_protocol.journal import Journal
from harness.sweep_protocol.mailbox import STATE, TASK, Cancel, SharedFolder
from harness.sweep_protocol.supervisor import CANCELLED, Generation, supervise
from tests.sweep_protocol.test_safeguards import TERMS, A, B, Host, Mailboxes, PlannedClock


def test_a_worker_that_cant_be_told_its_task_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial goes on elsewhere though it beats, and people are told why; later it may work."""
    box, is_closed = Mailboxes(tmp_path), True
    write = box.shared.disk.write

    def refuse(path: Path, content: bytes, **how: bool) -> None:
        if is_closed and path == box.shared.path("workers", A, TASK):
            raise PermissionError(13, "Permission denied", str(path))
        write(path, content, **how)

    monkeypatch.setattr(box.shared.disk, "write", refuse)

    def rounds(time_s: float) -> None:
        for _ in range(int(time_s / TERMS.beat_s)):
            box.say(A)
            box.say(B)
            box.round(TERMS.beat_s)

    box.begin(A)
    assert list(box.generation.holders().values()) == [A, A]
    rounds(TERMS.lost_s - 2 * TERMS.beat_s)
    assert A in box.generation.alive
    rounds(3 * TERMS.beat_s)
    assert box.generation.alive == [B]
    assert "0" in box.task(B)
    (error,) = box.host.noted
    assert f"{A}/{TASK}" in str(error)
    is_closed = False
    rounds(2 * TERMS.seldom_s)
    assert sorted(box.generation.alive) == [A, B]
    assert len(box.host.noted) == 1


def test_a_worker_that_was_stopped_while_it_could_not_be_told_its_task_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all of its job was: nobody has tried again meanwhile."""
    box, num_refused = Mailboxes(tmp_path), 0
    write = box.shared.disk.write

    def refuse_once(path: Path, content: bytes, **how: bool) -> None:
        nonlocal num_refused
        if path == box.shared.path("workers", A, TASK) and not num_refused:
            num_refused += 1
            raise OSError(5, "Input/output error", str(path))
        write(path, content, **how)

    monkeypatch.setattr(box.shared.disk, "write", refuse_once)
    box.begin(A)
    box.say(A)
    box.clock.sleep(10 * TERMS.lost_s)
    box.round()
    assert num_refused == 1
    assert box.generation.alive == [A]


def test_a_worker_that_has_ended_is_read_before_its_trial_is_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reported the trial and ended, and the disk failed when its last state was read."""
    box = Mailboxes(tmp_path)
    box.begin(A)
    assert "0" in box.task(A)
    box.say(B)
    box.say(A, t0=0.5)
    box.host.ended.add(A)
    read, failed = box.shared.disk.read, list[Path]()

    def fail_once(path: Path) -> bytes | None:
        if path == box.shared.path("workers", A, STATE) and not failed:
            failed.append(path)
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(box.shared.disk, "read", fail_once)
    box.round(2 * TERMS.round_s)
    assert failed
    assert box.accepted() == [(0, A, 0.5)]
    assert len(box.generation.ledger.assignments[0]) == 1


def test_a_search_is_cancelled_over_a_disk_that_fails(tmp_path: Path) -> None:
    """Its supervisor took another generation since; one that somebody started later goes on."""
    box = Mailboxes(tmp_path)
    box.shared.write(Cancel(generation=1), CANCEL_FILE)
    box.journal.take()
    later = Journal(box.shared)
    for journal, how in ((box.journal, CANCELLED), (later, "")):
        if journal is later:
            later.take()
        assert Generation(box.shared, journal, box.host)._round() == how


class Failing(SharedDisk):
    """A disk on which one operation on a folder fails once, though it is done."""

    def __init__(self, kind: str, folder: str) -> None:
        self.kind, self.folder = kind, folder

    def _fail(self, kind: str, folder: Path) -> None:
        if (kind, str(folder)[-len(self.folder) :]) == (self.kind, self.folder):
            self.kind = ""
            raise OSError(116, "Stale file handle")

    def make_folder(self, folder: Path) -> bool:
        is_made = super().make_folder(folder)
        self._fail("make", folder)
        return is_made

    def sync(self, path: Path) -> None:
        super().sync(path)
        if (path / "2").exists():  # not at the first
            self._fail("sync", path)


class Twice(Host):
    """The disk fails after a long round of the first generation; a signal ends a later one."""

    def after_round(self, generation: Generation, news: list[int]) -> None:
        if generation.number == 1:
            generation.shared.clock.sleep(2 * TERMS.patience_s)
            raise OSError(5, "Input/output error")
        raise Interrupted(f"generation {generation.number}")

    def stop(self, reason: Exception) -> None:
        pass


def test_a_disk_that_fails_when_a_suspended_job_goes_on_is_waited_for(tmp_path: Path) -> None:
    """The time in which nobody looked says nothing of it."""
    for name in ("journal", "workers"):
        (tmp_path / name).mkdir()
    shared = SharedFolder(tmp_path, SharedDisk(), PlannedClock(), TERMS)
    with pytest.raises(Interrupted, match="generation 2"):
        supervise(shared, Twice())  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "folder"), [("make", "journal/2"), ("sync", "journal")])
def test_a_supervisor_never_takes_its_own_folder_for_that_of_another(
    tmp_path: Path, kind: str, folder: str
) -> None:
    """The disk fails while it takes a generation, and it takes the next one."""
    for name in ("journal", "workers"):
        (tmp_path / name).mkdir()
    disk, host = Failing(kind, folder), Twice()
    shared = SharedFolder(tmp_path, disk, PlannedClock(), TERMS)
    with pytest.raises(Interrupted, match="generation 3"):
        supervise(shared, host)  # type: ignore[arg-type]
    assert disk.kind == ""
    assert len(host.noted) == 2
