"""Texts of a user with a validation split, which alone validates."""

import itertools
import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import Dataset
from harness.data.dataset_folder import open_folder, save_folder
from harness.data.input_pipeline import training_reviews
from harness.data.own_texts import describe, open_source, read_texts
from harness.data.sources import open_data
from harness.data.vocabulary import encode_split
from harness.errors import RunError
from harness.job.job_file import load_job
from harness.report.baseline import fit_ngrams, score_ngrams
from harness.report.ensemble import Request, make_ensemble
from harness.tracking.run_dir import stamped
from harness.tuning.best_trial import retrained_job
from tests.conftest import Harness
from tests.data.made_up_texts import make_rows, write_csv, write_folder
from tests.report.finished_runs import write_finished
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial

PLAIN = make_rows(200)
COLUMNS = ("text", "label", "split")
SPLIT_OF = ("train", "train", "train", "Dev", "test")  # in turn: 120, 40, 40


def with_split(validation: str = "Dev") -> list[tuple[str, str, str]]:
    """Rows of three splits; reviews of validation and test have words of their own."""
    rows = []
    for i, (text, label) in enumerate(PLAIN):
        split = SPLIT_OF[i // 2 % 5].replace("Dev", validation)
        rows.append((text if split == "train" else f"{text} only{split}", label, split))
    return rows


ROWS = with_split()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_source(write_csv(tmp_path / "mine.csv", ROWS, COLUMNS))


@pytest.mark.parametrize("name", ["validation", "dev"])
def test_every_form_of_a_source_may_have_a_validation_split(tmp_path: Path, name: str) -> None:
    """It has a column, a table, or a folder with this name."""
    rows = with_split(name)
    write_csv(tmp_path / "column.csv", rows, COLUMNS)
    for split in ("train", "test", name):
        of_split = [row[:2] for row in rows if row[2] == split]
        write_csv(tmp_path / f"tables/{split}.csv", of_split)
        write_folder(tmp_path / "folders" / split, of_split)
    sources = [tmp_path / each for each in ("column.csv", "tables", "folders")]
    checksums = set()
    for source in sources:
        counts = Counter(each.split for each in read_texts(source))
        assert counts == {"train": 120, "test": 40, name: 40}
        made = open_source(source)
        sizes = {part: len(reviews) for part, reviews in made.parts().items()}
        assert sizes == {"train": 120, "validation": 40, "test": 40}
        checksums.add(made.checksum)
    assert len(checksums) == 1


def test_a_stored_dataset_keeps_the_validation_split(dataset: Dataset, tmp_path: Path) -> None:
    """Another number of validation reviews has another checksum."""
    assert "120 training, 40 validation and 40 test reviews" in dataset.introduction
    assert dataset.title == "mine.csv (120 + 40 + 40 reviews)"
    lines = [*describe(dataset)]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["train", "120"],
        ["validation", "40"],
        ["test", "40"],
    ]
    folder = tmp_path / "copy"
    save_folder(dataset, folder)
    copy = open_folder(folder)
    assert (copy.num_validation, copy.checksum) == (40, dataset.checksum)
    plain = open_source(write_csv(tmp_path / "plain.csv", PLAIN))
    assert plain.num_validation == 0
    record = json.loads((folder / "dataset.json").read_text())
    for wrong in (39, -1):
        (folder / "dataset.json").write_text(json.dumps(record | {"num_validation": wrong}))
        with pytest.raises(RunError, match="is broken"):
            open_folder(folder)


@pytest.mark.parametrize(
    ("limit", "share", "counts"),
    [
        (0, 0.5, (120, 40)),
        (0, 0, (160, 0)),
        (100, 0.2, (100, 40)),
        (30, 0, (60, 0)),
        (500, 0.2, (120, 40)),
    ],
)
def test_a_limit_takes_the_first_reviews_of_each_split(
    dataset: Dataset, tmp_path: Path, limit: int, share: float, counts: tuple[int, int]
) -> None:
    """With a share of 0 the validation reviews are training reviews."""
    parts = [dataset.parts()[name].take(limit or 1000) for name in ("train", "validation")]
    tokens = [encode_split(part, 8000)[0] for part in parts]
    file = tmp_path / "job.toml"
    settings = [f"data.source={tmp_path / 'mine.csv'}", f"data.limit={limit}"]
    settings += [f"data.validation_split={share}", "train.keep=last"]
    file.write_text('[model]\narchitecture = "rnn"\n')
    job = load_job(file, settings)
    training, validation, _ = training_reviews(job, open_data(job, None))
    assert (len(training.labels), len(validation.labels)) == counts
    np.testing.assert_array_equal(training.tokens, np.concatenate(tokens))


def test_the_linear_baseline_chooses_by_the_validation_split(dataset: Dataset) -> None:
    """The validation reviews choose C; the last fit uses all reviews."""
    found = score_ngrams(dataset, print, limit=0)
    model = fit_ngrams(dataset.train, 120)
    assert f"{max(model.validation.values()):.2%}" in found.note
    assert "fit on all 160 training reviews" in found.note
    assert f"C = {model.strength:g} was chosen on the validation split (" in found.note
    assert "all 60 training reviews" in score_ngrams(dataset, print, limit=30).note


def test_an_ensemble_validates_on_the_validation_split(dataset: Dataset, tmp_path: Path) -> None:
    """`data.validation_split` has no effect; the linear model fits the same reviews."""
    runs = tmp_path / "runs"
    shares = ("data.validation_split=0.2", "data.validation_split=0.3")
    few = [write_finished(runs / f"s{n}", dataset, n, share) for n, share in enumerate(shares, 1)]
    every = write_finished(runs / "all", dataset, 7, "data.validation_split=0", "train.keep=last")
    said: list[str] = []

    def of(folders: list[Path], name: str, weights_from: Path | None = None) -> object:
        request = Request(
            folders, ngrams=True, weights_from=weights_from, data=None, name=name, run_id="one"
        )
        made = make_ensemble(request, runs, said.append)
        toml = tomllib.loads((made.folder / "ensemble.toml").read_text())
        return toml["members"][-1]["num_training"], made.result["num_validation"]

    source = f"data.source={tmp_path / 'mine.csv'}"
    for folder in (*few, every):
        job = load_job(folder / "job.toml", [source])
        (folder / "job.toml").write_text(job.to_toml())
    assert of(few, "few") == (120, 40)
    assert of(few[:1], "part") == (120, 40)
    assert of([every], "every", runs / "part" / "one") == (160, 0)


def test_a_retrained_trial_reads_all_reviews(tmp_path: Path) -> None:
    """The validation split of the texts becomes training data."""
    source = write_csv(tmp_path / "mine.csv", ROWS, COLUMNS)
    toml = f'{RANDOM}[data]\nsource = "{source}"\n'
    values = {"model.pooling": "max", "model.units": 16, "train.learning_rate": 0.001}
    sweep = make_sweep(tmp_path / "sweep", toml, trial(0, 0.8, values=values))
    record = {"checksum": "0" * 64, "folder": str(source), "num_validation": 40}
    sweep.write_json("provenance.json", stamped({"dataset": record}))
    job = retrained_job(sweep.search(), sweep.trials()[0])
    training, validation, _ = training_reviews(job, open_data(job, None))
    assert (len(training.labels), len(validation.labels)) == (160, 0)


def test_a_run_validates_on_the_validation_split(harness: Harness) -> None:
    """Messages, record and predictions agree."""
    write_csv(harness.folder / "mine.csv", ROWS, COLUMNS)
    (harness.folder / "job.toml").write_text(
        '[model]\narchitecture = "rnn"\nunits = 4\nembedding_dim = 4\n[data]\nsource = "mine.csv"\n'
        "vocab_size = 50\nmaxlen = 12\n[train]\nepochs = 1\nema_momentum = 0\n"
    )
    labels = open_source(harness.folder / "mine.csv").parts()["validation"].labels
    cases: list[tuple[str, list[str], str, tuple[int, int, bool]]] = [
        (
            "share",
            ["data.validation_split=0.4"],
            "data.validation_split = 0.4 has no effect: validated on the source's own",
            (120, 40, True),
        ),
        (
            "all",
            ["data.validation_split=0", "train.keep=last"],
            "own validation split are trained on too",
            (160, 0, False),
        ),
    ]
    for run_id, settings, said, counts in cases:
        words = itertools.chain.from_iterable(("--set", each) for each in settings)
        done = harness.run("train", "job.toml", "--run-id", run_id, *words)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout + done.stderr
        assert "120 training, 40 validation and 40 test reviews" in done.stdout
        folder = harness.runs / "job" / run_id
        result = json.loads((folder / "result.json").read_text())
        keys = ("num_training", "num_validation", "validation_is_given")
        assert tuple(result[key] for key in keys) == counts
        assert result["validation_split"] == 0
        record = json.loads((folder / "provenance.json").read_text())
        assert record["dataset"]["num_validation"] == 40
        if counts[1]:
            with np.load(folder / "validation_predictions.npz") as arrays:
                np.testing.assert_array_equal(arrays["labels"], labels)
