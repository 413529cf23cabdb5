"""Fits linear models to the runs' reviews: baselines that a recurrent network should beat.

TF-IDF with logistic regression ignores the order of words; fitting it takes seconds. The option
`sublinear_tf` of TF-IDF was chosen by the accuracy on the last 5,000 training reviews of IMDB: the
option raised this accuracy from 87.8 to 88.2 % (with the last 200 words of each review). Besides
`sublinear_tf`, only two kinds of options differ from scikit-learn's defaults: the limit of
iterations, and the options that restrict TF-IDF to the networks' vocabulary. The n-gram model uses
sequences of up to three words; fitting it takes a minute. No option is chosen by its score on the
test set.
"""

import contextlib
import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from harness.data.dataset import Dataset, Split, validation_cut, vocab_from_bytes, vocab_to_bytes
from harness.data.ngrams import (
    Ngrams,
    binary_ngrams,
    from_archive,
    log_count_ratios,
    to_archive,
)
from harness.data.own_texts import open_source
from harness.data.sources import open_dataset, open_sample
from harness.data.vocabulary import FIRST_WORD, encode_split, tokenize
from harness.errors import InputError, RunError
from harness.job.keys import KEYS
from harness.job.own_code import trusting
from harness.report.collect import DatasetGroup
from harness.system.console import echo
from harness.system.files import atomic_write, cache_folder
from harness.system.lenient_json import table, text
from harness.tracking.run_dir import RECORD, RunDirectory

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]

# The keys of the cache contain these texts, so changing a text invalidates earlier entries. Each
# text begins with the version of its model. The words "in 2 reviews" mean: in at least two reviews.
RECIPE = "4: unigrams, sublinear TF-IDF, L2 norm, logistic regression C=1"
NGRAM_RECIPE = "3: binary 1- to 3-grams in 2 reviews, log-count ratios, logistic regression"
TFIDF, NGRAMS = "tf-idf", "n-grams"
NGRAMS_NAME = f"{NGRAMS}, whole"  # the model reads whole reviews; networks read only the last words
# If the dataset has no validation split, C is chosen on this share of the training reviews, the
# last ones. The default of `data.validation_split` is the same number.
VALIDATION_SHARE = 0.2
STRENGTHS = (0.1, 1.0, 10.0)  # candidates for C, the inverse of the regularization strength
MAX_ITERATIONS = 1000  # maximum number of liblinear iterations; IMDB needs 22 to 47
UNKNOWN = 0  # rank of a word that is in no n-gram


@dataclass(frozen=True)
class Baseline:
    """A baseline with its test scores."""

    kind: str  # shown in the column "architecture"
    name: str  # shown in the column "job"
    note: str  # a description for the notes below the table, or empty
    accuracy: Annotated[float, Field(ge=0, le=1)]  # on the test set
    f1: float
    roc_auc: float | None
    log_loss: float
    parameters: int
    training_s: float
    predicted: tuple[int, ...] = ()  # predicted labels of the test reviews, for McNemar's test


def baselines(group: DatasetGroup, data: Path | None, *, ngrams: bool = False) -> list[Baseline]:
    """Return the baselines for the reviews of a group; read them from the cache if possible.

    TF-IDF is fit twice: on the last words of each review, which the runs read, and on whole
    reviews. The n-gram model reads whole reviews, and is included if `ngrams` is set or if the
    model is in the cache.

    Args:
        group: runs on the same reviews; TF-IDF uses the runs' most common `maxlen` and
            `vocab_size`.
        data: the folder in which to look first for the dataset.
        ngrams: whether to fit the n-gram model if it is not in the cache.

    Raises:
        InputError: if `ngrams` is set, and the dataset is missing or the model can't be fit.
    """
    dataset, limit = cache(partial(find_dataset, group, data)), group.limit
    maxlen, vocab_size = (_commonest(group, f"data.{key}") for key in ("maxlen", "vocab_size"))

    def fit_tfidf(length: int) -> Baseline:
        return fit(dataset(), limit=limit, maxlen=length, vocab_size=vocab_size)

    key: tuple[object, ...] = (NGRAM_RECIPE, NGRAMS_NAME, group.checksum, limit)
    linear = _cached(key, (lambda: score_ngrams(dataset(), limit=limit)) if ngrams else None)
    found: list[Baseline] = []
    try:
        for length in (maxlen, 0):
            key = (RECIPE, group.checksum, limit, length, vocab_size)
            found += _cached(key, partial(fit_tfidf, length))
    except ValueError as error:
        echo(f"TF-IDF can't be fit to {group.title}: {error}", err=True)
    return [*found, *linear]


# TF-IDF


def _commonest(group: DatasetGroup, key: str) -> int:
    """Return a setting's most common value; if several are equally common, the largest of them."""
    values = (each for run in group.all_runs for each in str(run.settings.get(key)).split(" + "))
    counts = Counter(int(each) if each.isdecimal() else KEYS[key].default for each in values)
    return max(counts, key=lambda value: (counts[value], value))


def fit(dataset: Dataset, *, limit: int, maxlen: int, vocab_size: int) -> Baseline:
    """Fit TF-IDF on all training reviews and score it on the test set.

    Args:
        dataset: the training and the test reviews.
        limit: the number of reviews to use from the start of each split; 0 for all.
        maxlen: how many tokens of each review to read, counted from its end; 0 for all.
        vocab_size: the size of the runs' vocabulary, including the four special indices.

    Raises:
        ValueError: if only one class has training reviews.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (train, _), test = dataset.used(limit, 0), dataset.test.take(limit or len(dataset.test))
    began = time.perf_counter()
    # Leave out the four special indices of the vocabulary, because they are not words.
    words = range(FIRST_WORD, min(vocab_size, FIRST_WORD + len(dataset.vocab)))
    tfidf = TfidfVectorizer(lowercase=False, analyzer=list, vocabulary=words, sublinear_tf=True)
    classifier = LogisticRegression(max_iter=1000)
    model = make_pipeline(tfidf, classifier)
    model.fit(tokens_of(train, vocab_size, maxlen), train.labels)
    training_s = time.perf_counter() - began
    note = (
        f"tf-idf: two logistic regressions over TF-IDF of the {len(words):,} most frequent words, "
        f"fit on all {len(train):,} training reviews. One of them reads only the last {maxlen} "
        "words of a review, as the networks do; the other reads whole reviews."
    )
    return Baseline(
        TFIDF,
        f"{TFIDF}, last {maxlen}" if maxlen else f"{TFIDF}, whole",
        note if maxlen else "",  # one note describes both baselines
        parameters=classifier.coef_.size + classifier.intercept_.size,
        training_s=round(training_s, 3),
        **_scores(test, model.predict_proba(tokens_of(test, vocab_size, maxlen))),
    )


def _scores(test: Split, probabilities: Floats) -> dict[str, Any]:
    """Compute test scores from `probabilities`, `[num_reviews, num_classes]`.

    Returns:
        The scores as keyword arguments for `Baseline`.
    """
    from harness.training.metrics import test_scores

    scores: dict[str, Any] = test_scores(test.labels, probabilities)
    return {key: scores[key] for key in ("accuracy", "f1", "roc_auc", "log_loss")}


def tokens_of(split: Split, vocab_size: int, maxlen: int) -> list[list[int]]:
    """Return the last `maxlen` tokens of each review, as networks read them; 0 = all tokens."""
    tokens, offsets = encode_split(split, vocab_size)
    reviews = (tokens[first:end] for first, end in itertools.pairwise(offsets))
    return [review[-maxlen:].tolist() for review in reviews]


# N-grams


def score_ngrams(dataset: Dataset, *, limit: int) -> Baseline:
    """Fit the n-gram model to all training reviews and score it on the test set.

    Args:
        dataset: the training and the test reviews.
        limit: the number of reviews to use from the start of each split; 0 for all.

    Raises:
        InputError: if the training reviews are too few or too much alike.
    """
    model = fitted_ngrams(dataset, 0.0, limit=limit)
    test = dataset.test.take(limit or len(dataset.test))
    probabilities = model.probabilities(test)
    tried = ", ".join(f"{c:g}: {score:.2%}" for c, score in model.validation.items())
    split = "validation split" if dataset.num_validation else "last fifth of the training reviews"
    note = (
        f"n-grams: logistic regression over {model.weights.shape[1]:,} n-grams of one to three "
        "words, each weighted by its naive-Bayes log-count ratio. The model reads whole reviews "
        f"and was fit on all {model.num_training:,} training reviews; C = {model.strength:g} was "
        f"chosen on the {split} (accuracies by C: {tried})."
    )
    return Baseline(
        NGRAMS,
        NGRAMS_NAME,
        note,
        parameters=model.parameters,
        training_s=model.training_s,
        predicted=tuple(probabilities.argmax(axis=1).tolist()),
        **_scores(test, probabilities),
    )


@dataclass(frozen=True)
class NgramModel:
    """A fitted linear model of n-grams; for three or more classes, one linear model per class."""

    ngrams: Ngrams
    weights: Floats  # [num_models, num_ngrams]
    biases: Floats  # [num_models]
    words: Sequence[str] = ()  # the single words, in the order of their codes in `ngrams[0]`
    # The following fields say how the model was fit. `to_bytes` omits them.
    strength: float = math.nan  # the chosen value of C
    validation: Mapping[float, float] = field(default_factory=dict)  # accuracy for each tried C
    num_training: int = 0  # number of training reviews
    training_s: float = 0.0

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return self.weights.size + self.biases.size

    def probabilities(self, split: Split) -> Floats:
        """Return the probability of each class, `[num_reviews, num_classes]`."""
        return _probabilities(binary_ngrams(split, self.ngrams)[0], self.weights, self.biases)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(zip(self.words, self.ngrams[0].tolist(), strict=True))

    def of_texts(self, texts: Sequence[str]) -> Floats:
        """Return the probability of each class for raw texts, `[num_texts, num_classes]`."""
        ranks = self._ranks
        found = [[ranks.get(word, UNKNOWN) for word in tokenize(text)] for text in texts]
        offsets = np.cumsum([0, *map(len, found)])
        tokens = np.array([rank for each in found for rank in each], np.int32)
        return self.probabilities(Split(tokens, offsets, np.zeros(len(texts), np.int32)))

    def to_bytes(self) -> bytes:
        """Return the model as the content of a file, which `from_bytes` reads."""
        words = np.frombuffer(vocab_to_bytes(self.words), np.uint8)
        return to_archive(self.ngrams, words=words, weights=self.weights, biases=self.biases)

    @classmethod
    def from_bytes(cls, content: bytes) -> "NgramModel":
        """Return the model from the bytes that `to_bytes` returned.

        Raises:
            ValueError: if the bytes are not in the format that `to_bytes` writes.
        """
        ngrams, words, weights, biases = from_archive(content, "words", "weights", "biases")
        return cls(ngrams, weights, biases, vocab_from_bytes(words.tobytes()))


def fitted_ngrams(dataset: Dataset, share: float, *, limit: int) -> NgramModel:
    """Fit the n-gram model to the runs' training reviews; the result is deterministic.

    To choose C, the inverse of the regularization strength, some of the runs' training reviews are
    held out: the dataset's validation split, which belongs to the training reviews if `share` is 0,
    or else the last fifth. Then a model with the best C is fit to all training reviews.

    Args:
        dataset: the dataset, whose test reviews are not used.
        share: the value of `data.validation_split` in the runs' jobs.
        limit: the value of `data.limit` in the runs' jobs.

    Raises:
        InputError: if the training reviews are too few or too much alike.
    """
    used, num_training = dataset.used(limit, share)
    train, cut = used.take(num_training), None
    if dataset.num_validation and share == 0:
        _, cut = dataset.used(limit, VALIDATION_SHARE)
    what = f"{len(train):,} reviews of {dataset.title}; 25,000 take a minute"
    echo(f"fitting n-grams to {what}", err=True)
    try:
        model = fit_ngrams(train, cut)
    except ValueError as error:
        raise InputError(
            f"ngrams: the model can't be fit to {dataset.title}, perhaps because the first reviews "
            f"lack a class or share no words ({error}); leave ngrams out"
        ) from None
    vocab = dataset.vocab
    words = [vocab[rank - 1] if rank <= len(vocab) else "" for rank in model.ngrams[0].tolist()]
    return replace(model, words=words)


def fit_ngrams(train: Split, cut: int | None = None) -> NgramModel:
    """Fit an n-gram model to all training reviews; leave the model's attribute `words` empty.

    Each number in STRENGTHS is tried as C, the inverse of the regularization strength: a model with
    this C is fit to the first training reviews, and scored on the last training reviews. The C with
    the highest accuracy is chosen; of several equally good C, the smallest.

    Args:
        train: the training reviews.
        cut: to choose C, models are fit to the first `cut` training reviews, and scored on the
            other training reviews. None = four fifths of the training reviews.

    Raises:
        ValueError: if the training reviews are too few or too much alike.
    """
    began = time.perf_counter()
    if cut is None:
        cut = validation_cut(len(train), VALIDATION_SHARE)
    first, rest = train.take(cut), train.between(cut, len(train))
    features, ngrams = binary_ngrams(first)
    held_out, _ = binary_ngrams(rest, ngrams)
    validation = {}
    for strength in STRENGTHS:
        found = _probabilities(held_out, *fit_linear(features, first.labels, strength))
        validation[strength] = float((found.argmax(axis=1) == rest.labels).mean())
    chosen = max(validation, key=validation.__getitem__)
    features, ngrams = binary_ngrams(train)
    weights, biases = fit_linear(features, train.labels, chosen)
    return NgramModel(
        ngrams,
        weights,
        biases,
        strength=chosen,
        validation=validation,
        num_training=len(train),
        training_s=round(time.perf_counter() - began, 3),
    )


def fit_linear(
    features: "csr_matrix", labels: NDArray[np.int32], strength: float
) -> tuple[Floats, Floats]:
    """Fit one model per class, which separates the class from all others.

    With two classes, only the model of label 1 is fit. The model of a class reads the features,
    multiplied by the log-count ratios of this class.

    Args:
        features: a matrix of 0 and 1, `[num_reviews, num_features]`.
        labels: the index of each review's class, `[num_reviews]`. Each class has at least one
            review.
        strength: C, the inverse of the logistic regression's regularization strength.

    Returns:
        Weights `[num_models, num_features]` and biases `[num_models]`.
    """
    from sklearn.linear_model import LogisticRegression

    num_classes = int(labels.max()) + 1
    weights, biases = [], []
    for label in range(1 if num_classes == 2 else 0, num_classes):
        ratios = log_count_ratios(features, labels == label)
        weighted = features.copy()
        weighted.data *= ratios[features.indices]
        # Solve the dual problem, because it has only one variable per review. The primal problem
        # has one variable per feature, and there are many more features than reviews.
        model = LogisticRegression(
            C=strength, solver="liblinear", dual=True, max_iter=MAX_ITERATIONS, random_state=0
        )
        model.fit(weighted, labels == label)
        weights.append(ratios * model.coef_[0])
        biases.append(model.intercept_[0])
    return np.stack(weights), np.array(biases)


def _probabilities(features: "csr_matrix", weights: Floats, biases: Floats) -> Floats:
    from scipy.special import expit

    each = expit(features @ weights.T + biases)
    if each.shape[1] == 1:  # two classes: the only column is the probability of label 1
        return np.hstack([1 - each, each])
    return np.asarray(each / each.sum(axis=1, keepdims=True))


# The cache


def _cached(key: tuple[object, ...], score: Callable[[], Baseline] | None) -> list[Baseline]:
    """Return a list with the cached baseline or else with the result of `score`.

    Return an empty list if the baseline is not cached and `score` is None.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = cache_folder() / "baseline" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError):  # the file is missing or broken
        return [TypeAdapter(Baseline).validate_json(path.read_bytes())]
    if not score:
        return []
    fitted = score()
    with contextlib.suppress(OSError, RunError):  # without a file, the next call fits again
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(asdict(fitted)) + "\n")
    return [fitted]


# The dataset


def find_dataset(group: DatasetGroup, data: Path | None) -> Dataset:
    """Find the dataset whose checksum the runs recorded.

    Look first in the folder `data` (None = where a new run would look), then where the group's runs
    found their data. Download nothing.

    Raises:
        InputError: if the dataset is not found.
    """
    for open_candidate in _candidates(group, data):
        with contextlib.suppress(InputError, RunError):  # the dataset has moved or is broken
            if (dataset := open_candidate()).checksum == group.checksum:
                return dataset
    raise InputError(
        f"the reviews of {group.title} were not found here; for IMDB, give its folder with --data; "
        "for your own texts, put the texts back at data.source; or leave the baselines out with "
        "--baseline none"
    )


def _candidates(group: DatasetGroup, data: Path | None) -> Iterator[Callable[[], Dataset]]:
    """Yield functions that may open the dataset. The runs' records are read last, if at all."""
    yield partial(open_dataset, data, download=False)
    if group.is_sample:
        yield open_sample
    folders = [folder for run in group.all_runs for folder in (run.members or (run.folder,))]
    yield from dict(map(_data_of, map(RunDirectory, dict.fromkeys(folders)))).values()


def _data_of(run: RunDirectory) -> tuple[str, Callable[[], Dataset]]:
    """Return a text that names the source of the run's data, and a function that opens the data."""
    with contextlib.suppress(InputError, RunError), trusting(True):  # runs no code
        form = run.job().data
        if form.source:
            return repr(form), partial(open_source, Path(form.source), form)
    folder = text(table(run.read_json(RECORD), "dataset").get("folder")) or ""
    return folder, partial(open_dataset, Path(folder) if folder else None, download=False)
