"""Splits of a dataset, whose reviews are stored in flat arrays."""

import numpy as np
import pytest

from harness.data.dataset import make_split, validation_cut


@pytest.mark.parametrize("limit", [0, 2, 9])
def test_a_part_of_the_reviews_is_a_split(limit: int) -> None:
    """`take` and `arranged` return the same arrays as `make_split` of the selected reviews."""
    reviews, labels = [[1, 2], [3], [4, 5, 6]], [0, 1, 1]
    taken = make_split(reviews, labels).take(limit)
    backwards = make_split(reviews, labels).arranged(np.arange(3)[::-1][:limit])
    for split, chosen in ((taken, slice(limit)), (backwards, slice(None, -1 - limit, -1))):
        alone = make_split(reviews[chosen], labels[chosen])
        for name in ("tokens", "offsets", "labels"):
            np.testing.assert_array_equal(getattr(split, name), getattr(alone, name))


@pytest.mark.parametrize(
    ("num", "share", "cut"),
    [
        *((25_000, 0.1, 22_500), (10, 0.2, 8), (10, 0.0, 10)),
        *((10, 0.001, 9), (10, 1e-20, 9), (10, 0.999, 1), (2, 0.5, 1)),
    ],
)
def test_a_share_leaves_at_least_one_review_on_both_sides(num: int, share: float, cut: int) -> None:
    """A share of 0 leaves all reviews for training."""
    assert validation_cut(num, share) == cut
