"""The dataset of a user's texts: its classes, splits and words depend on the content alone."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.data.dataset import SPLITS, Dataset, Split
from harness.data.own_texts import describe, make_dataset, open_source
from harness.data.sources import open_data, open_sample
from harness.data.vocabulary import encode_split, encode_text, tokenize
from harness.errors import DiskError, InputError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.tracking.run_dir import run_identity
from harness.training.launch import dataset_of
from harness.tuning.best_trial import data_of
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness
from tests.data.made_up_texts import make_rows, write_csv
from tests.tuning.made_up_sweep import RANDOM, make_sweep

ROWS = make_rows(200)


def texts_of(dataset: Dataset, split: Split) -> list[tuple[str, ...]]:
    """Return the words of each review, with `?` for a word without a rank."""
    words = [*dataset.vocab]
    reviews = []
    for first, last in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        ranks = split.tokens[first:last].tolist()
        reviews.append(tuple(words[rank - 1] if rank <= len(words) else "?" for rank in ranks))
    return reviews


def starred(num: int, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return texts that have these labels in turn."""
    return [(text, labels[i % len(labels)]) for i, (text, _) in enumerate(make_rows(num))]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("1", "0"), ("0", "1")),
        (("Positive", "negative"), ("negative", "Positive")),
        (("10", "9", "-1", "+0.5"), ("-1", "+0.5", "9", "10")),
        (("2nd", "10th", "Alpha", "p" * 60, "beta"), ("10th", "2nd", "Alpha", "beta", "p" * 60)),
    ],
)
def test_labels_follow_the_order_of_numbers_or_the_alphabet(
    tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    """Every review keeps its class; `describe` and the cache have the same order of classes."""
    rows = starred(240, labels)
    source = write_csv(tmp_path / "a.csv", [(text, f" {label} ") for text, label in rows])
    dataset = open_source(source)
    assert (dataset.classes, len(classes)) == (classes, max(2, dataset.num_outputs))
    label_of = {tuple(tokenize(text)): label for text, label in rows}
    found = [
        (words, classes[label])
        for split in dataset.splits().values()
        for words, label in zip(texts_of(dataset, split), split.labels.tolist(), strict=True)
    ]
    known = [(words, label) for words, label in found if "?" not in words]
    assert len(known) > 180
    assert all(label_of[words] == label for words, label in known)
    assert f"{len(classes)} classes: 0 = {classes[0]}, 1 = {classes[1]}" in dataset.introduction
    (counts,) = [line for line in describe(dataset) if line.startswith("train")]
    assert all(f"% {name}" in counts for name in classes)
    assert open_source(source).classes == classes


def test_only_the_training_split_needs_all_classes(tmp_path: Path) -> None:
    """The test split may lack a rare class. With `data.limit`, training still needs all classes."""
    for folder, splits in (("one", ("abc", "ab")), ("two", ("ab", "abc"))):
        for name, labels in zip(SPLITS, splits, strict=True):
            write_csv(tmp_path / folder / f"{name}.csv", starred(60, labels))
    assert open_data(job_of(tmp_path / "one"), None).classes == ("a", "b", "c")
    with pytest.raises(InputError, match="none of the 48 training reviews has the label 'c'"):
        open_data(job_of(tmp_path / "two"), None)
    rows = [*starred(120, "ab"), *[(f"late {text}", "c") for text, _ in make_rows(3)]]
    job = job_of(write_csv(tmp_path / "a.csv", rows), "data.limit=20")
    with pytest.raises(InputError, match=r"none of the 16 training .* 'c'; use another data"):
        open_data(job, None)


def test_equal_words_are_in_one_split_and_new_rows_move_no_other_row(tmp_path: Path) -> None:
    """The hash of a review's words decides its split."""
    shouted = [(text.upper().replace(" ", " -- "), label) for text, label in ROWS[:50]]
    first = open_source(write_csv(tmp_path / "a.csv", ROWS))
    more = open_source(write_csv(tmp_path / "b.csv", [*shouted, *ROWS, *make_rows(200, seed=2)]))
    words = [{tuple(tokenize(text)) for text, _ in rows} for rows in (ROWS[:50], shouted)]
    assert words[0] == words[1]

    def keys(dataset: Dataset, split: Split) -> set[str]:
        return {"".join(review) for review in texts_of(dataset, split)}

    train, test = keys(more, more.train), keys(more, more.test)
    assert keys(first, first.train) <= train
    assert not train & test
    assert sum(len(split) for split in more.splits().values()) == 450


def test_words_are_ranked_by_the_training_split_alone(tmp_path: Path) -> None:
    """Words that occur only in other splits are unknown, as in `harness predict`.

    A run prints how many test reviews have the same words as a training review.
    """
    rows = []
    for i, (text, label) in enumerate(ROWS):
        split = ("train", "train", "test", "test", "dev", "dev")[i % 6]
        rows.append((text if split == "train" else f"{text} zebra zebra", label, split))
    rows += [(*row, "test") for row in ROWS[:2]]
    dataset = open_source(write_csv(tmp_path / "a.csv", rows, ("text", "label", "split")))
    assert [len(part) for part in dataset.parts().values()] == [68, 66, 68]
    assert "2 test reviews have the same words as a training review" in dataset.introduction
    texts = {split: [tokenize(row[0]) for row in rows if row[2] == split] for split in SPLITS}
    counts = Counter(word for review in texts["train"] for word in review)
    assert list(dataset.vocab) == sorted(counts, key=lambda word: (-counts[word], word))
    assert "zebra" not in dataset.vocab
    ranks = {word: rank for rank, word in enumerate(dataset.vocab, 1)}
    for vocab_size in (10, 80_000):
        tokens, offsets = encode_split(dataset.test, vocab_size)
        found = [tokens[a:b].tolist() for a, b in pairwise(offsets)]
        wanted = [encode_text(" ".join(review), ranks, vocab_size) for review in texts["test"]]
        assert sorted(found) == sorted(wanted)
        assert tokens.max() < vocab_size
        assert (tokens == 2).sum() >= 2 * (len(found) - 2)


def test_a_small_split_is_refused(tmp_path: Path) -> None:
    """A validation split, too, needs ten reviews."""
    for name, rows in (("train", ROWS[:60]), ("test", ROWS[60:70]), ("val", ROWS[70:79])):
        write_csv(tmp_path / f"{name}.csv", rows)
    with pytest.raises(InputError, match="9 validation reviews, but should contain at least 10"):
        open_source(tmp_path)


def job_of(path: Path, *overrides: str) -> Job:
    """Write a job file beside the source, and load it."""
    job_file = path.parent / "mine.toml"
    job_file.write_text(f'[model]\narchitecture = "rnn"\n[data]\nsource = "{path.name}"\n')
    return load_job(job_file, overrides)


def test_a_relative_source_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in a job file is relative to that file, a path in --set to the working folder."""
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


def test_it_is_built_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the source changes while it is read, the cache does not keep the dataset."""
    path, cache = write_csv(tmp_path / "a.csv", ROWS), tmp_path / "cache" / "harness"
    first = open_source(path)
    with monkeypatch.context() as patch:
        patch.setattr("harness.data.own_texts.make_dataset", None)
        again = open_source(path)
    assert (again.checksum, again.introduction) == (first.checksum, first.introduction)
    write_csv(path, [*ROWS, ("one more", "pos")])
    assert open_source(path).checksum != first.checksum
    kept = {*cache.glob("texts-*-?")}
    write_csv(path, ROWS[1:])

    def late(source: Path, *args: Any) -> None:
        write_csv(path, make_rows(200, seed=2))
        make_dataset(source, *args)

    with monkeypatch.context() as patch:
        patch.setattr("harness.data.own_texts.make_dataset", late)
        with pytest.raises(InputError, match=r"data\.source .*a\.csv: changed while it was read; "):
            open_source(path)
    assert {*cache.glob("texts-*-?")} == kept
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(DiskError, match=r"can't be written: .*; .* XDG_CACHE_HOME"):
        open_source(path)


def test_describe_helps_to_choose_settings(tmp_path: Path) -> None:
    """The lines list the classes, the words and the lengths of reviews."""
    rows = [(f"{'word ' * (i % 100 + 1)}a{i} b{i} c{i}", str(i % 2)) for i in range(1000)]
    first, train, test, words, lengths, checksum = describe(
        open_source(write_csv(tmp_path / "a.csv", rows))
    )
    assert first.endswith("with 20% test reviews; 2 classes: 0 = 0, 1 = 1")
    assert train == "train   796 reviews: 50.8% 0, 49.2% 1, the rarest of 2 classes has 392 reviews"
    assert test == "test    204 reviews: 47.1% 0, 52.9% 1, the rarest of 2 classes has 96 reviews"
    # 796 reviews have three words each that occur once, and `word`.
    assert words.startswith("words   2,389 different words in the training reviews; ")
    assert words.endswith("data.vocab_size: 2,000 covers 99.1%, 2,393 covers all")
    assert "50% 54, 75% 79, 90% 94, 95% 99, 99% 102; the longest review has 103" in lengths
    of_sample = re.findall(r"([\d,]+) covers", "\n".join(describe(open_sample())))
    assert of_sample == ["2,000", "8,000", "20,000", "40,000", "88,588"]
    # Another checksum means that the same texts give another dataset: increase FORMAT.
    assert checksum.startswith("sha256  121d263a758ef2838654ce9a48bbd4140eaf37b9acd561fdf82f2051")


def test_a_sweep_keeps_to_its_texts(tmp_path: Path) -> None:
    """Workers read data.source and refuse changed texts; the best trial trains without --data."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    toml = f'{RANDOM}[data]\nsource = "{path}"\n'
    sweep = make_sweep(tmp_path / "sweep", toml)
    search = sweep.search()
    (sweep.folder / "provenance.json").unlink()
    dataset = dataset_of(sweep, search.job, None)
    sweep = SweepDirectory(tmp_path / "begun")
    sweep.begin(search, dataset)
    assert dataset_of(sweep, search.job, None).is_own
    assert data_of(sweep, search).startswith("a.csv (checksum ")
    write_csv(path, ROWS[1:])
    with pytest.raises(InputError, match=r"sweep .*: data\.source .* has changed since the start"):
        dataset_of(sweep, search.job, None)


def test_a_missing_source_is_refused_before_tensorflow(harness: Harness) -> None:
    """`train` and `submit` write nothing. `--data` names IMDB, so it does not fit a data.source."""
    (harness.folder / "mine").mkdir()
    path = harness.folder / "mine" / "none.csv"
    job_of(path)
    for command in ("train", "submit"):
        assert f"{path}: no such file" in harness.refuse(command, path.with_name("mine.toml"))
    said = harness.refuse("train", path.with_name("mine.toml"), "--data", "/x")
    assert "--data /x: names a folder of IMDB" in said
    assert [each.name for each in harness.folder.iterdir()] == ["mine"]
