"""The folder of a run: its lease, its name, the format of its records, its heartbeat."""

import json
import os
import shutil
from pathlib import Path

import pytest

from harness import __version__
from harness.errors import DiskError, InputError, RunError
from harness.job.job_file import load_job
from harness.job.search import SEARCH_FILE
from harness.slurm.environment import SlurmEnvironment
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import (
    ENSEMBLE_FILE,
    FORMAT,
    RECORD,
    RunDirectory,
    check_record,
)
from tests.conftest import JOBS, Harness
from tests.made_up_runs import write_run
from tests.tracking.site import as_root


def test_an_unreadable_file_is_not_a_broken_one(tmp_path: Path) -> None:
    """A failing disk raises DiskError, and a search tries again; a broken file raises RunError."""
    run = RunDirectory(tmp_path)
    run.path("result.json").write_text("{")
    with pytest.raises(RunError, match="is broken") as broken:
        run.result()
    assert not isinstance(broken.value, DiskError)
    run.path("result.json").unlink()
    run.path("result.json").symlink_to("/proc/self/mem")  # a plain file; reading it fails with EIO
    with pytest.raises(DiskError, match=r"result\.json: can't be read: Input/output error"):
        run.result()
    run.path(RECORD).symlink_to("/proc/self/mem")
    with pytest.raises(DiskError, match=r"provenance\.json: .*: Input/output error; try again"):
        check_record(run)


def test_another_users_private_record_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague may use a run, although its record, with uncommitted changes, is private."""
    run = RunDirectory(tmp_path)
    run.path(RECORD).write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        check_record(run)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(os, "access", lambda *_: False)
    check_record(run)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first", "no such folder; harness status --all lists all runs"),
        ("runs/rnn/s 1", "is a search; train its best trial: harness sweep retrain 'runs/rnn/s 1'"),
        (
            "runs/rnn/both",
            "is an ensemble, which only harness predict and compare accept; give one of its runs",
        ),
        (
            "runs/rnn/first/tensorboard",
            "is not a run's folder, because it contains no job.toml; harness status --all lists "
            "all runs",
        ),
    ],
)
def test_a_name_that_is_no_run_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    """The remedy is a command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/rnn/first/tensorboard").mkdir(parents=True)
    (tmp_path / "runs/rnn/s 1").mkdir()
    (tmp_path / "runs/rnn/s 1" / SEARCH_FILE).touch()
    (tmp_path / "runs/rnn/both").mkdir()
    (tmp_path / "runs/rnn/both" / ENSEMBLE_FILE).touch()
    with pytest.raises(InputError) as refused:
        RunDirectory.open(Path(name))
    assert str(refused.value) == f"run {name}: {message}"


def test_the_id_of_another_jobs_run_is_refused(tmp_path: Path) -> None:
    """The line names the first key that differs."""
    old = load_job(JOBS / "lstm.toml", ["train.epochs=2"])
    runs = tmp_path / "my runs"
    folder = runs / "lstm/first"
    write_run(folder, old.to_toml())
    assert RunDirectory.new(runs, old, "first").folder == folder
    job = load_job(JOBS / "lstm.toml", ["train.epochs=3", "train.log_every_steps=7"])
    with pytest.raises(InputError) as refused:
        RunDirectory.new(runs, job, "first")
    assert str(refused.value) == (
        f"run {folder}: contains another job (train.epochs = 2, not 3); choose another --run-id, "
        f"or continue the run: harness resume '{folder}'"
    )
    (folder / "result.json").unlink(missing_ok=True)
    job = old.model_copy(update={"code": {"mynet.py": "x = 1"}})
    with pytest.raises(InputError, match=r"contains another job \(other \[code\]\); choose"):
        RunDirectory.new(runs, job, "first")
    with pytest.raises(InputError, match=f"continue the run with: harness resume '{folder}'"):
        RunDirectory(folder).model_file()
    (folder / RECORD).write_text('{"format": 99}')
    with pytest.raises(InputError, match=f": harness reproduce '{folder}' restores its code"):
        RunDirectory(folder).job()


def test_runs_of_the_same_second_get_different_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number distinguishes their names."""
    monkeypatch.setattr("time.strftime", lambda _: "now")
    job = load_job(JOBS / "lstm.toml")
    runs = [RunDirectory.new(tmp_path, job, None) for _ in range(3)]
    assert [run.folder.name for run in runs] == ["now-seed1", "now-2-seed1", "now-3-seed1"]


def test_an_id_names_a_folder_below_runs(tmp_path: Path) -> None:
    """An id with a path in it is refused."""
    job = load_job(JOBS / "lstm.toml")
    for bad in ("../x", "a/b", "", ".hidden", "x" * 101):
        with pytest.raises(InputError, match="--run-id"):
            RunDirectory.new(tmp_path, job, bad)


def test_the_heartbeat_is_written_at_a_change_and_every_few_seconds(tmp_path: Path) -> None:
    """A new phase is written at once, a step only after 5 s, and restarts are counted."""
    now = [100.0]
    run = RunDirectory(tmp_path)
    run.take_lease()

    def beat(phase: str, **values: object) -> dict[str, object]:
        heart.beat(phase, **values)
        return run.read_json("state.json")

    heart = Heartbeat(run, None, clock=lambda: now[0])
    assert beat("training", step=1)["step"] == 1
    now[0] += 4
    assert beat("training", step=2)["step"] == 1
    assert beat("validating")["phase"] == "validating"
    now[0] += 6
    state = beat("validating", step=3)
    assert (state["step"], state["time_s"], state["restarts"]) == (3, 110.0, 0)
    heart = Heartbeat(run, None, clock=lambda: now[0])
    assert beat("starting")["restarts"] == 1
    now[0] += 6
    shutil.rmtree(tmp_path)
    for _ in range(2):  # a write that failed is tried again at once
        with pytest.raises((RunError, OSError)):
            beat("starting")


@as_root
@pytest.mark.parametrize("name", ["", "checkpoints", "tensorboard", "tensorboard/train"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_run_of_another_user_is_not_written(tmp_path: Path, name: str, is_link: bool) -> None:
    """A run with a link of another user is not written either; links of this user are allowed."""
    elsewhere, run = tmp_path / "elsewhere", RunDirectory(tmp_path / "my run")
    elsewhere.mkdir()
    target = run.folder / name
    target.parent.mkdir(exist_ok=True, parents=True)
    if is_link:
        target.symlink_to(elsewhere, target_is_directory=True)
    else:
        target.mkdir()
    run.check_owner()
    os.chown(elsewhere if is_link and not name else target, 1, 1, follow_symlinks=False)
    said = "belongs to daemon, and only this user may write it; train your own run: harness train '"
    with pytest.raises(InputError, match=f"{said}{run.folder}/job.toml'"):
        run.check_owner()


def test_another_versions_run_is_refused(finished: tuple[Harness, Path], harness: Harness) -> None:
    """The line is about the version, not about the unknown key of the job; no file changes.

    `status` shows the run; `compare` leaves it out and says why.
    """
    calm, run = finished[1], harness.runs / "bilstm/other-seed1"
    shutil.copytree(calm, run)
    record = json.loads((run / "provenance.json").read_text()) | {"format": 99, "harness": "9.9.0"}
    (run / "provenance.json").write_text(json.dumps(record))
    with (run / "job.toml").open("a") as job:
        job.write("\n[new]\nkey = 1\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    several = ("train", shutil.copy(calm / "job.toml", harness.folder / "bilstm.toml"))
    for words in (
        ("resume", run),
        ("predict", run, "good"),
        (*several, "--run-id", "other", "--seeds", "1-2"),
    ):
        line = harness.refuse(*words)
        assert "was written by harness 9.9.0 (format 99), but this is" in line
        assert f"harness {__version__} (format {FORMAT}); use the version that wrote" in line
        assert "the record: harness reproduce" in line
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert after == before, words
    shown = harness.run_here("status", run, "--json")
    assert (shown.returncode, json.loads(shown.stdout)[0]["state"]) == (0, "finished")
    compared = harness.run_here("compare", run, calm, "--baseline=none")
    assert compared.returncode == 0, compared.stderr
    assert "was written by harness" in compared.stdout + compared.stderr


@pytest.mark.parametrize(("script", "owns_job"), [("7", True), ("6", False)])
def test_the_heartbeat_names_the_job(tmp_path: Path, script: str, owns_job: bool) -> None:
    """A task of an array has two ids. A job belongs to the run only if a job script began it."""
    run = RunDirectory(tmp_path)
    run.take_lease()
    task = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    job = SlurmEnvironment.from_environment({**task, "HARNESS_BATCH_JOB": script})
    Heartbeat(run, job).beat("training")
    named = {"slurm_job": "7", "slurm_own_id": "5_3", "owns_job": owns_job}
    assert run.read_json("state.json").items() >= named.items()
