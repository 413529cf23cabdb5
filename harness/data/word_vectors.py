"""Pretrained vectors of words, such as GloVe's, from a text file.

Of a file of any size only the vectors of the words asked for are held.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.tables import open_bytes
from harness.errors import InputError

MAX_LINE_BYTES = 1_000_000
LARGEST = 1e6  # a number of a vector; pretrained ones are below a hundred


@dataclass(frozen=True)
class WordVectors:
    """The vectors of those words that the file has."""

    path: Path
    found: np.ndarray  # [num_found] int64, numbers of words, from 0
    vectors: np.ndarray  # [num_found, width] float32
    num_words: int  # that were looked for
    checksum: str  # sha256 of the file

    @property
    def title(self) -> str:
        """The file and its share of the words, for a line."""
        share = len(self.found) / self.num_words
        return f"{self.path.name}: {len(self.found):,} of {self.num_words:,} words ({share:.1%})"


def open_vectors(path: Path, words: Sequence[str], width: int) -> WordVectors:
    """Read the vectors of some words.

    Args:
        path: a text file with a word and its numbers in each line, `.gz` and `.zst` too.
        words: to look for; of a word that occurs twice in the file the first vector counts.
        width: that the vectors should have.

    Raises:
        InputError: one line that names the file, the location in it, the rule and the remedy.
    """
    where = f"model.embeddings {path}: "
    if not path.is_file():
        what = "no such file" if not path.exists() else "is no plain file"
        raise InputError(f"{where}{what}; give the file of the vectors")
    numbers = {word.encode(): number for number, word in enumerate(words)}
    try:
        pairs = dict(_from_text(path, numbers, width, where=where))
        with path.open("rb") as content:
            checksum = hashlib.file_digest(content, "sha256").hexdigest()
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{where}can't be read ({' '.join(str(error).split())[:200]})") from None
    if not pairs:
        raise InputError(f"{where}has none of the {len(words):,} words; give vectors of their form")
    vectors = np.stack([*pairs.values()])
    is_bad = ~(np.abs(vectors) <= LARGEST).all(axis=1)
    if is_bad.any():
        word = words[[*pairs][int(is_bad.argmax())]]
        raise InputError(
            f"{where}the vector of {word!r} holds a number that is not finite or above "
            f"{LARGEST:,.0f}; take it out"
        )
    return WordVectors(path, np.array([*pairs]), vectors, len(words), checksum)


def _from_text(
    path: Path, numbers: dict[bytes, int], width: int, *, where: str
) -> Iterator[tuple[int, np.ndarray]]:
    seen = set()
    with open_bytes(path, where) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            fields = line.rstrip().split(b" ")
            if number == 1 and len(fields) == 2 and all(map(bytes.isdigit, fields)):
                fields = [b"", *[b""] * int(fields[1])]  # word2vec's header: words and width
            if number == 1:
                _check_width(len(fields) - 1, width, where)
            word = numbers.get(fields[0])
            if len(fields) <= width or len(line) == MAX_LINE_BYTES:
                raise InputError(
                    f"{where}line {number} has {len(fields) - 1} numbers, the first one {width}; "
                    "each line should be a word and its numbers"
                )
            if word is None or word in seen or len(fields) > width + 1:  # a word with spaces
                continue
            seen.add(word)
            try:
                yield word, np.array(fields[1:], np.float32)
            except ValueError:
                raise InputError(f"{where}line {number} is no word with its numbers") from None


def _check_width(found: int, width: int, where: str) -> None:
    if found < 1:
        raise InputError(f"{where}should have a word and its numbers in each line")
    if found != width:
        raise InputError(
            f"{where}its vectors have {found:,} numbers, model.embedding_dim = {width}; set "
            f"model.embedding_dim to {found}"
        )
