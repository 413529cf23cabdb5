"""Runs found by name and cancelled: real ones of this machine, and what is not here."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError, RunError
from harness.slurm.client import Queue
from harness.system.lenient_json import read_json
from harness.system.processes import process_space
from harness.tracking import cancel
from harness.tracking.cancel import ask_to_stop, spares_others, wait_until_saved
from harness.tracking.records import RunStatus
from harness.tracking.run_dir import RunDirectory
from harness.tracking.status import pick, survey
from harness.tuning.disk import stop_search_in
from tests.conftest import JOBS, Harness
from tests.doctor.site import ELSEWHERE, Site, site
from tests.preloaded import Process
from tests.tuning.made_up_sweep import RANDOM, make_sweep

__all__ = ["site"]  # a fixture


def test_a_run_is_found_by_folder_id_and_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way that people write a run leads to it; an array's id to all of its tasks."""
    site.run("slurm-12_1", "finished", slurm_job="13", slurm_own_id="12_1")
    site.run("slurm-12_2", "finished", slurm_job="12", slurm_own_id="12_2")
    site.run("slurm-14-345", "finished", slurm_job="16")
    site.run("slurm-15-345-seed1", "finished", slurm_job="16")
    site.run("mine", "finished", job="gru")
    site.run("mine", "finished")
    found = survey(site.runs, Queue())
    monkeypatch.chdir(site.runs / "lstm")

    def names(name: str, *, many: bool = False) -> list[str]:
        return sorted(each.run for each in pick(name, found, site.runs, many=many))

    for name in (
        "slurm-12_1",
        "lstm/slurm-12_1",
        str(site.runs / "lstm/slurm-12_1"),
        "12_1",
        "./slurm-12_1/",
    ):
        assert names(name) == ["lstm/slurm-12_1"], name
    assert names("13") == ["lstm/slurm-12_1"]
    assert names("12") == ["lstm/slurm-12_1", "lstm/slurm-12_2"]
    assert names("14") == ["lstm/slurm-14-345"]
    assert names("15") == ["lstm/slurm-15-345-seed1"]
    assert names("gru") == ["gru/mine"]
    ids = ("mine", "slurm-12_1", "slurm-12_2", "slurm-14-345", "slurm-15-345-seed1")
    assert names("lstm", many=True) == [f"lstm/{run_id}" for run_id in ids]
    with pytest.raises(InputError, match="lstm: fits 5 runs, name one of them: "):
        names("lstm")
    for name in ("", " "):
        with pytest.raises(InputError, match="give a folder"):
            names(name)
    with pytest.raises(InputError, match=r"did you mean .*slurm-12_1"):
        names("slurm-12-1")


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_name_that_fits_no_run_is_refused(harness: Harness, site: Site, command: str) -> None:
    """Exit code 2 and one line with what is near."""
    site.run("calmest", "finished")
    done = harness.run_here(command, "calmost")
    assert done.returncode == 2
    assert "did you mean calmest" in done.stderr.splitlines()[-1]


def test_commands_that_watch_never_import_tensorflow(site: Site) -> None:
    """They answer at once, so they do without what takes seconds to load."""
    site.run("a", "finished")
    code = (
        "import sys; from harness.cli.main import main;"
        "sys.argv = ['harness', *sys.argv[1:]]; main();"
        "sys.exit('tensorflow' in sys.modules or 'numpy' in sys.modules)"
    )
    for words in (["status"], ["status", "--json"], ["cancel", "a"], ["logs", "a"]):
        line = [sys.executable, "-c", code, *words, "--runs", str(site.runs)]
        assert subprocess.run(line, cwd=JOBS.parent, check=False).returncode == 0, words


@pytest.mark.parametrize("job", [None, "12_3"])
def test_a_search_is_cancelled_wherever_its_workers_are(
    site: Site, tmp_path: Path, job: str | None
) -> None:
    """By a name in its folder that all of them see; tasks of its array that wait leave the queue.

    A run elsewhere has nobody who would look, so the machine is named.
    """
    noted = scancel(site)
    sweep = make_sweep(tmp_path / "s", RANDOM).folder
    status = RunStatus("tune/s", sweep, "running", host=ELSEWHERE, process=1, trials={"best": 1})
    status.slurm_job = job
    for _ in range(2):
        assert ask_to_stop(status, stop_search=stop_search_in) is None
    assert read_json(sweep / "stop.json")["by"].endswith(f" on {socket.gethostname()}")
    assert noted.exists() == bool(job)
    assert not job or noted.read_text() == "--state=PENDING 12\n" * 2
    status.trials = status.slurm_job = None
    with pytest.raises(RunError, match=f"is on {ELSEWHERE}; there: harness cancel"):
        ask_to_stop(status)


def test_without_slurms_programs_nobody_says_that_no_job_waits(site: Site) -> None:
    """A requeued run may be in the queue; one that somebody cancelled is not, nor one elsewhere."""
    site.run("slurm-12", "interrupted", slurm_job="12", signal="SIGUSR1")
    with pytest.raises(RunError, match=r"programs are not here; .* or: scancel 12"):
        ask_to_stop(site.only())
    site.run("slurm-12", "interrupted", slurm_job="12", signal="SIGTERM")
    assert "nothing to cancel" in (ask_to_stop(site.only()) or "")
    site.slurm()
    site.run("slurm-12", "interrupted", slurm_job="12", signal="SIGUSR1")
    assert "nothing to cancel" in (ask_to_stop(site.only()) or "")


def test_a_run_in_another_container_is_not_cancelled_from_here(tmp_path: Path) -> None:
    """It has this machine's name, and a number that may be an own run's here."""
    boot, _, _ = process_space().partition(" ")
    (tmp_path / "state.json").write_text(json.dumps({"space": f"{boot} 7"}))
    here = socket.gethostname()
    status = RunStatus("lstm/s", tmp_path, "running", host=here, process=1)
    with pytest.raises(RunError, match=f"process 1 in another container is on {here}; there: "):
        ask_to_stop(status)


def scancel(site: Site) -> Path:
    """Put a scancel on the PATH; the file in which it notes what it is asked for."""
    noted = site.folder / "cancelled"
    site.program("scancel", f'echo "$@" >> "{noted}"')
    return noted


def test_a_job_is_cancelled_by_its_id(site: Site) -> None:
    """One that waits is out of the queue at once; one that begins has to end first."""
    noted = scancel(site)
    site.slurm("12|12|PENDING|0:00|Priority|/x.sh", "13|13|RUNNING|0:05|None|/x.sh")
    for job_id in ("12", "13"):
        site.submission(job_id, [1])
    found = {each.run: each for each in survey(site.runs, Queue())}
    assert ask_to_stop(found["gru/slurm-12"]) == "gru/slurm-12: job 12 is out of the queue"
    assert ask_to_stop(found["gru/slurm-13"]) is None
    assert noted.read_text() == "12\n13\n"


@pytest.mark.parametrize("owns_job", [True, False, None])
def test_a_session_is_not_cancelled_for_a_run(site: Site, *, owns_job: bool | None) -> None:
    """A notebook server is a batch job too; what the job scripts began has the job for itself."""
    noted = scancel(site)
    site.slurm("12|12|RUNNING|1:00|None|/x.sh", "13|13|PENDING|0:00|Priority|/x.sh")
    site.program("scontrol", "echo JobId=12 BatchFlag=1")
    run = site.run("20260101-seed1", "training", slurm_job="12")
    run.write_json("state.json", run.read_json("state.json") | {"owns_job": owns_job})
    if owns_job is False:
        with pytest.raises(RunError, match=r"harness cancel .*, or end its whole job: scancel 12$"):
            ask_to_stop(site.only())
        site.slurm("12|12|PENDING|0:00|Priority|/x.sh", "13|13|PENDING|0:00|Priority|/x.sh")
        with pytest.raises(RunError, match=r"may hold more than this run.*: scancel 12$"):
            ask_to_stop(site.only())  # which Slurm has put back into the queue
        assert not noted.exists()
        status = site.only()
        status.slurm_job = status.reported_job = "13"  # that goes on with it
        ask_to_stop(status)
        assert noted.read_text() == "13\n"
    else:
        assert ask_to_stop(site.only()) is None
        assert noted.read_text() == "12\n"


@pytest.mark.parametrize(
    ("run_id", "job"), [("slurm-12", "12"), ("slurm---me", "--me"), ("a", "12")]
)
def test_the_job_that_a_stranger_names_is_not_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch, run_id: str, job: str
) -> None:
    """It may be the user's own, or an option of scancel that means all of them."""
    noted = scancel(site)
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    run = site.run(run_id, "training")
    state = run.read_json("state.json") | {"slurm_job": job, "slurm_own_id": job}
    run.write_json("state.json", state)
    ours = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: ours + 1)
    with pytest.raises(RunError, match="is another user's; ask them to stop it"):
        ask_to_stop(site.only())
    assert not noted.exists()


def test_a_job_that_is_no_id_is_none(site: Site) -> None:
    """A broken record, even one's own, puts no option in front of Slurm's programs."""
    for run_id, job in (("slurm---me", "--me"), ("slurm-1-seed1", "(")):
        run = site.run(run_id, "training", 0)
        state = run.read_json("state.json") | {"slurm_job": job, "slurm_own_id": job}
        run.write_json("state.json", state)
    for status in survey(site.runs, Queue()):
        assert (status.slurm_job, status.reported_job, status.shares_job) == (None, None, False)


@pytest.mark.parametrize("prefix", ["slurm-12", "slurm-12-345"])
def test_one_seed_of_a_job_is_stopped_alone(site: Site, prefix: str) -> None:
    """The others go on, so the job is not cancelled; where none goes on, it may be."""
    noted = scancel(site)
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    for seed in (1, 2):
        site.run(f"{prefix}-seed{seed}", "training", slurm_job="12")
    one, other = both = survey(site.runs, Queue())
    assert spares_others(one, [one], both, by_job=True)
    assert not spares_others(one, both, both, by_job=True)
    assert ask_to_stop(one, alone=True) is None
    assert (one.asked_to_cancel, other.asked_to_cancel, noted.exists()) == (True, False, False)
    other.state = "finished"
    assert not spares_others(one, [one], both, by_job=True)


@pytest.mark.parametrize("by_job", [False, True])
def test_a_seed_at_work_leaves_its_job_to_those_that_wait(
    harness: Harness, site: Site, monkeypatch: pytest.MonkeyPatch, *, by_job: bool
) -> None:
    """Of plain sbatch with --seeds no record tells of them; the job's id means all of them."""
    monkeypatch.setattr(cancel, "WAIT_S", 0.0)
    noted = scancel(site)
    site.slurm(f"12|12|RUNNING|1:00|None|{JOBS.parent}/slurm/lstm.sh --seeds 1-5")
    site.program("scontrol", "echo BatchFlag=1")
    one = site.run("slurm-12-seed1", "training", slurm_job="12")
    one.write_json("state.json", one.read_json("state.json") | {"owns_job": True})
    harness.environment["PATH"] = os.environ["PATH"]
    name = "12" if by_job else one.folder
    done = harness.run_here("cancel", name, "--runs", site.runs)
    assert "was asked to stop" in done.stderr
    assert (one.path("cancel.json").exists(), noted.exists()) == (not by_job, by_job)


@pytest.mark.parametrize("phase", ["failed", "interrupted"])
def test_a_seed_that_has_stopped_leaves_the_others_their_job(
    harness: Harness, site: Site, phase: str
) -> None:
    """Its job does not begin it again, and another job may go on with it."""
    noted = scancel(site)
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    site.program("scontrol", "echo BatchFlag=1")
    one = site.run("slurm-12-seed1", phase, slurm_job="12")
    one.write_json("state.json", one.read_json("state.json") | {"owns_job": True})
    site.run("slurm-12-seed2", "training", slurm_job="12")
    harness.environment["PATH"] = os.environ["PATH"]
    done = harness.run_here("cancel", one.folder)
    said = f"lstm/slurm-12-seed1: is {phase}; job 12 trains its other seeds\n"
    assert (done.returncode, done.stdout, noted.exists()) == (0, said, False), done.stderr
    (now,) = (each for each in survey(site.runs, Queue()) if each.run == "lstm/slurm-12-seed1")
    assert (now.asked_to_cancel, now.state, now.job_lives) == (True, phase, False)


def test_one_seed_of_a_job_elsewhere_is_stopped_alone(
    harness: Harness, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by its path where `--runs` is another folder, as its job still trains the others."""
    monkeypatch.setattr(cancel, "WAIT_S", 0.0)
    noted = scancel(site)
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    site.program("scontrol", "echo BatchFlag=1")
    one, _ = (site.run(f"slurm-12-seed{seed}", "training", slurm_job="12") for seed in (1, 2))
    harness.environment["PATH"] = os.environ["PATH"]
    done = harness.run_here("cancel", one.folder, "--runs", site.folder / "empty")
    assert "was asked to stop" in done.stderr
    assert (one.path("cancel.json").exists(), noted.exists()) == (True, False)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("interrupted", "lstm/a: saved at epoch 2, step 40; continue with harness resume "),
        ("failed", "lstm/a: failed before it was stopped: RunError: no space"),
        ("finished", "lstm/a: finished before it was stopped"),
    ],
)
def test_the_end_of_a_run_is_waited_for_and_told(site: Site, phase: str, said: str) -> None:
    """It has saved when its record says so, which is after three looks here."""
    values: dict[str, Any] = {"epoch": 2, "step": 40, "error": "RunError: no space"}
    site.run("a", "training", 5, **values)
    status, waits = site.only(), list[float]()

    def sleep(time_s: float) -> None:
        waits.append(time_s)
        if len(waits) == 3:
            site.run("a", phase, 0, **values)

    assert wait_until_saved(status, Queue(), sleep).startswith(said)
    assert len(waits) == 3


def test_a_run_that_does_not_stop_is_told_after_a_minute_and_a_half(site: Site) -> None:
    """With the command that shows what it does."""
    site.run("a", "training")
    waits = list[float]()
    with pytest.raises(RunError, match=r"not within 90 s; see harness status lstm/a"):
        wait_until_saved(site.only(), Queue(), waits.append)
    assert sum(waits) == 90


def is_training(run: RunDirectory, process: int) -> bool:
    state = run.read_json("state.json")
    return (state.get("process"), state.get("phase")) == (process, "training") and "step" in state


def start_run(harness: Harness) -> tuple[Process, Path]:
    """A training process, once it has told of a step."""
    words = harness.train_words("lstm", "live", "--set", "train.epochs=1000")
    process = harness.start(*words, is_forked=False)
    run = RunDirectory(harness.runs / "lstm/live")
    deadline = time.monotonic() + 120
    while not is_training(run, process.pid):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process, run.folder


@pytest.mark.full
def test_a_real_run_is_seen_cancelled_and_seen_dead(harness: Harness, site: Site) -> None:
    """Running by its process, saved by `cancel`, and dead after a KILL with the way to go on."""
    process, folder = start_run(harness)
    seen = json.loads(harness.run_here("status", "--json").stdout)
    assert [(each["state"], each["process"]) for each in seen] == [("running", process.pid)]
    done = harness.run_here("cancel", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lstm/live: saved at epoch ")
    assert f"continue with harness resume {folder}" in done.stdout
    assert process.wait(timeout=20) == 75
    assert "nothing to cancel" in harness.run_here("cancel", "live").stdout
    process.communicate()

    process, _ = start_run(harness)
    process.kill()
    process.communicate()
    table = harness.run_here("status").stdout
    assert "dead" in table
    assert f"harness resume {folder}" in table
    done = harness.run_here("cancel", "live")
    assert (done.returncode, "is dead, nothing to cancel" in done.stdout) == (0, True)


@pytest.mark.full
def test_a_run_elsewhere_is_cancelled_there(harness: Harness, site: Site) -> None:
    """Another host's process gets no signal, and the line says where to go; others are stopped."""
    site.run("a", "training", process=os.getpid())
    site.run("b", "finished")
    done = harness.run_here("cancel", "a", "b")
    assert done.returncode == 1
    assert f"is on {ELSEWHERE}; there: harness cancel" in done.stderr
    assert "lstm/b: is finished, nothing to cancel" in done.stdout
