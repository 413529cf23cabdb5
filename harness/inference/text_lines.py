"""Texts to classify, line by line as they arrive: from standard input, a file, or JSON lines."""

import codecs
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harness.data.vocabulary import MAX_CHARACTERS, tokenize
from harness.errors import InputError
from harness.texts.stream import MAX_ROW, json_value

CHUNK_BYTES = 1 << 20
JSON_LINES = (".jsonl", ".ndjson")
SHOWN = 5  # numbers of lines in a note


class Line(NamedTuple):
    """A text and where it stands."""

    number: int  # from 1
    text: str


@dataclass
class Remarks:
    """What was not as it should be, to be said at the end."""

    num_blank: int = 0
    first_blank: list[int] = field(default_factory=list)
    num_cut: int = 0

    def lines(self) -> Iterator[str]:
        """A line for each kind."""
        if self.num_blank:
            numbers = ", ".join(map(str, self.first_blank))
            more = ", …" if self.num_blank > len(self.first_blank) else ""
            yield f"no answer to {self.num_blank:,} lines without a word: line {numbers}{more}"
        if self.num_cut:
            yield f"{self.num_cut:,} texts were cut to their last {MAX_CHARACTERS:,} characters"


def open_lines(path: Path) -> BufferedReader:
    """Open a file of texts.

    Raises:
        InputError: if it can't be read, or is no file of lines.
    """
    if path.suffix.lower() == ".json":
        raise InputError(
            f"--file {path}: is JSON, and a file of texts has one on each line; write them as JSON "
            "lines into a .jsonl file, or give --jsonl and a file of another ending"
        )
    try:
        # A FIFO that nobody writes to reads as empty instead of waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise InputError(f"--file {path}: can't be read: {error.strerror}") from None


def has_input(file: BinaryIO) -> bool:
    """Whether there is something to read now, or nothing any more."""
    try:
        return bool(select.select([file], [], [], 0)[0])
    except (OSError, ValueError):  # not a file of the system, as in a notebook
        return True


def read_lines(
    file: BufferedReader, name: str, remarks: Remarks, *, is_json: bool = False
) -> Iterator[list[Line]]:
    """The lines of UTF-8 bytes that hold words, in lists of those that arrive together.

    A newline ends a line, and nothing else does: `str.splitlines` would also break at characters
    that occur inside reviews, such as \\x85.

    Args:
        file: is read as far as it can be without waiting.
        name: of the file, for messages.
        remarks: counts what gets no answer, and what is cut.
        is_json: each line is JSON: a string, or an object with a `text`.

    Raises:
        InputError: for a line that is no text, after the lines before it.
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
                whole_text = _text(raw, f"{name}: line {number}", is_json=is_json)
                if (text := checked(whole_text, number, remarks)) is not None:
                    lines.append(Line(number, text))
            if b"\0" in rest or len(rest) > MAX_ROW:  # an endless device, or no text
                _text(rest, f"{name}: line {number + 1}", is_json=is_json)
        finally:
            if lines:
                yield lines
        if not chunk:
            return


def _text(raw: bytes, where: str, *, is_json: bool) -> str:
    if b"\0" in raw:
        raise InputError(f"{where} holds a NUL byte, which no text does; save it as UTF-8")
    if len(raw) > MAX_ROW:
        raise InputError(f"{where} has over {MAX_ROW:,} bytes; put each text into a line")
    try:
        line = raw.removeprefix(codecs.BOM_UTF8).decode().removesuffix("\r")
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8; save it as UTF-8") from None
    if not is_json or not line.strip():
        return line
    value = json_value(line, where)
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f'{where} is no text; write "…" or {{"text": "…"}} in each line')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a character; take it out") from None
    return text


def checked(text: str, number: int, remarks: Remarks) -> str | None:
    """A text as it is classified, cut where it is too long; None if it holds no word.

    Raises:
        InputError: if it can't be encoded.
    """
    if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"text {number} is not UTF-8; check your terminal's encoding")
    if len(text) > MAX_CHARACTERS:
        text = text[-MAX_CHARACTERS:]
        remarks.num_cut += 1
    if tokenize(text):
        return text
    remarks.num_blank += 1
    if len(remarks.first_blank) < SHOWN:
        remarks.first_blank.append(number)
    return None
