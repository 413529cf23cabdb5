"""The validation split: a share of the training reviews, or a split of a user's texts."""

import json
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import Dataset, validation_cut
from harness.data.dataset_folder import open_folder, save_folder
from harness.data.input_pipeline import training_reviews
from harness.data.own_texts import describe, open_source
from harness.data.sources import open_data
from harness.data.vocabulary import encode_split
from harness.errors import RunError
from harness.report.baseline import fit_ngrams, score_ngrams
from harness.report.ensemble import make_ensemble
from tests.conftest import Harness
from tests.data.made_up_texts import make_rows, write_csv, write_folder
from tests.data.test_text_dataset import job_of
from tests.report.finished_runs import write_finished

COLUMNS = ("text", "label", "split")
SPLIT_OF = ("train", "train", "train", "Dev", "test")  # pairs of rows get these splits in turn
PLAIN = [(*row, SPLIT_OF[i // 2 % 5]) for i, row in enumerate(make_rows(200))]
# Validation and test reviews contain a word that names the split.
ROWS = [(t if split == "train" else f"{t} only{split}", label, split) for t, label, split in PLAIN]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_source(write_csv(tmp_path / "mine.csv", ROWS, COLUMNS))


@pytest.mark.parametrize(
    ("num", "share", "cut"),
    [
        *((25_000, 0.1, 22_500), (10, 0.2, 8), (10, 0.0, 10)),
        *((10, 0.001, 9), (10, 1e-20, 9), (10, 0.999, 1), (2, 0.5, 1)),
    ],
)
def test_a_share_leaves_at_least_one_review_on_both_sides(num: int, share: float, cut: int) -> None:
    """A share of 0 leaves all reviews for training."""
    assert validation_cut(num, share) == cut


def test_every_form_of_a_source_may_have_a_validation_split(tmp_path: Path) -> None:
    """A column, the name of a table or the name of a folder states the split.

    The order of the reviews does not matter.
    """
    write_csv(tmp_path / "column.csv", ROWS, COLUMNS)
    for split in ("train", "test", "Dev"):
        of_split = [row[:2] for row in reversed(ROWS) if row[2] == split]
        write_csv(tmp_path / f"tables/{split}.csv", of_split)
        write_folder(tmp_path / "folders" / split.lower(), of_split)
    made = [open_source(tmp_path / each) for each in ("column.csv", "tables", "folders")]
    for dataset in made:
        sizes = {part: len(reviews) for part, reviews in dataset.parts().items()}
        assert sizes == {"train": 120, "validation": 40, "test": 40}
        assert (dataset.parts()["validation"].tokens > len(dataset.vocab)).sum() == 80
    assert len({dataset.checksum for dataset in made}) == 1


def test_a_stored_dataset_keeps_the_validation_split(dataset: Dataset, tmp_path: Path) -> None:
    """If the stored number of validation reviews is wrong, the copy counts as broken."""
    assert "\nvalidation 40 reviews: 50.0% neg" in "\n".join(describe(dataset))
    folder = tmp_path / "copy"
    save_folder(dataset, folder)
    copy = open_folder(folder)
    assert (copy.num_validation, copy.checksum) == (40, dataset.checksum)
    record = json.loads((folder / "dataset.json").read_text())
    for wrong in (39, -1):
        (folder / "dataset.json").write_text(json.dumps(record | {"num_validation": wrong}))
        with pytest.raises(RunError, match="is broken"):
            open_folder(folder)


@pytest.mark.parametrize(
    ("limit", "share", "counts"),
    [(0, 0.5, (120, 40)), (100, 0.2, (100, 40)), (30, 0, (60, 0)), (500, 0.2, (120, 40))],
)
def test_a_limit_takes_the_first_reviews_of_each_split(
    dataset: Dataset, tmp_path: Path, limit: int, share: float, counts: tuple[int, int]
) -> None:
    """If `data.validation_split` is 0, the validation reviews become training reviews."""
    parts = [dataset.parts()[name].take(limit or 1000) for name in ("train", "validation")]
    tokens = [encode_split(part, 8000)[0] for part in parts]
    settings = (f"data.limit={limit}", f"data.validation_split={share}", "train.keep=last")
    job = job_of(tmp_path / "mine.csv", *settings)
    training, validation, _ = training_reviews(job, open_data(job, None))
    assert (len(training.labels), len(validation.labels)) == counts
    found = np.concatenate([training.tokens, validation.tokens])
    np.testing.assert_array_equal(found, np.concatenate(tokens))


def test_the_linear_baseline_chooses_by_the_validation_split(dataset: Dataset) -> None:
    """C is chosen on the validation reviews; the final fit uses them and the training reviews."""
    found = score_ngrams(dataset, limit=0)
    model = fit_ngrams(dataset.train, 120)
    assert f"{max(model.validation.values()):.2%}" in found.note
    assert "fit on all 160 training reviews" in found.note
    assert f"C = {model.strength:g} was chosen on the validation split (" in found.note
    assert "all 60 training reviews" in score_ngrams(dataset, limit=30).note


def test_an_ensemble_validates_on_the_validation_split(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`data.validation_split` has no effect; the linear model is fit to the reviews of the runs."""
    runs, source = tmp_path / "runs", f"data.source={tmp_path / 'mine.csv'}"

    def run(seed: int, *settings: str) -> Path:
        return write_finished(runs / f"s{seed}", dataset, seed, source, *settings)

    def of(folders: list[Path], run_id: str, weights_from: Path | None = None) -> object:
        _, result, _ = make_ensemble(
            folders, runs, ngrams=True, weights_from=weights_from, run_id=run_id
        )
        (line,) = capsys.readouterr().err.splitlines()
        return int(line.split()[3]), result["num_validation"]

    few = [run(1, "data.validation_split=0.2"), run(2, "data.validation_split=0.3")]
    every = run(7, "data.validation_split=0", "train.keep=last")
    assert of(few, "few") == (120, 40)
    assert of(few[:1], "part") == (120, 40)
    assert of([every], "every", runs / "ensemble_lstm_ngrams/part") == (160, 0)


@pytest.mark.full
def test_a_run_on_a_users_texts(harness: Harness) -> None:
    """Messages and files contain the names and splits of the texts; changed texts are refused."""
    path = write_csv(harness.folder / "mine" / "reviews.csv", ROWS, COLUMNS)
    job_of(path)
    sizes = ("--set", "data.maxlen=12", "--set", "train.epochs=1")
    words = ("train", "mine/mine.toml", "--run-id", "own", "--set", "data.validation_split=0.3")
    done = harness.succeed(*words, *sizes)
    assert "data.validation_split = 0.3: has no effect" in done.stderr
    assert f"texts {path}: 120 training, 40 validation and 40 test reviews" in done.stdout
    assert "tested on 40 reviews of reviews.csv (120 + 40 + 40 reviews)" in done.stdout
    run = harness.runs / "mine" / "own"
    result = json.loads((run / "result.json").read_text())
    assert result["classes"] == ["neg", "pos"]
    assert result["data"] == "reviews.csv (120 + 40 + 40 reviews)"
    assert (result["num_training"], result["num_validation"]) == (120, 40)
    assert (result["validation_is_given"], result["validation_split"]) == (True, 0)
    record = json.loads((run / "provenance.json").read_text())
    assert record["dataset"]["num_validation"] == 40
    labels = open_source(path).parts()["validation"].labels
    with np.load(run / "validation_predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["labels"], labels)
    predicted = json.loads(harness.run("predict", run, "a great film", "--json").stdout)
    assert predicted["class"] in {"neg", "pos"}
    (run / "result.json").unlink()  # as if the run had been killed before its end
    write_csv(path, ROWS[1:], COLUMNS)
    assert f"data.source {path} has changed since the start" in harness.refuse("resume", run)
