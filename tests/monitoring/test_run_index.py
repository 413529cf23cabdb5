"""A finished run is read once: what a look asks the disk, and what it must still notice."""

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
from harness.files.paths import cache_folder
from harness.monitoring.run_names import select_runs
from harness.monitoring.status_table import RunFilter, age_s, as_lines
from harness.monitoring.survey import survey
from harness.slurm.queue import Queue
from harness.tracking.records import RunStatus
from harness.tracking.run_dir import RunDirectory
from tests.checks.site import RESULT, Site, site

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


def settle(site: Site, job: str = "lstm") -> None:
    """Make the folder of a job old enough to be believed."""
    then = time.time() - 3000
    for folder in (site.runs / job, site.runs):
        os.utime(folder, (then, then))


@pytest.fixture
def many(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Finished runs, of which a look has kept what it read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(NUM):
        site.run(f"done-{number:02}", "finished", 1000 + number)
    settle(site)
    survey(site.runs, Queue(), checks_all=False)
    return site


def look(site: Site) -> list[dict[str, Any]]:
    """What a look shows of each run, without ages."""
    shown = [each.as_json() for each in survey(site.runs, Queue(), checks_all=False)]
    return [{k: v for k, v in each.items() if k != "heartbeat_age_s"} for each in shown]


def test_a_second_look_asks_less_than_a_call_a_run(many: Site) -> None:
    """The newest twenty are checked, the others are believed, and the table is the same."""
    for file in cache_folder().glob("status/*"):
        file.unlink()
    with counted(many.runs) as first:
        expected = look(many)
    with counted(many.runs) as second:
        assert look(many) == expected
    assert len(first) > 10 * NUM
    assert 20 <= len(second) < NUM
    assert len(expected) == NUM


def test_the_index_is_its_users_alone_and_may_go_at_any_time(many: Site) -> None:
    """Deleted, cut or of nonsense, it costs time and changes no line."""
    (file,) = cache_folder().glob("status/*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    expected, content = look(many), file.read_text()
    known = json.loads(content)
    for entry in known["known"].values():
        entry |= {"seed": "one", "beats": ["x"]}
    of_another = {**json.loads(content), "harness": "9.9.9"}
    for broken in ("", "[1]", content[:-9], json.dumps(known), json.dumps(of_another), "\x00"):
        file.write_text(broken)
        assert look(many) == expected
    file.unlink()
    assert look(many) == expected
    assert file.exists()
    file.parent.chmod(0o755)  # others could read it
    assert look(many) == expected


def states(site: Site, *names: str) -> dict[str, str]:
    found = {each.run: each.state for each in survey(site.runs, Queue(), checks_all=False)}
    return {name: found.get(f"lstm/{name}", "") for name in names}


def test_an_old_run_that_goes_on_is_seen(many: Site) -> None:
    """Its process takes the lease, which changes the folder that holds it, wherever it stands."""
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
    settle(many)
    assert states(many, "done-57", "done-58", "done-59") == {
        "done-57": "finished",
        "done-58": "",
        "done-59": "failed",
    }


def test_what_is_shown_is_checked(many: Site) -> None:
    """A result that is edited is read again if it is among the newest, or if all are asked for."""
    for name in ("done-00", "done-59"):
        result = many.runs / "lstm" / name / "result.json"
        result.write_text(json.dumps({**RESULT, "accuracy": 0.5}))

    def accuracies(*, checks_all: bool) -> list[float | None]:
        found = {each.run: each for each in survey(many.runs, Queue(), checks_all=checks_all)}
        return [found[f"lstm/{name}"].test_accuracy for name in ("done-00", "done-59")]

    assert accuracies(checks_all=False) == [0.5, 0.88]
    assert accuracies(checks_all=True) == [0.5, 0.5]
    (many.runs / "lstm/done-00/result.json").unlink()
    assert states(many, "done-00", "done-01") == {"done-00": "stale", "done-01": "finished"}


def test_a_submission_is_read_once(many: Site) -> None:
    """A record of a job costs nothing at the second look, and gives a finished run its log."""
    many.submission("12", list(range(1, 30)))
    many.submission("13", [4], job="lstm", runs=[str(many.runs / "lstm/done-03")])
    (many.runs / ".submissions/failures-14.json").write_text('{"format": 1, "count": 2}')
    expected = look(many)
    with counted(many.runs / ".submissions") as calls:
        assert look(many) == expected
    assert [call for call in calls if "fstat" not in call] == [
        f"scandir {many.runs / '.submissions'}"
    ]
    (run,) = (each for each in expected if each["run"] == "lstm/done-03")
    assert run["log"] == str(many.folder / "slurm-13.out")
    assert run["seed"] == RESULT["seed"]


@pytest.mark.parametrize("name", ["lstm/done-07", "done-07", "PATH"])
def test_a_named_run_alone_is_read(many: Site, name: str) -> None:
    """`logs` and `cancel` open no file of any other run."""
    name = str(many.runs / "lstm/done-07") if name == "PATH" else name
    with counted(many.runs / "lstm") as calls:
        (run,) = select_runs([name], many.runs, Queue())
    assert run.run == "lstm/done-07"
    assert not [call for call in calls if "done-" in call and "done-07" not in call]


def test_a_name_that_only_a_record_holds_is_found(many: Site) -> None:
    """A job that no folder is named after leads to the run whose heartbeat has it."""
    many.run("by-hand", "finished", slurm_job="77")
    (run,) = select_runs(["77"], many.runs, Queue())
    assert run.run == "lstm/by-hand"
    with pytest.raises(InputError, match="no run has this folder"):
        select_runs(["78"], many.runs, Queue())


def test_runs_are_chosen_by_job_state_and_age() -> None:
    """Each filter leaves out what it names; what is at work is of any age."""
    now = 1_000_000.0
    runs = [
        RunStatus("a", Path("a"), "failed", job="lstm", time_s=now - 7000),
        RunStatus("b", Path("b"), "finished", job="gru", time_s=now - 7300),
        RunStatus("c", Path("c"), "running", job="gru", time_s=now - 9000),
    ]

    def chosen(**wanted: Any) -> str:
        return "".join(each.run for each in RunFilter(**wanted).choose(runs, now))

    assert chosen() == "abc"
    assert chosen(jobs=["gru"]) == "bc"
    assert chosen(states=["failed", "finished"]) == "ab"
    assert chosen(newer="2h") == "ac"
    assert chosen(jobs=["gru"], states=["finished"], newer="1d") == "b"
    assert age_s("1.5d") == 129_600
    assert [age_s(f"2{unit}") for unit in "smhdw"] == [2, 120, 7200, 172_800, 1_209_600]
    for wanted, message in (
        ({"states": ["fail"]}, "--state fail: is no state of a run; did you mean failed"),
        ({"newer": "soon"}, "--newer soon: should be a number and"),
        ({"jobs": ["lstn"]}, "--job lstn: no run is of this job; did you mean lstm"),
    ):
        with pytest.raises(InputError, match=message):
            chosen(**wanted)


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
    assert as_lines(statuses)
    json.dumps([each.as_json() for each in statuses], allow_nan=False)
