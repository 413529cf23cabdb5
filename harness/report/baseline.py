"""The yardstick: what TF-IDF with logistic regression makes of the same reviews.

A model of words alone, without their order, that is fit in a second. A recurrent model should beat
it. Nothing of it is chosen here on the test set: `sublinear_tf` was on the last 5,000 training
reviews of IMDB (88.2 against 87.8 % on 200 words), the rest is as scikit-learn has it.
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


RECIPE = "1: unigrams, sublinear TF-IDF, L2 norm, logistic regression C=1"  # what a cache holds
FIRST_WORD = 4  # the indices below are padding, start, unknown and a free one


@dataclass(frozen=True)
class Baseline:
    """How well the yardstick does on the reviews of a group of runs."""

    maxlen: int  # last tokens of each review that it reads, 0 for all
    vocab_size: int
    num_training: int  # reviews; it needs none for validation
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
    """On as many last words as the runs read, and on whole reviews; from the cache, or fit now.

    Args:
        group: whose reviews; of its rows' unlike settings the commonest count.
        data: a folder to look for the dataset in first.
        say: gets a line where there is none, and why.

    Raises:
        InputError: if `data` holds no dataset.
    """
    maxlen, vocab_size = (_commonest(group, f"data.{key}") for key in ("maxlen", "vocab_size"))
    if maxlen is None or vocab_size is None:
        say(f"no tf-idf for {group.title}: the runs' job.toml don't say maxlen and vocab_size")
        return []
    kept = {length: _read(group, length, vocab_size) for length in (maxlen, 0)}
    if None in kept.values():
        dataset = tested_data(group, data)
        if dataset is None:
            say(
                f"no tf-idf for {group.title}: these data are not to be found here; name their "
                "folder by --data, or leave it out by --no-baseline"
            )
            return []
        for length, known in kept.items():
            if known is None:
                try:
                    kept[length] = fresh = fit(dataset, group.limit, length, vocab_size)
                except ValueError as error:
                    say(f"no tf-idf for {group.title}: {error}")
                    return []
                _keep(group, fresh)
    return [each for each in kept.values() if each]


def _commonest(group: DatasetGroup, key: str) -> int | None:
    """The value that most runs have, the largest of those as common."""
    counts: Counter[int] = Counter()
    for row in group.results:
        if (value := whole(row.setting(key))) is not None:
            counts[value] += len(row.runs)
    return max(counts, key=lambda value: (counts[value], value), default=None)


def fit(dataset: Dataset, limit: int, maxlen: int, vocab_size: int) -> Baseline:
    """Fit it on all training reviews and score it on the test set.

    Raises:
        ValueError: if there is nothing to learn from, such as reviews of one class alone.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    from harness.training.metrics import test_scores

    splits = dataset.splits()
    if limit:
        splits = {name: split.take(limit) for name, split in splits.items()}
    train, test = splits["train"], splits["test"]
    if train.labels.min() == train.labels.max():
        raise ValueError("its training reviews are of one class alone")
    began = time.perf_counter()
    weights = TfidfTransformer(sublinear_tf=True)
    model = LogisticRegression(max_iter=1000)
    model.fit(weights.fit_transform(count_words(train, vocab_size, maxlen)), train.labels)
    training_s = time.perf_counter() - began
    counts = weights.transform(count_words(test, vocab_size, maxlen))
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
    """How often each word stands in each review, `[num_reviews, vocab_size - 4]`.

    The recurrent models' own tokens: the last `maxlen` with start and unknown words counted in,
    which then are no words here.
    """
    from scipy.sparse import csr_matrix

    tokens, offsets = encode_split(split, vocab_size)
    keep = tokens >= FIRST_WORD
    if maxlen:
        from_end = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(tokens))
        keep &= from_end <= maxlen
    ends = np.concatenate([[0], np.cumsum(keep)])[offsets]
    words = tokens[keep] - FIRST_WORD
    shape = (len(split), vocab_size - FIRST_WORD)
    counts = csr_matrix((np.ones(len(words)), words, ends), shape=shape)
    counts.sum_duplicates()
    return counts


# The cache


def _path(group: DatasetGroup, maxlen: int, vocab_size: int) -> Path:
    key = json.dumps([RECIPE, group.checksum, group.limit, maxlen, vocab_size])
    return cache_folder() / "yardstick" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read(group: DatasetGroup, maxlen: int, vocab_size: int) -> Baseline | None:
    try:
        kept = json.loads(_path(group, maxlen, vocab_size).read_text())
        found = Baseline(**kept)
        # A broken file is fit anew, never shown.
        return found if 0 <= found.accuracy <= 100 and found.maxlen == maxlen else None
    except (OSError, ValueError, TypeError):
        return None


def _keep(group: DatasetGroup, found: Baseline) -> None:
    path = _path(group, found.maxlen, found.vocab_size)
    content = json.dumps(asdict(found), indent=2) + "\n"
    # A cache that can't be written costs the next call a second.
    with contextlib.suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
