"""The n-gram baseline's model: logistic regression over n-grams with naive-Bayes weights.

The NBSVM of Wang & Manning, "Baselines and Bigrams" (2012), with logistic regression and without
interpolation. Nothing but the training reviews is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Split, validation_cut
from harness.inputs.ngrams import Ngrams, binary_ngrams, log_count_ratios

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]

VALIDATION_SHARE = 0.2  # of the training reviews, from their end: the default of a job
STRENGTHS = (0.1, 1.0, 10.0)  # of C, the inverse of the regularization
MAX_ITERATIONS = 1000  # of liblinear over all reviews; IMDB takes 22 to 47


@dataclass(frozen=True)
class LinearModel:
    """Logistic regression over features of 0 and 1; for more than two classes one for each."""

    weights: Floats  # [num_models, num_features]
    biases: Floats  # [num_models]

    def probabilities(self, features: "csr_matrix") -> Floats:
        """The probability of each class, `[num_reviews, num_classes]`."""
        from scipy.special import expit

        each = expit(features @ self.weights.T + self.biases)
        if each.shape[1] == 1:  # of label 1
            return np.hstack([1 - each, each])
        return np.asarray(each / each.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class NgramModel:
    """A fitted baseline."""

    ngrams: Ngrams
    linear: LinearModel
    strength: float  # the chosen C
    validation: Mapping[float, float]  # by C: accuracy on the validation part, per cent

    def probabilities(self, split: Split) -> Floats:
        """The probability of each class, `[num_reviews, num_classes]`."""
        return self.linear.probabilities(binary_ngrams(split, self.ngrams)[0])


def fit_ngrams(train: Split, cut: int | None = None) -> NgramModel:
    """Choose C on the last of the training reviews, then fit on all of them.

    Of equally good values of C the smallest is taken. The result is the same each time.

    Args:
        train: the reviews.
        cut: number of reviews before those that choose C, by default all but the last fifth.

    Raises:
        ValueError: if the reviews are too few or too much alike for it.
    """
    if cut is None:
        cut = validation_cut(len(train), VALIDATION_SHARE)
    first, rest = train.take(cut), train.between(cut, len(train))
    if not len(rest) or len(np.unique(first.labels)) < max(2, len(np.unique(train.labels))):
        raise ValueError(f"the first {cut} of its {len(train)} training reviews lack a class")
    features, ngrams = binary_ngrams(first)
    if not features.shape[1]:
        raise ValueError(f"no word is in two of its first {cut} training reviews")
    held_out, _ = binary_ngrams(rest, ngrams)
    validation = {}
    for strength in STRENGTHS:
        predicted = fit_linear(features, first.labels, strength).probabilities(held_out).argmax(1)
        validation[strength] = 100 * float((predicted == rest.labels).mean())
    chosen = max(validation, key=validation.__getitem__)
    features, ngrams = binary_ngrams(train)
    return NgramModel(ngrams, fit_linear(features, train.labels, chosen), chosen, validation)


def fit_linear(features: "csr_matrix", labels: NDArray[np.int32], strength: float) -> LinearModel:
    """Fit one class against the rest, each feature weighted by its log-count ratio.

    Args:
        features: `[num_reviews, num_features]`, 0 or 1.
        labels: `[num_reviews]`, from 0 on, each class at least once.
        strength: C of the logistic regression.
    """
    from sklearn.linear_model import LogisticRegression

    num_classes = int(labels.max()) + 1
    weights, biases = [], []
    for label in range(1 if num_classes == 2 else 0, num_classes):
        ratios = log_count_ratios(features, labels == label)
        weighted = features.copy()
        weighted.data *= ratios[features.indices]
        # The dual has a variable a review, of which there are far fewer than features.
        model = LogisticRegression(
            C=strength, solver="liblinear", dual=True, max_iter=MAX_ITERATIONS, random_state=0
        )
        model.fit(weighted, labels == label)
        weights.append(ratios * model.coef_[0])
        biases.append(model.intercept_[0])
    return LinearModel(np.stack(weights), np.array(biases))
