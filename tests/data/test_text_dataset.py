"""Own texts as a dataset: classes, split and words follow from their content alone."""

import errno
import json
import multiprocessing
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import SPLITS, Dataset, Split
from harness.data.dataset_folder import open_folder
from harness.data.own_texts import describe, make_dataset, open_source
from harness.data.sources import open_data
from harness.data.tables import SourceFormat
from harness.data.vocabulary import encode_split, encode_text, tokenize
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.tracking.run_dir import run_identity
from harness.training.launch import dataset_of
from harness.tuning.best_trial import data_of, sweep_data
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness
from tests.data.made_up_texts import make_rows, write_csv, write_folder
from tests.tuning.made_up_sweep import RANDOM, make_sweep

ROWS = make_rows(200)
SHRUNK = ["data.maxlen=12", "model.units=4", "model.embedding_dim=4", "train.epochs=2",
          "train.batch_size=32", "train.ema_momentum=0"]  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "nowhere"))  # has no say


def texts_of(dataset: Dataset, split: Split) -> list[tuple[str, ...]]:
    """The words of each review, the unranked ones as None."""
    words = [*dataset.vocab]
    told = []
    for first, last in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        ranks = split.tokens[first:last].tolist()
        told.append(tuple(words[rank - 1] if rank <= len(words) else "?" for rank in ranks))
    return told


def test_the_dataset_is_a_function_of_the_reviews_alone(tmp_path: Path) -> None:
    """Another order of rows, another form and repeated building give the same bytes."""
    shuffled = ROWS.copy()
    random.Random(5).shuffle(shuffled)  # noqa: S311 - not a secret
    sources = [
        write_csv(tmp_path / "a.csv", ROWS),
        write_csv(tmp_path / "b.tsv", shuffled),
        write_folder(tmp_path / "c", shuffled),
    ]
    made = [open_source(source) for source in sources]
    assert len({dataset.checksum for dataset in made}) == 1
    assert {dataset.classes for dataset in made} == {("neg", "pos")}
    assert [dataset.title[:5] for dataset in made] == ["a.csv", "b.tsv", "c (16"]
    train, test = len(made[0].train), len(made[0].test)
    assert (train + test, 25 < test < 55) == (200, True)
    # The last share of the training reviews validates: it should not be one class.
    assert 0.2 < made[0].train.labels[-train // 5 :].mean() < 0.8


def test_ten_reviews_of_each_split_are_enough(tmp_path: Path) -> None:
    """The fewest that the refusal of nine names."""
    for name, rows in (("train", ROWS[:10]), ("test", ROWS[10:20])):
        write_csv(tmp_path / "pair" / f"{name}.csv", rows)
    splits = open_source(tmp_path / "pair").splits()
    assert [len(split) for split in splits.values()] == [10, 10]


def test_the_same_words_are_never_in_both_splits_and_new_rows_move_no_other(
    tmp_path: Path,
) -> None:
    """The split is by the hash of a review's words, whatever stands around them."""
    shouted = [(text.upper().replace(" ", " -- "), label) for text, label in ROWS[:50]]
    first = open_source(write_csv(tmp_path / "a.csv", ROWS))
    more = open_source(write_csv(tmp_path / "b.csv", [*shouted, *ROWS, *make_rows(200, seed=2)]))
    words = [{tuple(tokenize(text)) for text, _ in rows} for rows in (ROWS[:50], shouted)]
    assert words[0] == words[1]

    def keys(dataset: Dataset, split: Split) -> set[str]:
        """The last word, in its number, tells a review from all others where it is known."""
        return {"".join(review) for review in texts_of(dataset, split)}

    train, test = keys(more, more.train), keys(more, more.test)
    assert keys(first, first.train) <= train
    assert not train & test
    assert sum(len(split) for split in more.splits().values()) == 450


def test_words_are_ranked_by_the_training_split_alone(tmp_path: Path) -> None:
    """The commonest first, equal ones by the alphabet; what only test reviews hold is unknown."""
    rows = []
    for i, (text, label) in enumerate(ROWS):
        split = ("train", "train", "test", "test")[i % 4]
        rows.append((f"{text} zebra zebra" if split == "test" else text, label, split))
    dataset = open_source(write_csv(tmp_path / "a.csv", rows, ("text", "label", "split")))
    told = {split: [tokenize(row[0]) for row in rows if row[2] == split] for split in SPLITS}
    counts = Counter(word for review in told["train"] for word in review)
    assert list(dataset.vocab) == sorted(counts, key=lambda word: (-counts[word], word))
    assert "zebra" not in dataset.vocab
    # A test review is encoded as `harness predict` encodes its text, however large the vocabulary.
    ranks = {word: rank for rank, word in enumerate(dataset.vocab, 1)}
    for vocab_size in (10, 80_000):
        tokens, offsets = encode_split(dataset.test, vocab_size)
        found = [tokens[a:b].tolist() for a, b in pairwise(offsets)]
        wanted = [encode_text(" ".join(review), ranks, vocab_size) for review in told["test"]]
        assert sorted(found) == sorted(wanted)
        assert tokens.max() < vocab_size
        assert (tokens == 2).sum() >= 200


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("1", "0"), ("0", "1")),
        (("Positive", "negative"), ("negative", "Positive")),
        (("+", "-"), ("-", "+")),
        (("fresh", "rotten"), ("rotten", "fresh")),
        (("spam", "ham"), ("ham", "spam")),
        (("a", "B"), ("a", "B")),
        (("10", "5"), ("5", "10")),
        (("+1", "-1"), ("-1", "+1")),
    ],
)
def test_known_names_mean_what_they_say_and_others_go_by_number_or_alphabet(
    tmp_path: Path, labels: tuple[str, str], classes: tuple[str, str]
) -> None:
    """Label 1 is the class that means more, whichever row comes first."""
    rows = [(text, f" {labels[label == 'neg']} ") for text, label in ROWS]
    dataset = open_source(write_csv(tmp_path / "a.csv", rows))
    assert dataset.classes == classes
    share = np.mean([label.strip() == classes[1] for _, label in rows])
    labels_found = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert labels_found.mean() == share
    assert f"label 0 is {classes[0]}, 1 is {classes[1]}" in dataset.introduction


def test_a_given_split_is_kept_and_its_leaks_are_told(tmp_path: Path) -> None:
    """The source's own split is taken as it is; a text on both sides is counted."""
    rows = [(*row, "train" if i < 150 else "test") for i, row in enumerate(ROWS)]
    rows += [(*ROWS[3], "test"), (*ROWS[4], "test")]
    dataset = open_source(write_csv(tmp_path / "a.csv", rows, ("text", "label", "split")))
    assert (len(dataset.train), len(dataset.test)) == (150, 52)
    assert "2 of the test reviews have the words of a training review" in dataset.introduction


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (ROWS[:9], ROWS[9:40], "9 training reviews, should be at least 10"),
        (ROWS[:60], ROWS[60:69], "9 test reviews, should be at least 10"),
        (ROWS[:60:2], ROWS[60:90], "none of the 30 training reviews is 'neg'"),
        (ROWS[:60], ROWS[61:90:2], "none of the 15 test reviews is 'pos'"),
    ],
)
def test_a_split_without_a_class_is_refused(
    tmp_path: Path, train: list[tuple[str, str]], test: list[tuple[str, str]], said: str
) -> None:
    """Nothing could be learned or tested."""
    for name, rows in (("train", train), ("test", test)):
        write_csv(tmp_path / "pair" / f"{name}.csv", rows)
    with pytest.raises(InputError, match=said):
        open_source(tmp_path / "pair")


def job_of(path: Path, *overrides: str) -> Job:
    """A job on the source, from a file next to it."""
    job_file = path.parent / "mine.toml"
    job_file.write_text(f'[model]\narchitecture = "rnn"\n[data]\nsource = "{path.name}"\n')
    return load_job(job_file, overrides)


def test_a_class_is_a_short_name(tmp_path: Path) -> None:
    """Of 60 printable characters at most; a longer one is a text in the wrong column."""
    rows = [(text, {"pos": "p" * 60}.get(label, label)) for text, label in ROWS]
    assert open_source(write_csv(tmp_path / "a.csv", rows)).classes == ("neg", "p" * 60)
    rows = [(text, label + "p" * (label != "neg")) for text, label in rows]
    with pytest.raises(InputError, match="up to 60 printable characters"):
        open_source(write_csv(tmp_path / "b.csv", rows))


def test_a_validation_part_without_a_class_is_refused(tmp_path: Path) -> None:
    """So is a limit that leaves one class alone; more of either mends it."""
    job = job_of(write_csv(tmp_path / "a.csv", ROWS))
    open_data(job, None)
    for override in ("data.limit=2", "data.validation_split=0.001"):
        with pytest.raises(InputError, match=r"reviews is '\w+', with data\.limit"):
            open_data(job_of(tmp_path / "a.csv", override), None)
    with pytest.raises(InputError, match=r"--data /x: .* leave --data out"):
        open_data(job, Path("/x"))


def test_a_relative_source_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a job file it is relative to that, by --set to the working folder; a copy keeps it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job = job_of(tmp_path / "a.csv")
    assert job.data.source == str(tmp_path / "a.csv")
    Path("copy.toml").write_text(job.to_toml())
    assert load_job(Path("copy.toml")).data.source == job.data.source
    moved = load_job(tmp_path / "mine.toml", ["data.source=./b.csv"])
    assert moved.data.source == str(tmp_path / "here" / "b.csv")
    assert run_identity(moved, "checksum") == run_identity(job, "checksum")
    with pytest.raises(InputError, match=r"data\.source=4"):
        load_job(Path("copy.toml"), ["data.source=4"])


def _full(target: Path) -> None:
    raise OSError(errno.EDQUOT, f"{target}: Disk quota exceeded")


def test_it_is_built_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second open maps cached arrays; an edited source or broken cache is read again."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    first = open_source(path)
    (kept,) = (tmp_path / "cache" / "harness").glob("texts-*")
    with monkeypatch.context() as patch:
        patch.setattr("harness.data.own_texts.make_dataset", None)
        again = open_source(path)
    assert isinstance(again.train.tokens, np.memmap)
    assert (again.checksum, again.introduction) == (first.checksum, first.introduction)
    (kept / "words.txt").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("harness.data.dataset_folder.atomic_directory", _full)
        assert open_source(path).checksum == first.checksum  # in a temporary folder
    assert open_source(path).checksum == first.checksum
    with monkeypatch.context() as patch:  # that one was saved
        patch.setattr("harness.data.own_texts.make_dataset", None)
        assert open_source(path).checksum == first.checksum
    write_csv(path, [*ROWS, ("one more", "pos")])
    assert open_source(path).checksum != first.checksum
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("no folder")
    assert open_source(path).title == "a.csv (162 + 39 reviews)"


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept under the checksum of another content."""
    path = write_csv(tmp_path / "a.csv", ROWS)

    def read(source: Path, folder: Path, form: SourceFormat | None) -> None:
        write_csv(path, [*ROWS, ("one more", "pos")])
        make_dataset(source, folder, form)

    monkeypatch.setattr("harness.data.own_texts.make_dataset", read)
    with pytest.raises(InputError, match="changed while it was read; run it again"):
        open_source(path)
    assert not [*(tmp_path / "cache" / "harness").glob("texts-*")]


def _open(path: Path, results: "multiprocessing.Queue[str]") -> None:
    results.put(open_source(path).checksum)


def test_several_jobs_may_build_it_at_once(tmp_path: Path) -> None:
    """Each has the same data, one whole copy is left, and nothing next to it."""
    path = write_csv(tmp_path / "a.csv", make_rows(2000))
    # A fork of this process, which has threads once it has imported TensorFlow, could hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results: multiprocessing.Queue[str] = context.Queue()
    jobs = [context.Process(target=_open, args=(path, results)) for _ in range(6)]
    for job in jobs:
        job.start()
    checksums = {results.get(timeout=60) for _ in jobs}
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    (kept,) = (tmp_path / "cache" / "harness").glob("texts-*")
    assert checksums == {open_folder(kept).checksum}


def test_describe_tells_what_the_settings_hang_on(tmp_path: Path) -> None:
    """Classes and their shares, how many words a vocabulary knows, how long reviews are."""
    rows = [(f"{'word ' * (i % 100 + 1)}unique{i}", str(i % 2)) for i in range(1000)]
    lines = list(describe(open_source(write_csv(tmp_path / "a.csv", rows))))
    assert "label 0 is 0, 1 is 1" in lines[0]
    num_train = len(open_source(tmp_path / "a.csv").train)
    assert lines[1].startswith(f"train   {num_train:,} reviews: ")
    assert lines[3].startswith(f"words   {num_train + 1:,} different in training")
    assert "longest 101" in lines[4]
    assert "50% 5" in lines[4]


def test_a_sweep_keeps_to_its_texts(tmp_path: Path) -> None:
    """Its workers find them by the job, go on with no others, and hand its winner no --data."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    toml = f'{RANDOM}[data]\nsource = "{path}"\n'
    sweep = make_sweep(tmp_path / "sweep", toml)
    search = sweep.search()
    (sweep.folder / "provenance.json").unlink()
    dataset = dataset_of(sweep, search.job, None)
    sweep = SweepDirectory(tmp_path / "begun")
    assert sweep.begin(search, dataset)
    assert dataset_of(sweep, search.job, None).is_own
    assert sweep_data(sweep, search, None) is None
    assert data_of(sweep, search).startswith("a.csv (checksum ")
    write_csv(path, ROWS[1:])
    with pytest.raises(InputError, match=r"sweep .*: data\.source .* has changed since"):
        dataset_of(sweep, search.job, None)


@pytest.mark.full
def test_a_run_on_own_texts_from_job_to_prediction(harness: Harness) -> None:
    """It says which texts and classes, predicts by their names, and goes on with no others."""
    path = write_csv(harness.folder / "mine" / "reviews.csv", ROWS)
    job_of(path)
    words = ["--run-id", "own", *(word for each in SHRUNK for word in ("--set", each))]
    done = harness.run("train", "mine/mine.toml", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(f"texts {path}: 161 training and 39 test")
    assert "data.vocab_size = 8000: the training reviews hold" in done.stderr
    assert "tested on 39 reviews of reviews.csv (161 + 39 reviews)" in done.stdout
    run = harness.runs / "mine" / "own"
    result = json.loads((run / "result.json").read_text())
    assert (result["data"], result["classes"]) == ("reviews.csv (161 + 39 reviews)", ["neg", "pos"])
    assert result["num_training"] + result["num_validation"] == 161
    told = harness.run("predict", run, "a great film", "no such Gew\u00fcrztraminer", "--json")
    predictions = [json.loads(line) for line in told.stdout.splitlines()]
    assert [p["num_unknown"] for p in predictions] == [0, 2]
    assert {p["class"] for p in predictions} <= {"neg", "pos"}
    # As if it had been killed just before its end.
    (run / "result.json").unlink()
    write_csv(path, [*ROWS, ("one more", "pos")])
    refused = harness.run_here("resume", run)
    assert refused.returncode == 2
    assert f"data.source {path} has changed since it was begun" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_source_that_is_gone_is_refused_before_tensorflow(harness: Harness) -> None:
    """To train and to submit: one line, nothing written."""
    (harness.folder / "mine").mkdir()
    path = harness.folder / "mine" / "none.csv"
    job_of(path)
    harness.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    for command in ("train", "submit"):
        done = harness.run(command, "mine/mine.toml")
        assert done.returncode == 2
        (line,) = (each for each in done.stderr.splitlines() if each.startswith("harness: "))
        assert f"{path}: no such file" in line
        assert "| numpy\n" in done.stderr.replace("  ", "")  # the profile is there
        assert "tensorflow" not in done.stderr
    assert [each.name for each in harness.folder.iterdir()] == ["mine"]
