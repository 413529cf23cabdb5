"""The bytes of a user's texts as a stream: unpacked, and in UTF-8."""

import codecs
import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_ROW_BYTES = 16_000_000


def open_bytes(path: Path, where: str, encoding: str = "utf-8") -> BinaryIO:
    """The bytes of a file in UTF-8, unpacked where its name ends in .gz or .zst, as a stream.

    Args:
        where: begins the message of an error.

    Raises:
        InputError: if it can't be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{where}can't be read ({error.strerror}); check its mode") from None
    packed = COMPRESSIONS.get(path.suffix.lower())
    is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    if not packed and is_utf8:
        return file
    pa = import_pyarrow(where)
    stream: Any = pa.PythonFile(file, mode="r")
    if packed:
        stream = pa.CompressedInputStream(stream, packed)
    if not is_utf8:
        stream = pa.transcoding_input_stream(stream, encoding, "utf-8")
    return io.BufferedReader(stream)


def import_pyarrow(where: str) -> Any:
    """Import pyarrow, late: it takes a tenth of a second, and most commands read no own texts.

    Raises:
        InputError: if the environment is older than the code and lacks it.
    """
    try:
        import pyarrow
    except ImportError:
        raise InputError(
            f"{where}needs the package pyarrow, which this environment lacks; install "
            "requirements.lock again (bash slurm/common.sh --setup)"
        ) from None
    return pyarrow


def decoded_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """The lines of UTF-8 with their numbers, ended as they are: by a carriage return alone too.

    Raises:
        InputError: for a line that is too long or is not UTF-8, with its number.
    """
    # What separates lines is the same in Latin-1, which any bytes are: so the line is known that
    # can't be decoded.
    text = io.TextIOWrapper(file, "latin-1", newline="")
    lines = iter(partial(text.readline, MAX_ROW_BYTES + 1), "")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_ROW_BYTES:
            raise InputError(
                f"{where}line {number} has over {MAX_ROW_BYTES:,} bytes; end each row by a newline"
            )
        try:
            yield number, line.encode("latin-1").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{where}line {number} is not UTF-8; save it as UTF-8, or name its encoding in "
                "data.encoding"
            ) from None


def csv_rows(file: BinaryIO, where: str, *, delimiter: str) -> Iterator[list[str]]:
    """The rows of CSV that are not blank.

    Raises:
        InputError: for a row that a text's own double quote joined with the lines behind it, with
            the line at which it begins; as `decoded_lines`.
    """
    lines: list[str] = []  # of the row

    def seen() -> Iterator[str]:
        for _, line in decoded_lines(file, where):
            lines.append(line)
            yield line

    csv.field_size_limit(MAX_ROW_BYTES)
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


def json_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, Any]]:
    """The JSON value of each line that is not blank, with the number of the line.

    Raises:
        InputError: for a line that is not JSON, and its number; as `decoded_lines`.
    """
    for number, line in decoded_lines(file, where):
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
