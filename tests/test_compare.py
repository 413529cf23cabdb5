"""The table over runs: means and intervals, and nothing mixed that does not belong together."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.compare import cells, find_runs, make_rows, to_markdown
from harness.errors import InputError
from tests.conftest import Harness


def write_run(folder: Path, job: str = "", **changed: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(job)
    result = {
        "job": "lstm",
        "architecture": "lstm",
        "data": "IMDB",
        "dataset_checksum": "a",
        "limit": 0,
        "seed": 1,
        "accuracy": 0.87,
        "recurrent_parameters": 8320,
        "training_s": 10.0,
    }
    (folder / "result.json").write_text(json.dumps(result | changed))


def test_mean_deviation_and_interval_are_students(tmp_path: Path) -> None:
    """Five seeds give the textbook's mean, deviation and 95 % interval."""
    for seed, accuracy in enumerate((0.86, 0.87, 0.88, 0.89, 0.90), 1):
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy, training_s=10.0 * seed)
    results, unfinished, _ = find_runs([tmp_path, tmp_path / "1"])  # no run counts twice
    assert unfinished == []
    (row,) = make_rows(results)
    assert row.seeds == (1, 2, 3, 4, 5)
    # s = sqrt(2.5), t(0.975, 4) = 2.776: half the interval is 2.776 s / sqrt 5 = 1.963.
    assert cells(row) == (
        *("lstm", "8,320", "5", "88.00", "1.58"),
        *("86.04 to 89.96", "87.05", "30"),
    )


def test_unlike_runs_are_kept_apart_and_unfinished_ones_named(tmp_path: Path) -> None:
    """Another dataset, setting or job is another row that says so; one run has no interval."""
    write_run(tmp_path / "a", "[train]\nseed = 1\nepochs = 3")
    write_run(tmp_path / "b", "[train]\nseed = 1\nepochs = 3", dataset_checksum="b", data="SAMPLE")
    write_run(tmp_path / "c", "[train]\nseed = 2\nepochs = 4", seed=2)
    write_run(tmp_path / "d", job="", seed=3)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "job.toml").write_text("")
    write_run(tmp_path / "f", "[train]\nseed = 1\nepochs = 3", accuracy=None)
    (tmp_path / "f" / "result.json").write_text("{}")
    results, unfinished, _ = find_runs([tmp_path])
    rows = make_rows(results)
    assert sorted(row.job for row in rows) == ["lstm", "lstm", "lstm", "lstm train.epochs=4"]
    assert [row.interval for row in rows] == [None] * 4
    assert unfinished == [tmp_path / "e", tmp_path / "f"]
    assert to_markdown(rows).count("\n") == 6


def test_trials_of_a_search_are_counted_and_left_out(tmp_path: Path) -> None:
    """A run that leaves the test set unread is neither a result nor unfinished, done or not."""
    write_run(tmp_path / "a", "[train]\nseed = 1")
    write_run(tmp_path / "sweep" / "trials" / "0-seed1", "[data]\ntest = false", accuracy=None)
    (tmp_path / "sweep" / "trials" / "1-seed1").mkdir()
    (tmp_path / "sweep" / "trials" / "1-seed1" / "job.toml").write_text("[data]\ntest = false")
    results, unfinished, untested = find_runs([tmp_path])
    assert (len(results), unfinished, untested) == (1, [], 2)


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """Two runs of one job and seed make no interval narrower; the seed is no other setting."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_run(tmp_path / name, f"[train]\nseed = {seed}", seed=seed)
    (row,) = make_rows(find_runs([tmp_path])[0])
    assert row.seeds == (1, 2)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    """A typo in a path, and a folder that holds no run, get one line each."""
    with pytest.raises(InputError, match="is no folder"):
        find_runs([tmp_path / "nope"])
    with pytest.raises(InputError, match="holds no run"):
        find_runs([tmp_path])


def test_the_command_prints_a_finished_run(finished: tuple[Harness, Path]) -> None:
    """`harness compare` on a real run prints its job, and Markdown on request."""
    harness, run = finished
    done = harness.run("compare", run, "--markdown")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("| bilstm | ")
    assert "bilstm" in harness.run("compare", harness.runs).stdout
