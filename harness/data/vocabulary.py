"""Words and their indices: how a text becomes words, and words the numbers that a model reads.

The indices are those of `keras.datasets.imdb.load_data`: 0 pads, 1 starts a review, 2 is an
unknown or too rare word, 3 is unused, and words begin at 4, the most frequent first.
"""

import string
from collections.abc import Mapping

import numpy as np

from harness.data.dataset import Split

START, UNKNOWN, SHIFT, FIRST_WORD = 1, 2, 3, 4

# A longer review is cut to its end, which models read: the longest of IMDB has 14,000.
MAX_CHARACTERS = 131_072

# The rank of a word that is not in the vocabulary: too rare for any job.
UNRANKED = np.iinfo(np.int32).max - SHIFT

# What Keras's text_to_word_sequence takes for a space, and the only letters that it lowers; plus
# the carriage return, which ends lines on other systems and is in no word of IMDB.
SPACES = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n\r'
_PLAIN = str.maketrans(string.ascii_uppercase + SPACES, string.ascii_lowercase + " " * len(SPACES))


def encode_split(split: Split, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode as `load_data(num_words=vocab_size)`: 1, then each rank + 3, or 2 where too rare.

    Returns:
        Tokens `[num_tokens + num_reviews] int32`, offsets `[num_reviews + 1] int64`.
    """
    ranks = np.asarray(split.tokens[: split.offsets[-1]])
    tokens = np.insert(encode_ranks(ranks, vocab_size), split.offsets[:-1], START)
    return tokens, np.asarray(split.offsets) + np.arange(len(split.offsets))


def encode_ranks(ranks: np.ndarray, vocab_size: int) -> np.ndarray:
    """The index of each word by its rank, of the same shape: rank + 3, or 2 where too rare."""
    shifted = ranks + SHIFT
    shifted[shifted >= vocab_size] = UNKNOWN
    return shifted


def tokenize(text: str) -> list[str]:
    """A review's words, split as for the dataset: ASCII letters lowered, punctuation a space."""
    return [word for word in text.translate(_PLAIN).split(" ") if word]


def encode_text(text: str, ranks: Mapping[str, int], vocab_size: int) -> list[int]:
    """Encode raw text like the training data: `An excellent movie!` becomes 1, 35, 321, 20.

    Unknown and too rare words become 2, so that they still take a position.
    """
    shifted = (ranks.get(word, vocab_size) + SHIFT for word in tokenize(text))
    return [START, *(token if token < vocab_size else UNKNOWN for token in shifted)]
