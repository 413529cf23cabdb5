"""A look at many runs: what it asks the disk, and what it must notice."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.slurm.client import Queue
from harness.tracking.resume import interrupted
from harness.tracking.run_dir import RunDirectory, find_runs
from harness.tracking.status import select_runs, survey
from harness.tracking.status_table import as_lines, cells
from tests.doctor.site import RESULT, Site, site


def test_runs_are_found_once_and_those_of_sweeps_where_asked(tmp_path: Path) -> None:
    """By path, each once; what is inside of a run is no run, and a sweep's runs only on request."""
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
        (folder / "loop").symlink_to("loop")  # can't be followed, as a colleague's closed folder

    def found(*tops: Path, in_sweeps: tuple[str, ...] = ()) -> list[str]:
        return [str(run.relative_to(tmp_path)) for run in find_runs(tops, in_sweeps)]

    assert found(tmp_path / "lstm", tmp_path / "lstm" / "a", tmp_path) == [
        *("lstm/a", "lstm/b", "tune/s")
    ]
    assert found(tmp_path / "tune", in_sweeps=("trials", "winner")) == [
        *("tune/s", "tune/s/trials/0", "tune/s/trials/1/2.7/seed1", "tune/s/winner/best/seed1")
    ]
    assert found(tmp_path / "tune", in_sweeps=("winner",))[1:] == ["tune/s/winner/best/seed1"]
    assert found(tmp_path / "gone") == []


__all__ = ["site"]  # a fixture

NUM = 60
FILE_CALLS = ("stat", "lstat", "open", "scandir", "fstat", "listdir", "readlink")


@contextmanager
def counted(below: Path) -> Iterator[list[str]]:
    """The names of paths below a folder that Python's file calls are given."""
    calls: list[str] = []
    before = {name: getattr(os, name) for name in FILE_CALLS}

    def wrapped(name: str) -> Any:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, int) or str(path).startswith(str(below)):
                calls.append(f"{name} {path}")
            return before[name](path, *args, **options)

        return call

    for name in FILE_CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield calls
    finally:
        for name, call in before.items():
            setattr(os, name, call)


@pytest.fixture
def many(site: Site) -> Site:
    """Finished runs."""
    for number in range(NUM):
        site.run(f"done-{number:02}", "finished", 1000 + number)
    return site


def look(site: Site) -> list[dict[str, Any]]:
    """What a look shows of each run, without ages."""
    shown = [each.as_json() for each in survey(site.runs, Queue())]
    return [{k: v for k, v in each.items() if k != "heartbeat_age_s"} for each in shown]


def test_a_finished_run_costs_one_read_and_one_question(many: Site) -> None:
    """Its heartbeat is read, and its result's size asked for."""
    with counted(many.runs) as calls:
        assert len(look(many)) == NUM
    about_runs = [call for call in calls if "done-" in call]
    assert len(about_runs) == 2 * NUM
    assert {call.split()[0] for call in about_runs} == {"open", "stat"}


def test_a_run_without_a_summary_is_shown_alike(many: Site) -> None:
    """An ensemble has none; then the result is read."""
    expected = look(many)
    for file in many.runs.glob("lstm/*/state.json"):
        status = file.stat()
        state = json.loads(file.read_text())
        del state["result"]
        file.write_text(json.dumps(state))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(many) == expected


@pytest.mark.parametrize("name", ["a link", "made by another"])
def test_a_heartbeat_is_its_makers(site: Site, tmp_path: Path, name: str) -> None:
    """The queue shows own jobs alone; a link is its maker's, wherever it leads."""
    run = site.run("a", "training", slurm_job="12")
    state = run.path("state.json")
    if name == "a link":
        state.rename(tmp_path / "state.json")
        state.symlink_to(tmp_path / "state.json")
        assert site.only().is_own
    if os.getuid() == 0:
        os.lchown(state, 65534, -1)
        assert not site.only().is_own


def states(site: Site, *names: str) -> dict[str, str]:
    found = {each.run: each.state for each in survey(site.runs, Queue())}
    return {name: found.get(f"lstm/{name}", "") for name in names}


def test_an_old_run_that_goes_on_is_seen(many: Site) -> None:
    """Its heartbeat says so, and no result."""
    run = RunDirectory(many.runs / "lstm" / f"done-{NUM - 1}")
    run.path("result.json").unlink()
    run.take_lease()
    run.write_json("state.json", {"phase": "training", "time_s": time.time()})
    assert states(many, "done-59", "done-58") == {"done-59": "running", "done-58": "finished"}


def test_another_run_in_an_old_ones_place_is_seen(many: Site) -> None:
    """A removed folder is gone at once, and a new one of its name is read."""
    shutil.rmtree(many.runs / "lstm/done-58")
    shutil.rmtree(many.runs / "lstm/done-59")
    many.run("done-59", "failed", 3000, error="RunError: anew")
    assert states(many, "done-57", "done-58", "done-59") == {
        "done-57": "finished",
        "done-58": "",
        "done-59": "failed",
    }


def test_a_result_that_was_changed_is_read(many: Site) -> None:
    """One that is edited or cut has another size; one that is gone is none."""
    folder = many.runs / "lstm"
    (folder / "done-00/result.json").write_text(json.dumps({**RESULT, "accuracy": 0.5}))
    cut = folder / "done-01/result.json"
    cut.write_bytes(cut.read_bytes()[:-9])
    found = {each.run: each for each in survey(many.runs, Queue())}
    assert found["lstm/done-00"].test_accuracy == 0.5
    assert found["lstm/done-01"].note.startswith("result.json is broken; remove it and")
    (folder / "done-02/result.json").unlink()
    assert states(many, "done-02", "done-03") == {"done-02": "stale", "done-03": "finished"}


def test_the_record_of_a_job_gives_a_finished_run_its_log(many: Site) -> None:
    """Of what a record says beside, the result is the better witness."""
    many.submission("12", list(range(1, 30)))
    many.submission("13", [4], job="lstm", runs=[str(many.runs / "lstm/done-03")])
    (many.runs / ".submissions/ends-14.json").write_text('{"format": 1, "count": 2}')
    (run,) = (each for each in look(many) if each["run"] == "lstm/done-03")
    assert run["log"] == str(many.folder / "slurm-13.out")
    assert run["seed"] == RESULT["seed"]


def test_a_name_that_only_a_record_holds_is_found(many: Site) -> None:
    """A job that no folder is named after leads to the run whose heartbeat has it."""
    many.run("by-hand", "finished", slurm_job="77")
    (run,) = select_runs(["77"], many.runs, Queue())
    assert run.run == "lstm/by-hand"
    with pytest.raises(InputError, match="no run has this folder"):
        select_runs(["78"], many.runs, Queue())


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300])
def test_a_record_may_name_what_is_no_path(site: Site, path: str) -> None:
    """The record of a submission, a log, and a sweep's best trial cost no more than themselves."""
    site.run("a", "failed", log=Path(path))
    sweep = site.runs / "tune/s"
    sweep.mkdir(parents=True)
    (sweep / "search.toml").touch()
    (sweep / "state.json").write_text('{"phase": "training", "best": {"score": NaN, "x": [1]}}')
    site.submission("12", [1], runs=[path])
    statuses = survey(site.runs, Queue())
    assert {"lstm/a", "tune/s"} <= {each.run for each in statuses}
    assert as_lines([*map(cells, statuses)])
    json.dumps([each.as_json() for each in statuses], allow_nan=False)


__all__ = ["site"]  # a fixture

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")


def test_a_job_goes_on_with_a_run_of_a_node_whose_clock_is_ahead(site: Site) -> None:
    """Its record is newer than the last heartbeat by the disk's clock, so no other is submitted."""
    site.slurm("77|77|PENDING|0:00|Priority|/x.sh")
    run = site.run("slurm-12", "interrupted", -600, slurm_job="12")
    os.utime(run.path("state.json"), (time.time() - 100, time.time() - 100))
    site.submission("77", [1], job="lstm", runs=[str(run.folder)], resumes=True)
    assert (site.only().state, site.only().slurm_job) == ("pending", "77")


@as_root
@pytest.mark.parametrize("log", ["", "job 12 on n1: 1 GPU, 4 CPUs\n"])
def test_another_users_job_that_has_not_begun_is_not_called_gone(site: Site, log: str) -> None:
    """The queue shows own jobs alone, so nobody else knows whether it waits."""
    site.slurm()
    site.submission("12", [1])
    (site.folder / "slurm-12.out").write_text(log)
    states = [site.only().state]
    os.chown(site.runs / ".submissions/12.json", NOBODY, -1, follow_symlinks=False)
    (site.runs / ".submissions/12.json").rename(site.runs / ".submissions/13.json")
    states += [site.only().state, site.only().state]
    assert states == ["failed" if log else "gone", "unknown", "unknown"]
    assert site.only().note == "another user's; the queue shows own jobs alone"


@as_root
def test_another_users_record_says_nothing_of_ones_own_run(site: Site) -> None:
    """`harness cancel` would end the job that it names, which may be any of one's own."""
    site.slurm("77|77|RUNNING|0:05|None|/x.sh")
    run = site.run("a", "interrupted", 60)
    site.submission("77", [1], runs=[str(run.folder)], resumes=True)
    assert site.only().slurm_job == "77"
    os.chown(site.runs / ".submissions/77.json", NOBODY, -1)
    (site.runs / ".submissions/77.json").rename(site.runs / ".submissions/78.json")
    assert site.only().slurm_job != "77"


def test_a_finished_run_whose_folder_was_removed_has_not_failed(site: Site) -> None:
    """Its log says that it ended well, and where its records were."""
    site.slurm()
    record = site.submission("20", [7])
    said = f"2026-01-01 12:00:00 INFO records      {record['runs'][0]}"
    for rest, state in (("/other", "failed"), ("\n2026-01-01 12:00:00 INFO next  …\n", "gone")):
        Path(record["logs"][0]).write_text(f"starting\n{said}{rest}")
        assert site.only().state == state
    assert site.only().note == "finished; its folder was removed or moved"


def test_a_result_that_can_not_be_read_just_now_stays(site: Site) -> None:
    """Nobody is told to remove it."""
    result = site.run("a", "finished").path("result.json")
    result.unlink()
    result.symlink_to("/proc/self/mem")  # a plain file whose first byte gives EIO
    status = site.only()
    assert (status.state, status.note) == (
        "finished",
        f"{result}: can't be read: Input/output error; try again later",
    )
    result.unlink()
    result.write_text("{")
    assert site.only().note.startswith("result.json is broken; remove it and harness resume /")


@as_root
def test_a_link_to_a_run_of_ones_own_is_its_makers(site: Site) -> None:
    """A stranger's run whose state is a link to another's does not continue with itself."""
    own = site.run("slurm-12", "interrupted", 60)
    planted = site.run("z").folder
    (planted / "state.json").symlink_to(own.path("state.json"))
    for path in (planted, *planted.iterdir()):
        os.chown(path, NOBODY, -1, follow_symlinks=False)
    found = survey(site.runs, Queue())
    assert {each.folder.name: each.is_own for each in found} == {"slurm-12": True, "z": False}
    assert [each.folder for each in interrupted(found)] == [own.folder]
