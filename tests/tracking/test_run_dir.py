"""The run folder: whole files, one writer, and what is known of the machine."""

import errno
import os
from pathlib import Path

import pytest

from harness.errors import DiskError, InputError, RunError, TakenOver
from harness.job.job_file import load_job
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RunDirectory
from tests.conftest import JOBS, before_next_rename


@pytest.mark.parametrize(
    "error", [errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN], ids=errno.errorcode.get
)
def test_a_result_that_the_disk_does_not_give_is_not_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """So a search tries again; a result that is no record is an error of the run."""
    run = RunDirectory(tmp_path)
    run.path("result.json").write_text("{")
    with pytest.raises(RunError, match="is broken"):
        run.result()

    def fail(path: Path, *_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("harness.system.files.os.open", fail)
    with pytest.raises(DiskError, match=rf"result\.json: can't be read: {os.strerror(error)}"):
        run.result()


def test_the_last_to_take_the_lease_writes(tmp_path: Path) -> None:
    """An older writer is refused from then on, by a line that says who has the run."""
    older, newer = RunDirectory(tmp_path), RunDirectory(tmp_path)
    older.take_lease()
    older.write("note.txt", "older")
    (tmp_path / ".left.over.tmp").write_text("half")
    newer.take_lease()
    assert not (tmp_path / ".left.over.tmp").exists()
    newer.write("note.txt", "newer")
    with pytest.raises(RunError, match=f"process {os.getpid()} on "):
        older.write("note.txt", "older")
    assert (tmp_path / "note.txt").read_text() == "newer"
    (tmp_path / "lease.json").unlink()
    with pytest.raises(TakenOver, match="somebody removed it; this one stops"):
        newer.write("note.txt", "newest")


def test_who_finishes_a_run_gives_its_lease_up(tmp_path: Path) -> None:
    """An older writer stops all the same; one that is too late takes nothing away."""
    older, newer = RunDirectory(tmp_path), RunDirectory(tmp_path)
    older.take_lease()
    newer.take_lease()
    older.release_lease()
    newer.check_lease()
    newer.release_lease()
    assert not (tmp_path / "lease.json").exists()
    with pytest.raises(TakenOver, match="another process finished it, or somebody"):
        older.write("note.txt", "older")


def test_of_two_that_come_at_once_the_loser_names_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner clears half-written files, the loser's new lease among them."""
    winner, loser = RunDirectory(tmp_path), RunDirectory(tmp_path)
    before_next_rename(monkeypatch, winner.take_lease)
    with pytest.raises(TakenOver, match=f"process {os.getpid()} on .* took it over"):
        loser.take_lease()
    winner.check_lease()


def test_what_fails_after_a_take_over_is_told_as_that(tmp_path: Path) -> None:
    """Who takes a run over removes what the older one writes: no word of a full disk then."""
    from harness.training.failures import recorded_failures

    older, newer = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    older.take_lease()
    with (
        pytest.raises(RunError, match="can't be written"),
        recorded_failures(Heartbeat(older, None)),
    ):
        raise RunError("log: can't be written: No such file or directory")
    newer.take_lease()
    with pytest.raises(TakenOver, match="took it over"), recorded_failures(Heartbeat(older, None)):
        raise RunError("log: can't be written: No such file or directory")


def test_two_runs_in_one_second_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an id no run ever lands in the folder of another, or is named after it."""
    monkeypatch.setattr("time.strftime", lambda _: "now")
    job = load_job(JOBS / "lstm.toml")
    runs = [RunDirectory.new(tmp_path, job, None) for _ in range(3)]
    assert [run.folder.name for run in runs] == ["now-seed1", "now-2-seed1", "now-3-seed1"]
    for run in runs:
        named = run.folder
        run.take_lease()
        assert run.folder == named


def test_an_id_names_a_folder_below_runs(tmp_path: Path) -> None:
    """An id with a path in it is refused, and so is one that another job has."""
    job = load_job(JOBS / "lstm.toml")
    for bad in ("../x", "a/b", "", ".hidden", "x" * 101):
        with pytest.raises(InputError, match="--run-id"):
            RunDirectory.new(tmp_path, job, bad)
    run = RunDirectory.new(tmp_path, job, "mine")
    run.take_lease()
    run.write("job.toml", job.to_toml())
    assert RunDirectory.new(tmp_path, job, "mine").job() == job
    with pytest.raises(InputError, match="another job"):
        RunDirectory.new(tmp_path, load_job(JOBS / "lstm.toml", seed=9), "mine")


def test_the_heartbeat_is_written_at_a_change_and_by_the_clock(tmp_path: Path) -> None:
    """A phase shows at once, steps only every few seconds, a restart is counted."""
    now = [100.0]
    run = RunDirectory(tmp_path)
    run.take_lease()

    def beat(phase: str, **values: object) -> dict[str, object]:
        heart.beat(phase, **values)
        return run.read_json("state.json")

    heart = Heartbeat(run, None, every_s=5.0, clock=lambda: now[0])
    assert beat("training", step=1)["step"] == 1
    now[0] += 4
    assert beat("training", step=2)["step"] == 1
    assert beat("validating")["phase"] == "validating"
    now[0] += 6
    state = beat("validating", step=3)
    assert (state["step"], state["time_s"], state["restarts"]) == (3, 110.0, 0)
    heart = Heartbeat(run, None, clock=lambda: now[0])
    assert beat("starting")["restarts"] == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files to another user")
@pytest.mark.parametrize("name", ["", "checkpoints", "tensorboard", "tensorboard/train"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_run_of_another_user_is_not_written(tmp_path: Path, name: str, is_link: bool) -> None:
    """Nor through another's link in one's own run; one's own links are fine."""
    elsewhere, run = tmp_path / "elsewhere", RunDirectory(tmp_path / "run")
    elsewhere.mkdir()
    target = run.folder / name
    target.parent.mkdir(exist_ok=True, parents=True)
    if is_link:
        target.symlink_to(elsewhere, target_is_directory=True)
    else:
        target.mkdir()
    run.check_owner()
    os.chown(elsewhere if is_link and not name else target, 1, 1, follow_symlinks=False)
    with pytest.raises(InputError, match="belongs to daemon, and a run is written by its owner"):
        run.check_owner()
