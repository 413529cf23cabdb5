"""What `harness status` says of runs, whatever became of them."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from harness.slurm import client
from harness.slurm.client import Queue, QueuedJob, parse_jobs, seconds
from harness.tracking import status
from harness.tracking.records import RunStatus
from harness.tracking.run_dir import RunDirectory
from harness.tracking.status import format_duration, survey, was_out_of_memory
from harness.tracking.status_table import (
    StatusScreen,
    as_lines,
    as_renderable,
    cells,
    split_shown,
)
from tests.conftest import JOBS, Harness
from tests.doctor.site import RESULT, Site, site

__all__ = ["site"]  # a fixture


UNKNOWN = "99|99|RUNNING|1:00|None|/x.sh"


@pytest.mark.parametrize(
    ("phase", "age_s", "job", "line", "state", "note"),
    [
        ("training", 1, None, None, "running", ""),
        ("validating", 300, None, None, "running", "validating"),
        ("starting", 300, None, None, "starting", ""),
        ("training", 300, None, None, "stale", "no heartbeat for 5m00s on node7"),
        ("validating", 3000, None, None, "stale", "no heartbeat for 50m00s"),
        ("interrupted", 9000, None, None, "interrupted", "by SIGTERM, saved at epoch 2, step 40"),
        ("failed", 9000, None, None, "failed", "RunError: the loss is not finite"),
        ("finished", 9000, None, None, "finished", ""),
        # Under Slurm, whose answer has the job or not.
        ("training", 1, "12", "12|12|RUNNING|1:00|None|/x.sh", "running", ""),
        ("training", 300, "12", "12|12|RUNNING|1:00:00|None|/x.sh", "stale", "5m00s"),
        ("training", 300, "12", "12|12|RUNNING|0:03|None|/x.sh", "starting", ""),
        ("training", 15, "12", "12|12|RUNNING|0:12|None|/x.sh", "running", ""),
        ("training", 300, "12", "12|12|SUSPENDED|1:00:00|None|/x.sh", "suspended", "by Slurm"),
        ("training", 30, "12", UNKNOWN, "lost", "its job left the queue"),
        (
            "training",
            30,
            "12",
            "12|12|OUT_OF_MEMORY|1:00|OutOfMemory|/x.sh",
            "lost",
            "out of memory; harness submit --resume",
        ),
        ("training", 1, "12", UNKNOWN, "running", ""),
        ("training", 30, "12", None, "running", ""),
        (
            "interrupted",
            9,
            "12",
            "12|12|PENDING|0:00|BeginTime|/x.sh",
            "pending",
            "BeginTime; in the",
        ),
        ("interrupted", 9, "12", "12|12|COMPLETING|1:00|None|/x.sh", "interrupted", "by SIGTERM"),
        ("interrupted", 9, "12", "12|12|CANCELLED|1:00|None|/x.sh", "interrupted", "by SIGTERM"),
        ("failed", 9000, "12", "12|12|RUNNING|9:00:00|None|/bin/bash", "failed", "RunError"),
        ("failed", 9000, "12", "12|12|RUNNING|0:09|None|/x.sh", "starting", ""),
        ("finished", 9000, "12", "12|12|PENDING|0:00|BeginTime|/x.sh", "finished", ""),
    ],
)
def test_a_state_follows_from_what_is_seen(
    site: Site, phase: str, age_s: float, job: str | None, line: str | None, state: str, note: str
) -> None:
    """The heartbeat, its age and the queue's answer give each run its state and say why."""
    if line:
        site.slurm(line)
    values: dict[str, Any] = {
        "epoch": 2,
        "step": 40,
        "signal": "SIGTERM",
        "error": "RunError: the loss is not finite",
    }
    site.run("a", phase, age_s, slurm_job=job, **values)
    status = site.only()
    assert (status.state, status.note[: len(note)]) == (state, note) or note in status.note
    assert status.state == state
    assert (status.job, status.architecture) == ("lstm", "lstm")


def test_figures_are_the_heartbeats_and_the_last_epochs(site: Site) -> None:
    """Epoch, speed and ETA come from state.json, accuracies from metrics and result."""
    run = site.run("a", "training", epoch=3, num_epochs=6, reviews_per_s=812.5, eta_s=190.0)
    run.write(
        "metrics.jsonl", '{"epoch": 1, "val_accuracy": 0.5}\n{"epoch": 2, "val_accuracy": 0.625}\n'
    )
    site.run("b", "finished", epoch=6, num_epochs=6)
    lines = as_lines([*map(cells, survey(site.runs, Queue()))])
    assert lines[1].split() == [
        "lstm/a",
        "1",
        "running",
        "3/6",
        "812",
        "3m10s",
        "62.50",
        "lstm",
        "lstm",
    ]
    assert lines[2].split() == ["lstm/b", "3", "finished", "6/6", "87.00", "88.00", "lstm", "lstm"]


@pytest.mark.parametrize(("reviews_per_s", "state"), [(1.0, "running"), (1000.0, "stale")])
def test_a_slow_run_is_not_called_stale(site: Site, reviews_per_s: float, state: str) -> None:
    """Where ten steps take minutes by the run's own speed, minutes without a beat are no sign."""
    site.run("a", "training", 300, reviews_per_s=reviews_per_s)
    assert site.only().state == state


@pytest.mark.parametrize("wrong_by_s", [-3600, 3600])
def test_a_nodes_clock_may_be_wrong(site: Site, wrong_by_s: float) -> None:
    """An hour off, a heartbeat is as old as the file server says."""
    run = site.run("a", "training", -wrong_by_s)
    os.utime(run.path("state.json"), (time.time() - 2, time.time() - 2))
    assert site.only().state == "running"
    os.utime(run.path("state.json"), (time.time() - 900, time.time() - 900))
    assert site.only().state == "stale"


@pytest.mark.parametrize(
    "process", [os.getpid(), 2**22 + 1, -1, 10**30], ids=["own", "no", "-1", "big"]
)
def test_a_local_run_whose_process_is_gone_is_dead(site: Site, process: int) -> None:
    """On its own host a run is dead without its process, also where another has its number."""
    site.run("a", "training", host=socket.gethostname(), process=process)
    assert site.only().state == "dead"
    assert "harness resume" in site.only().note


@pytest.mark.parametrize(("age_s", "state"), [(0, "running"), (50, "dead")])
def test_a_process_that_began_after_the_heartbeat_is_another(
    site: Site, age_s: float, state: str
) -> None:
    """A later harness that was given the number of a dead one does not pass for it."""
    line = [sys.executable, "-c", "input()", "harness", "train"]
    with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
        site.run("a", "training", age_s, host=socket.gethostname(), process=process.pid)
        assert site.only().state == state
        process.communicate(b"\n")


@pytest.mark.parametrize("script", ["echo 'squeue: error: no controller' >&2; exit 1", "sleep 9"])
def test_a_queue_without_an_answer_is_no_obstacle(
    site: Site, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """squeue that fails or hangs costs one line, and the runs are told from their folders."""
    monkeypatch.setattr(client, "QUEUE_TIMEOUT_S", 0.3)
    site.slurm(script=script)
    site.run("a", "training", 30, slurm_job="12")
    site.submission("14", [1])
    queue = Queue()
    assert [each.state for each in survey(site.runs, queue)] == ["running", "submitted"]
    assert queue.problem
    assert queue.problem.startswith("squeue gives no answer (")


def test_the_queue_is_asked_once_in_thirty_seconds(site: Site) -> None:
    """However often the table is drawn, and however many runs there are."""
    site.slurm()
    now = [1000.0]
    queue = Queue(clock=lambda: now[0])
    for run_id in "abc":
        site.run(run_id, "training", slurm_job="12")
    for now[0] in (1000.0, 1005.0, 1029.0):
        survey(site.runs, queue)
    assert site.questions() == 1
    now[0] = 1031.0
    survey(site.runs, queue)
    assert site.questions() == 2


def test_jobs_that_wait_are_shown_from_their_records(site: Site) -> None:
    """Each task of a submitted array has its reason; one whose job is gone has its log's end."""
    site.slurm("12_1|13|RUNNING|0:05|None|/x.sh", "12_2|12|PENDING|0:00|Priority|/x.sh")
    site.submission("12", [1, 2, 3])
    site.submission("20", [7])
    (site.folder / "slurm-20.out").write_text("starting\nharness: model.unit is not a key\n\n")
    found = {each.run: each for each in survey(site.runs, Queue())}
    assert {name: (each.state, each.note) for name, each in found.items()} == {
        "gru/slurm-12_1": ("starting", ""),
        "gru/slurm-12_2": ("pending", "Priority"),
        "gru/slurm-12_3": ("gone", "left the queue before it began"),
        "gru/slurm-20": ("failed", "model.unit is not a key"),
    }
    assert [found[f"gru/slurm-12_{seed}"].seed for seed in (1, 2, 3)] == [1, 2, 3]


def test_a_run_takes_the_place_of_its_record(site: Site) -> None:
    """Once a submitted run has its folder it is shown once, with the log that was recorded."""
    site.submission("12", [1], job="lstm", runs=[str(site.runs / "lstm/slurm-12")])
    site.run("slurm-12", "training", slurm_job="12")
    status = site.only()
    assert (status.state, status.seed, status.log) == (
        "running",
        1,
        str(site.folder / "slurm-12.out"),
    )


def test_jobs_of_plain_sbatch_are_known_by_their_script(site: Site) -> None:
    """A waiting slurm/lstm.sh of this project is shown, one of another project is not."""
    (site.folder / "jobs").mkdir()
    (site.folder / "jobs/gru.toml").write_text((JOBS / "gru.toml").read_text())
    here = f"{site.folder}/slurm"
    site.slurm(
        f"30_4|30|PENDING|0:00|Resources|{here}/gru.sh",
        f"31|31|PENDING|0:00|Resources|{here}/tensorboard.sh",
        "32|32|PENDING|0:00|Resources|/other/slurm/gru.sh",
        "33|33|PENDING|0:00|Resources|(null)",
    )
    status = site.only()
    assert (status.run, status.state, status.note) == ("gru/slurm-30_4", "pending", "Resources")
    assert (status.architecture, status.seed) == ("gru", 4)


def test_a_finished_run_is_shown_once_while_its_job_ends(site: Site) -> None:
    """The job's last seconds, or a requeue after the end, make no second row."""
    (site.folder / "jobs").mkdir()
    (site.folder / "jobs/lstm.toml").write_text((JOBS / "lstm.toml").read_text())
    site.slurm(f"12|12|RUNNING|1:00|None|{site.folder}/slurm/lstm.sh --seed 1")
    site.run("slurm-12", "finished", slurm_job="12")
    assert site.only().state == "finished"
    RunDirectory(site.runs / "lstm/slurm-12").path("result.json").unlink()
    RunDirectory(site.runs / "lstm/slurm-12").path("state.json").unlink()
    assert site.only().state == "starting"


def test_an_array_tasks_own_id_is_not_its_neighbours(site: Site) -> None:
    """Tasks that never started share their array's id, which is also that of its last task."""
    site.slurm("12_1|12|PENDING|0:00|Priority|/x.sh", "12_2|13|RUNNING|1:00|None|/x.sh")
    site.run("slurm-12_2", "training", slurm_job="13", slurm_own_id="12_2")
    site.run("slurm-12_3", "training", 30, slurm_job="12", slurm_own_id="12_3")
    states = {each.run: each.state for each in survey(site.runs, Queue())}
    assert states == {"lstm/slurm-12_2": "running", "lstm/slurm-12_3": "lost"}


@pytest.mark.parametrize(
    "content", ['{"phase": "trai', "[1]", "", "\x00\xff", '{"epoch": "x", "time_s": 1e999}']
)
@pytest.mark.parametrize("name", ["state.json", "job.toml", "metrics.jsonl", "result.json"])
def test_broken_records_do_not_break_the_table(site: Site, name: str, content: str) -> None:
    """A half-written or foreign file costs its own figures alone."""
    run = site.run("a", "training")
    site.run("b", "training")
    (site.runs / ".submissions").mkdir()
    (site.runs / ".submissions/1.json").write_bytes(content.encode("latin-1"))
    run.path(name).write_bytes(content.encode("latin-1"))
    statuses = survey(site.runs, Queue())
    assert {each.run for each in statuses} == {"lstm/a", "lstm/b"}
    assert len(as_lines([*map(cells, statuses)])) == 3
    json.dumps([each.as_json() for each in statuses], allow_nan=False)


def test_what_goes_on_is_first_and_old_ends_are_counted(site: Site) -> None:
    """Of hundreds of ended runs the newest twenty are shown, and every one that goes on."""
    for number in range(60):
        phase = "failed" if number > 57 else "finished"
        site.run(f"done-{number}", phase, 1000 + 60 * number)  # s ago, by the clock of each call
    site.run("now", "training", 5)
    statuses = survey(site.runs, Queue())
    shown, older = split_shown(statuses, everything=False)
    assert [each.run for each in shown] == ["lstm/now", *(f"lstm/done-{n}" for n in range(20))]
    assert older == "and 40 older: 38 finished, 2 failed (--all shows them)"
    assert split_shown(statuses, everything=True) == (statuses, "")


def test_a_terminal_of_80_columns_shows_every_id_whole(site: Site) -> None:
    """The longest name and all figures fit, each line of it within the width."""
    site.slurm("44|44|RUNNING|1:00|None|/x.sh")
    values: dict[str, Any] = {
        "epoch": 123,
        "num_epochs": 1000,
        "reviews_per_s": 12345.0,
        "eta_s": 90000.0,
    }
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


def test_what_a_record_holds_can_not_write_on_the_terminal(site: Site) -> None:
    """Escape sequences and line ends in names and errors are shown as spaces, in a file too."""
    run = site.run("a", "failed", error="RunError: a\x1b]0;title\x07\nb\x9b2J")
    run.folder.rename(run.folder.with_name("a\x1b[2Jb"))
    out = io.StringIO()
    console = Console(width=80, file=out, force_terminal=True, color_system=None)
    console.print(as_renderable(survey(site.runs, Queue()), 80))
    for text in (out.getvalue(), "\n".join(as_lines([*map(cells, survey(site.runs, Queue()))]))):
        assert "lstm/a [2Jb" in text
        assert "RunError: a ]0;title b 2J" in text
        assert text.replace("\n", "").isprintable()


def test_columns_line_up_below_a_name_of_wide_characters(site: Site) -> None:
    """A terminal shows such a character over two columns, and the table counts it so."""
    run = site.run("wide", "training", reviews_per_s=100.0)
    run.folder.rename(run.folder.with_name("漢字"))
    site.run("plain", "training", reviews_per_s=200.0)
    out = io.StringIO()
    Console(width=80, file=out, color_system=None).print(
        as_renderable(survey(site.runs, Queue()), 80)
    )
    lines = [line for line in out.getvalue().splitlines() if "running" in line]
    assert len({cell_len(line.partition("running")[0]) for line in lines}) == 1
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:03", 3), ("1:02:03", 3723), ("2-00:00:01", 172801), ("UNLIMITED", 0), ("", 0)],
)
def test_slurms_times_are_read(text: str, expected: float) -> None:
    """Minutes, hours and days; what is no time is none."""
    assert seconds(text) == expected


def test_a_line_that_is_no_job_is_passed_over() -> None:
    """A site's greeting and a path with a bar do not confuse what squeue printed."""
    (job,) = parse_jobs(
        "Welcome | to | the | cluster | of | us\n\n12_3|14|RUNNING|0:01|None|/a |b/x.sh\n"
    )
    assert (job.id, job.raw_id, job.command) == ("12_3", "14", "/a |b/x.sh")
    assert [format_duration(s) for s in (5, 125, 7500, 187200)] == ["5s", "2m05s", "2h05m", "2d04h"]


def test_a_queue_without_an_answer_is_a_warning_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every warning of a command; another reason is another line."""
    screen = StatusScreen(tmp_path, everything=False)
    for problem in ("no answer", "no answer", "it hangs"):
        screen.complain(problem)
    assert capsys.readouterr().err.splitlines() == [
        "warning: no answer; shown from the run folders alone",
        "warning: it hangs; shown from the run folders alone",
    ]


# Watching


def test_watch_prints_a_file_anew_on_change_and_ends(harness: Harness, site: Site) -> None:
    """Into a pipe: one table while the run goes on, another when it has finished, and the end."""
    run = site.run("a", "training", epoch=1, num_epochs=2)
    watching = harness.start("status", "--watch")
    assert watching.stdout
    assert watching.stdout.readline().startswith("run ")
    assert "running" in watching.stdout.readline()
    run.write_json("result.json", RESULT)
    rest, _ = watching.communicate(timeout=20)
    assert "finished" in rest
    assert rest.count("lstm/a") == 1
    assert watching.returncode == 0


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [
        *((59.4, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m")),
        *((86_399, "23h59m"), (86_400, "1d00h")),
    ],
)
def test_a_unit_begins_where_there_is_a_whole_one(time_s: float, shown: str) -> None:
    """And not a second later."""
    assert status.format_duration(time_s) == shown


BEGIN = "2026-01-01 12:00:00 INFO job 7 on n1: no GPUs, 4 CPUs, 17.2 GB\n"
# As Slurm 24.11 writes them: by its own accounting, and by the kernel's cgroup.
EXCEEDED = """\
slurmstepd-n1: error: StepId=7.batch exceeded memory limit (451346432 > 314572800), being killed
slurmstepd-n1: error: Exceeded job memory limit
"""
CGROUP = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have "
    "been OOM Killed.\n"
)


@pytest.mark.parametrize(
    ("log", "state", "expected"),
    [
        (BEGIN + EXCEEDED, None, True),
        (BEGIN + CGROUP, None, True),
        ("", "OUT_OF_MEMORY", True),
        (EXCEEDED + BEGIN + "ERROR another failure\n", None, False),
        (BEGIN, "FAILED", False),
    ],
)
def test_the_last_start_counts(tmp_path: Path, log: str, state: str | None, expected: bool) -> None:
    """A job's log is written on by each of its starts."""
    (tmp_path / "job.out").write_text(log)
    queued = QueuedJob("7", "7", state, "", 0.0, "") if state else None
    status = RunStatus("lstm/slurm-7", tmp_path, log=str(tmp_path / "job.out"), queued=queued)
    assert was_out_of_memory(status) is expected
