"""The survey of a folder of runs: which runs it finds, changed records, other users' files."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cli.runs import as_lines, cells
from harness.slurm.client import Queue
from harness.tracking.records import describe_trials
from harness.tracking.resume import interrupted
from harness.tracking.run_dir import find_runs
from harness.tracking.status import refresh, survey
from tests.tracking.site import NOBODY, RESULT, Site, as_root
from tests.tracking.site import site as site


def test_each_run_is_found_once_and_runs_in_sweeps_on_request(tmp_path: Path) -> None:
    """A folder inside a run is no run, and a link to a run does not count."""
    sweep = "tune/s"
    for name, file in (
        ("lstm/b", "job.toml"),
        ("lstm/a", "lease.json"),
        ("lstm/a/inner", "job.toml"),
        ("lstm/.hidden", "job.toml"),
        ("bare", "notes.txt"),
        (sweep, "search.toml"),
        (sweep, "lease.json"),
        (f"{sweep}/trials/0", "job.toml"),
        (f"{sweep}/trials/1/2.7/seed1", "job.toml"),
        (f"{sweep}/winner/best/seed1", "job.toml"),
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "lstm" / "a")
    for folder in (tmp_path, tmp_path / "lstm", tmp_path / "lstm" / "b"):
        (folder / "loop").symlink_to("loop")  # can't be followed

    def found(*tops: Path, in_sweeps: tuple[str, ...] = ()) -> list[str]:
        return [str(run.path.relative_to(tmp_path)) for run in find_runs(tops, in_sweeps)]

    assert found(tmp_path / "lstm", tmp_path / "lstm" / "a", tmp_path) == [
        *("lstm/a", "lstm/b", "tune/s")
    ]
    assert found(tmp_path / "tune", in_sweeps=("trials", "winner")) == [
        *("tune/s", "tune/s/trials/0", "tune/s/trials/1/2.7/seed1", "tune/s/winner/best/seed1")
    ]
    assert found(tmp_path / "tune", in_sweeps=("winner",))[1:] == ["tune/s/winner/best/seed1"]
    assert found(tmp_path) == ["lstm/a", "lstm/b", "tune/s"]
    assert found(tmp_path / "gone") == []


NUM = 5


@pytest.fixture
def many(site: Site) -> Site:
    """Finished runs."""
    for number in range(NUM):
        site.run(f"done-{number:02}", "finished", 1000 + number)
    return site


def test_a_finished_run_costs_one_read_and_one_stat(
    many: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk answers slowly, and a folder may have thousands of runs."""
    calls: list[str] = []

    def count(name: str) -> None:
        before = getattr(os, name)

        def call(path: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(path, int) and "done-" in str(path):
                calls.append(name)
            return before(path, *args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat", "open", "scandir", "listdir", "readlink"):
        count(name)
    assert len(survey(many.runs, Queue())) == NUM
    assert sorted(calls) == ["open"] * NUM + ["stat"] * NUM


@as_root
def test_a_heartbeat_belongs_to_its_owner(site: Site) -> None:
    """`harness status` distinguishes other users' runs from this user's runs."""
    state = site.run("a", "training", slurm_job="12").path("state.json")
    assert site.only().is_own
    os.chown(state, NOBODY, -1)
    assert not site.only().is_own


def test_the_record_of_a_job_names_the_log_of_a_finished_run(many: Site) -> None:
    """For everything but the log, the result has priority over the job's record."""
    many.submission("12", list(range(1, 30)))
    many.submission("13", [4], job="lstm", runs=[str(many.runs / "lstm/done-03")])
    (many.runs / ".submissions/ends-14.json").write_text('{"format": 1, "count": 2}')
    (run,) = (each for each in survey(many.runs, Queue()) if each.run == "lstm/done-03")
    assert (run.log, run.seed) == (str(many.folder / "slurm-13.out"), RESULT["seed"])


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300])
@pytest.mark.parametrize("content", ["{", "[1]", "\xff", '{"runs": 5}', '{"runs": ["a", 5, null]}'])
def test_records_may_hold_impossible_values(site: Site, path: str, content: str) -> None:
    """A heartbeat may name an impossible path, and a sweep's best score may be NaN.

    `tests/cli/test_bad_files.py` has all other broken files of a run.
    """
    site.run("a", "failed", log=Path(path))
    sweep = site.runs / "tune/s"
    sweep.mkdir(parents=True)
    (sweep / "search.toml").touch()
    (sweep / "state.json").write_text('{"phase": "training", "best": {"score": NaN, "x": [1]}}')
    (site.runs / ".submissions").mkdir()
    (site.runs / ".submissions/13.json").write_text(content)
    statuses = survey(site.runs, Queue())
    assert {"lstm/a", "tune/s"} <= {each.run for each in statuses}
    assert as_lines([*map(cells, statuses)])
    json.dumps([each.as_json() for each in statuses], allow_nan=False)


def test_a_job_continues_a_run_of_a_node_whose_clock_is_ahead(site: Site) -> None:
    """By the file server's clock, the record of the job is newer than the last heartbeat."""
    site.slurm("77|77|PENDING|0:00|Priority|/x.sh")
    run = site.run("slurm-12", "interrupted", -600, slurm_job="12")
    os.utime(run.path("state.json"), (time.time() - 100, time.time() - 100))
    site.submission("77", [1], job="lstm", runs=[str(run.folder)], resumes=True)
    assert (site.only().state, site.only().slurm_job) == ("pending", "77")


def test_a_command_that_watches_a_run_notices_its_next_job(site: Site) -> None:
    """If Slurm forbids the requeue, a new job continues the run while `logs -f` follows it."""
    site.slurm("12|12|RUNNING|1:00|None|/x.sh")
    site.run("a", "training", slurm_job="12")
    status, queue = site.only(), Queue()
    assert refresh(status, queue).state == "running"
    run = site.run("a", "interrupted", slurm_job="12")
    queue.every_s = 0.0
    site.slurm("12|12|COMPLETED|1:00|None|/x.sh", "13|13|PENDING|0:00|Priority|/x.sh")
    assert refresh(status, queue).state == "interrupted"
    site.submission("13", [1], age_s=0, job="lstm", runs=[str(run.folder)], resumes=True)
    now = refresh(status, queue)
    assert (now.state, now.slurm_job) == ("pending", "13")


def test_a_second_job_may_begin_a_run_that_never_began(site: Site) -> None:
    """The run has no heartbeat that could be newer than the second submission."""
    site.slurm("77|77|PENDING|0:00|Priority|/x.sh")
    runs = [str(site.runs / "lstm/slurm-12")]
    site.submission("12", [1], job="lstm", runs=runs)
    site.submission("77", [1], job="lstm", runs=runs, resumes=True)
    assert (site.only().state, site.only().slurm_job) == ("pending", "77")


@pytest.mark.parametrize("named", ["", "lstm", "lstm/a"])
def test_a_named_folder_has_records_of_submissions(site: Site, named: str) -> None:
    """The user names a run, all runs of a job or a folder of runs; the default is another one."""
    site.slurm("77|77|PENDING|0:00|Priority|/x.sh")
    run = site.run("a", "interrupted", 60, slurm_job="12")
    site.submission("77", [1], job="lstm", runs=[str(run.folder)], resumes=True)
    (status,) = survey(site.folder / "other runs", Queue(), [site.runs / named])
    assert (status.state, status.slurm_job) == ("pending", "77")


def test_a_seed_that_continues_alone_no_longer_shares_its_job(site: Site) -> None:
    """The log of the job with several seeds is not the log of a later command."""
    log = "lstm-slurm-12-seed3.out"
    site.submission(
        "12", [3], job="lstm", runs=[str(site.runs / "lstm/slurm-12-seed3")], logs=[log]
    )
    for slurm_job, expected in (("12", (log, True)), (None, (None, False))):
        site.run("slurm-12-seed3", "training", slurm_job=slurm_job)
        assert (site.only().log, site.only().shares_job) == expected


@pytest.mark.parametrize("phase", ["failed", "interrupted"])
@pytest.mark.parametrize("queue", [[], ["77|77|FAILED|0:05|None|/x.sh"]])
def test_a_job_that_ended_before_its_first_heartbeat_says_why(
    site: Site, phase: str, queue: list[str]
) -> None:
    """The reason is in the job's log; without a log, the previous job's reason is shown."""
    site.slurm(*queue)
    run = site.run("slurm-12", phase, 60, slurm_job="12", error="the GPU is out of memory")
    record = site.submission("77", [1], job="lstm", runs=[str(run.folder)], resumes=True)
    before = site.only()
    Path(record["logs"][0]).write_text("harness: run slurm-12: was begun with other data\n")
    after = site.only()
    assert (before.state, after.state, after.slurm_job) == (phase, phase, "77")
    assert before.note.startswith("the GPU is out" if phase == "failed" else "by a signal; ")
    assert after.note == "run slurm-12: was begun with other data"


@as_root
def test_another_users_record_has_no_effect_on_my_run(site: Site) -> None:
    """The record could name any job of mine, which `harness cancel` would then end."""
    site.slurm("77|77|RUNNING|0:05|None|/x.sh")
    run = site.run("a", "interrupted", 60)
    site.submission("77", [1], runs=[str(run.folder)], resumes=True)
    assert site.only().slurm_job == "77"
    os.chown(site.runs / ".submissions/77.json", NOBODY, -1)
    (site.runs / ".submissions/77.json").rename(site.runs / ".submissions/78.json")
    assert site.only().slurm_job != "77"


@as_root
def test_another_users_link_to_my_run_is_not_mine(site: Site) -> None:
    """The owner of the link state.json counts, not the owner of its target."""
    own = site.run("slurm-12", "interrupted", 60)
    planted = site.run("z").folder
    (planted / "state.json").symlink_to(own.path("state.json"))
    for path in (planted, *planted.iterdir()):
        os.chown(path, NOBODY, -1, follow_symlinks=False)
    found = survey(site.runs, Queue())
    assert {each.folder.name: each.is_own for each in found} == {"slurm-12": True, "z": False}
    assert [each.folder for each in interrupted(found)] == [own.folder]


def test_a_search_is_described_by_its_trials() -> None:
    """Numbers that are unknown or 0 are left out."""
    unknown = dict.fromkeys(("trials", "finished", "failed", "running", "waiting", "workers"))
    best = {"trial": "07", "score": 0.88124}
    assert describe_trials(unknown | {"best": None}) == "0 trials finished"
    counts = {"trials": 24, "finished": 5, "failed": 1, "waiting": 0}
    line = "5 of 24 trials finished, 1 failed, best 0.8812 (trial 07)"
    assert describe_trials({**unknown, **counts, "best": best}) == line
