"""Reads pretrained word vectors, such as GloVe's, from a text file of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.tables import open_bytes
from harness.errors import InputError, about
from harness.system.files import is_file, sha256_of


@dataclass(frozen=True)
class WordVectors:
    """The vectors that a file contains for words of the vocabulary."""

    path: Path
    found: np.ndarray  # [num_found] int64, the words with a vector, as indices in the vocabulary
    vectors: np.ndarray  # [num_found, width] float32
    num_words: int  # the size of the vocabulary
    checksum: str  # the sha256 of the file

    @property
    def title(self) -> str:
        """Return the file's name and the number of vocabulary words with a vector, in one line."""
        share = len(self.found) / self.num_words
        return f"{self.path.name}: {len(self.found):,} of {self.num_words:,} words ({share:.1%})"


def open_vectors(path: Path, words: Sequence[str], width: int) -> WordVectors:
    """Read the vectors of the vocabulary's words from a file.

    Args:
        path: a text file, perhaps compressed (`.gz` or `.zst`); each line contains a word and the
            numbers of its vector. If a word occurs twice, its first vector is used.
        words: the vocabulary.
        width: the dimension that the vectors should have.

    Raises:
        InputError: if the file can't be used; the message says where the error is and
            how to fix it.
    """
    with about(f"model.embeddings {path}"):
        if not is_file(path):
            raise InputError("is not a file; name a file of word vectors")
        try:
            pairs = dict(_from_text(path, words, width))
            checksum = sha256_of(path)
        except InputError:
            raise
        except (OSError, ValueError, EOFError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"can't be read ({said}); name another file") from None
        if not pairs:
            raise InputError(
                f"contains none of the {len(words):,} words of the vocabulary; name another file"
            )
    return WordVectors(path, np.array([*pairs]), np.stack([*pairs.values()]), len(words), checksum)


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
                    "the vectors, or name another file"
                )
            is_first = False
            # If a later line has more fields, its word contains spaces. Skip such a line, because
            # words of the vocabulary never contain spaces. `pop` also skips later
            # vectors of the same word.
            if len(fields) == width + 1 and (number := numbers.pop(fields[0], None)) is not None:
                yield number, np.array(fields[1:], np.float32)
