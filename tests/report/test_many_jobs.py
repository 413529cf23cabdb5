"""A comparison of more jobs than a picture can show."""

import csv
from pathlib import Path

import numpy as np
import pandas
import pytest

from harness.report.collect import DatasetGroup, LeftOut, group_runs, scored_runs
from harness.report.html import write_comparison
from harness.report.plots import styles_of
from harness.report.summary import left_out_lines, make_parts, shown_sentences, to_csv
from tests.made_up_runs import write_scored_run
from tests.report.small_data import small_data

NUM_JOBS = 20


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> DatasetGroup:
    """Twenty jobs with two seeds each; more units give a higher accuracy."""
    folder = tmp_path_factory.mktemp("many")
    dataset = small_data(folder / "data", 200)
    generator = np.random.default_rng(1)
    for job in range(NUM_JOBS):
        for seed in (1, 2):
            right = (generator.random(200) < 0.55 + 0.02 * job).tolist()
            run = folder / f"runs/lstm/{job}-{seed}"
            write_scored_run(run, dataset, right, seed=seed, architecture="lstm", val_accuracy=0.5)
            toml = (run / "job.toml").read_text()
            model = f"[model]\nunits = {job + 1}\npooling = '{'last' if job % 2 else 'max'}'\n"
            (run / "job.toml").write_text(toml + model)
    groups, _ = group_runs(scored_runs([folder / "runs"])[0])
    return groups[0]


@pytest.mark.full
def test_the_best_are_drawn_and_all_are_listed(group: DatasetGroup, tmp_path: Path) -> None:
    """Twelve jobs are drawn in different styles; the table has a row per job."""
    (part,) = make_parts([group])
    drawn = group.best(12)
    styles = styles_of(drawn)
    assert len({(each["color"], str(each["linestyle"])) for each in styles.values()}) == 12
    means = part.cells["test %"].astype(float).tolist()
    assert means == sorted(means, reverse=True)
    assert sorted(drawn.jobs["accuracy"]) == sorted(group.jobs["accuracy"])[-12:]
    page = write_comparison(tmp_path / "out", [part], [], say=print).read_text()
    assert "The pictures show the best 12 of 20 jobs" in page
    assert page.count("<img ") == 5 + 12


def test_the_csv_has_the_settings_that_differ(group: DatasetGroup) -> None:
    """A column is named `table.key`. Every job is compared with the best one, not with all."""
    (part,) = make_parts([group])
    assert len(part.differences) == NUM_JOBS - 1
    rows = list(csv.DictReader(to_csv([part]).splitlines()))
    assert [name for name in rows[0] if "." in name] == ["model.units", "model.pooling"]
    assert {row["model.units"] for row in rows} == {str(n) for n in range(1, NUM_JOBS + 1)}
    assert {(row["val_accuracy"], row["num_seeds"]) for row in rows} == {("0.5", "2")}


def test_a_terminal_shows_the_first_lines_and_counts_the_rest() -> None:
    """It shows ten sentences, and twenty of the runs that were left out."""
    sentences = pandas.DataFrame({"sentence": [str(n) for n in range(13)]})
    assert shown_sentences(sentences[:10]) == [str(n) for n in range(10)]
    assert shown_sentences(sentences)[9:] == ["9", "and 3 more (--out writes all)"]
    runs = [LeftOut(Path(str(n)), "failed", "why") for n in range(23)]
    assert left_out_lines(runs[:20])[-1] == "left out: 19 (failed: why)"
    assert left_out_lines(runs)[20:] == ["left out: 3 more (--out lists all)"]
