"""Pretrained word vectors are read, or refused in one line."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from harness.data.vocabulary import open_vectors, vectors_checksum
from harness.errors import InputError

WORDS = ["the", "film", "é", "unheard"]
TEXT = "film 1 2 3\nthe 0.5 -1e-3 4\nfilm 9 9 9\na b 7 7 7\né 5 6 7\n"


@pytest.mark.parametrize("form", ["plain", "word2vec", "gzip", "array"])
def test_the_vectors_of_the_words_are_found(tmp_path: Path, form: str) -> None:
    """A text file may have a header or be compressed; an array has its words in another file."""
    path = tmp_path / "vectors.txt"
    path.write_text(("5 3\n" if form == "word2vec" else "") + TEXT)
    if form == "gzip":
        path = tmp_path / "vectors.txt.gz"
        path.write_bytes(gzip.compress(TEXT.encode()))
    if form == "array":
        path.write_text("film\nthe\nfilm\né\n")
        path = tmp_path / "vectors.npy"
        np.save(path, np.array([[1, 2, 3], [0.5, -1e-3, 4], [9, 9, 9], [5, 6, 7]]))
    found = open_vectors(path, WORDS, 3)
    vectors = dict(zip(found.found.tolist(), found.vectors.tolist(), strict=True))
    assert vectors == {1: [1, 2, 3], 0: [0.5, np.float32(-1e-3), 4], 2: [5, 6, 7]}
    assert found.vectors.dtype == np.float32
    assert found.title == f"{path.name}: 3 of 4 words (75.0%)"
    if form == "array":
        path.with_suffix(".txt").write_text("film\nthe\nthe\né\n")
    else:
        path.write_bytes(gzip.compress(b"the 1 2 3") if form == "gzip" else b"the 1 2 3")
    assert open_vectors(path, WORDS, 3).checksum == vectors_checksum(path) != found.checksum


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"the 1 2\n", "line 1 has 2 numbers after the word, but model.embedding_dim = 3; set"),
        (b"9 4\nthe 1 2 3 4\n", "line 2 has 4 numbers"),
        (b"the 1 2 3\nfilm 1 2\n", "line 2 has 2 numbers"),
        (b"the 1 2 x\n", "can't be read .*'x'"),
        (b"other 1 2 3\n", "contains none of the 4 words"),
        (b"the 1 2 3\nfilm 1 nan 3\n", "line 2 has the number nan, which is not finite in float32"),
        (b"the 1e39 2 3\n", r"line 1 has the number 1e\+39, .*; correct this vector, or choose"),
    ],
)
def test_a_bad_text_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """The line names the file, the location, the rule and the remedy."""
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^model.embeddings {re.escape(str(path))}: .*{said}.*$"):
        open_vectors(path, WORDS, 3)


def test_a_bad_array_is_refused(tmp_path: Path) -> None:
    """Objects are never unpickled. The array has a row for each word of the other file."""
    path = tmp_path / "vectors.npy"
    np.save(path, np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"needs vectors\.txt beside it"):
        open_vectors(path, WORDS, 3)
    path.with_suffix(".txt").write_text("the\nfilm\n")
    for array, said in (
        (np.array([["a"], [None]], object), "can't be read"),
        (np.zeros((2, 3), np.int32), r"the shape \(2, 3\) and the type int32, but"),
        (np.zeros((2, 4)), r"3 columns \(model.embedding_dim\)"),
        (np.zeros((3, 3)), r"2 rows \(one for each word"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(InputError, match=said):
            open_vectors(path, WORDS, 3)
    np.save(path, np.array([[0, 0, 0], [0, -np.inf, 0]]))
    with pytest.raises(InputError, match=r"row 1 \(the first is row 0\) has the number -inf"):
        open_vectors(path, WORDS, 3)


def test_numbers_of_unused_words_need_not_be_finite(tmp_path: Path) -> None:
    """Words outside the vocabulary and second vectors of a word are skipped."""
    path = tmp_path / "vectors.txt"
    path.write_text("other nan 2 3\nthe 1 2 3\nthe inf 2 3\n")
    assert open_vectors(path, WORDS, 3).vectors.tolist() == [[1, 2, 3]]
    path.write_text("other\nthe\nthe\n")
    np.save(path.with_suffix(".npy"), np.array([[np.nan, 2, 3], [1, 2, 3], [np.inf, 2, 3]]))
    assert open_vectors(path.with_suffix(".npy"), WORDS, 3).vectors.tolist() == [[1, 2, 3]]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A folder and a name that is too long are refused, too."""
    for path in (tmp_path / "vectors.txt", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="is not a file; name a file of word vectors"):
            open_vectors(path, WORDS, 3)
