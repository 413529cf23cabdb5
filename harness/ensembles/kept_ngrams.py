"""The linear model over n-grams as an ensemble keeps it: with its words, for raw text."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dataset, Split, vocab_from_bytes, vocab_to_bytes
from harness.data.vocabulary import tokenize
from harness.errors import DiskError, InputError
from harness.files.atomic_file import atomic_write
from harness.files.paths import private_cache
from harness.files.plain_file import read_plain_file
from harness.inputs.ngrams import MAX_BYTES, archived, opened
from harness.report.baseline import NGRAM_RECIPE, check_classes
from harness.report.ngram_model import VALIDATION_SHARE, LinearModel, NgramModel, fit_ngrams

Floats = NDArray[np.float64]

UNKNOWN = 0  # the rank of a word that is in no n-gram


@dataclass(frozen=True)
class KeptNgrams:
    """A fitted model and the words of its n-grams."""

    model: NgramModel
    words: Sequence[str]  # of `model.ngrams[0]`, in its order
    num_training: int  # reviews that it was fit on
    training_s: float

    @property
    def parameters(self) -> int:
        """Its weights and biases."""
        return self.model.linear.weights.size + self.model.linear.biases.size

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(zip(self.words, self.model.ngrams[0].tolist(), strict=True))

    def of_texts(self, texts: Sequence[str]) -> Floats:
        """The probability of each class for raw texts, `[num_texts, num_classes]`."""
        ranks = self._ranks
        found = [[ranks.get(word, UNKNOWN) for word in tokenize(text)] for text in texts]
        offsets = np.cumsum([0, *map(len, found)])
        tokens = np.array([rank for each in found for rank in each], np.int32)
        return self.model.probabilities(Split(tokens, offsets, np.zeros(len(texts), np.int32)))

    def to_bytes(self) -> bytes:
        """The content of a file for `from_bytes`."""
        linear = self.model.linear
        about = [self.num_training, self.training_s, self.model.strength]
        return archived(
            self.model.ngrams,
            words=np.frombuffer(vocab_to_bytes(self.words), np.uint8),
            weights=linear.weights,
            biases=linear.biases,
            about=np.array(about, np.float64),
            validation=np.array([*self.model.validation.items()], np.float64),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "KeptNgrams":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: if it is something else.
        """
        with opened(content, num_arrays=5) as (ngrams, arrays):
            words = vocab_from_bytes(arrays["words"].tobytes())
            linear = LinearModel(arrays["weights"], arrays["biases"])
            num_training, training_s, strength = arrays["about"].tolist()
            validation = dict(arrays["validation"].tolist())
        num_models = len(linear.biases)
        if (
            not ngrams
            or len(words) != len(ngrams[0])
            or linear.weights.shape != (num_models, sum(map(len, ngrams)))
        ):
            raise ValueError("its words, n-grams and weights differ in number")
        model = NgramModel(ngrams, linear, strength, validation)
        return cls(model, words, int(num_training), training_s)


def fitted_ngrams(
    dataset: Dataset, share: float, say: Callable[[str], None], *, limit: int
) -> KeptNgrams:
    """The model of the reviews that runs train on, from the user's cache or fit now.

    C is chosen on the last fifth of these reviews, as for the baseline of `harness compare`; for
    runs that train on a validation split too, on that.

    Args:
        dataset: the test set plays no part.
        share: `data.validation_split` of the runs.
        say: is called before it is fit.
        limit: `data.limit` of the runs.

    Raises:
        InputError: if the reviews are too few or too much alike.
    """
    used, num_training = dataset.used(limit, share)
    train = used.take(num_training)
    cut = None
    if dataset.num_validation and share == 0:
        _, cut = dataset.used(limit, VALIDATION_SHARE)
    folder = private_cache("ngrams")
    key = json.dumps([NGRAM_RECIPE, dataset.checksum, limit, len(train)]).encode()
    path = folder / f"{hashlib.sha256(key).hexdigest()}.npz" if folder else None
    if path:
        with contextlib.suppress(OSError, ValueError):  # a broken file is replaced
            return KeptNgrams.from_bytes(read_plain_file(path, MAX_BYTES))
    say(f"fitting n-grams to {len(train):,} training reviews of {dataset.title}, once")
    began = time.perf_counter()
    try:
        check_classes(dataset, train)
        model = fit_ngrams(train, cut)
    except ValueError as error:
        raise InputError(
            f"--with ngrams: can't be fit to {dataset.title}: {error}; leave --with out"
        ) from None
    took_s = round(time.perf_counter() - began, 3)
    vocab = dataset.vocab
    words = [vocab[rank - 1] if rank <= len(vocab) else "" for rank in model.ngrams[0].tolist()]
    kept = KeptNgrams(model, words, len(train), took_s)
    if path:
        with contextlib.suppress(OSError, DiskError):  # without a cache, the next call fits it
            atomic_write(path, kept.to_bytes(), 0o600)
    return kept
