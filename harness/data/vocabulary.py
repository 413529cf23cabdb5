"""Splits texts into words, encodes words as indices, and reads pretrained word vectors.

The indices are those of `keras.datasets.imdb.load_data`: 0 is padding, 1 is the start of a review,
2 is a word outside the vocabulary, 3 is unused, and 4 is the most frequent word.
"""

import contextlib
import hashlib
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.dataset import Split
from harness.data.tables import open_bytes
from harness.errors import InputError, about
from harness.system.files import is_file, read_plain_file, sha256_of

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
    # The index of a word is its rank + 3, or 2 if the word is outside the vocabulary.
    tokens = np.asarray(split.tokens[: split.offsets[-1]]) + SHIFT
    tokens[tokens >= vocab_size] = UNKNOWN
    tokens = np.insert(tokens, split.offsets[:-1], START)
    return tokens, np.asarray(split.offsets) + np.arange(len(split.offsets))


def tokenize(text: str) -> list[str]:
    """Split a text into words as the reviews of Keras's IMDB dataset were split.

    ASCII letters become lower case, and apostrophes remain.
    """
    return [word for word in text.translate(_PLAIN).split(" ") if word]


def encode_text(text: str, ranks: Mapping[str, int], vocab_size: int) -> list[int]:
    """Encode a text as the training data are encoded: `Excellent movie!` becomes 1, 321, 20."""
    shifted = (ranks.get(word, vocab_size) + SHIFT for word in tokenize(text))
    return [START, *(token if token < vocab_size else UNKNOWN for token in shifted)]


# Pretrained word vectors


@dataclass(frozen=True)
class WordVectors:
    """The vectors that a file contains for words of the vocabulary."""

    path: Path
    found: np.ndarray  # [num_found] int64, the words with a vector, as indices in the vocabulary
    vectors: np.ndarray  # [num_found, width] float32
    num_words: int  # the size of the vocabulary
    checksum: str  # as `vectors_checksum` returns it

    @property
    def title(self) -> str:
        """Return the file's name and the number of vocabulary words with a vector, in one line."""
        share = len(self.found) / self.num_words
        return f"{self.path.name}: {len(self.found):,} of {self.num_words:,} words ({share:.1%})"


def open_vectors(path: Path, words: Sequence[str], width: int) -> WordVectors:
    """Read the vectors of the vocabulary's words from a file.

    Args:
        path: a text file, perhaps compressed (`.gz` or `.zst`); each line contains a word and the
            numbers of its vector. Or a `.npy` file with an array `[words, width]`, beside a `.txt`
            file of the same name with a word in each line. If a word occurs twice, its first vector
            is used.
        words: the vocabulary.
        width: the dimension that the vectors should have.

    Raises:
        InputError: if the file can't be used; the message says where the error is and
            how to fix it.
    """
    with _reading(path):
        files = _files_of(path)
        pairs = dict((_from_text if len(files) == 1 else _from_array)(path, words, width))
        if not pairs:
            raise InputError(
                f"contains none of the {len(words):,} words of the vocabulary; choose another file"
            )
    # Computed last, so that a change of the file during the reading changes the checksum.
    checksum = vectors_checksum(path)
    return WordVectors(path, np.array([*pairs]), np.stack([*pairs.values()]), len(words), checksum)


def vectors_checksum(path: Path) -> str:
    """Return a checksum of word vectors: the sha256 of their file.

    For a `.npy` file, return the sha256 of the checksums of the `.npy` file and its `.txt` file.

    Raises:
        InputError: if a file is missing or can't be read.
    """
    with _reading(path):
        checksum, *others = map(sha256_of, _files_of(path))
    return hashlib.sha256(f"{checksum}{others[0]}".encode()).hexdigest() if others else checksum


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise an `InputError` that names the file of word vectors if the block can't read it."""
    with about(f"model.embeddings {path}"):
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError, EOFError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"can't be read ({said}); choose another file") from None


def _files_of(path: Path) -> list[Path]:
    if not is_file(path):
        raise InputError("is not a file; name a file of word vectors")
    if path.suffix != ".npy":
        return [path]
    words = path.with_suffix(".txt")
    if not is_file(words):
        raise InputError(
            f"needs {words.name} beside it; write the word of each row into that file, one word "
            "per line"
        )
    return [path, words]


def _from_text(path: Path, words: Sequence[str], width: int) -> Iterator[tuple[int, np.ndarray]]:
    numbers = {word.encode(): number for number, word in enumerate(words)}
    is_first = True
    with open_bytes(path) as file:
        for line_number, line in enumerate(file, 1):
            fields = line.rstrip().split(b" ")
            if line_number == 1 and len(fields) == 2 and all(map(bytes.isdigit, fields)):
                continue  # a word2vec file begins with the number of words and the dimension
            if len(fields) <= width or (is_first and len(fields) > width + 1):
                raise InputError(
                    f"line {line_number} has {len(fields) - 1:,} numbers after the word, but "
                    f"model.embedding_dim = {width}; set model.embedding_dim to the dimension of "
                    "the vectors, or choose another file"
                )
            is_first = False
            # If a later line has more fields, its word contains spaces. Skip such a line, because
            # words of the vocabulary never contain spaces. `pop` also skips later
            # vectors of the same word.
            if len(fields) == width + 1 and (number := numbers.pop(fields[0], None)) is not None:
                yield number, _finite(fields[1:], f"line {line_number}")


def _from_array(path: Path, words: Sequence[str], width: int) -> Iterator[tuple[int, np.ndarray]]:
    numbers = {word.encode(): number for number, word in enumerate(words)}
    array = np.lib.format.open_memmap(path, mode="r")  # refuses arrays of Python objects
    listed = read_plain_file(path.with_suffix(".txt")).splitlines()
    if array.shape != (len(listed), width) or array.dtype.kind != "f":
        raise InputError(
            f"has the shape {array.shape} and the type {array.dtype}, but should have "
            f"floats in {len(listed):,} rows (one for each word of its .txt file) and {width} "
            "columns (model.embedding_dim); correct the files or model.embedding_dim"
        )
    for row, word in enumerate(listed):
        if (number := numbers.pop(word, None)) is not None:
            yield number, _finite(array[row], f"row {row} (the first is row 0)")


def _finite(numbers: Sequence[bytes] | np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # float32 has no 1e39, which becomes infinity
        vector = np.array(numbers, np.float32)
    if not np.isfinite(vector).all():
        value = float(numbers[int(np.isfinite(vector).argmin())])
        raise InputError(
            f"{where} has the number {value}, which is not finite in float32; correct this vector, "
            "or choose another file"
        )
    return vector
