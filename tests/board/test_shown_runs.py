"""Which runs a TensorBoard shows of many, and whether its memory suffices."""

import os
import time
from pathlib import Path

import pytest

from harness.board.shown_runs import BASE_GB, NUM_NEWEST, Shown, check_roots, log_gb
from harness.board.tensorboard import Until, Watch, _wait
from harness.errors import InputError

BYTES = 49_000  # of the curves of a run: a thousand values
RUN_GB = 1.3e-3


def make_runs(runs: Path, num: int, *, after: int = 0) -> None:
    """Runs with a log of a known size, the first the oldest."""
    for n in range(after, after + num):
        events = runs / f"lstm/run{n:03}/tensorboard/train"
        events.mkdir(parents=True)
        (events / "events.out.tfevents.1.a.1").write_bytes(bytes(BYTES))
        run = runs / f"lstm/run{n:03}"
        (run / "job.toml").write_text("")
        os.utime(run, (1000 + n, 1000 + n))


def shown(found: Shown) -> list[str]:
    return sorted(path.name for path in (found.folder / "lstm").iterdir())


def test_without_names_the_newest_are_shown(tmp_path: Path) -> None:
    """A line says how many are not; one that goes on is shown as well, and none disappears."""
    runs = tmp_path / "runs"
    make_runs(runs, NUM_NEWEST + 5)
    board = Shown(tmp_path / "board", check_roots([], runs), runs)
    board.refresh()
    assert shown(board) == [f"run{n:03}" for n in range(5, NUM_NEWEST + 5)]
    assert board.left_out.startswith("these are the newest; 5 older ones are not shown: name runs")
    now = time.time()
    os.utime(runs / "lstm/run002", (now, now))
    board.refresh()
    assert shown(board) == ["run002", *(f"run{n:03}" for n in range(5, NUM_NEWEST + 5))]
    assert "; 4 older" in board.left_out


def test_named_runs_are_all_shown_or_refused(tmp_path: Path) -> None:
    """Refused before anything is read, with the memory that they need and the remedy."""
    runs = tmp_path / "runs"
    make_runs(runs, NUM_NEWEST + 5)
    assert log_gb(runs / "lstm/run000", 1000) == pytest.approx(RUN_GB)
    needed_gb = BASE_GB + (NUM_NEWEST + 5) * RUN_GB
    enough = Shown(tmp_path / "enough", check_roots([runs], runs), runs, memory_gb=needed_gb + 0.01)
    enough.refresh()
    assert len(shown(enough)) == NUM_NEWEST + 5
    assert enough.left_out == ""
    little = Shown(tmp_path / "little", [runs], runs, memory_gb=needed_gb - 0.01)
    with pytest.raises(InputError, match=r"^205 runs: TensorBoard needs about 0.5 GB .*--mem=1G"):
        little.refresh()


def test_of_the_newest_as_many_as_fit_are_shown(tmp_path: Path) -> None:
    """In little memory fewer than 200, and the line says why."""
    runs = tmp_path / "runs"
    make_runs(runs, 20)
    board = Shown(tmp_path / "board", [], runs, memory_gb=BASE_GB + 10.5 * RUN_GB)
    board.refresh()
    assert shown(board) == [f"run{n:03}" for n in range(10, 20)]
    assert "the newest, for 0.2 GB of memory; 10 older" in board.left_out


@pytest.mark.parametrize("is_named", [False, True])
def test_newer_runs_are_shown_as_far_as_they_fit(tmp_path: Path, is_named: bool) -> None:
    """Beside those that TensorBoard has read, whose memory it keeps; one line tells of others."""
    runs = tmp_path / "runs"
    make_runs(runs, 2)
    roots = [runs] if is_named else []
    board = Shown(tmp_path / "board", roots, runs, memory_gb=BASE_GB + 3.5 * RUN_GB)
    board.refresh()
    assert (shown(board), board.full) == (["run000", "run001"], "")
    make_runs(runs, 2, after=2)
    said: list[str] = []
    seconds = iter([0.0, 0.0, 0.0, 6.0, 6.0, 6.0, 6.0, 12.0, 12.0, 12.0, 3600.0])
    _wait(Watch(Until(1, 60, finished=False), seconds.__next__), board, say=said.append)
    assert shown(board) == ["run000", "run001", "run003"]
    assert said == [board.full]
    assert board.full.startswith("newer runs are not shown, since those shown fill 0.2 GB of mem")


def test_a_very_long_log_needs_no_more_than_its_curves_keep(tmp_path: Path) -> None:
    """TensorBoard keeps so many points of a curve; of few runs it keeps more."""
    make_runs(tmp_path, 1)
    path = tmp_path / "lstm/run000/tensorboard/train/events.out.tfevents.1.a.1"
    with path.open("r+b") as file:
        file.truncate(50_000_000)
    assert log_gb(tmp_path / "lstm/run000", 1000) == pytest.approx(8 * RUN_GB)
    assert log_gb(tmp_path / "lstm/run000", 1) > 0.1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link to another user")
def test_links_of_others_are_not_followed_and_told_once(tmp_path: Path) -> None:
    """In one line with the first ten of them; one's own links are followed."""
    make_runs(tmp_path / "elsewhere", 13)
    runs = tmp_path / "runs"
    (runs / "lstm").mkdir(parents=True)
    links = [runs / f"lstm/link{n:02}" for n in range(13)]
    for n, link in enumerate(links):
        link.symlink_to(tmp_path / f"elsewhere/lstm/run{n:03}")
    own = Shown(tmp_path / "own", check_roots([runs], runs), runs)
    own.refresh()
    assert (len(shown(own)), own.refusals()) == (13, "")
    for link in links:
        os.chown(link, 1, 1, follow_symlinks=False)
    board = Shown(tmp_path / "board", [runs], runs)
    board.refresh()
    assert board.found == []
    told = "; ".join(f"{link} is a link of daemon" for link in links[:10])
    assert board.refusals() == f"not shown: {told}; and 3 more"
    board.refresh()
    assert board.refusals() == ""
    with pytest.raises(InputError, match=r"holds no run \(.*link00 is a link of daemon\); give"):
        check_roots([runs], runs)
