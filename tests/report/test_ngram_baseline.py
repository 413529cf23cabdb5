"""The n-gram baseline: its model, what chooses it, its cache, and the test against it."""

import dataclasses
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from scipy.stats import binomtest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from harness.data.dataset import Dataset, Split, by_class, make_split
from harness.data.ngrams import binary_ngrams, log_count_ratios
from harness.data.own_texts import open_source
from harness.data.sources import make_dataset
from harness.data.tables import SourceFormat
from harness.errors import InputError
from harness.report.baseline import (
    Baseline,
    _probabilities,
    baselines,
    fit_linear,
    fit_ngrams,
    score_ngrams,
)
from harness.report.collect import DatasetGroup, group_runs, scored_runs
from harness.report.statistics import Predictions, read_predictions, verdict
from harness.report.statistics import tests_against as against  # pytest would take it for a test
from harness.report.summary import make_parts, to_csv, to_latex, to_markdown
from harness.report.text_tables import markdown
from tests.conftest import Harness
from tests.made_up_runs import write_scored_run
from tests.report.small_data import WORDS, small_data

pytestmark = pytest.mark.usefixtures("no_other_data")


def noisy(num: int, seed: int, num_classes: int = 2) -> tuple[list[list[int]], list[int]]:
    """Reviews of 30 words, in which the order of two words tells something of the label."""
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


class Reference:
    """The same with scikit-learn's own n-grams of the reviews as text, without any own code."""

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


def test_ngrams_are_those_of_two_reviews() -> None:
    """One, two and three words in a row within a review, if two reviews hold them."""
    split = make_split([[5, 6, 7, 5, 6], [5, 6, 7], [7, 9, 9, 9]], [1, 0, 1])
    features, known = binary_ngrams(split)
    # 5, 6, 7; then 5 6 and 6 7; then 5 6 7. 9 9 is three times in one review alone.
    assert features.toarray().tolist() == [[1] * 6, [1] * 6, [0, 0, 1, 0, 0, 0]]
    assert list(map(len, known)) == [3, 2, 1]
    none, nothing = binary_ngrams(make_split([[5], [6, 7]], [1, 0]))
    assert (none.shape, list(map(len, nothing))) == ((2, 0), [0, 0, 0])
    # Reviews end an n-gram; an unknown word does too, and takes its place.
    other = make_split([[5], [6, 7, 2_000_000_000], [5, 8, 6]], [1, 0, 1])
    assert binary_ngrams(other, known)[0].toarray().tolist() == [
        *([1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0])
    ]


def test_ratios_are_those_of_the_paper() -> None:
    """Counts of reviews plus 1, each divided by their sum, inside the class and outside of it."""
    features, _ = binary_ngrams(make_split([[1], [1, 2], [2, 2]], [1, 0, 0]))
    assert features.toarray().tolist() == [[1, 0], [1, 1], [0, 1]]
    expected = np.log([(2 / 3) / (2 / 5), (1 / 3) / (3 / 5)])
    assert log_count_ratios(features, np.array([True, False, False])) == pytest.approx(expected)


def test_it_is_what_scikit_learn_makes_of_the_texts() -> None:
    """C is the reference's best on the last fifth, and the probabilities are its own on all."""
    chosen = []
    for seed in range(4):
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
        chosen.append(model.strength)
    assert len({*chosen}) > 1  # else the choice was not tested


def test_the_test_set_chooses_nothing(tmp_path: Path) -> None:
    """Other test labels change the scores, but no weight, no C and no prediction."""
    train, (reviews, labels) = make_split(*noisy(200, 1)), noisy(60, 2)
    began = time.perf_counter()
    first, second = (
        score_ngrams(make_dataset(train, make_split(reviews, each), WORDS * 10), print, limit=0)
        for each in (labels, [1 - label for label in labels])
    )
    assert (first.predicted, first.note) == (second.predicted, second.note)
    assert first.accuracy == pytest.approx(1 - second.accuracy)
    assert 0 < first.training_s < time.perf_counter() - began
    again = fit_ngrams(train)
    assert again.weights.tobytes() == fit_ngrams(train).weights.tobytes()


def test_three_classes_are_one_against_the_rest() -> None:
    """Each class has its own model, and the probabilities of a review add up to 1."""
    reviews, labels = noisy(300, 3, num_classes=3)
    split = make_split(reviews, [0] * 300)
    features, _ = binary_ngrams(split)
    probabilities = _probabilities(features, *fit_linear(features, np.array(labels), 1.0))
    assert probabilities.shape == (300, 3)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(300))
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.7


def test_it_is_shown_once_it_is_in_the_cache(
    tmp_path: Path, group: DatasetGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never without being asked at first; later always, without the data; never a broken one."""
    data = tmp_path / "data"
    assert [each.kind for each in baselines(group, data, print)] == ["tf-idf"] * 2
    said: list[str] = []
    first = baselines(group, data, said.append, ngrams=True)
    assert [each.kind for each in first] == ["tf-idf", "tf-idf", "n-grams"]
    assert [line.split(",")[0].split(" to ")[0] for line in said] == ["fitting n-grams"]
    data.rename(tmp_path / "away")
    monkeypatch.setattr("harness.report.baseline.fit_ngrams", pytest.fail)
    assert baselines(group, None, print) == first
    assert baselines(group, None, print, ngrams=True) == first
    limited = dataclasses.replace(group, limit=50)
    assert all(each.kind != "n-grams" for each in baselines(limited, tmp_path / "away", print))
    for path in (tmp_path / "cache" / "harness" / "baseline").iterdir():
        content = json.loads(path.read_text())
        if content["kind"] == "n-grams":
            for broken in ("{", "[]", json.dumps({**content, "predicted": "x"}), "{}"):
                path.write_text(broken)
                assert len(baselines(group, None, print)) == 2
            path.write_text(json.dumps({**content, "accuracy": 1.01}))
    with pytest.raises(InputError, match=r"--baseline ngrams: the reviews of .* --data"):
        baselines(group, None, print, ngrams=True)


def test_own_texts_are_found_by_the_job(tmp_path: Path) -> None:
    """The runs' job file says where own texts are; other runs may have had them elsewhere."""
    source = tmp_path / "own.csv"
    lines = [f"{'good' if i % 2 else 'bad'} film {i},{i % 2}" for i in range(120)]
    source.write_text("words,label\n" + "\n".join(lines) + "\n")
    dataset = open_source(source, SourceFormat(text_column="words"))
    places = [tmp_path / "gone.csv", source]
    for seed, place in enumerate(places, 1):
        run = tmp_path / "runs" / str(seed)
        write_scored_run(run, dataset, [True] * len(dataset.test), seed=seed)
        toml = (run / "job.toml").read_text()
        (run / "job.toml").write_text(
            toml.replace("[data]", f'[data]\nsource = "{place}"\ntext_column = "words"')
        )
    (own,) = group_runs(scored_runs([tmp_path / "runs"])[0])[0]
    assert len(own.runs) == 1  # where the texts were makes no other job of them
    *_, ngrams = baselines(own, None, print, ngrams=True)
    assert (ngrams.kind, ngrams.accuracy) == ("n-grams", 1.0)


def test_too_little_is_refused(tmp_path: Path, group: DatasetGroup) -> None:
    """A class that is missing where C is chosen, and words that no two reviews share."""
    for num_others in (0, 5):
        train = make_split([[1, 2]] * 50, [1] * (50 - num_others) + [0] * num_others)
        with pytest.raises(ValueError, match="first 40 of its 50 training reviews lack a class"):
            fit_ngrams(train)
    with pytest.raises(ValueError, match="no word is in two"):
        fit_ngrams(make_split([[rank] for rank in range(1, 51)], [0, 1] * 25))
    small = dataclasses.replace(group, limit=2)
    with pytest.raises(
        InputError,
        match=r"can't be fit to .*: none of its training reviews is .*; leave --baseline",
    ):
        baselines(small, tmp_path / "data", print, ngrams=True)


def model(predicted: list[int], accuracy: float) -> Baseline:
    """A baseline of which only this is known."""
    return Baseline("", "", "", accuracy, 0, 0, 0, 0, 0, predicted=tuple(predicted))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 12), (12, 3), (7, 7), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    """The p-value is SciPy's, also where the models never differ."""
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    labels = np.ones(gained + lost + 1, np.int64)
    right = [True] * (gained + 1) + [False] * lost
    found = Predictions(labels, {"a": by_class(np.where(right, 0.9, 0.1))[None]}, ())
    of_model = [0] * gained + [1] * (lost + 1)
    test = against(model(of_model, float(np.mean(of_model))), found)
    assert test["p"].tolist() == [pytest.approx(expected)]


def test_several_jobs_share_the_level_of_their_tests() -> None:
    """So chance makes one of many look better as rarely as one of few (Bonferroni)."""
    labels, right = np.array([1] * 6 + [0]), by_class([0.9] * 6 + [0.7])[None]  # one is wrong
    of_model = model([0] * 7, 1 / 7)  # six others are: p is 2 * (1 + 7) / 2 ** 7
    two = {"gru": right, "lstm": right}
    of_two = against(of_model, Predictions(labels, two, ()))
    assert of_two["p"].tolist() == pytest.approx([0.125, 0.125])
    assert of_two["points"].tolist() == pytest.approx([5 / 7, 5 / 7])
    for wrong in (model([0] * 6, 0), model([0] * 7, 0.5)):
        assert against(wrong, Predictions(labels, two, ())).empty
    labels, right = np.ones(6, np.int64), by_class([0.9] * 6)[None]  # p is 2 / 2 ** 6 = 0.031
    found = [
        against(model([0] * 6, 0), Predictions(labels, each, ()))["shows"].tolist()
        for each in ({"gru": right, "lstm": right}, {"gru": right})
    ]
    assert found == [[0, 0], [1]]


def test_a_sentence_says_whether_a_network_beats_it(tmp_path: Path, group: DatasetGroup) -> None:
    """Better only if each seed is, by the level for all jobs together; it is in every format."""

    better, worse = ("lstm", 0.015, 0.01, 1), ("gru", -0.015, 0.01, -1)
    unsure, best = ("rnn", 0.025, 0.03, 0), ("bilstm", 0.055, 0.001, 1)

    def said(*rows: tuple[str, float, float, int]) -> str:
        tests = pandas.DataFrame([*rows], columns=["job", "points", "p", "shows"])
        return verdict(tests.set_index("job"), "n-grams (91.70%)")

    assert said(worse, unsure, better) == (
        "better than n-grams (91.70%): lstm; lstm is 1.50 points ahead (McNemar's exact test on "
        "the same reviews, largest p of its seeds 0.01, level 0.017)"
    )
    also = "better than n-grams (91.70%): lstm, bilstm; bilstm is 5.50 points ahead"
    assert said(better, best).startswith(also)
    assert said(worse).startswith("no network beats n-grams (91.70%); gru is 1.50 points behind")
    for tests in ([unsure, worse], [unsure]):
        assert said(*tests).startswith("not shown that a network beats n-grams")
    assert said().startswith("no run's predictions can be compared with n-grams")

    (part,) = make_parts([group], lambda each: baselines(
        each, tmp_path / "data", lambda _: None, ngrams=True))  # fmt: skip
    ngrams = part.baselines[-1]
    wrong = Counter(np.equal(ngrams.predicted, small_labels(tmp_path)).tolist())[False]
    assert wrong
    test = against(ngrams, read_predictions(group, print))
    assert test["points"].tolist() == [pytest.approx(wrong / 60)]
    assert test["p"].tolist() == [pytest.approx(min(1.0, 2 * 0.5**wrong))]
    (sentence,) = part.verdicts
    assert markdown(sentence) in to_markdown([part])
    assert f',"n-grams, whole",{ngrams.accuracy},' in to_csv([part])
    assert "n-grams, whole &" in to_latex([part])


def small_labels(folder: Path) -> np.ndarray:
    dataset: Dataset = small_data(folder / "again")
    return dataset.test.labels


@pytest.mark.full
def test_the_command_fits_it_when_asked(harness: Harness, tmp_path: Path) -> None:
    """One line and exit code 2 for what can't be; else the table, the sentence and the report."""
    dataset = small_data(tmp_path / "data")
    write_scored_run(harness.runs / "a", dataset, [True] * 60)
    for options, reason in (
        (("--baseline", "ngrams", "--no-baseline"), "contradict each other"),
        (("--baseline", "ngrams"), "were not found here"),
        (("--baseline", "svm"), "'svm' is not"),
    ):
        done = harness.run_here("compare", *options, "--out", tmp_path / "out")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
    at = ("--data", tmp_path / "data", "--out", tmp_path / "out")
    asked = harness.run("compare", "--baseline", "ngrams", *at)
    later = harness.run_here("compare", *at)
    assert (asked.returncode, later.stdout) == (0, asked.stdout), asked.stderr
    assert "n-grams" in later.stdout
    assert "McNemar" in later.stdout
    assert "McNemar" in (tmp_path / "out" / "report.html").read_text()
