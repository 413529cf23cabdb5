"""What `harness predict` says of a text."""

import pytest

from harness.inference.predict import Prediction


@pytest.mark.parametrize(
    ("predicted", "probabilities", "said"),
    [
        # Of two classes always the same one's, so that lines can be put in order.
        ("negative", {"negative": 0.827, "positive": 0.173}, "negative, P(positive) = 0.173"),
        ("positive", {"negative": 0.1, "positive": 0.9}, "positive, P(positive) = 0.900"),
        ("sport", {"food": 0.1, "sport": 0.7, "travel": 0.2}, "sport, P(sport) = 0.700"),
    ],
)
def test_a_line_names_the_class_that_its_number_is_of(
    predicted: str, probabilities: dict[str, float], said: str
) -> None:
    """A bare number could be taken for the probability of the class that is predicted."""
    prediction = Prediction("a text", predicted, probabilities, num_words=2, num_unknown=1)
    assert prediction.summary == said
    assert prediction.as_json() == {
        "text": "a text",
        "class": predicted,
        "probabilities": probabilities,
        "num_words": 2,
        "num_unknown": 1,
    }
