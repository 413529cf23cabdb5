"""Pretrained vectors of words, such as GloVe's: a text file, or an array next to a list of words.

Of a file of any size only the vectors of the words asked for are held.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import InputError
from harness.texts.stream import open_bytes

MAX_LINE_BYTES = 1_000_000
LARGEST = 1e6  # a number of a vector; pretrained ones are below a hundred


@dataclass(frozen=True)
class WordVectors:
    """The vectors that were found for some words."""

    path: Path
    found: np.ndarray  # [num_found] int64, numbers of words, from 0
    vectors: np.ndarray  # [num_found, width] float32
    num_words: int  # that were looked for
    checksum: str  # sha256 of the file, or of both files

    @property
    def title(self) -> str:
        """What was found, for a line."""
        share = len(self.found) / self.num_words
        return f"{self.path.name}: {len(self.found):,} of {self.num_words:,} words ({share:.1%})"


def open_vectors(path: Path, words: Sequence[str], width: int) -> WordVectors:
    """Read the vectors of some words.

    Args:
        path: a text file with a word and its numbers in each line, `.gz` and `.zst` too; or an
            array `[words, width]` in a `.npy` file, with the words in a `.txt` file of its name.
        words: to look for; of a word that occurs twice in the file the first vector counts.
        width: that the vectors should have.

    Raises:
        InputError: one line that names the file, the location in it, the rule and the remedy.
    """
    where = f"model.embeddings {path}: "
    files = [path, path.with_suffix(".txt")] if path.suffix == ".npy" else [path]
    for file in files:
        if not file.is_file():
            what = "no such file" if not file.exists() else "is no plain file"
            name = "" if file == path else f"the words should stand in {file.name}, one a line: "
            raise InputError(f"{where}{name}{what}; give the file of the vectors")
    numbers = {word.encode(): number for number, word in enumerate(words)}
    read = _from_array if path.suffix == ".npy" else _from_text
    try:
        pairs = dict(read(path, numbers, width, where=where))
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
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
    return WordVectors(path, np.array([*pairs]), vectors, len(words), digest.hexdigest())


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


def _from_array(
    path: Path, numbers: dict[bytes, int], width: int, *, where: str
) -> Iterator[tuple[int, np.ndarray]]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # never runs anything
    words = path.with_suffix(".txt").read_bytes().splitlines()
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{where}should be an array [words, width] of floats")
    if len(array) != len(words):
        raise InputError(
            f"{where}has {len(array):,} rows, {path.stem}.txt {len(words):,} words; give one each"
        )
    _check_width(array.shape[1], width, where)
    seen = set()
    for row, word in enumerate(words):
        number = numbers.get(word)
        if number is not None and number not in seen:
            seen.add(number)
            yield number, np.array(array[row], np.float32)


def _check_width(found: int, width: int, where: str) -> None:
    if found < 1:
        raise InputError(f"{where}should have a word and its numbers in each line")
    if found != width:
        raise InputError(
            f"{where}its vectors have {found:,} numbers, model.embedding_dim = {width}; set "
            f"model.embedding_dim to {found}"
        )
