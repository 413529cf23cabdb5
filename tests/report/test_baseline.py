"""The linear baselines: their models, the choice of C, their data, their cache, McNemar's test."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline

from harness.data.dataset import Split, by_class, make_split
from harness.data.ngrams import binary_ngrams, to_archive
from harness.data.own_texts import open_source
from harness.data.sources import make_dataset
from harness.errors import InputError
from harness.job.keys import DataConfig
from harness.report.baseline import (
    Baseline,
    NgramModel,
    baselines,
    fit,
    fit_ngrams,
    score_ngrams,
    tokens_of,
)
from harness.report.collect import DatasetGroup, group_runs, scored_runs
from harness.report.statistics import Predictions, verdict
from harness.tracking.run_dir import stamped
from tests.data.made_up_texts import write_csv
from tests.made_up_runs import write_scored_run
from tests.report.small_data import WORDS, small_data


@pytest.fixture(autouse=True)
def no_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the data and the cache of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def group(tmp_path: Path) -> DatasetGroup:
    """A group of one run on a small dataset."""
    write_scored_run(tmp_path / "runs/a", small_data(tmp_path / "data"), [True] * 60)
    return group_runs(scored_runs([tmp_path / "runs"])[0])[0][0]


def noisy(num: int, seed: int, num_classes: int = 2) -> tuple[list[list[int]], list[int]]:
    """Return reviews and noisy labels; the order of two words depends on the label."""
    generator = np.random.default_rng(seed)
    reviews, labels = [], []
    for _ in range(num):
        label = int(generator.integers(num_classes))
        words = (generator.zipf(1.5, size=8) % 30 + 1).tolist()
        reviews.append([*words, 7 + label, 7 + (label + 1) % num_classes, *words[:2]])
        labels.append(label if generator.random() < 0.8 else int(generator.integers(num_classes)))
    return reviews, labels


def as_texts(split: Split) -> list[str]:
    return [
        " ".join(f"w{rank}" for rank in split.tokens[first:end])
        for first, end in itertools.pairwise(split.offsets)
    ]


# TF-IDF


def test_tfidf_reads_the_tokens_of_the_networks() -> None:
    """Start (1) and unknown tokens (2) count towards `maxlen`."""
    split = make_split([[1, 2, 2, 1, 9], [1]], [1, 0])
    for maxlen, expected in ((0, [[1, 4, 5, 5, 4, 2], [1, 4]]), (3, [[5, 4, 2], [1, 4]])):
        assert tokens_of(split, 8, maxlen) == expected


def test_tfidf_equals_a_pipeline_of_scikit_learn(tmp_path: Path) -> None:
    """The pipeline reads the reviews as text."""
    dataset = small_data(tmp_path)
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=1.0))
    model.fit(as_texts(dataset.train), dataset.train.labels)
    found = model.predict_proba(as_texts(dataset.test))[:, 1]
    expected = pytest.approx(log_loss(dataset.test.labels, found), abs=1e-4)
    assert fit(dataset, limit=0, maxlen=0, vocab_size=9).log_loss == expected


def test_tfidf_counts_only_existing_words(tmp_path: Path) -> None:
    """A vocabulary may be smaller than `data.vocab_size`."""
    found, same = (fit(small_data(tmp_path), limit=0, maxlen=3, vocab_size=n) for n in (8000, 8))
    assert f"the {len(WORDS)} most frequent words" in found.note
    assert (found.parameters, found.log_loss) == (len(WORDS) + 1, same.log_loss)


# N-grams


class Reference:
    """The n-gram model, made of scikit-learn's parts; it reads the reviews as texts."""

    def __init__(self, texts: list[str], labels: np.ndarray, strength: float) -> None:
        self.words = CountVectorizer(
            ngram_range=(1, 3), min_df=2, binary=True, tokenizer=str.split, token_pattern=None
        )
        counts = self.words.fit_transform(texts).toarray()
        p, q = (1 + counts[labels == label].sum(axis=0) for label in (1, 0))
        self.ratios = np.log(p / p.sum()) - np.log(q / q.sum())
        self.model = LogisticRegression(
            C=strength, solver="liblinear", dual=True, tol=1e-6, max_iter=100_000
        )
        self.model.fit(counts * self.ratios, labels)

    def probabilities(self, texts: list[str]) -> Any:
        features = self.words.transform(texts).toarray() * self.ratios
        return self.model.predict_proba(features)[:, 1]


def test_ngrams_occur_in_two_reviews() -> None:
    """An n-gram is one to three consecutive words of a review."""
    split = make_split([[5, 6, 7, 5, 6], [5, 6, 7], [7, 9, 9, 9]], [1, 0, 1])
    features, known = binary_ngrams(split)
    # The n-grams are 5, 6, 7, then 5 6 and 6 7, then 5 6 7. Only one review contains 9 and 9 9.
    assert features.toarray().tolist() == [[1] * 6, [1] * 6, [0, 0, 1, 0, 0, 0]]
    assert list(map(len, known)) == [3, 2, 1]
    # No n-gram spans two reviews or contains an unknown word.
    other = make_split([[5], [6, 7, 2_000_000_000], [5, 8, 6]], [1, 0, 1])
    assert binary_ngrams(other, known)[0].toarray().tolist() == [
        *([1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0])
    ]


def test_the_ngram_model_equals_scikit_learn() -> None:
    """C is the reference's best on the last fifth of the reviews, and the probabilities agree."""
    chosen = set()
    for seed in range(3):
        train, test = make_split(*noisy(200, seed)), make_split(*noisy(60, seed + 10))
        texts = as_texts(train)
        model = fit_ngrams(train)
        scores = {}
        for strength in (0.1, 1.0, 10.0):
            part = Reference(texts[:160], train.labels[:160], strength).probabilities(texts[160:])
            scores[strength] = float(((part > 0.5) == train.labels[160:]).mean())
        assert model.validation == scores
        assert model.strength == max(scores, key=lambda each: (scores[each], -each))
        expected = Reference(texts, train.labels, model.strength).probabilities(as_texts(test))
        assert model.probabilities(test)[:, 1] == pytest.approx(expected, abs=0.02)
        chosen.add(model.strength)
    assert len(chosen) > 1  # otherwise the seeds do not test the choice of C


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_linear_model_in_a_file_classifies_texts(num_classes: int) -> None:
    """The stored model equals the original one, also for texts with unknown words."""
    train, test = (make_split(*noisy(300, seed, num_classes)) for seed in (1, 2))
    model = fit_ngrams(train)
    words = [f"w{rank}" for rank in model.ngrams[0].tolist()]
    again = NgramModel.from_bytes(dataclasses.replace(model, words=words).to_bytes())
    assert again.words == words
    texts, expected = as_texts(test), model.probabilities(test)
    assert len(np.unique(expected[:, 0])) > 100
    texts = [f"{text.upper()}, unheard!" for text in texts]
    np.testing.assert_allclose(again.of_texts(texts), expected, atol=1e-12)
    unknown, first = again.of_texts(["nothing known", texts[0]])
    np.testing.assert_allclose(first, expected[0], atol=1e-12)
    np.testing.assert_allclose(unknown, model.probabilities(make_split([[]], [0]))[0])


def test_a_broken_linear_model_is_refused() -> None:
    """The file may be empty, no archive, half an archive, or an archive of other arrays."""
    model = fit_ngrams(make_split(*noisy(50, 1)))
    content, other = model.to_bytes(), to_archive(model.ngrams, words=np.zeros(2))
    for broken in (b"", b"PK\x03\x04", content[: len(content) // 2], other):
        with pytest.raises(ValueError, match="not an archive of n-grams"):
            NgramModel.from_bytes(broken)


def test_baselines_of_several_classes() -> None:
    """The first word shows the class, wrongly in every tenth review."""
    generator, labels = np.random.default_rng(3), np.arange(120) % 3
    told = np.where(np.arange(120) % 10, labels, (labels + 1) % 3)
    train, test = (
        make_split(np.column_stack([told + 1, generator.integers(20, 40, (120, 4))]), labels)
        for _ in range(2)
    )
    dataset = make_dataset(train, test, WORDS * 10)
    expected = pytest.approx(0.9, abs=0.03)
    for fitted in (fit(dataset, limit=0, maxlen=0, vocab_size=44), score_ngrams(dataset, limit=0)):
        assert fitted.accuracy == expected
        assert fitted.f1 == expected
        assert fitted.roc_auc is not None
        assert fitted.roc_auc > 0.85


def test_too_little_is_refused(tmp_path: Path, group: DatasetGroup) -> None:
    """All reviews have the same class, or share no word."""
    with pytest.raises(ValueError, match="class"):
        fit_ngrams(make_split([[1, 2]] * 50, [1] * 50))
    with pytest.raises(ValueError, match="feature"):
        fit_ngrams(make_split([[rank] for rank in range(1, 51)], [0, 1] * 25))
    small = dataclasses.replace(group, limit=2)
    with pytest.raises(InputError, match=r"can't be fit to .*; leave ngrams out"):
        baselines(small, tmp_path / "data", ngrams=True)


# Data and cache


def test_the_cache_replaces_the_data(
    tmp_path: Path, group: DatasetGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data with another checksum are not used; by default, the record of a run names the data.

    Cached scores need neither the data nor `--baseline`. A broken file counts as missing.
    """
    small_data(tmp_path / "other", num=40)
    assert baselines(group, tmp_path / "other") == []
    assert capsys.readouterr().err.count("\n") == 1
    record = stamped({"dataset": {"folder": f"{tmp_path}/data"}})
    (tmp_path / "runs/a/provenance.json").write_text(json.dumps(record))
    last, whole = baselines(group, None)
    assert (last.name, whole.name) == ("tf-idf, last 3", "tf-idf, whole")
    assert whole.accuracy == pytest.approx(0.9)  # the first word shows nine of ten labels
    assert last.accuracy < 0.75
    assert "fit on all 60 training reviews" in last.note
    first = baselines(group, tmp_path / "data", ngrams=True)
    assert [each.kind for each in first] == ["tf-idf", "tf-idf", "n-grams"]
    assert capsys.readouterr().err.startswith("fitting n-grams to ")
    (tmp_path / "data").rename(tmp_path / "away")
    assert baselines(group, None) == first
    assert baselines(group, None, ngrams=True) == first
    limited = dataclasses.replace(group, limit=50)
    assert all(each.kind != "n-grams" for each in baselines(limited, tmp_path / "away"))
    for path in (tmp_path / "cache" / "harness" / "baseline").iterdir():
        content = json.loads(path.read_text())
        for broken in ("{", "[]", json.dumps(content | {"accuracy": 1.01})):
            path.write_text(broken)
    assert baselines(group, None) == []
    assert "not found here" in capsys.readouterr().err
    remedy = r"for IMDB, give its folder with --data; for your own texts, put the texts back"
    with pytest.raises(InputError, match=f"the reviews of .*; {remedy} at data.source; or leave"):
        baselines(group, None, ngrams=True)


def test_own_texts_are_found_by_a_job(tmp_path: Path) -> None:
    """The first run's job names the texts."""
    rows = [(f"{('bad', 'good')[i % 2]} film {i}", str(i % 2)) for i in range(120)]
    source = write_csv(tmp_path / "own.csv", rows, ("words", "label"))
    dataset = open_source(source, DataConfig(text_column="words"))
    form = "text_column = 'words'\nsource"
    keys = (f"{form} = '{source}'", f"{form} = '{tmp_path}/gone.csv'")
    for seed, key in enumerate(keys, 1):
        run = tmp_path / "runs" / str(seed)
        write_scored_run(run, dataset, [True] * len(dataset.test), seed=seed)
        toml = (run / "job.toml").read_text()
        (run / "job.toml").write_text(toml.replace("[data]", f"[data]\n{key}"))
    (own,) = group_runs(scored_runs([tmp_path / "runs"])[0])[0]
    assert len(own.runs) == 1  # the path of the texts is not a setting that separates jobs
    *_, ngrams = baselines(own, None, ngrams=True)
    assert (ngrams.kind, ngrams.accuracy) == ("n-grams", 1.0)


# McNemar's test


def said(num_right: int, by_job: dict[str, list[list[bool]]]) -> str:
    """Return the verdict on a model that is right in the first reviews only.

    `by_job` has a list per run of a job, which states for each review whether the run is right.
    """
    num = len(next(iter(by_job.values()))[0])
    of_model = tuple([1] * num_right + [0] * (num - num_right))
    baseline = Baseline("", "n-grams", "", num_right / num, 0, 0, 0, 0, 0, predicted=of_model)
    found = {
        name: np.stack([by_class(np.where(right, 0.9, 0.1)) for right in runs])
        for name, runs in by_job.items()
    }
    return verdict(baseline, Predictions(np.ones(num, np.int64), found, ()))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 12), (7, 7), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    """The p-value is that of SciPy's `binomtest`, and 1 if the models never differ."""
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    line = said(1 + lost, {"a": [[True, *[False] * lost, *[True] * gained]]})
    assert f"largest p-value over the seeds: {expected:.2g}, " in line


def test_a_sentence_says_whether_a_network_beats_it() -> None:
    """The sentence names the networks whose runs are all better, and the best network's lead.

    By Bonferroni's correction, more jobs do not make a false finding more likely.
    """
    better, wrong = [True] * 6, [False] * 6  # p is 2 / 2 ** 6 = 0.031
    assert said(0, {"lstm": [better]}) == (
        "better than n-grams (0.00%): lstm; lstm is 100.00 points ahead (McNemar's exact test on "
        "the same reviews, largest p-value over the seeds: 0.031, significance level: 0.05)"
    )
    for jobs in ({"lstm": [better, wrong]}, {"lstm": [better], "gru": [better]}):
        assert said(0, jobs).startswith("the runs do not show that any network is better than")
    assert "; lstm is 100.00 points behind (" in said(6, {"lstm": [wrong]})
    assert "; lstm is as often correct (" in said(6, {"lstm": [better]})
    model = Baseline("", "n-grams", "", 1.0, 0, 0, 0, 0, 0, predicted=(1,))
    assert verdict(model, None).startswith(
        "no run has predictions that can be compared with those of"
    )
