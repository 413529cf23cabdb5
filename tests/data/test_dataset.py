"""Reviews in flat arrays."""

import numpy as np
import pytest

from harness.data.dataset import make_split, validation_cut


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_the_first_reviews_are_a_split_of_their_own(limit: int) -> None:
    """Tokens, offsets and labels are those of a split made of them alone."""
    reviews, labels = [[1, 2], [3], [4, 5, 6]], [0, 1, 1]
    taken = make_split(reviews, labels).take(limit)
    alone = make_split(reviews[:limit], labels[:limit])
    for name in ("tokens", "offsets", "labels"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(alone, name))


@pytest.mark.parametrize(
    ("num", "share", "cut"),
    [
        *((25_000, 0.1, 22_500), (10, 0.2, 8), (10, 0.0, 10)),
        *((10, 0.001, 9), (10, 1e-20, 9), (10, 0.999, 1), (2, 0.5, 1)),
    ],
)
def test_a_share_leaves_a_review_on_either_side(num: int, share: float, cut: int) -> None:
    """However small it is, or large."""
    assert validation_cut(num, share) == cut
