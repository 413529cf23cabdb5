"""Classifies raw text with the model of a finished run; checks texts before TensorFlow starts."""

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.compute.execution_plan import ExecutionPlan
from harness.data.dataset import by_class, vocab_from_bytes
from harness.data.ngrams import MAX_BYTES, NgramRatios
from harness.data.tables import json_value
from harness.data.vocabulary import MAX_CHARACTERS, START, UNKNOWN, encode_text, tokenize
from harness.errors import InputError
from harness.system.files import raise_unless_missing, read_plain_file
from harness.tracking.run_dir import CHECKSUMS, RATIOS_FILE, RunDirectory

CHUNK_BYTES = 1 << 18  # about 200 reviews
MAX_LINE_BYTES = 1 << 24  # longer lines would use too much memory
JSON_LINES = (".jsonl", ".ndjson")
TEXTS_AT_ONCE = 64  # number of texts in a batch; empty texts fill up a smaller batch


class Line(NamedTuple):
    """A text and the number of its line."""

    number: int  # counted from 1
    text: str


@dataclass
class Remarks:
    """Counts blank and cut texts, for warnings at the end."""

    num_blank: int = 0
    num_cut: int = 0

    def lines(self) -> Iterator[str]:
        """Yield a warning about blank texts and one about cut texts, if there are any."""
        if self.num_blank:
            yield f"skipped lines without a word: {self.num_blank:,}"
        if self.num_cut:
            yield f"texts cut to their last {MAX_CHARACTERS:,} characters: {self.num_cut:,}"

    def checked(self, text: str) -> str | None:
        """Return a text, cut to its last MAX_CHARACTERS; return None if it contains no word."""
        if len(text) > MAX_CHARACTERS:
            text = text[-MAX_CHARACTERS:]
            self.num_cut += 1
        if tokenize(text):
            return text
        self.num_blank += 1
        return None


def open_lines(path: Path) -> BufferedReader:
    """Open a file of texts.

    Raises:
        InputError: if the file can't be read, or is a JSON file.
    """
    if path.suffix.lower() == ".json":
        raise InputError(
            f"--file {path}: is JSON, but should have one text per line; if the file contains JSON "
            "lines, rename it to .jsonl"
        )
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"--file {path}: can't be read: {error.strerror}; choose another file"
        ) from None


def read_lines(
    file: BufferedReader, name: str, remarks: Remarks, *, is_json: bool
) -> Iterator[list[Line]]:
    """Read a UTF-8 file, and yield its lines in lists; skip lines without words.

    The file is read in parts; after each part, the complete lines so far are yielded as a list.

    Only a newline ends a line. `str.splitlines` is not used, because it also splits at characters
    that occur inside reviews, such as \\x85.

    Args:
        file: the file to read.
        name: the file's name, for messages.
        remarks: the counts of blank and cut texts, which are updated.
        is_json: whether each line is JSON, either a string or an object with the key `text`.

    Raises:
        InputError: if a line is too long or is not text; all earlier lines are yielded first.
    """
    number, rest = 0, b""
    while True:
        try:
            chunk = file.read1(CHUNK_BYTES)
        except OSError as error:
            raise InputError(f"{name}: can't be read: {error.strerror}") from None
        *whole, rest = (rest + chunk).split(b"\n") if chunk else ([rest, b""] if rest else [b""])
        lines = []
        try:
            for raw in whole:
                number += 1
                text = remarks.checked(_text(raw, f"{name}: line {number}", is_json=is_json))
                if text is not None:
                    lines.append(Line(number, text))
        finally:
            if lines:
                yield lines
        if len(rest) > MAX_LINE_BYTES:
            raise InputError(
                f"{name}: line {number + 1} is longer than {MAX_LINE_BYTES:,} bytes; "
                "choose a file with a text in each line"
            )
        if not chunk:
            return


def _text(raw: bytes, where: str, *, is_json: bool) -> str:
    # The text may be UTF-16. Decoding UTF-16 as UTF-8 may succeed, but gives only unknown words.
    if b"\0" in raw:
        raise InputError(f"{where} contains a NUL byte, as UTF-16 does; save the text as UTF-8")
    try:
        line = raw.removeprefix(codecs.BOM_UTF8).decode().removesuffix("\r")
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8; save the text as UTF-8") from None
    if not is_json or not line.strip():
        return line
    value = json_value(line, where)
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f'{where} is not a text; write "…" or {{"text": "…"}} in each line')
    return text


# Reading files of a run


def read_kept(run: RunDirectory, name: str) -> bytes:
    """Read a file of a finished run and compare its checksum with the one in `result.json`.

    Args:
        run: the run.
        name: the file's name, a key of `CHECKSUMS`.

    Raises:
        InputError: if the file is missing, or does not have the checksum in `result.json`.
        DiskError: if reading the disk fails.
    """
    try:
        content = read_plain_file(path := run.path(name), MAX_BYTES)
    except OSError as error:
        raise_unless_missing(error, path)
        raise InputError(
            f"run {run.folder}: {name} can't be read ({error.strerror}); train a new run"
        ) from None
    if run.result().get(CHECKSUMS[name]) != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"run {run.folder}: {name} has changed since the training; restore it from a copy, or "
            "train a new run"
        )
    return content


def read_ratios(run: RunDirectory) -> NgramRatios | None:
    """Read the n-gram ratios of a finished run; return None if its network uses none.

    Raises:
        InputError: if the file is missing or has changed.
        DiskError: if reading the disk fails.
    """
    if not run.job().model.ngram_ratios:
        return None
    return NgramRatios.from_bytes(read_kept(run, RATIOS_FILE))


# Classifying texts


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one text."""

    text: str
    predicted: str  # the most probable class
    probabilities: Mapping[str, float]  # each class's probability, in the order of the labels
    num_words: int
    num_unknown: int  # number of words that are not in the model's vocabulary

    @property
    def summary(self) -> str:
        """Return the predicted class and a probability, such as `neg, P(pos) = 0.031`.

        With two classes, the probability is always that of label 1, so a user can sort texts by the
        probability. With three or more classes, the probability is that of the predicted
        class.
        """
        names = [*self.probabilities]
        name = names[1] if len(names) == 2 else self.predicted
        return f"{self.predicted}, P({name}) = {self.probabilities[name]:.3f}"

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as `harness predict --json` prints it."""
        return {
            "text": self.text,
            "class": self.predicted,
            "probabilities": self.probabilities,
            "num_words": self.num_words,
            "num_unknown": self.num_unknown,
        }


def read_vocabulary(run: RunDirectory) -> list[str]:
    """Read the run's vocabulary, the most frequent word first.

    Raises:
        InputError: if the file is missing or has changed.
        DiskError: if reading the disk fails.
    """
    return vocab_from_bytes(read_kept(run, "vocabulary.txt"))


def check_texts(texts: Sequence[str]) -> list[str]:
    """Check texts before TensorFlow starts; cut long texts to their last MAX_CHARACTERS.

    Raises:
        InputError: if there are no texts, or if a text is not a string or contains no word.
    """
    if not texts:
        raise InputError("texts = []: should be a string, or a list of at least one string")
    remarks = Remarks()
    kept = []
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(f"text {number} = {repr(text)[:40]}: should be a string")
        cut = remarks.checked(text)
        if cut is None:
            raise InputError(
                f"text {number} {text[:40]!r} contains no word; write a word, or leave out the text"
            )
        kept.append(cut)
    return kept


class Classifier:
    """Classifies texts with the model of a finished run; each text must contain a word.

    Raises:
        InputError: if the run is unfinished, or one of its files is broken.
    """

    def __init__(self, run: RunDirectory) -> None:
        from harness.compute.evaluator import Evaluator
        from harness.compute.strategy import one_device
        from harness.inference.model_file import load_model

        job, model = run.job(), load_model(run)
        self.vocab_size, self.classes = job.data.vocab_size, run.result()["classes"]
        self.ranks = {word: rank for rank, word in enumerate(read_vocabulary(run), 1)}
        self.ratios = read_ratios(run)
        plan = ExecutionPlan("keras", 1)
        self.evaluator = Evaluator(model, one_device(), job, plan, num_rows=TEXTS_AT_ONCE)
        self._probabilities([[START]])  # TensorFlow traces the network here, before texts arrive

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Predict the class of each text."""
        encoded = [encode_text(text, self.ranks, self.vocab_size) for text in texts]
        return [
            Prediction(
                text=text,
                predicted=self.classes[int(row.argmax())],
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
                num_words=len(tokens) - 1,
                num_unknown=tokens.count(UNKNOWN),
            )
            for text, tokens, row in zip(texts, encoded, self._probabilities(encoded), strict=True)
        ]

    def _probabilities(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        """Compute the probability of each class for encoded texts, `[num_texts, num_classes]`."""
        from harness.data.input_pipeline import Reviews

        tokens = np.concatenate(encoded).astype(np.int32)
        offsets = np.cumsum([0, *map(len, encoded)])
        reviews = Reviews(tokens, offsets, np.zeros(len(encoded), np.int32))
        if self.ratios:
            reviews = replace(reviews, ratios=self.ratios.at_words(reviews.words()))
        return by_class(self.evaluator.probabilities(reviews))
