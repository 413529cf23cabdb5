"""The choice of the runs that TensorBoard shows."""

import json
import os
import time
from pathlib import Path

import pytest

from harness.board.tensorboard import NUM_NEWEST, Shown, check_memory, check_roots
from harness.errors import InputError


def make_runs(runs: Path, num: int) -> None:
    """Make runs that have begun to log; the first run is the oldest."""
    for n in range(num):
        run = runs / f"lstm/run{n:03}"
        (run / "tensorboard").mkdir(parents=True)
        (run / "job.toml").write_text("")
        os.utime(run, (1000 + n, 1000 + n))


def shown(found: Shown) -> list[str]:
    return sorted(path.name for path in (found.folder / "lstm").iterdir())


def test_without_names_the_newest_are_shown(tmp_path: Path) -> None:
    """A line states the number of older runs. An older run that continues is shown, too.

    Runs that the user names are all shown.
    """
    runs = tmp_path / "runs"
    make_runs(runs, NUM_NEWEST + 5)
    board = Shown(tmp_path / "board", check_roots([], runs), runs)
    board.refresh()
    assert shown(board) == [f"run{n:03}" for n in range(5, NUM_NEWEST + 5)]
    assert board.left_out.startswith("only the newest runs are shown, and 5 older runs are not")
    now = time.time()
    os.utime(runs / "lstm/run002", (now, now))
    board.refresh()
    assert shown(board) == ["run002", *(f"run{n:03}" for n in range(5, NUM_NEWEST + 5))]
    assert "and 4 older runs are not" in board.left_out
    named = Shown(tmp_path / "named", check_roots([runs], runs), runs)
    named.refresh()
    assert (len(shown(named)), named.left_out) == (NUM_NEWEST + 5, "")


def test_more_runs_than_memory_are_refused() -> None:
    """The line has the command that requests enough memory for the same runs."""
    check_memory([], 1000, 4.3)
    command = r"sbatch --mem=7G slurm/tensorboard\.sh runs 'my runs'$"
    with pytest.raises(InputError, match=rf"2,000 runs: .* 6\.2 GB .* 4\.3 GB .* {command}"):
        check_memory([Path("runs"), Path("my runs")], 2000, 4.3)


def test_only_the_named_runs_are_shown(tmp_path: Path) -> None:
    """Two runs with the same name are both shown. A run and a link to the run are shown once."""
    for folder in (tmp_path / "runs", tmp_path / 'it\'s "mine"'):
        make_runs(folder, 2)
    (tmp_path / "link").symlink_to(tmp_path / "runs/lstm/run000")
    names = [tmp_path / "runs/lstm/run000", tmp_path / 'it\'s "mine"', tmp_path / "link"]
    board = Shown(tmp_path / "board", names, tmp_path / "runs")
    board.refresh()
    assert (shown(board), board.refusals()) == (["run000", "run000-2", "run001"], "")


def test_each_seed_of_a_trial_is_shown_once(tmp_path: Path) -> None:
    """Only the latest attempt is shown, so that means over seeds count each seed once.

    The runs have finished when the search has, even if a trial failed or no trial runs now. A
    search that continues with more trials keeps its result.
    """
    sweep = tmp_path / "runs/tune_it/s"

    def refresh(*seeds: str) -> list[str]:
        for seed in seeds:
            (sweep / "trials/3" / seed / "tensorboard").mkdir(parents=True)
            (sweep / "trials/3" / seed / "job.toml").write_text("")
        board.refresh()
        links = (tmp_path / "board").glob("*/*")
        return sorted(str(link.resolve().parent.relative_to(sweep / "trials/3")) for link in links)

    board = Shown(tmp_path / "board", [sweep], tmp_path / "runs")
    assert refresh("1/seed1", "1/seed2", "9/seed1") == ["1/seed2", "9/seed1"]
    assert refresh("10/seed1") == ["1/seed2", "10/seed1"]
    assert refresh("10/seed2") == ["10/seed1", "10/seed2"]
    (sweep / "trials/3/10/seed2/result.json").write_text("{}")
    assert not board.finished
    (sweep / "result.json").write_text("{}")
    assert board.finished
    (sweep / "search.toml").touch()
    for phase, is_over in (("searching", False), ("finished", True)):
        (sweep / "state.json").write_text(json.dumps({"phase": phase}))
        assert board.finished == is_over


def test_a_run_is_named_as_status_names_it(tmp_path: Path) -> None:
    """A name is, for example, the id of a Slurm job, or a folder below the folder of all runs."""
    runs = tmp_path / "runs"
    make_runs(runs, 2)
    (runs / "lstm/run001").rename(runs / "lstm/slurm-12_1")
    assert check_roots([Path("12_1")], runs) == [runs / "lstm/slurm-12_1"]
    assert len(check_roots([Path("lstm")], runs)) == 2
    with pytest.raises(InputError, match="run 13: no run has this folder, id or job"):
        check_roots([Path("13")], runs)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link to another user")
def test_links_of_other_users_are_not_followed(tmp_path: Path) -> None:
    """A line lists the first ten of these links, once."""
    make_runs(tmp_path / "elsewhere", 13)
    runs = tmp_path / "runs"
    (runs / "lstm").mkdir(parents=True)
    links = [runs / f"lstm/link{n:02}" for n in range(13)]
    for n, link in enumerate(links):
        link.symlink_to(tmp_path / f"elsewhere/lstm/run{n:03}")
        os.chown(link, 1, 1, follow_symlinks=False)
    board = Shown(tmp_path / "board", [runs], runs)
    board.refresh()
    assert board.found == []
    told = "; ".join(f"{link} is a symbolic link that belongs to daemon" for link in links[:10])
    assert board.refusals() == f"not shown: {told}; and 3 more"
    board.refresh()
    assert board.refusals() == ""
    message = r"contains no run \(.*link00 is a symbolic link that belongs to daemon\); give"
    with pytest.raises(InputError, match=message):
        check_roots([runs], runs)
