"""`harness cancel`, and the names by which commands find runs."""

import json
import os
import shlex
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError, RunError
from harness.slurm.client import Queue
from harness.system.lenient_json import read_json
from harness.tracking import cancel
from harness.tracking.cancel import ask_to_stop, wait_until_saved
from harness.tracking.records import RunStatus
from harness.tracking.resume import interrupted
from harness.tracking.run_dir import RunDirectory
from harness.tracking.status import pick, survey
from harness.tuning.sweep_dir import stop_search_in
from tests.conftest import JOBS, Harness, wait_for
from tests.tracking.site import ELSEWHERE, Site
from tests.tracking.site import site as site
from tests.tuning.made_up_sweep import RANDOM, make_sweep

ask = partial(ask_to_stop, stop_search=stop_search_in)


def test_a_run_is_found_by_folder_id_and_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a folder, a run id or a job id; the id of an array finds all of its tasks."""
    site.run("slurm-12_1", "finished", slurm_job="13", slurm_own_id="12_1")
    site.run("slurm-12_2", "finished", slurm_job="12", slurm_own_id="12_2")
    site.run("slurm-14", "finished", slurm_job="16")
    site.run("slurm-15-seed1", "finished", slurm_job="16")
    site.run("mine", "finished", job="gru")
    site.run("mine", "finished")
    found = survey(site.runs, Queue())
    monkeypatch.chdir(site.runs / "lstm")

    def names(name: str, *, many: bool = False) -> list[str]:
        return sorted(each.run for each in pick(name, found, site.runs, many=many))

    folder = str(site.runs / "lstm/slurm-12_1")
    for name in ("slurm-12_1", "lstm/slurm-12_1", folder, "12_1", "./slurm-12_1/"):
        assert names(name) == ["lstm/slurm-12_1"], name
    assert names("13") == ["lstm/slurm-12_1"]
    assert names("12") == ["lstm/slurm-12_1", "lstm/slurm-12_2"]
    assert names("14") == ["lstm/slurm-14"]
    assert names("15") == ["lstm/slurm-15-seed1"]
    assert names("16", many=True) == ["lstm/slurm-14", "lstm/slurm-15-seed1"]
    assert names("gru") == ["gru/mine"]
    ids = ("mine", "slurm-12_1", "slurm-12_2", "slurm-14", "slurm-15-seed1")
    assert names("lstm", many=True) == [f"lstm/{run_id}" for run_id in ids]
    with pytest.raises(InputError, match="lstm: matches 5 runs; specify one, such as "):
        names("lstm")
    for name in ("", " "):
        with pytest.raises(InputError, match="specify a folder"):
            names(name)
    with pytest.raises(InputError, match=r"did you mean .*slurm-12_1"):
        names("slurm-12-1")


@pytest.mark.parametrize("job", [None, "12_3"])
def test_a_search_is_cancelled_wherever_its_workers_are(
    site: Site, tmp_path: Path, job: str | None
) -> None:
    """All workers read a file that stops them; tasks of the array that wait leave the queue."""
    noted = site.scancel()
    sweep = make_sweep(tmp_path / "s", RANDOM).folder
    status = RunStatus("tune/s", sweep, "running", host=ELSEWHERE, process=1, trials={"best": 1})
    status.slurm_job = job
    for _ in range(2):
        assert ask(status) is None
    assert read_json(sweep / "stop.json")["by"].endswith(f" on {socket.gethostname()}")
    assert noted.exists() == bool(job)
    assert not job or noted.read_text() == "--state=PENDING 12\n" * 2


def test_all_waiting_tasks_of_a_search_are_cancelled(site: Site) -> None:
    """A task that another machine has just started stops too; --all-interrupted omits the search.

    The heartbeat names only the task that wrote last.
    """
    noted = site.scancel()
    site.slurm(*(f"12_{task}|{20 + task}|PENDING|0:00|None|/x.sh" for task in range(1, 5)))
    sweep = make_sweep(site.runs / "tune/slurm-12", RANDOM).folder
    state = {"phase": "interrupted", "signal": "SIGUSR2", "trials": 24, "time_s": 1.0}
    job = {"slurm_job": "23", "slurm_own_id": "12_3", "owns_job": True}
    (sweep / "state.json").write_text(json.dumps(state | job))
    line = ask(site.only()) or ""
    assert line.startswith("tune/slurm-12: job 12 was removed from the queue; continue with ")
    assert noted.read_text() == "12\n"
    assert (sweep / "stop.json").exists()
    site.slurm()
    assert interrupted([site.only()]) == []


def test_without_slurms_programs_a_requeued_run_may_be_in_the_queue(site: Site) -> None:
    """The command says that it can't see the queue, unless the run was cancelled."""
    site.run("slurm-12", "interrupted", slurm_job="12", signal="SIGUSR1")
    with pytest.raises(RunError, match=r"squeue is not installed here; .* with: scancel 12"):
        ask(site.only())
    site.run("slurm-12", "interrupted", slurm_job="12", signal="SIGTERM")
    assert "nothing to cancel" in (ask(site.only()) or "")
    site.slurm()
    site.run("slurm-12", "interrupted", slurm_job="12", signal="SIGUSR1")
    assert "nothing to cancel" in (ask(site.only()) or "")


def test_a_session_is_not_cancelled_for_a_run(site: Site) -> None:
    """Only a job that runs a job script is cancelled; other jobs, such as notebooks, are not."""
    noted = site.scancel()
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    site.run("20260101-seed1", "training", slurm_job="12", owns_job=False)
    whole_job = r"harness cancel .*, or end the run's whole job: scancel 12$"
    with pytest.raises(RunError, match=whole_job):
        ask(site.only())
    site.slurm("12|12|PENDING|0:00|Priority|/x.sh", "13|13|PENDING|0:00|Priority|/x.sh")
    with pytest.raises(RunError, match=r"may run other programs.*: scancel 12$"):
        ask(site.only())  # Slurm has requeued the session
    assert not noted.exists()
    status = site.only()
    status.slurm_job = status.reported_job = "13"  # another job continues the run
    ask(status)
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    site.run("20260101-seed1", "training", slurm_job="12", owns_job=True)
    assert ask(site.only()) is None
    assert noted.read_text() == "13\n12\n"


def test_the_job_in_another_users_record_is_not_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded id may be a job of this user."""
    noted = site.scancel()
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    site.run("slurm-12-seed1", "training", slurm_job="12")
    ours = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: ours + 1)
    with pytest.raises(RunError, match="belongs to another user; ask this user to stop"):
        ask(site.only())
    assert not noted.exists()


def test_a_job_id_that_is_no_id_is_ignored(site: Site) -> None:
    """A broken record can't pass an option to scancel, such as one that means all jobs."""
    for run_id, job in (("slurm---me", "--me"), ("slurm-1-seed1", "(")):
        site.run(run_id, "training", 0, slurm_job=job)
    for status in survey(site.runs, Queue()):
        assert (status.slurm_job, status.reported_job, status.shares_job) == (None, None, False)


@pytest.fixture
def noted(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of scancel while the queue contains job 12 of slurm/lstm.sh --seeds 1-5."""
    monkeypatch.setattr(cancel, "WAIT_S", 0.0)
    site.slurm(f"12|12|RUNNING|1:00|None|{JOBS.parent}/slurm/lstm.sh --seeds 1-5")
    return site.scancel()


@pytest.mark.parametrize("named", ["job", "folder", "link"])
def test_one_of_several_seeds_is_cancelled(
    harness: Harness, site: Site, noted: Path, named: str
) -> None:
    """A folder names one seed, even if no other seed has begun; a job id names all seeds."""
    one = site.run("slurm-12-seed1", "training", slurm_job="12", owns_job=True)
    (link := site.folder / "link").symlink_to(one.folder)
    runs = site.folder / "other runs" if named == "link" else site.runs
    name = {"job": "12", "folder": one.folder, "link": link}[named]
    done = harness.run_here("cancel", name, "--runs", runs)
    assert "did not stop within" in done.stderr
    is_one = named != "job"
    assert (one.path("cancel.json").exists(), noted.exists()) == (is_one, not is_one)


@pytest.mark.parametrize("slurm_job", ["12", None])
def test_one_seed_of_a_command_is_cancelled(
    harness: Harness, site: Site, noted: Path, slurm_job: str | None
) -> None:
    """The log's name shows whether the command trains several seeds or continues one run."""
    for log, is_one in (("lstm-mine-seed1.out", True), ("lstm-13.out", False)):
        one = site.run("mine-seed1", "training", slurm_job=slurm_job, log=site.runs / "logs" / log)
        done = harness.run_here("cancel", one.folder)
        said = "did not stop within" if is_one else f"is on {ELSEWHERE}, perhaps in a container"
        assert said in done.stderr
        assert (one.path("cancel.json").exists(), noted.exists()) == (is_one, False)
        one.path("cancel.json").unlink(missing_ok=True)


@pytest.mark.parametrize("phase", ["failed", "interrupted"])
def test_a_seed_that_has_stopped_leaves_the_job_to_the_others(
    harness: Harness, site: Site, noted: Path, phase: str
) -> None:
    """The job does not restart the seed, and another job can continue this seed."""
    one = site.run("slurm-12-seed1", phase, slurm_job="12")
    site.run("slurm-12-seed2", "training", slurm_job="12")
    done = harness.run_here("cancel", one.folder)
    said = "lstm/slurm-12-seed1: will not start; to stop all seeds of its job: harness cancel 12\n"
    assert (done.returncode, done.stdout, noted.exists()) == (0, said, False), done.stderr
    (now,) = (each for each in survey(site.runs, Queue()) if each.run == "lstm/slurm-12-seed1")
    assert (now.asked_to_cancel, now.state, now.job_lives) == (True, phase, False)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("interrupted", "lstm/a: interrupted: by SIGTERM, saved at epoch 2, step 40; harness "),
        ("failed", "lstm/a: failed: RunError: no space"),
        ("finished", "lstm/a: finished"),
        ("training", "lstm/a: dead: its process is gone; harness resume "),
    ],
)
def test_cancel_waits_for_the_end_of_a_run(
    site: Site, monkeypatch: pytest.MonkeyPatch, phase: str, said: str
) -> None:
    """The wait ends when the heartbeat records the end or the process is gone."""
    values: dict[str, Any] = {"epoch": 2, "step": 40, "error": "RunError: no space"}
    values["signal"] = "SIGTERM"
    site.run("a", "training", 5, **values)
    status, waits = site.only(), list[float]()

    def sleep(time_s: float) -> None:
        waits.append(time_s)
        if len(waits) == 3:
            site.run("a", phase, 0, host=socket.gethostname(), process=2**22 + 1, **values)

    monkeypatch.setattr(time, "sleep", sleep)
    assert wait_until_saved(status, Queue()).startswith(said)
    assert len(waits) == 3


@pytest.mark.parametrize("phase", ["interrupted", "training", "failed", "finished"])
def test_a_cancellation_that_no_process_recorded_is_recorded(site: Site, phase: str) -> None:
    """The job was requeued, and its new start was cancelled while the script still prepared it."""
    noted = site.scancel()
    site.slurm("12|12|RUNNING|0:01|None|/x.sh")
    site.run("slurm-12", "interrupted", 600, slurm_job="12", signal="SIGUSR2")
    status = site.only()
    assert (status.state, ask(status), noted.read_text()) == ("starting", None, "12\n")
    site.slurm()
    site.run("slurm-12", phase, 600, slurm_job="12", signal="SIGUSR2", error="no space")
    assert wait_until_saved(status, Queue())
    now = site.only()
    assert now.asked_to_cancel == (phase in ("interrupted", "training"))
    assert interrupted([now]) == []


@pytest.mark.parametrize("age_s", [1, 3000])
def test_cancel_waits_at_most_90_seconds(
    site: Site, monkeypatch: pytest.MonkeyPatch, age_s: float
) -> None:
    """`cancel` waits for a stale run, too. The error names the command that shows the run."""
    run = site.run("a", "training", age_s).folder
    waits = list[float]()
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(RunError, match=rf"did not stop within 90 s; see harness status {run}$"):
        wait_until_saved(site.only(), Queue())
    assert sum(waits) == 90


def is_training(run: RunDirectory, process: int) -> bool:
    state = run.read_json("state.json")
    return (state.get("process"), state.get("phase")) == (process, "training") and "step" in state


@pytest.mark.full
def test_a_real_run_is_running_then_cancelled(harness: Harness, site: Site) -> None:
    """`cancel` lets the run save. It finds the run's process by command and start time."""
    words = harness.train_words("lstm", "live", "--set", "train.epochs=1000")
    process, folder = harness.start(*words, is_forked=False), harness.runs / "lstm/live"
    wait_for(lambda: is_training(RunDirectory(folder), process.pid), 120)
    seen = json.loads(harness.run_here("status", "--json").stdout)
    assert [(each["state"], each["process"]) for each in seen] == [("running", process.pid)]
    done = harness.run_here("cancel", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lstm/live: interrupted: by SIGTERM, saved at epoch ")
    assert done.stdout.endswith(f"; harness resume {folder}\n")
    assert process.wait(timeout=20) == 75
    assert "nothing to cancel" in harness.run_here("cancel", "live").stdout
    process.communicate()


def test_a_run_on_another_host_is_cancelled_there(harness: Harness, site: Site) -> None:
    """The line names the host. The command still handles the other runs that it names."""
    run = site.run("a", "training", process=os.getpid()).folder
    run = run.rename(run.with_name("my run"))
    site.run("b", "finished")
    done = harness.run_here("cancel", "my run", "b")
    assert done.returncode == 1
    there = f"is on {ELSEWHERE}, perhaps in a container; there, run: harness cancel '{run}'"
    assert there in done.stderr
    assert "lstm/b: is finished, nothing to cancel" in done.stdout


def test_a_number_in_another_container_is_no_process_here(site: Site) -> None:
    """The container has the machine's name; `cancel` must not end a process of this machine."""
    run = site.run("a", "training", process=os.getpid(), host=socket.gethostname())
    assert site.only().is_here
    run.write_json("state.json", run.read_json("state.json") | {"space": "boot 1 0"})
    status = site.only()
    assert status.state == "running"
    with pytest.raises(RunError, match="perhaps in a container"):
        ask(status)


def test_all_runs_are_cancelled_even_if_nothing_reads_the_output(
    harness: Harness, site: Site
) -> None:
    """The program that reads the output may end early, as in `| head -1`."""
    noted = site.scancel()
    site.slurm(*(f"{job}|{job}|PENDING|0:00|Priority|/x.sh" for job in ("12", "13", "14")))
    for job in ("12", "13", "14"):
        site.submission(job, [1])
    words = shlex.join(harness.command("cancel", "12", "13", "14"))
    subprocess.run(["/bin/bash", "-c", f"{words} | :"], env=harness.environment, check=False)
    assert noted.read_text().split() == ["12", "13", "14"]
