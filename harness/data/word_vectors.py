"""Reads pretrained word vectors, such as GloVe's, from a text file of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from harness.architectures import MAX_DIM
from harness.data.tables import open_bytes
from harness.errors import InputError
from harness.system.files import is_file, sha256_of

MAX_LINE_BYTES = 1_000_000
LARGEST = 1e6  # the largest absolute value allowed in a vector; pretrained vectors stay below 100


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
    """Read the vectors of the given words from a file.

    Args:
        path: a text file, perhaps compressed (`.gz` or `.zst`); each line contains a word and the
            numbers of its vector. If a word occurs twice, its first vector is used.
        words: the vocabulary.
        width: the dimension that the vectors should have.

    Raises:
        InputError: if the file can't be used; the message says where the error is and
            how to fix it.
    """
    where = f"model.embeddings {path}: "
    if not is_file(path):
        raise InputError(f"{where}is not a file; name a file of word vectors")
    numbers = {word.encode(): number for number, word in enumerate(words)}
    try:
        pairs = dict(_from_text(path, numbers, width, where=where))
        checksum = sha256_of(path)
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{where}can't be read ({said}); check its permissions and content"
        ) from None
    if not pairs:
        raise InputError(
            f"{where}contains none of the {len(words):,} words of the vocabulary; name another file"
        )
    vectors = np.stack([*pairs.values()])
    is_bad = ~(np.abs(vectors) <= LARGEST).all(axis=1)
    if is_bad.any():
        word = words[[*pairs][int(is_bad.argmax())]]
        raise InputError(
            f"{where}the vector of {word!r} should consist of finite numbers from -{LARGEST:,.0f} "
            f"to {LARGEST:,.0f}; remove the line of this word"
        )
    return WordVectors(path, np.array([*pairs]), vectors, len(words), checksum)


def _from_text(
    path: Path, numbers: dict[bytes, int], width: int, *, where: str
) -> Iterator[tuple[int, np.ndarray]]:
    seen = set()
    with open_bytes(path) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), 1):
            fields = line.rstrip().split(b" ")
            if number == 1:
                # The first line of a word2vec file is the number of words and the dimension.
                is_header = len(fields) == 2 and all(map(bytes.isdigit, fields))
                dimension = int(fields[1]) if is_header else len(fields) - 1
                if dimension != width:
                    remedy = f"set model.embedding_dim = {dimension}"
                    if not dimension:
                        remedy = "write a space between a word and each of its numbers"
                    elif dimension > MAX_DIM:
                        remedy = f"shorten the vectors to at most {MAX_DIM:,} numbers"
                    raise InputError(
                        f"{where}has vectors of {dimension:,} numbers, but model.embedding_dim = "
                        f"{width}; {remedy}, or name another file"
                    )
                if is_header:
                    continue
            word = numbers.get(fields[0])
            if len(fields) <= width or len(line) == MAX_LINE_BYTES:
                raise InputError(
                    f"{where}line {number} has {len(fields) - 1} numbers, but should have a word "
                    f"and {width} numbers; correct or remove the line"
                )
            # If a line has more fields, its word contains spaces. Skip such a line, because words
            # of the vocabulary never contain spaces.
            if word is None or word in seen or len(fields) > width + 1:
                continue
            seen.add(word)
            try:
                yield word, np.array(fields[1:], np.float32)
            except ValueError:
                raise InputError(
                    f"{where}line {number} should be a word and numbers; correct or remove the line"
                ) from None
