"""A user's texts as a stream: unpacked, decoded, by line."""

import codecs
import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from harness.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_ROW = 16_000_000  # bytes or characters of a text


def open_bytes(path: Path, where: str) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz or .zst, as a stream.

    Args:
        where: begins the message of an error.

    Raises:
        InputError: if it can't be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{where}can't be read ({error.strerror}); check its mode") from None
    if not (packed := COMPRESSIONS.get(path.suffix.lower())):
        return file
    import pyarrow  # late: it takes a tenth of a second, and most commands read no own texts

    stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), packed)
    return io.BufferedReader(stream)


def open_text(path: Path, where: str, encoding: str) -> TextIO:
    """The characters of a file as `open_bytes` gives it, its line ends as they are.

    Raises:
        InputError: as `open_bytes`.
    """
    is_utf8 = codecs.lookup(encoding).name == "utf-8"  # a byte order mark is no character
    return io.TextIOWrapper(
        open_bytes(path, where), "utf-8-sig" if is_utf8 else encoding, newline=""
    )


def numbered_lines(file: TextIO, where: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, also those that a carriage return alone ends.

    Raises:
        InputError: for a line that is too long or can't be decoded, and where it is.
    """
    number = 0
    lines = iter(partial(file.readline, MAX_ROW + 1), "")
    try:
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_ROW:
                raise InputError(
                    f"{where}line {number} has over {MAX_ROW:,} characters; end each row by "
                    "a newline"
                )
            yield number, line
    except UnicodeError:
        # Several lines are decoded at a time.
        raise InputError(
            f"{where}line {number + 1}, or one soon after it, {undecoded(file)}"
        ) from None


def undecoded(file: TextIO) -> str:
    """What is wrong with characters that can't be decoded, and the remedy."""
    encoding = file.encoding.removesuffix("-sig").upper()
    return f"is not {encoding}; save it as UTF-8, or name its encoding in data.encoding"


def csv_rows(file: TextIO, where: str, *, delimiter: str) -> Iterator[list[str]]:
    """The rows of CSV that are not blank.

    Raises:
        InputError: for a row that a text's own double quote joined with the lines behind it, with
            the line at which it begins; as `numbered_lines`.
    """
    lines: list[str] = []  # of the row

    def seen() -> Iterator[str]:
        for _, line in numbered_lines(file, where):
            lines.append(line)
            yield line

    csv.field_size_limit(MAX_ROW)
    rows = csv.reader(seen(), delimiter=delimiter)
    try:
        for row in rows:
            if row:
                yield row
            if len(lines) > 1:
                deque(csv.reader(lines, delimiter=delimiter, strict=True), 0)
            lines.clear()
    except csv.Error:
        raise InputError(
            f"{where}the row of line {rows.line_num - len(lines) + 1} has a double quote that "
            f"joins it with the next {len(lines) - 1:,} lines; put a text that begins with a "
            "double quote into double quotes, and double those in it"
        ) from None


def json_lines(file: TextIO, where: str) -> Iterator[tuple[int, Any]]:
    """The JSON value of each line that is not blank, with the number of the line.

    Raises:
        InputError: for a line that is not JSON, and its number; as `numbered_lines`.
    """
    for number, line in numbered_lines(file, where):
        if line.strip():
            yield number, json_value(line, f"{where}line {number}")


def json_value(line: str, where: str) -> Any:
    """The value of a line.

    Raises:
        InputError: if it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON ({error}); write one value in each line") from None
