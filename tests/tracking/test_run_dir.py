"""A run's folder: its lease, its name, the format of its records, its heartbeat."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import __version__
from harness.errors import DiskError, InputError, RunError, TakenOver
from harness.job.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import FORMAT, RunDirectory, check_format, stamped
from tests.conftest import JOBS, SHRUNK, Harness, before_next_rename
from tests.training.kills import killed_run


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


def test_a_disk_that_fails_refuses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not answer is neither a missing folder nor a job that is wrong."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.toml").write_bytes((JOBS / "lstm.toml").read_bytes())

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", fail)
        with pytest.raises(OSError, match="Input/output error"):
            RunDirectory.open(folder)
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(DiskError, match=r"job.toml: can't be read: Input/output error; try again"):
        load_job(folder / "job.toml")


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


def test_of_two_that_come_at_once_the_last_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first clears half-written files, the other's new lease among them."""
    first, last = RunDirectory(tmp_path), RunDirectory(tmp_path)
    before_next_rename(monkeypatch, first.take_lease)
    last.take_lease()
    last.check_lease()
    with pytest.raises(TakenOver, match=f"process {os.getpid()} on .* took it over"):
        first.check_lease()


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


@pytest.mark.parametrize("record", [{}, stamped({}), stamped({"commit": "c"})])
def test_records_of_the_format_go_on(record: dict[str, object]) -> None:
    """As does what has no record yet."""
    check_format("run a", record)


@pytest.mark.parametrize(
    ("record", "version"),
    [
        ({"format": FORMAT + 1, "harness": "9.9.0"}, f"harness 9.9.0 (format {FORMAT + 1})"),
        ({"format": FORMAT - 1, "harness": "0.2.0"}, f"harness 0.2.0 (format {FORMAT - 1})"),
        ({"format": 99}, "harness of an unknown version (format 99)"),
        ({"format": "new", "harness": "9.9.0"}, "harness 9.9.0 (format new)"),
        ({"commit": "c"}, "harness of an unknown version (format None)"),
    ],
)
def test_another_format_is_refused(record: dict[str, object], version: str) -> None:
    """The line names both versions and both formats, and what to do."""
    own = f"run a: was written by {version}, this is harness {__version__} (format {FORMAT}); "
    with pytest.raises(InputError, match=f"{re.escape(own)}go on with it by that version$"):
        check_format("run a", record)


def restamp(run: Path, number: int, version: str) -> None:
    """Make a run one that another version wrote."""
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(
        json.dumps({**record, "format": number, "harness": version})
    )


OTHERS = [(99, "9.9.0"), (2, "0.2.0")]


@pytest.fixture(params=OTHERS, ids=["later", "earlier"])
def other(finished: tuple[Harness, Path], request: pytest.FixtureRequest) -> tuple[Harness, Path]:
    """A copy of a finished run by another version, whose job has a key of that version's."""
    harness, calm = finished
    number, version = request.param
    run = calm.with_name(f"other{number}")
    if not run.exists():
        shutil.copytree(calm, run)
        restamp(run, number, version)
        (run / "job.toml").write_text((run / "job.toml").read_text() + "\n[new]\nkey = 1\n")
    return harness, run


@pytest.mark.parametrize("command", ["resume", "train", "several", "evaluate", "predict"])
def test_another_versions_run_is_refused(other: tuple[Harness, Path], command: str) -> None:
    """Exit code 2 and one line with both versions, rather than what its job file can't be."""
    harness, run = other
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words: list[object] = [command, run]
    if command in ("train", "several"):
        words = ["train", harness.folder / "bilstm.toml", "--run-id", run.name, *SHRUNK]
        shutil.copy(run.with_name("calm") / "job.toml", harness.folder / "bilstm.toml")
    if command == "several":  # runs of a batch are named by their seed too
        shutil.copytree(run, run.with_name(f"{run.name}-seed1"), dirs_exist_ok=True)
        words += ["--seeds", "1-2"]
    done = harness.run_here(*words, *(["good"] if command == "predict" else []))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    record = json.loads((run / "provenance.json").read_text())
    written = f"was written by harness {record['harness']} (format {record['format']}), this is"
    assert written in line
    assert "go on with it by that version: harness reproduce" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_readers_show_another_versions_run(other: tuple[Harness, Path]) -> None:
    """`status` and `logs` take from it what they can; `compare` leaves it out, and says why."""
    harness, run = other
    shown = harness.run_here("status", run, "--json")
    assert (shown.returncode, json.loads(shown.stdout)[0]["state"]) == (0, "finished")
    compared = harness.run_here("compare", run, run.with_name("calm"), "--no-baseline")
    assert compared.returncode == 0, compared.stderr
    assert "was written by harness" in compared.stdout + compared.stderr
    log = harness.run_here("logs", run)
    assert "it printed to the terminal where it was started" in log.stderr


@pytest.mark.full
def test_another_versions_checkpoint_is_refused_not_skipped(harness: Harness) -> None:
    """A whole checkpoint that this version can't read is no broken one: no step is thrown away."""
    run = killed_run(harness, "lstm")
    path = max(run.glob("checkpoints/step-*.npz"))
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    progress = json.loads(arrays["progress"].tobytes()) | {"format": 99, "harness": "9.9.0"}
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    done = harness.run("resume", run)
    assert done.returncode == 2, done.stderr
    assert f"{path.name}: was written by harness 9.9.0 (format 99)" in done.stderr
    assert path.exists()


SLURM = {"SLURM_JOB_ID": "7", "HARNESS_MAX_REQUEUES": "2"}


def start(folder: Path, variables: dict[str, str] | None = None) -> tuple[Heartbeat, RunDirectory]:
    """A process that takes the run, in a Slurm job if there are variables."""
    run = RunDirectory(folder)
    run.take_lease()
    return Heartbeat(run, SlurmEnvironment.from_environment(variables or {})), run


def state(run: RunDirectory) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.path("state.json").read_text())
    return content


def test_a_task_of_an_array_is_recorded_by_both_ids(tmp_path: Path) -> None:
    """Slurm's programs, called with the job's id alone, may act on the whole array."""
    array = {**SLURM, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    for name, variables, own_id in (("a", array, "5_3"), ("b", SLURM, "7"), ("c", {}, None)):
        heart, run = start(tmp_path / name, variables)
        heart.beat("training")
        assert (state(run)["slurm_job"], state(run)["slurm_own_id"]) == (own_id and "7", own_id)


def test_a_run_in_a_session_does_not_own_its_job(tmp_path: Path) -> None:
    """Only the job scripts say that they requeue; a notebook server is a batch job too."""
    for name, variables in (("a", SLURM), ("b", {"SLURM_JOB_ID": "7"}), ("c", {})):
        heart, run = start(tmp_path / name, variables)
        heart.beat("training")
        assert state(run)["owns_job"] == (name == "a")
