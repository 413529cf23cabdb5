"""The baseline: TF-IDF with logistic regression on the same reviews.

A model of words without their order, fit in a second. A recurrent model should beat it. Nothing is
tuned on the test set: `sublinear_tf` was chosen on the last 5,000 training reviews of IMDB (88.2
against 87.8 % on 200 words), and everything else is scikit-learn's default.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.dataset import Dataset, Split
from harness.data.vocabulary import encode_split
from harness.errors import RunError
from harness.files.atomic_file import atomic_write
from harness.files.lenient_json import whole
from harness.files.paths import cache_folder
from harness.report.collect import DatasetGroup
from harness.report.dataset_lookup import tested_data

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


RECIPE = "1: unigrams, sublinear TF-IDF, L2 norm, logistic regression C=1"  # keys the cache
FIRST_WORD = 4  # the lower indices are padding, start, unknown and an unused one


@dataclass(frozen=True)
class Baseline:
    """How well the baseline does on the reviews of a group of runs."""

    maxlen: int  # last tokens of each review that it reads, 0 for all
    vocab_size: int
    num_training: int  # reviews, since it needs none for validation
    accuracy: float  # on the test set, per cent
    f1: float
    roc_auc: float | None
    log_loss: float
    parameters: int
    training_s: float

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"tf-idf, last {self.maxlen}" if self.maxlen else "tf-idf, whole"


def baselines(group: DatasetGroup, data: Path | None, say: Callable[[str], None]) -> list[Baseline]:
    """Baselines on the last words that the runs read and on whole reviews, cached or fit now.

    Args:
        group: whose reviews; where its jobs' settings differ, the most common ones count.
        data: a folder to look for the dataset in first.
        say: is called with the reason if there is no baseline.

    Raises:
        InputError: if `data` holds no dataset.
    """
    maxlen, vocab_size = (_commonest(group, f"data.{key}") for key in ("maxlen", "vocab_size"))
    if maxlen is None or vocab_size is None:
        say(f"no tf-idf for {group.title}: no run's job.toml has maxlen and vocab_size")
        return []
    cached = {length: _read_cache(group, length, vocab_size) for length in (maxlen, 0)}
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
            _write_cache(group, fitted)
    return [each for each in cached.values() if each]


def _commonest(group: DatasetGroup, key: str) -> int | None:
    """The value that most runs have; of equally common ones the largest."""
    counts: Counter[int] = Counter()
    for result in group.results:
        if (value := whole(result.setting(key))) is not None:
            counts[value] += len(result.runs)
    return max(counts, key=lambda value: (counts[value], value), default=None)


def fit(dataset: Dataset, *, limit: int, maxlen: int, vocab_size: int) -> Baseline:
    """Fit a baseline on all training reviews and score it on the test set.

    Args:
        dataset: both splits.
        limit: first reviews of each split to use, 0 for all.
        maxlen: last tokens of each review to read, 0 for all.
        vocab_size: as the runs have it, the four special indices included.

    Raises:
        ValueError: if all training reviews have the same class.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    from harness.training.metrics import test_scores

    splits = dataset.splits()
    if limit:
        splits = {name: split.take(limit) for name, split in splits.items()}
    train, test = splits["train"], splits["test"]
    if train.labels.min() == train.labels.max():
        raise ValueError("all of its training reviews have the same class")
    began = time.perf_counter()
    tfidf = TfidfTransformer(sublinear_tf=True)
    model = LogisticRegression(max_iter=1000)
    model.fit(tfidf.fit_transform(count_words(train, vocab_size, maxlen)), train.labels)
    training_s = time.perf_counter() - began
    counts = tfidf.transform(count_words(test, vocab_size, maxlen))
    scores: dict[str, Any] = test_scores(test.labels, model.predict_proba(counts)[:, 1])
    return Baseline(
        maxlen=maxlen,
        vocab_size=vocab_size,
        num_training=len(train),
        accuracy=100 * scores["accuracy"],
        f1=scores["f1"],
        roc_auc=scores["roc_auc"],
        log_loss=scores["log_loss"],
        parameters=model.coef_.size + 1,
        training_s=round(training_s, 3),
    )


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


# The cache


def _path(group: DatasetGroup, maxlen: int, vocab_size: int) -> Path:
    key = json.dumps([RECIPE, group.checksum, group.limit, maxlen, vocab_size])
    return cache_folder() / "baseline" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read_cache(group: DatasetGroup, maxlen: int, vocab_size: int) -> Baseline | None:
    try:
        cached = Baseline(**json.loads(_path(group, maxlen, vocab_size).read_text()))
        # A broken file is replaced, never shown.
        return cached if 0 <= cached.accuracy <= 100 and cached.maxlen == maxlen else None
    except (OSError, ValueError, TypeError):
        return None


def _write_cache(group: DatasetGroup, baseline: Baseline) -> None:
    path = _path(group, baseline.maxlen, baseline.vocab_size)
    content = json.dumps(asdict(baseline), indent=2) + "\n"
    # Without a cache, the next call takes a second longer.
    with contextlib.suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
