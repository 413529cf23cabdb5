"""The baselines: linear models on the same reviews, which a recurrent model should beat.

TF-IDF with logistic regression knows words without their order and is fit in a second.
`sublinear_tf` was chosen on the last 5,000 training reviews of IMDB (88.2 against 87.8 % on 200
words), and everything else is scikit-learn's default. N-grams, `harness.report.ngram_model`, know
up to three words in order and take a minute. Nothing is tuned on the test set.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dataset, Split
from harness.data.vocabulary import encode_split
from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_write
from harness.files.lenient_json import whole
from harness.files.paths import cache_folder
from harness.report.collect import DatasetGroup
from harness.report.dataset_lookup import tested_data
from harness.report.ngram_model import VALIDATION_SHARE, fit_ngrams

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


# Key the cache.
RECIPE = "1: unigrams, sublinear TF-IDF, L2 norm, logistic regression C=1"
NGRAM_RECIPE = "1: binary 1- to 3-grams in 2 reviews, log-count ratios, logistic regression"
FIRST_WORD = 4  # the lower indices are padding, start, unknown and an unused one
LAST_FIFTH = "the last fifth of the training reviews"


@dataclass(frozen=True)
class Baseline:
    """How well a baseline does on the reviews of a group of runs."""

    num_training: int  # reviews that it was fit on in the end: all
    accuracy: float  # on the test set, per cent
    f1: float
    roc_auc: float | None
    log_loss: float
    parameters: int
    training_s: float

    kind: ClassVar[str]  # what a table calls its architecture

    @property
    def name(self) -> str:
        """What a table calls it."""
        return self.kind

    @property
    def note(self) -> str:
        """What it is, a sentence for below the table."""
        raise NotImplementedError


@dataclass(frozen=True)
class TfIdf(Baseline):
    """TF-IDF with logistic regression."""

    maxlen: int  # last tokens of each review that it reads, 0 for all
    vocab_size: int

    kind: ClassVar[str] = "tf-idf"

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"tf-idf, last {self.maxlen}" if self.maxlen else "tf-idf, whole"

    @property
    def note(self) -> str:
        """What it is; empty for whole reviews, since the other one's note speaks of both."""
        if not self.maxlen:
            return ""
        return (
            f"tf-idf: logistic regression over TF-IDF of the {self.vocab_size - 4:,} most frequent "
            f"words, fit on all {self.num_training:,} training reviews: once on the last "
            f"{self.maxlen} words, which the networks read, and once on whole reviews."
        )


@dataclass(frozen=True)
class NgramBaseline(Baseline):
    """Logistic regression over n-grams with naive-Bayes weights."""

    num_ngrams: int
    strength: float  # the chosen C
    validation: tuple[tuple[float, float], ...]  # each C and its accuracy there, per cent
    predicted: tuple[int, ...]  # label of each test review
    chosen_on: str = LAST_FIFTH  # what chose C

    kind: ClassVar[str] = "n-grams"

    @property
    def note(self) -> str:
        """What it is and how C was chosen."""
        tried = ", ".join(f"{strength:g}: {score:.2f} %" for strength, score in self.validation)
        return (
            f"n-grams: logistic regression over which of {self.num_ngrams:,} sequences of one to "
            "three words each review holds, weighted by naive-Bayes log-count ratios; C = "
            f"{self.strength:g} was chosen on {self.chosen_on} ({tried}), then all "
            f"{self.num_training:,} were fit."
        )


def baselines(
    group: DatasetGroup, data: Path | None, say: Callable[[str], None], *, ngrams: bool = False
) -> list[Baseline]:
    """The baselines on the reviews of a group, from the cache or fit now.

    TF-IDF on the last words that the runs read and on whole reviews; n-grams on whole reviews if
    they are asked for or in the cache.

    Args:
        group: whose reviews; where its jobs' settings differ, the most common ones count.
        data: a folder to look for the dataset in first.
        say: is called with the reason if there is no TF-IDF, and before n-grams are fit.
        ngrams: fit them if the cache lacks them.

    Raises:
        InputError: if `data` holds no dataset, or `ngrams` can't be fit.
    """
    linear = _cached_ngrams(group)
    if linear is None and ngrams:
        linear = _fit_ngrams(group, data, say)
    return [*_tfidf(group, data, say), *([linear] if linear else [])]


# TF-IDF


def _tfidf(group: DatasetGroup, data: Path | None, say: Callable[[str], None]) -> list[TfIdf]:
    maxlen, vocab_size = (_commonest(group, f"data.{key}") for key in ("maxlen", "vocab_size"))
    if maxlen is None or vocab_size is None:
        say(f"no tf-idf for {group.title}: no run's job.toml has maxlen and vocab_size")
        return []
    cached = {length: _cached_tfidf(group, length, vocab_size) for length in (maxlen, 0)}
    if None in cached.values():
        dataset = tested_data(group, data)
        if dataset is None:
            say(
                f"no tf-idf for {group.title}: the dataset was not found here; give its folder by "
                "--data, or leave it out by --no-baseline"
            )
            return []
        for length in [length for length, known in cached.items() if known is None]:
            try:
                cached[length] = fitted = fit(
                    dataset, limit=group.limit, maxlen=length, vocab_size=vocab_size
                )
            except ValueError as error:
                say(f"no tf-idf for {group.title}: {error}")
                return []
            _write_cache(_tfidf_path(group, length, vocab_size), fitted)
    return [each for each in cached.values() if each]


def _commonest(group: DatasetGroup, key: str) -> int | None:
    """The value that most runs have; of equally common ones the largest."""
    counts: Counter[int] = Counter()
    for result in group.results:
        if (value := whole(result.setting(key))) is not None:
            counts[value] += len(result.runs)
    return max(counts, key=lambda value: (counts[value], value), default=None)


def fit(dataset: Dataset, *, limit: int, maxlen: int, vocab_size: int) -> TfIdf:
    """Fit TF-IDF on all training reviews and score it on the test set.

    Args:
        dataset: both splits.
        limit: first reviews of each split to use, 0 for all.
        maxlen: last tokens of each review to read, 0 for all.
        vocab_size: as the runs have it, the four special indices included.

    Raises:
        ValueError: if the training reviews lack a class.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    train, test = _limited(dataset, limit)
    check_classes(dataset, train)
    began = time.perf_counter()
    tfidf = TfidfTransformer(sublinear_tf=True)
    model = LogisticRegression(max_iter=1000)
    model.fit(tfidf.fit_transform(count_words(train, vocab_size, maxlen)), train.labels)
    training_s = time.perf_counter() - began
    counts = tfidf.transform(count_words(test, vocab_size, maxlen))
    return TfIdf(
        maxlen=maxlen,
        vocab_size=vocab_size,
        num_training=len(train),
        parameters=model.coef_.size + model.intercept_.size,
        training_s=round(training_s, 3),
        **_scores(test, model.predict_proba(counts)),
    )


def check_classes(dataset: Dataset, train: Split) -> None:
    """Refuse reviews that lack a class of the data.

    Raises:
        ValueError: if they do.
    """
    missing = sorted({*range(len(dataset.classes))} - {*np.unique(train.labels).tolist()})
    if missing:
        raise ValueError(f"none of its training reviews is {dataset.classes[missing[0]]!r}")


def _limited(dataset: Dataset, limit: int) -> tuple[Split, Split]:
    """All training reviews, those that validate among them, and the test reviews."""
    train, _ = dataset.used(limit, 0)
    return train, dataset.test.take(limit) if limit else dataset.test


def _scores(test: Split, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """The scores that a table shows, of probabilities `[num_reviews, num_classes]`."""
    from harness.training.metrics import test_scores

    scores: dict[str, Any] = test_scores(test.labels, probabilities)
    shown = {key: scores[key] for key in ("f1", "roc_auc", "log_loss")}
    return {"accuracy": 100 * scores["accuracy"], **shown}


def count_words(split: Split, vocab_size: int, maxlen: int) -> "csr_matrix":
    """How often each word occurs in each review, `[num_reviews, vocab_size - 4]`.

    From the tokens that the recurrent models read: the start and unknown tokens count towards
    `maxlen`, but are no words here.
    """
    from scipy.sparse import csr_matrix

    tokens, offsets = encode_split(split, vocab_size)
    keep = tokens >= FIRST_WORD
    if maxlen:
        from_end = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(tokens))
        keep &= from_end <= maxlen
    ends = np.concatenate([[0], np.cumsum(keep)])[offsets]
    columns = tokens[keep] - FIRST_WORD
    shape = (len(split), vocab_size - FIRST_WORD)
    counts = csr_matrix((np.ones(len(columns)), columns, ends), shape=shape)
    counts.sum_duplicates()
    return counts


# N-grams


def _fit_ngrams(
    group: DatasetGroup, data: Path | None, say: Callable[[str], None]
) -> NgramBaseline:
    dataset = tested_data(group, data)
    if dataset is None:
        raise InputError(
            f"--baseline ngrams: the reviews of {group.title} were not found here; give their "
            "folder by --data, or leave --baseline out"
        )
    say(f"fitting n-grams to {group.title}, once: a minute for 25,000 reviews")
    try:
        fitted = score_ngrams(dataset, limit=group.limit)
    except ValueError as error:
        raise InputError(
            f"--baseline ngrams: can't be fit to {group.title}: {error}; leave --baseline out"
        ) from None
    _write_cache(_ngrams_path(group), fitted)
    return fitted


def score_ngrams(dataset: Dataset, *, limit: int) -> NgramBaseline:
    """Fit n-grams to the training reviews and score them on the test set, which chooses nothing.

    Args:
        dataset: both splits.
        limit: first reviews of each split to use, 0 for all.

    Raises:
        ValueError: if the training reviews are too few or too much alike.
    """
    train, test = _limited(dataset, limit)
    _, cut = dataset.used(limit, VALIDATION_SHARE)
    check_classes(dataset, train)
    began = time.perf_counter()
    model = fit_ngrams(train, cut)
    training_s = time.perf_counter() - began
    probabilities = model.probabilities(test)
    return NgramBaseline(
        num_ngrams=model.linear.weights.shape[1],
        strength=model.strength,
        validation=tuple(model.validation.items()),
        predicted=tuple(probabilities.argmax(axis=1).tolist()),
        chosen_on="the validation split" if dataset.num_validation else LAST_FIFTH,
        num_training=len(train),
        parameters=model.linear.weights.size + model.linear.biases.size,
        training_s=round(training_s, 3),
        **_scores(test, probabilities),
    )


# The cache


def _path(*key: object) -> Path:
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return cache_folder() / "baseline" / f"{name}.json"


def _tfidf_path(group: DatasetGroup, maxlen: int, vocab_size: int) -> Path:
    return _path(RECIPE, group.checksum, group.limit, maxlen, vocab_size)


def _ngrams_path(group: DatasetGroup) -> Path:
    return _path(NGRAM_RECIPE, group.checksum, group.limit)


# A broken file is replaced, never shown.
BROKEN = (OSError, ValueError, TypeError, KeyError, RecursionError)


def _cached_tfidf(group: DatasetGroup, maxlen: int, vocab_size: int) -> TfIdf | None:
    try:
        cached = TfIdf(**json.loads(_tfidf_path(group, maxlen, vocab_size).read_text()))
        return cached if 0 <= cached.accuracy <= 100 and cached.maxlen == maxlen else None
    except BROKEN:
        return None


def _cached_ngrams(group: DatasetGroup) -> NgramBaseline | None:
    try:
        content = json.loads(_ngrams_path(group).read_text())
        content["validation"] = tuple(
            (float(c), float(score)) for c, score in content["validation"]
        )
        content["predicted"] = tuple(map(int, content["predicted"]))
        cached = NgramBaseline(**content)
        return cached if 0 <= cached.accuracy <= 100 and cached.note else None
    except BROKEN:
        return None


def _write_cache(path: Path, baseline: Baseline) -> None:
    content = json.dumps(asdict(baseline)) + "\n"
    # Without a cache, the next call fits it again.
    with contextlib.suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
