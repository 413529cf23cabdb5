"""`harness status`: the state of each run, from its folder and the queue, and the table."""

import io
import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.cli.runs import as_lines, as_renderable, cells, split_shown
from harness.slurm import client
from harness.slurm.client import Queue, QueuedJob
from harness.slurm.resources import Resources
from harness.tracking.cancel import ask_to_stop
from harness.tracking.records import RunStatus
from harness.tracking.resume import as_job, interrupted
from harness.tracking.status import format_duration, survey, was_out_of_memory
from harness.tuning.sweep_dir import stop_search_in
from tests.conftest import JOBS, Harness, run_here
from tests.tracking.site import RESULT, Site
from tests.tracking.site import site as site

UNKNOWN = "99|99|RUNNING|1:00|None|/x.sh"
REQUEUED = "12|12|PENDING|0:00|BeginTime|/x.sh"
OOM = "12|12|OUT_OF_MEMORY|1:00|OutOfMemory|/x.sh"


@pytest.mark.parametrize(
    ("phase", "age_s", "job", "line", "state", "note"),
    [
        ("validating", 300, None, None, "running", "validating"),
        ("starting", 300, None, None, "starting", ""),
        ("training", 599, None, None, "running", ""),
        ("training", 3000, None, None, "stale", "no heartbeat for 50m00s on node7"),
        ("interrupted", 9000, None, None, "interrupted", "by SIGTERM, saved at epoch 2, step 40"),
        ("failed", 9000, None, None, "failed", "RunError: the loss is not finite"),
        ("finished", 9000, None, None, "finished", ""),
        # Runs in Slurm jobs, with and without a line of squeue.
        ("training", 3000, "12", "12|12|RUNNING|1:00:00|None|/x.sh", "stale", "50m00s"),
        ("training", 300, "12", "12|12|RUNNING|0:03|None|/x.sh", "starting", ""),
        ("training", 15, "12", "12|12|RUNNING|0:12|None|/x.sh", "running", ""),
        ("training", 300, "12", "12|12|SUSPENDED|1:00:00|None|/x.sh", "suspended", "by Slurm"),
        ("training", 30, "12", UNKNOWN, "lost", "its job left the queue"),
        ("training", 30, "12", OOM, "lost", "out of memory; harness submit --resume"),
        ("training", 1, "12", UNKNOWN, "running", ""),
        ("training", 30, "12", None, "running", ""),
        ("interrupted", 9, "12", REQUEUED, "pending", "BeginTime; requeued"),
        ("interrupted", 9, "12", "12|12|COMPLETING|1:00|None|/x.sh", "interrupted", "by SIGTERM"),
        ("interrupted", 9, "12", "12|12|CANCELLED|1:00|None|/x.sh", "interrupted", "by SIGTERM"),
        ("failed", 9000, "12", "12|12|RUNNING|9:00:00|None|/bin/bash", "failed", "RunError"),
        ("failed", 9000, "12", "12|12|RUNNING|0:09|None|/x.sh", "starting", ""),
        ("finished", 9000, "12", REQUEUED, "finished", ""),
    ],
)
def test_heartbeat_and_queue_give_the_state(
    site: Site, phase: str, age_s: float, job: str | None, line: str | None, state: str, note: str
) -> None:
    """The phase, the age of the heartbeat and squeue's answer determine state and note."""
    if line:
        site.slurm(line)
    values: dict[str, Any] = {"epoch": 2, "step": 40, "signal": "SIGTERM"}
    error = "RunError: the loss is not finite"
    site.run("a", phase, age_s, slurm_job=job, error=error, **values)
    status = site.only()
    assert (status.state, note in status.note) == (state, True), status.note
    assert bool(note) == bool(status.note)
    assert (status.job, status.architecture) == ("lstm", "lstm")


def test_the_table_has_the_figures_of_a_run(site: Site) -> None:
    """A run has one line, even if its error has two. Only training runs have a speed and an ETA.

    JSON also has the time of a step and, by TensorBoard's names, the use of the machine.
    """
    values: dict[str, Any] = {"num_epochs": 6, "reviews_per_s": 812.5, "eta_s": 190.0}
    figures: dict[str, Any] = {"step_ms": 24.46, "device": {"memory_gb": 1.23, "gpu0_share": 0.02}}
    site.run("a", "training", epoch=3, val_accuracy=0.625, **values, **figures)
    assert site.only().as_json().items() >= figures.items()
    for phase in ("training", "training", "finished"):  # three starts
        site.run("b", phase, epoch=6, **values)
    site.run("c", "failed", 9000, error="RunError: a\nb\x9bc")
    site.run("d", "training", epoch=3, val_accuracy=0.625, **values)
    site.run("d", "starting", num_epochs=6)
    lines = as_lines([*map(cells, survey(site.runs, Queue()))])
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "lstm/a 1 running 3/6 812 3m10s 62.50",
        "lstm/d 1 starting -/6 restarts: 1",
        "lstm/b 1 finished 6/6 87.00 88.00 restarts: 2",
        "lstm/c 1 failed RunError: a b c",
    ]


@pytest.mark.parametrize(
    ("by_node_s", "by_server_s", "state"),
    [(3600, 2, "running"), (-3600, 2, "running"), (2, 900, "running"), (-3600, 900, "stale")],
)
def test_a_clock_may_be_wrong(site: Site, by_node_s: float, by_server_s: float, state: str) -> None:
    """The node's clock and the file server's clock give two ages; the smaller age counts."""
    run = site.run("a", "training", by_node_s)
    then = time.time() - by_server_s
    os.utime(run.path("state.json"), (then, then))
    assert site.only().state == state


def test_all_runs_see_the_same_answer_of_squeue(site: Site) -> None:
    """The answer becomes too old while threads read runs, so the threads wait for the next one."""
    site.slurm(script="sleep 0.3; echo '12|12|PENDING|0:00 1:00|Priority|'")
    for seed in range(24):
        site.run(str(seed), "interrupted", slurm_job="12")
    times = iter([0.0, 0.0])
    statuses = survey(site.runs, Queue(lambda: next(times, 31.0)))
    assert {each.state for each in statuses} == {"pending"}


@pytest.mark.parametrize(("job", "state"), [(None, "dead"), ("12", "lost")])
def test_a_run_that_died_before_its_first_record_begins_again(
    site: Site, job: str | None, state: str
) -> None:
    """Without a job file the run can't continue, unless `harness submit` has recorded the file."""
    site.slurm()
    local: dict[str, Any] = {"host": socket.gethostname(), "process": 10**30}  # a broken id
    run = site.run("slurm-12", "starting", 60, slurm_job=job, **local)
    run.path("job.toml").unlink()
    status = site.only()
    assert (status.state, interrupted([status])) == (state, [])
    assert status.note.endswith("the run never began; train its job again")
    if not job:
        return
    site.submission("12", [1], job_file=str(JOBS / "lstm.toml"), runs=[str(run.folder)])
    status = site.only()
    assert status.note.endswith(status.resume)
    assert interrupted([status]) == [status]
    assert not as_job(status, Resources()).is_begun


@pytest.mark.parametrize("script", ["echo 'squeue: error: no controller' >&2; exit 1", "sleep 9"])
def test_without_squeues_answer_the_folders_are_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """If squeue fails or hangs, `status` shows the folders and one warning."""
    monkeypatch.setattr(client, "QUEUE_TIMEOUT_S", 0.3)
    site.slurm(script=script)
    site.run("a", "training", 30, slurm_job="12")
    site.submission("14", [1])
    queue = Queue()
    assert [each.state for each in survey(site.runs, queue)] == ["running", "submitted"]
    assert queue.problem
    assert queue.problem.startswith("squeue gives no answer (")


def test_submitted_jobs_are_shown_before_they_begin(site: Site) -> None:
    """Tasks of an array show why they wait; a job that left the queue shows its last log line."""
    site.slurm("12_1|13|RUNNING|0:05|None|/x.sh", "12_2|12|PENDING|0:00|Priority|/x.sh")
    site.submission("12", [1, 2, 3])
    site.submission("20", [7])
    said = "2026-01-01 12:00:00 ERROR model.unit is not a key\n\n"
    (site.folder / "slurm-20.out").write_text(said)
    found = {each.run: each for each in survey(site.runs, Queue())}
    assert {name: (each.state, each.note) for name, each in found.items()} == {
        "gru/slurm-12_1": ("starting", ""),
        "gru/slurm-12_2": ("pending", "Priority"),
        "gru/slurm-12_3": ("gone", "the job left the queue before the run began"),
        "gru/slurm-20": ("gone", "model.unit is not a key"),
    }
    assert [found[f"gru/slurm-12_{seed}"].seed for seed in (1, 2, 3)] == [1, 2, 3]


def test_a_job_that_squeue_could_not_show_yet_is_not_gone(site: Site) -> None:
    """`status --watch` asks squeue every 30 s, but reads the records each time."""
    site.slurm()
    queue, resumed = Queue(), site.run("a", "interrupted", 60)
    survey(site.runs, queue)
    site.submission("20", [1], age_s=0)
    site.submission("21", [1], age_s=0, runs=[str(resumed.folder)], resumes=True)
    assert [(each.state, each.note) for each in survey(site.runs, queue)] == [("submitted", "")] * 2
    queue.every_s, queue.clock = 0.0, lambda: time.time() + 30
    assert {each.state for each in survey(site.runs, queue)} == {"gone", "interrupted"}


def test_waiting_jobs_of_plain_sbatch_are_shown(site: Site) -> None:
    """The path of a script shows project and job; jobs of other projects are left out."""
    (site.folder / "jobs").symlink_to(JOBS)
    (site.folder / "mine.toml").write_text('name = "named"')
    here = f"{site.folder}/slurm"
    site.slurm(
        f"30_4|30|PENDING|0:00|Resources|{here}/gru.sh",
        f"36|36|PENDING|0:00|Resources|{here}/tune.sh mine.toml",
        f"31|31|PENDING|0:00|Resources|{here}/tensorboard.sh",
        "32|32|PENDING|0:00|Resources|/other/slurm/gru.sh",
        "33|33|PENDING|0:00|Resources|(null)",
        f"34_1|34|PENDING|0:00|Resources|{here}/tune.sh jobs/tune_all.toml --workers 2",
        f"34_2|34|PENDING|0:00|Resources|{here}/tune.sh jobs/tune_all.toml --workers 2",
        f"35|35|PENDING|0:00|Resources|{here}/tune.sh --join runs/tune_all/slurm-34",
    )
    found = sorted(survey(site.runs, Queue()), key=lambda each: each.run, reverse=True)
    search, named, status = found
    assert (named.run, named.job) == ("named/slurm-36", "named")
    assert (status.run, status.state, status.note) == ("gru/slurm-30_4", "pending", "Resources")
    assert status.seed == 4
    assert (search.run, search.state, search.slurm_job) == ("tune_all/slurm-34", "pending", "34")
    noted = site.scancel()
    line = ask_to_stop(search, stop_search=stop_search_in) or ""
    assert "job 34 was removed from the queue" in line
    assert noted.read_text() == "34\n"


def test_a_finished_run_is_shown_once_while_its_job_ends(site: Site) -> None:
    """Neither the job's last seconds nor a requeue adds a second row.

    A user may remove the result to train the end of the run again.
    """
    (site.folder / "jobs").symlink_to(JOBS)
    site.slurm(f"12|12|RUNNING|1:00|None|{site.folder}/slurm/lstm.sh --seed 1")
    run = site.run("slurm-12", "finished", slurm_job="12")
    assert site.only().state == "finished"
    run.path("result.json").unlink()
    assert site.only().state == "running"
    run.path("state.json").unlink()
    assert site.only().state == "starting"


def test_tasks_with_the_same_raw_id_are_distinguished(site: Site) -> None:
    """Tasks that never started have their array's raw id; the array's last task keeps this id."""
    site.slurm("12_1|12|PENDING|0:00|Priority|/x.sh", "12_2|13|RUNNING|1:00|None|/x.sh")
    site.run("slurm-12_2", "training", slurm_job="13", slurm_own_id="12_2")
    site.run("slurm-12_3", "training", 30, slurm_job="12", slurm_own_id="12_3")
    states = {each.run: each.state for each in survey(site.runs, Queue())}
    assert states == {"lstm/slurm-12_2": "running", "lstm/slurm-12_3": "lost"}


def test_active_runs_come_first_and_old_runs_are_counted(site: Site) -> None:
    """The table has all active runs and the newest twenty inactive runs."""
    for number in range(25):
        phase = "failed" if number > 22 else "finished"
        site.run(f"done-{number}", phase, 1000 + 60 * number)
    site.run("now", "training", 5)
    statuses = survey(site.runs, Queue())
    shown, older = split_shown(statuses, everything=False)
    assert [each.run for each in shown] == ["lstm/now", *(f"lstm/done-{n}" for n in range(20))]
    assert older == "older runs, not shown: 5 (3 finished, 2 failed); --all shows them"
    assert split_shown(statuses, everything=True) == (statuses, "")
    words = ["status", f"--runs={site.runs}", "--json", "--state=failed"]
    runs = json.loads(run_here(*words).stdout), json.loads(run_here(*words, "--newer=0.67").stdout)
    assert [[each["run"] for each in some] for some in runs] == [
        ["lstm/done-23", "lstm/done-24"],
        ["lstm/done-23"],
    ]
    assert "--state fail: should be one of" in run_here("status", "--state=fail").stderr
    assert "no run to show below" in run_here(*words[:2], "--state=lost").stdout


def test_ensembles_have_a_time_and_scores(site: Site) -> None:
    """An ensemble has no heartbeat."""
    folder = site.run("a", "finished", 9000).folder
    (folder / "state.json").unlink()
    status = site.only()
    assert (status.state, status.val_accuracy, status.test_accuracy) == ("finished", 0.87, 0.88)
    assert time.time() - status.time_s < 600


def test_a_terminal_of_80_columns_shows_every_id_whole(site: Site) -> None:
    """Lines are no wider than the terminal, here 80 or 40 columns, and break no name or number."""
    site.slurm("44|44|RUNNING|1:00|None|/x.sh")
    values: dict[str, Any] = {"epoch": 123, "num_epochs": 1000}
    values |= {"reviews_per_s": 12345.0, "eta_s": 90000.0}
    site.run("20261125-043403-seed1", "training", job="stacked_lstm", **values)
    site.run("20261125-043403-seed2-with-a-very-long-name", "training", slurm_job="44", **values)
    site.run("c", "finished")
    for width in (80, 40):
        out = io.StringIO()
        console = Console(width=width, file=out, force_terminal=True, color_system=None)
        console.print(as_renderable(survey(site.runs, Queue()), width))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        text = "".join(line.ljust(width) for line in lines) if width == 40 else out.getvalue()
        assert "stacked_lstm/20261125-043403-seed1" in text
        assert "lstm/20261125-043403-seed2-with-a-very-long-name" in text
        assert "Slurm job 44" in text
        words = out.getvalue().split()  # no line ends inside a number
        assert [words.count(figure) for figure in ("123/1000", "12345", "1d01h")] == [2, 2, 2]


@pytest.mark.parametrize("words", [[], ["--state=failed"]])
def test_watch_prints_tables_until_no_run_is_alive(
    harness: Harness, site: Site, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The command ends after the table that shows the run's end, also if it shows other runs."""
    run = site.run("a", "training", epoch=1, num_epochs=2)
    waits = [lambda: None, lambda: run.write_json("result.json", RESULT)]
    clock = SimpleNamespace(sleep=lambda _: waits.pop(0)())  # other threads use the real clock
    monkeypatch.setattr("harness.cli.runs.time", clock)
    shown = harness.run_here("status", "--watch", *words).stdout
    assert not waits
    if not words:
        assert (shown.count("running"), shown.count("finished")) == (2, 1)


def test_commands_that_watch_import_no_large_library(harness: Harness, site: Site) -> None:
    """Without these imports the commands answer at once."""
    (log := site.folder / "a.out").touch()
    site.run("a", "finished", log=log)
    harness.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    for words in (["status"], ["status", "--json"], ["logs", "a"], ["cancel", "a"]):
        printed = harness.succeed(*words).stderr
        imported = {line.rpartition("|")[2].strip() for line in printed.splitlines()}
        assert "harness.tracking.status" in imported
        assert not imported & {"tensorflow", "keras", "numpy", "sklearn"}


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [
        *((59.4, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m")),
        *((86_399, "23h59m"), (86_400, "1d00h"), (187_200, "2d04h")),
    ],
)
def test_a_duration_has_its_two_largest_units(time_s: float, shown: str) -> None:
    """The largest unit has at least one whole unit."""
    assert format_duration(time_s) == shown


BEGIN = "2026-01-01 12:00:00 INFO job 7 on n1: no GPUs, 4 CPUs, 17.2 GB\n"
# Messages of Slurm 24.11: from its accounting, and from the kernel's cgroup.
EXCEEDED = """\
slurmstepd-n1: error: StepId=7.batch exceeded memory limit (451346432 > 314572800), being killed
slurmstepd-n1: error: Exceeded job memory limit
"""
CGROUP = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have "
    "been OOM Killed.\n"
)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (BEGIN + EXCEEDED, True),
        (BEGIN + CGROUP, True),
        (EXCEEDED + BEGIN + "ERROR another failure\n", False),
    ],
)
def test_the_last_start_was_out_of_memory(tmp_path: Path, log: str, expected: bool) -> None:
    """All starts of a job write into one log, so earlier messages do not count."""
    (tmp_path / "job.out").write_text(log)
    queued = QueuedJob("7", "7", "FAILED", "", 0.0, "")
    status = RunStatus("lstm/slurm-7", tmp_path, log=str(tmp_path / "job.out"), queued=queued)
    assert was_out_of_memory(status) is expected
