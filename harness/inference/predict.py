"""Raw text to classes, by the model of a finished run. Input is checked before TensorFlow."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.data.dataset import CLASSES, by_class, vocab_from_bytes
from harness.data.vocabulary import encode_text, tokenize
from harness.errors import InputError
from harness.files.plain_file import read_plain_file
from harness.tracking.run_dir import RunDirectory

# The longest review of IMDB has 14,000 characters; a model reads a few hundred words of it.
MAX_CHARACTERS = 100_000
TEXTS_AT_ONCE = 1024
CHUNK_BYTES, MAX_BYTES = 1 << 20, 1_000_000_000


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one text."""

    text: str
    predicted: str  # the most probable class
    probabilities: Mapping[str, float]  # by class, in the order of the labels
    num_words: int
    num_unknown: int  # words that are not in the model's vocabulary

    @property
    def summary(self) -> str:
        """The class, and the probability that says how sure it is, with its name.

        Of two classes always that of label 1, so that the texts can be put in order.
        """
        names = [*self.probabilities]
        name = names[1] if len(names) == 2 else self.predicted
        return f"{self.predicted}, P({name}) = {self.probabilities[name]:.3f}"

    def as_json(self) -> dict[str, Any]:
        """What `harness predict --json` prints."""
        return {
            "text": self.text,
            "class": self.predicted,
            "probabilities": self.probabilities,
            "num_words": self.num_words,
            "num_unknown": self.num_unknown,
        }


def read_texts(path: Path) -> list[str]:
    """The lines of a UTF-8 file, each a text.

    Raises:
        InputError: if the file can't be read or is not UTF-8.
    """
    try:
        # A FIFO that nobody writes to reads as empty instead of waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "rb") as file:
            return split_lines(file, f"--file {path}")
    except OSError as error:
        raise InputError(f"--file {path}: can't be read: {error.strerror}") from None


def split_lines(file: BinaryIO, name: str) -> list[str]:
    """UTF-8 bytes to lines; a newline ends a line, and nothing else does.

    `str.splitlines` would also break at characters that occur inside reviews, such as \\x85.

    Raises:
        InputError: if it is not UTF-8, or too large.
    """
    content = file.read(CHUNK_BYTES)
    if b"\0" not in content:  # an endless device, or no text
        content += file.read(MAX_BYTES - CHUNK_BYTES + 1)
    if b"\0" in content:
        raise InputError(f"{name}: holds a NUL byte, which no text does; save it as UTF-8")
    if len(content) > MAX_BYTES:
        raise InputError(f"{name}: has over {MAX_BYTES:,} bytes; split it")
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    lines = [line.removesuffix("\r") for line in lines]
    return lines[:-1] if lines[-1] == "" else lines


def read_vocabulary(run: RunDirectory) -> list[str]:
    """The run's words, the most frequent first.

    Raises:
        InputError: if the file can't be read.
    """
    try:
        content = read_plain_file(run.path("vocabulary.txt"))
    except OSError as error:
        raise InputError(
            f"run {run.folder}: vocabulary.txt can't be read ({error.strerror}); train a new run"
        ) from None
    checksum = hashlib.sha256(content).hexdigest()
    if run.result().get("vocabulary_checksum", checksum) != checksum:  # old results have none
        raise InputError(
            f"run {run.folder}: vocabulary.txt is not the one that the model was trained with; put "
            "it back from a copy, or train a new run"
        )
    try:
        return vocab_from_bytes(content)
    except UnicodeDecodeError:
        raise InputError(
            f"run {run.folder}: vocabulary.txt is not UTF-8; put it back from a copy, or train a "
            "new run"
        ) from None


def check_texts(texts: Sequence[str]) -> None:
    """Refuse texts that are not reviews, before anything slow is done.

    Raises:
        InputError: for no text, one without words, or one of more than 100,000 characters.
    """
    if not texts:
        raise InputError("no text: give one as an argument, by --file, or on standard input")
    for number, text in enumerate(texts, 1):
        which = f"text {number}" if len(texts) > 1 else "the text"
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"{which} has {len(text):,} characters, should be at most {MAX_CHARACTERS:,}; cut "
                "it, the model reads only its last words"
            )
        if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{which} is not UTF-8; check your terminal's encoding")
        if not tokenize(text):
            raise InputError(f"{which} {text[:40]!r} holds no word; write one, or leave it out")


def predict(run: RunDirectory, texts: Sequence[str]) -> list[Prediction]:
    """The class of each text, encoded as the run's training data was.

    Raises:
        InputError: for a text that `check_texts` refuses, or an unfinished run.
    """
    check_texts(texts)
    # Outside any strategy: a model in a scope can't predict fewer texts than replicas.
    from harness.inference.model_file import load_model

    model = load_model(run)
    data = run.job().data
    classes = run.result().get("classes", CLASSES)  # old results have none
    ranks = {word: rank for rank, word in enumerate(read_vocabulary(run), 1)}
    encoded = [encode_text(text, ranks, data.vocab_size) for text in texts]
    padded = np.zeros([len(texts), data.maxlen], np.int32)
    for row, tokens in zip(padded, encoded, strict=True):
        tail = tokens[-data.maxlen :]
        row[len(row) - len(tail) :] = tail
    # Not `predict`, which builds a tf.data pipeline: too slow for a handful of texts.
    chunks = range(0, len(padded), TEXTS_AT_ONCE)
    probabilities = by_class(
        np.concatenate([model.predict_on_batch(padded[i : i + TEXTS_AT_ONCE]) for i in chunks])
    )
    if probabilities.shape[1] != len(classes):
        raise InputError(
            f"run {run.folder}: its model tells {probabilities.shape[1]} classes apart, "
            f"result.json names {len(classes)}; put back the file that is not this run's"
        )
    return [
        Prediction(
            text=text,
            predicted=classes[int(row.argmax())],
            probabilities=dict(zip(classes, row.tolist(), strict=True)),
            num_words=len(tokens) - 1,
            num_unknown=tokens.count(2),
        )
        for text, tokens, row in zip(texts, encoded, probabilities, strict=True)
    ]
