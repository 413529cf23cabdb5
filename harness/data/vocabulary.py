"""Splits texts into words, and encodes words as indices.

The indices are those of `keras.datasets.imdb.load_data`: 0 is padding, 1 is the start of a review,
2 is a word outside the vocabulary, 3 is unused, and 4 is the most frequent word.
"""

import string
from collections.abc import Mapping

import numpy as np

from harness.data.dataset import Split

START, UNKNOWN, SHIFT, FIRST_WORD = 1, 2, 3, 4

# Longer reviews are cut to their last characters. The longest review of IMDB has 14,000 characters.
MAX_CHARACTERS = 131_072

# The rank of all words that do not occur in training reviews; no vocabulary is this large.
UNRANKED = np.iinfo(np.int32).max - SHIFT

# The separators of words in Keras's text_to_word_sequence, and the carriage return of Windows.
SPACES = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n\r'
_PLAIN = str.maketrans(string.ascii_uppercase + SPACES, string.ascii_lowercase + " " * len(SPACES))


def encode_split(split: Split, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode reviews as Keras's `imdb.load_data(num_words=vocab_size)` does.

    Returns:
        The tokens, `[num_tokens + num_reviews] int32`, in which each review begins with START; and
        the offsets of the reviews, `[num_reviews + 1] int64`.
    """
    ranks = np.asarray(split.tokens[: split.offsets[-1]])
    tokens = np.insert(encode_ranks(ranks, vocab_size), split.offsets[:-1], START)
    return tokens, np.asarray(split.offsets) + np.arange(len(split.offsets))


def encode_ranks(ranks: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the index of each word: its rank + 3, or 2 for a word outside the vocabulary."""
    shifted = ranks + SHIFT
    shifted[shifted >= vocab_size] = UNKNOWN
    return shifted


def tokenize(text: str) -> list[str]:
    """Split a text into words as the reviews of Keras's IMDB dataset were split.

    ASCII letters become lower case, and apostrophes remain.
    """
    return [word for word in text.translate(_PLAIN).split(" ") if word]


def encode_text(text: str, ranks: Mapping[str, int], vocab_size: int) -> list[int]:
    """Encode a text as the training data are encoded: `Excellent movie!` becomes 1, 321, 20."""
    shifted = (ranks.get(word, vocab_size) + SHIFT for word in tokenize(text))
    return [START, *(token if token < vocab_size else UNKNOWN for token in shifted)]
