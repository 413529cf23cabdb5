"""Runs that were removed, can't be read or are another user's, and disks with their own clock."""

import os
import time
from pathlib import Path

import pytest

from harness.slurm.queue import Queue
from harness.tracking.resume import interrupted
from harness.tracking.status import survey
from tests.doctor.site import Site, site

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
    """A stranger's run whose state is a link to another's does not go on by itself."""
    own = site.run("slurm-12", "interrupted", 60)
    planted = site.run("z").folder
    (planted / "state.json").symlink_to(own.path("state.json"))
    for path in (planted, *planted.iterdir()):
        os.chown(path, NOBODY, -1, follow_symlinks=False)
    found = survey(site.runs, Queue())
    assert {each.folder.name: each.is_own for each in found} == {"slurm-12": True, "z": False}
    assert [each.folder for each in interrupted(found)] == [own.folder]
