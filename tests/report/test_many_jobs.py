"""A comparison of more jobs than a picture can tell apart: the best ones drawn."""

import csv
from pathlib import Path

import numpy as np
import pandas
import pytest

from harness.report.collect import DatasetGroup, LeftOut, group_runs, scored_runs
from harness.report.html import write_comparison
from harness.report.plots import styles_of
from harness.report.summary import left_out_lines, make_parts, shown_sentences, to_csv, to_markdown
from tests.made_up_runs import write_scored_run
from tests.report.small_data import small_data

NUM_JOBS = 20


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> DatasetGroup:
    """Twenty jobs of two seeds; each has more units than the one before, and is better."""
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
    """Twelve unlike styles, a row for each job, and a line for each difference."""
    (part,) = make_parts([group])
    drawn = group.best(12)
    styles = styles_of(drawn)
    assert len({(each["color"], str(each["linestyle"])) for each in styles.values()}) == 12
    means = part.cells["test %"].astype(float).tolist()
    assert means == sorted(means, reverse=True)
    assert sorted(drawn.jobs["accuracy"]) == sorted(group.jobs["accuracy"])[-12:]
    page = write_comparison(tmp_path / "out", [part], [], say=print).read_text()
    assert "The best 12 of 20 jobs are drawn" in page
    assert page.count("<img ") == 5
    assert page.count('<table class="confusion">') == 12


def test_what_is_written_grows_with_the_jobs_and_not_with_their_square(group: DatasetGroup) -> None:
    """A difference for each job but the best."""
    (few,) = make_parts([group])
    assert len(few.differences) == NUM_JOBS - 1
    assert to_markdown([few]).count("\n- ") < 2 * NUM_JOBS


def test_the_csv_has_the_settings_that_differ(group: DatasetGroup) -> None:
    """Under the keys' whole names."""
    assert group.differing == {"model.units": "units", "model.pooling": "pooling"}
    (part,) = make_parts([group])
    rows = list(csv.DictReader(to_csv([part]).splitlines()))
    assert {row["model.units"] for row in rows} == {str(n) for n in range(1, NUM_JOBS + 1)}
    assert {(row["val_accuracy"], row["num_seeds"]) for row in rows} == {("0.5", "2")}


def test_of_many_lines_the_rest_is_counted() -> None:
    """Ten sentences, those that show a difference first; twenty runs that are left out."""

    def said(num_shown: int, num: int) -> list[str]:
        rows = [(n < num_shown, str(n)) for n in range(num)]
        return shown_sentences(pandas.DataFrame(rows, columns=["is_shown", "sentence"]))

    assert said(3, 10) == [str(n) for n in range(10)]
    assert said(12, 13)[:10] == [str(n) for n in range(10)]
    assert said(12, 13)[10:] == ["and 3 more, of which 2 show a difference (--out writes all)"]
    runs = [LeftOut(Path(str(n)), "failed" if n % 2 else "broken", "why") for n in range(23)]
    assert left_out_lines(runs[:20])[-1] == "left out, failed: 19: why"
    assert left_out_lines(runs)[20:] == ["also left out: 2 broken, 1 failed"]
